"""Typed hyper-parameters: what a YAML file declares, and how a value from a file or a cell's name is checked."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from depoison.errors import DepoisonError

_NUMBER = re.compile(r" *[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)? *")
_LARGEST = 10**9
"""Of an integer whose range has no end: more is a slip of the keyboard, and from 2⁵³ on no longer read exactly."""

_INTERVAL = re.compile(r"^([\[(])\s*([^,\s]+)\s*,\s*([^,\s]+)\s*([\])])$")


class Parameter(BaseModel):
    """One hyper-parameter of a method.

    Attributes:
        type: what a value is; `floats` is a list of numbers, `picture` one of the choices, which our code makes, or the
            stem of a file in config/triggers/, whose content goes into the spec; `model` one of the choices, or the name of
            the model that the attack's asset is, with that model's values on the cell's track and dataset.
        default: the value where nothing else sets one; a shared hyper-parameter has none, and takes it from a file's section.
        neutral: the value at which it changes nothing, which is in no spec: the code takes it by default. A shared one has it
            where no file has another.
        range: the valid interval in the usual notation, such as "(0, 1]" or "[0, inf)"; for `floats`, of each number.
        choices: the valid values, where there are few.
        optional: whether "none" is valid.
        patch: whether it is the side, in pixels, of what must fit into the image.
        budget: whether a track may set it, as it may epochs.
        source: where in which paper the default stands.
        help: one line on what it does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["float", "int", "bool", "str", "floats", "picture", "model"]
    default: Any = None
    neutral: Any = None
    range: str | None = None
    choices: tuple[Any, ...] | None = None
    optional: bool = False
    patch: bool = False
    budget: bool = False
    source: str = ""
    help: str

    @field_validator("range")
    @classmethod
    def _interval_is_well_formed(cls, text: str | None) -> str | None:
        if text is not None:
            _bounds(text)
        return text

    @model_validator(mode="before")
    @classmethod
    def _neutral_is_canonical(cls, data: Any) -> Any:
        """As `check` returns it, so that it equals what a file or a cell's name says."""
        if isinstance(data, dict) and "neutral" in data:
            parameter = cls.model_validate({key: value for key, value in data.items() if key != "neutral"})
            try:
                return data | {"neutral": parameter.check(data["neutral"], "neutral")}
            except DepoisonError as error:
                raise ValueError(str(error)) from None
        return data

    @model_validator(mode="after")
    def _default_is_valid(self) -> Parameter:
        if self.default is not None:
            try:
                self.check(self.default, "default")
            except DepoisonError as error:
                raise ValueError(str(error)) from None
        return self

    def check(self, value: Any, where: str) -> Any:
        """Return `value` in its one canonical form (1 and 1.0 and "1" are the same float).

        Args:
            value: from a YAML file, or the text of an override in a cell's name.
            where: the file, key or cell that holds it, put before the message.

        Raises:
            DepoisonError: wrong type, out of range, or not among the choices.
        """
        if value is None or value == "none":
            if self.optional:
                return None
            if value is None:
                raise DepoisonError(f"{where}: needs a value; valid: {self.valid()}")
        converted = _convert(self.type, value)
        if converted is None or not self._holds(converted):
            raise DepoisonError(f"{where}: {_short(repr(value))} is not valid; valid: {self.valid()}")
        return converted

    def _holds(self, value: Any) -> bool:
        if self.type in ("picture", "model"):  # whether there is such a file is the plan's question
            return re.fullmatch(r"[A-Za-z0-9_.-]+", value) is not None
        if self.choices is not None:
            return value in self.choices
        if self.range is None:
            return True
        low, high, closed_low, closed_high = _bounds(self.range)
        return all(
            (low <= number if closed_low else low < number) and (number <= high if closed_high else number < high)
            for number in (value if isinstance(value, list) else [value])
        )

    def valid(self) -> str:
        """What is valid, in words."""
        kinds = {
            "float": "a number",
            "int": "an integer",
            "bool": "true or false",
            "str": "a text",
            "floats": "numbers",
        }
        if self.type in ("picture", "model"):
            others = {"picture": "the stem of a file in config/triggers/", "model": "the name of a model"}
            words = f"{' or '.join(self.choices or ())}, or {others[self.type]}"
        elif self.choices is not None:
            words = " or ".join(map(str, self.choices))
        else:
            words = kinds[self.type] + (f" in {self.range}" if self.range else "")
            if self.type == "int":
                words = words.replace("inf)", f"{_LARGEST}]")
        return words + (" or none" if self.optional else "")

    @property
    def has_neutral(self) -> bool:
        return "neutral" in self.model_fields_set

    def tells(self, value: Any) -> bool:
        """Whether a value, in its canonical form, changes anything."""
        return not self.has_neutral or value != self.neutral


class Shared(Parameter):
    """A hyper-parameter that methods share: config/shared.yaml.

    Attributes: task: the task whose data it is of alone, where config/tasks/ has it; None: of any.
    """

    task: str | None = None


@cache
def _bounds(text: str) -> tuple[float, float, bool, bool]:
    match = _INTERVAL.match(text)
    if not match:
        raise ValueError(f"{text!r} is no interval; write for example '[0, 1)'")
    low, high = float(match[2]), float(match[3])
    if not low <= high:
        raise ValueError(f"{text!r} is empty")
    return low, high, match[1] == "[", match[4] == "]"


def _convert(kind: str, value: Any) -> Any:
    """The canonical value, or None where `value` is not of that kind."""
    if kind == "floats":
        if isinstance(value, str):
            value = value.split(",")
        numbers = [_convert("float", item) for item in value] if isinstance(value, list | tuple) and value else [None]
        return None if None in numbers else numbers
    if kind == "bool":
        return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).lower())
    if kind in ("str", "picture", "model"):
        return value if isinstance(value, str) and value else None
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    if kind == "int":
        whole = number == int(number) and "." not in str(value) and abs(number) <= _LARGEST
        return int(number) if whole else None
    return number + 0.0  # no minus zero


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def text_of(value: Any) -> str:
    """`value` as it is written in a cell's name."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(text_of, value))
    return repr(value) if isinstance(value, float) else str(value)
