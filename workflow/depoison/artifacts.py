"""Finished artifacts: what is recorded of them, and their files, which are read as they were recorded or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from depoison.errors import DepoisonError
from depoison.files import LARGE, RUN, SPEC, corrupted, parse_json, read_bytes, read_json, remedy, sha256_of
from depoison.plan.specs import STAGES, directory_of

METRICS_FILE, VALUE_FILE, HESSIAN_FILE = (STAGES[stage].product for stage in ("evaluate", "probe", "hessian"))

Number = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[Number, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Checksum = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    """What is read must be of its type; what a stage found out besides may be anything."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Record(_Strict):
    """run.json."""

    sha256: dict[str, Checksum]
    seconds: Amount = 0
    started: str = ""
    packages: dict[str, str] = {}
    commit: str | None = None
    threads: int = 1
    device: str = ""
    peak_memory_bytes: Amount = 0
    peak_device_memory_bytes: Amount = 0
    diverged: bool = False
    warnings: list[str] = []


class _Model(_Record):
    directory: str = ""


class _Measured(_Strict):
    """Of all triggered images, or of those with one trigger."""

    metrics: Annotated[dict[str, Percent | None], Field(min_length=1)]
    denominators: dict[str, Annotated[int, Field(gt=0)] | None] = {}


class _Evaluation(_Measured):
    """metrics.json, and with more keys the file of a cell."""

    parts: dict[str, _Measured] = {}
    diverged: bool = False
    model: _Model | None = None
    specs: dict[str, dict[str, Any]] = {}


class _Value(_Strict):
    """value.json of a probe."""

    value: Number | None


class _Hessian(_Strict):
    """hessian.json."""

    lambda_max: Number
    trace: Number
    size: Annotated[int, Field(gt=0)]
    eigenvalues: Annotated[list[Number], Field(min_length=1)]
    shares: list[Amount]

    @model_validator(mode="after")
    def _share_of_each(self) -> _Hessian:
        if len(self.shares) != len(self.eigenvalues):
            raise ValueError("not a share of each eigenvalue")
        return self


_RECORD, _EVALUATION, _VALUE, _HESSIAN = map(TypeAdapter, (_Record, _Evaluation, _Value, _Hessian))


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that is what was recorded of it.

    Attributes:
        content: of its file.
        sha256: of the same.
    """

    content: dict[str, Any]
    sha256: str

    @property
    def metrics(self) -> dict[str, float | None]:
        """In percent, 0 to 100; None where there is nothing to measure. Of one of combined attacks by metric@attack."""
        parts = self.content.get("parts", {}).items()
        by_part = {f"{key}@{part}": value for part, own in parts for key, value in own["metrics"].items()}
        return self.content["metrics"] | by_part


def read_evaluation(product: Path | str) -> Evaluation:
    """Every number of ours that is shown comes from here.

    Args:
        product: results/evaluate/…/metrics.json.

    Raises:
        DepoisonError: missing, not the bytes that its record tells, or no evaluation.
    """
    content = read_recorded(path := Path(product))
    return Evaluation(evaluation_in(parse_json(content, path), path), hashlib.sha256(content).hexdigest())


def read_value(product: Path | str) -> float | None:
    """What a probe measured, from its results/probe/…/value.json; None where there is nothing to measure.

    Raises:
        DepoisonError: as `read_evaluation`.
    """
    path = Path(product)
    return _valid(_VALUE, parse_json(read_recorded(path), path), path)["value"]


def read_hessian(product: Path | str) -> dict[str, Any]:
    """What is known of a loss's curvature, from its results/hessian/…/hessian.json.

    Raises:
        DepoisonError: as `read_evaluation`.
    """
    path = Path(product)
    return _valid(_HESSIAN, parse_json(read_recorded(path), path), path)


def evaluation_in(content: Any, path: Path) -> dict[str, Any]:
    """The content of an evaluation, or of a cell's file, if it is one.

    Raises:
        DepoisonError: it is not.
    """
    return _valid(_EVALUATION, content, path)


def read_record(directory: Path | str) -> dict[str, Any]:
    """How an artifact was made: the content of its run.json.

    Raises:
        DepoisonError: missing, or no such record.
    """
    path = Path(directory, RUN)
    if not path.exists():
        raise DepoisonError(f"{path}: missing; {remedy(directory)}")
    return _valid(_RECORD, read_json(path), path, delete=directory)


def _valid(form: TypeAdapter[Any], content: Any, path: Path, **more: Any) -> Any:
    try:
        if not isinstance(content, dict):
            raise corrupted(path, "no JSON object", **more)
        form.validate_python(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        keys = ".".join(map(str, fault["loc"]))
        raise corrupted(path, f"{keys}: {fault['msg']}" if keys else fault["msg"], **more) from None
    return content


def read_spec(directory: Path | str) -> dict[str, Any]:
    """The spec of an artifact.

    Raises:
        DepoisonError: it is missing, or is not the one that belongs to the directory.
    """
    spec = read_json(path := Path(directory, SPEC))
    try:
        fault = "" if (owner := directory_of(spec)) == str(directory) else f"it is the spec of {owner}"
    except DepoisonError as error:
        fault = str(error)
    if fault:
        raise corrupted(path, fault, delete=directory)
    return spec


def read_recorded(path: Path) -> bytes:
    """The content of an artifact's file, which is what its stage recorded.

    Raises:
        DepoisonError: missing, or not the bytes that were recorded.
    """
    content = read_bytes(path)
    if not is_recorded(path, hashlib.sha256(content).hexdigest()):
        raise _not_recorded(path)
    return content


def _not_recorded(path: Path) -> DepoisonError:
    return corrupted(path, f"its sha256 is not the one in {RUN}")


def is_recorded(path: Path, sha256: str) -> bool:
    """Whether this is the checksum that is recorded of an artifact's file.

    Raises:
        DepoisonError: as `read_record`.
    """
    return sha256 == read_record(path.parent)["sha256"].get(path.name)


# --- CSV ---------------------------------------------------------------------------------------------------------


def read_rows(path: Path, columns: Mapping[str, Callable[[str], Any]]) -> list[dict[str, Any]]:
    """The rows of an artifact's CSV file.

    Args:
        columns: those that are read, and what makes a value of a text.

    Raises:
        DepoisonError: as `read_recorded`, a column that is not there, or a text of which there is no value.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_recorded(path).decode(), newline=""))
        return [{name: value(row[name]) for name, value in columns.items()} for row in reader]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise corrupted(path, repr(error), delete=path.parent) from None


