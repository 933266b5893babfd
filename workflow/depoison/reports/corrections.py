"""Published numbers that were corrected, in words: what the paper says that they are of, and what they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from depoison.papers.grid import Place, percent
from depoison.papers.published import Corrections, Move
from depoison.papers.tables import Table
from depoison.plan.cells import Choice
from depoison.plan.metrics import Metrics

Label = Callable[[str, str], str]
"""From a kind of method and a name to what it is called."""


def named(kind: str, name: str) -> str:
    """A `Label`: the name itself."""
    return name


def labels_of(table: Table) -> Label:
    """What the table calls attacks and defenses."""
    labels = {}
    for place in table.places.values():
        for axis, part in place.parts.items():
            other = place.parts["column" if axis == "row" else "row"]
            for kind in ("attack", "defense"):
                if part.names(kind) and not other.names(kind):
                    labels[kind, Choice.parse(getattr(place.key, kind), "").name] = part.label
    return lambda kind, name: labels.get((kind, name), name)


def in_words(parts: Mapping[str, str], label: Label, metrics: Metrics) -> str:
    """What a printed number is of, as people say it: SSBA 0.5%, or LIRA, FT-SAM and a metric."""

    def words(kind: str) -> str:
        if kind not in parts:
            return ""
        choice = Choice.parse(parts[kind], "")
        values = (percent(float(value)) if key == "rate" else f"{key}={value}" for key, value in choice.overrides)
        return " ".join([label(kind, choice.name), *values])

    metric = metrics[parts["metric"]].label if "metric" in parts else ""
    cell = " ".join(filter(None, [words("defense"), metric]))
    subject = [label(kind, parts[kind]) for kind in ("dataset", "model") if kind in parts]
    return ", ".join(filter(None, [*subject, words("attack"), cell]))


def printed_as(table: Table, place: Place, metric: str, metrics: Metrics) -> str:
    """What the paper says that a number is of, as far as it is of something else; "" where it is not corrected."""
    if table.corrections is None or (found := table.corrections.printed_at.get((place.key, metric))) is None:
        return ""
    printed, now = (key._asdict() | {"metric": at} for key, at in (found, (place.key, metric)))
    differs = {name for name in printed if printed[name] != now[name]}
    differs |= {"defense", "metric"} if differs & {"defense", "metric"} else set()
    return in_words({name: value for name, value in printed.items() if name in differs}, labels_of(table), metrics)


def told(move: Move, label: Label, metrics: Metrics) -> str:
    """SIG 5% (printed as SSBA 0.5%)."""
    return f"{in_words(move.belongs or {}, label, metrics)} (printed as {in_words(move.printed, label, metrics)})"


def footnote(table: Table, metrics: Metrics) -> str:
    """Which published numbers were corrected, what was left out, and where the evidence is; "" without corrections."""
    if table.corrections is None:
        return ""
    moves, label = table.corrections.moves, labels_of(table)
    moved = ", ".join(told(move, label, metrics) for move in moves if move.belongs is not None)
    left_out = ", ".join(in_words(move.printed, label, metrics) for move in moves if move.belongs is None)
    sentences = [f"Published numbers that the paper prints in a wrong place, as corrected: {moved}"] * bool(moved)
    sentences += [f"Left out of the published numbers: what is printed as {left_out}"] * bool(left_out)
    return ". ".join([*sentences, f"The evidence is in {table.corrections.path}."])


def as_json(corrections: Corrections | None) -> dict[str, Any] | None:
    """The same for programs."""
    if corrections is None:
        return None
    moves = [{"printed": move.printed, "belongs": move.belongs} for move in corrections.moves]
    return {"file": corrections.path, "evidence": corrections.evidence, "moves": moves}
