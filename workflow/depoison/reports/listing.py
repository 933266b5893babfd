"""`depoison list`: what there is, and what each method takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from textwrap import wrap
from typing import Any, NamedTuple

from depoison.errors import unknown
from depoison.plan.config import KINDS, SECTIONS
from depoison.plan.parameters import Parameter, text_of
from depoison.plan.plan import Plan

WIDTH = 110
WIDEST = 32
"""Of the left of two columns."""

CONDITIONS = {"datasets": "on", "models": "with"}
"""Keys of a file whose values hold on a dataset, or with a model, and how that is said."""


class Row(NamedTuple):
    """A hyper-parameter of a method.

    Attributes:
        value: as it is written in a cell's name; "" where nothing that is the method's own has one.
        valid: an interval or choices; "" where any value of the type is.
    """

    type: str
    value: str
    valid: str
    help: str
    source: str


class Known(NamedTuple):
    """All that is known of one of a kind.

    Attributes:
        facts: by what they say; of what is no method, the keys of its file.
        own: its own hyper-parameters, with the values of its file.
        shared: likewise those that methods share.
        said: values that hold under a condition, such as "on gtsrb", by it.
    """

    summary: str
    facts: dict[str, str]
    own: dict[str, Row]
    shared: dict[str, Row]
    said: dict[str, str]


def listing(plan: Plan, listed: str, name: str = "") -> str:
    """All of a kind with a line each, or all that is known of one of them.

    Args:
        listed: one of `depoison.cli.LISTED`.

    Raises:
        DepoisonError: no such name.
    """
    if not name:
        return "".join(_columns((key, _summary(content)) for key, content in all_of(plan, listed).items()))
    known = known_of(plan, listed, name)
    lines = [f"{name}: {known.summary}\n", *_columns((f"  {key}", value) for key, value in known.facts.items())]
    for title, rows in (
        ("hyper-parameters of its own", known.own),
        ("shared hyper-parameters, with what its own file sets", known.shared),
    ):
        lines += [f"\n{title}\n", *_columns(_line(key, row) for key, row in rows.items())] if rows else []
    if known.said:
        lines += ["\nvalues elsewhere\n", *_columns((f"  {where}", values) for where, values in known.said.items())]
    return "".join(lines)


def known_of(plan: Plan, listed: str, name: str) -> Known:
    """All that is known of one of a kind.

    Raises:
        DepoisonError: no such name.
    """
    found = all_of(plan, listed)
    if name not in found:
        raise unknown(listed.removesuffix("s"), name, found)
    content, configuration = found[name], plan.configuration
    summary = _summary(content)
    kind = next((kind for kind, folder in KINDS.items() if folder == listed), None)
    if kind is None:
        shown = content.model_dump(exclude_defaults=True, exclude={"summary", "title"}, by_alias=True)
        return Known(summary, dict(_flat(shown)), {}, {}, {})
    facts = {
        "label": content.label, "from": content.source, "cited as": content.cite, "for the task": content.task,
        "sees": ", ".join(configuration.sight(name)) if kind == "defense" else "",
        "needs": ", ".join(content.needs), "has": ", ".join(content.has),
        "training samples": content.train_samples, "classes": content.classes,
        "file": configuration.method(kind, name).document.path,
    }  # fmt: skip
    parameters = configuration.parameters(kind, name)
    sets = {key: each.default for key, each in content.parameters.items() if each.optional or each.default is not None}
    sets |= content.values
    rows = {key: row_of(each, text_of(sets[key]) if key in sets else "") for key, each in parameters.items()}
    said = dict(_conditions(content.model_dump(include={*CONDITIONS, *SECTIONS, "normalization"})))
    for paper in configuration.papers:
        of_paper = getattr(configuration.paper(paper).content, listed).get(name)
        for where, values in _conditions(of_paper.model_dump() if of_paper else {}):
            said[f"{where}, paper {paper}".removeprefix(", ")] = values
    said |= {f"its paper sweeps {key}": text_of(grid) for key, grid in content.grids.items()}
    return Known(
        summary,
        {key: str(value) for key, value in facts.items() if value},
        {key: row for key, row in rows.items() if key in content.parameters},
        {key: row for key, row in rows.items() if key not in content.parameters},
        said,
    )


def all_of(plan: Plan, listed: str) -> Mapping[str, Any]:
    """What there is of a kind, by name."""
    configuration = plan.configuration
    if listed == "metrics":
        return plan.metrics
    if listed == "papers":
        return {name: configuration.paper(name).content for name in configuration.papers}
    if listed == "tracks":
        return {name: configuration.track(name).content for name in configuration.names("track")}
    kind = next(kind for kind, folder in KINDS.items() if folder == listed)
    return {name: configuration.method(kind, name).content for name in configuration.names(kind)}


def _summary(content: Any) -> str:
    return getattr(content, "summary", None) or content.title


def row_of(parameter: Parameter, value: str) -> Row:
    """A hyper-parameter with the value that it has somewhere."""
    valid = parameter.range or ", ".join(map(str, parameter.choices or ()))
    if parameter.optional:
        valid = f"{valid or parameter.type} or none"
    return Row(parameter.type, value, valid, parameter.help, parameter.source)


def _line(key: str, row: Row) -> tuple[str, str]:
    shown = f"  {key} = {row.value}" if row.value else f"  {key}"
    return shown, f"{row.help}; valid: {row.valid or row.type}" + f" ({row.source})" * bool(row.source)


def _conditions(said: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """(condition, values) of what a file says of a method; "" is no condition."""
    plain = {key: value for key, value in said.items() if key not in {*CONDITIONS, *SECTIONS, "normalization"}}
    found = {"": plain, "pre-trained with": said.get("normalization")}
    for key, word in CONDITIONS.items():
        found |= {f"{word} {target}": values for target, values in (said.get(key) or {}).items()}
    found |= {f"in {section}": said.get(section) for section in SECTIONS}
    return [(condition, shown(values)) for condition, values in found.items() if values]


def _flat(content: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """A file's keys with a line each; what is said of one method under one condition is a line."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value and all(isinstance(each, Mapping) for each in value.values()):
            for name, each in value.items():
                yield from ((f"{key}.{name} {condition}".strip(), values) for condition, values in _conditions(each))
        else:
            yield key, shown(value)


def shown(value: Any) -> str:
    """A value as files say it, on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {shown(each)}" for key, each in value.items())
    return text_of([*value] if isinstance(value, tuple) else value)


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of two columns; a left part that is too wide has a line of its own."""
    rows = [*rows]
    indent = min(max((len(left) for left, _ in rows), default=0) + 2, WIDEST)
    found = []
    for left, right in rows:
        lines = wrap(right, WIDTH - indent) or [""]
        if len(left) > indent - 2:
            found += [f"{left}\n", *(f"{'':{indent}}{line}\n" for line in lines)]
        else:
            found += [
                f"{each:{indent}}{line}".rstrip() + "\n" for each, line in zip_longest([left], lines, fillvalue="")
            ]
    return found
