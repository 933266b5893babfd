"""`depoison list`: what there is, and what each method takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from textwrap import wrap
from typing import Any

from depoison.errors import unknown
from depoison.plan.config import KINDS
from depoison.plan.parameters import Parameter, text_of
from depoison.plan.plan import Plan

WIDTH = 110
WIDEST = 32
"""Of the left of two columns."""


def listing(plan: Plan, listed: str, name: str = "") -> str:
    """All of a kind with a line each, or all that is known of one of them.

    Args:
        listed: one of `depoison.cli.LISTED`.

    Raises:
        DepoisonError: no such name.
    """
    found = _all(plan, listed)
    if not name:
        return "".join(_columns((key, _summary(content)) for key, content in found.items()))
    if name not in found:
        raise unknown(listed.removesuffix("s"), name, found)
    content = found[name]
    lines = [f"{name}: {_summary(content)}\n"]
    kind = next((kind for kind, folder in KINDS.items() if folder == listed), None)
    if kind is None:
        shown = content.model_dump(exclude_defaults=True, exclude={"summary", "title"})
        return "".join([*lines, *_columns((key, _shown(value)) for key, value in shown.items())])
    facts = {
        "from": content.source, "cited as": content.cite, "for the task": content.task, "needs": ", ".join(content.needs),
        "has": ", ".join(content.has), "file": f"config/{listed}/{name}.yaml",
    }  # fmt: skip
    lines += _columns((f"  {key}", value) for key, value in facts.items() if value)
    parameters = plan.configuration.parameters(kind, name)
    own = {key: parameter for key, parameter in parameters.items() if key in content.parameters}
    lines += ["\nhyper-parameters of its own\n", *_table(own, content.values)] if own else []
    shared = {key: parameter for key, parameter in parameters.items() if key not in own}
    lines += (
        ["\nshared hyper-parameters, with what its own file sets\n", *_table(shared, content.values)] if shared else []
    )
    for of, values in (("on", content.datasets), ("with", content.models)):
        lines += [f"\n{of} {target}: {_shown(each)}\n" for target, each in values.items()]
    return "".join(lines)


def _all(plan: Plan, listed: str) -> Mapping[str, Any]:
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


def _table(parameters: Mapping[str, Parameter], values: Mapping[str, Any]) -> Iterable[str]:
    rows = []
    for key, parameter in parameters.items():
        value = values.get(key, parameter.default)
        valid = parameter.range or ", ".join(map(str, parameter.choices or ())) or parameter.type
        valid += " or none" if parameter.optional else ""
        shown = "" if value is None and not parameter.optional else f" = {text_of(value)}"
        rows.append(
            (f"  {key}{shown}", f"{parameter.help}; valid: {valid}" + f" ({parameter.source})" * bool(parameter.source))
        )
    return _columns(rows)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key}: {{{_shown(each)}}}" if isinstance(each, Mapping) else f"{key}: {_shown(each)}"
            for key, each in value.items()
        )
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