def finite(text: str) -> float:
    """Raises: ValueError: no number, or none that ends."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not finite")
    return value


def percent(text: str) -> float | None:
    """0 to 100; nothing where nothing was measured."""
    if text and not 0 <= finite(text) <= 100:
        raise ValueError(f"{text} is no percentage")
    return float(text) if text else None


EMBEDDING = {"index": int, "label": int, "backdoored": int, "x": finite, "y": finite}
"""The columns of embedding.csv."""

NEURONS = {"epoch": int, "neuron": int, "tac": finite, "gradient": finite}
"""The columns of neurons.csv, before those of metrics."""

MASKS = {"factor": finite, "weights": int}
"""The columns of masks.csv."""

COURSE = {"epoch": int, "lambda_max": finite, "trace": finite, "trace_error": finite}
"""The columns of course.csv, before those of metrics."""


# --- tensors -----------------------------------------------------------------------------------------------------


def load_tensors(
    path: Path, expected: Mapping[str, str] | None = None, below: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Read a safetensors file of an artifact onto the CPU; a large one is mapped, and read where it is used.

    Args:
        expected: of each tensor its type and a name for each of its axes, such as {"images": "uint8 N C H W",
            "labels": "int64 N"}; axes of one name are of one length, and a number is a length. None: tensors of any names
            and shapes.
        below: of tensors of indices or labels, what all of them are below; none is negative.

    Raises:
        DepoisonError: as `read_recorded`, no safetensors, or other tensors than expected.
    """
    from safetensors.torch import load, load_file

    found = _loaded(path, load, load_file)
    if expected is not None:
        _require(found, expected, path)
    for name, limit in (below or {}).items():
        if ((found[name] < 0) | (found[name] >= limit)).any():
            raise corrupted(path, f"{name}: not all of it is in 0 to {limit - 1}")
    return found


def load_arrays(path: Path, expected: Mapping[str, str]) -> dict[str, Any]:
    """`load_tensors`, as arrays of NumPy: this imports no torch."""
    from safetensors.numpy import load, load_file

    found = _loaded(path, load, load_file)
    _require(found, expected, path)
    return found


def _loaded(
    path: Path, load: Callable[[bytes], dict[str, Any]], map_file: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """By `map_file` where the file is large."""
    from safetensors import SafetensorError

    large = path.exists() and path.stat().st_size >= LARGE
    if large and not is_recorded(path, sha256_of(path)):
        raise _not_recorded(path)
    content = None if large else read_recorded(path)
    try:
        return map_file(path) if content is None else load(content)
    # Beside its own error the library lets through what a header leads to that promises other tensors than there are.
    except (SafetensorError, ValueError, KeyError, TypeError, AssertionError, RuntimeError) as error:
        raise corrupted(path, error) from None


def _require(found: Mapping[str, Any], expected: Mapping[str, str], path: Path) -> None:
    """Raises: DepoisonError: tensors that are not those expected."""
    if found.keys() != expected.keys():
        raise corrupted(path, f"its tensors are {', '.join(sorted(found))}, not {', '.join(sorted(expected))}")
    lengths = {axis: int(axis) for words in expected.values() for axis in words.split() if axis.isdigit()}
    for name, words in expected.items():
        kind, *axes = words.split()
        told, shape = str(found[name].dtype).removeprefix("torch."), tuple(found[name].shape)
        fits = told == kind and len(shape) == len(axes)
        if not fits or any(lengths.setdefault(axis, n) != n for axis, n in zip(axes, shape, strict=True)):
            wanted = ", ".join(str(lengths.get(axis, axis)) for axis in axes)
            raise corrupted(path, f"{name} is {told} {list(shape)}, not {kind} [{wanted}]")
