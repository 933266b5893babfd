"""Published numbers that were corrected, in words: what the paper says that they are of, and what they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from depoison.plan.published import Corrections, Move
from depoison.plan.tables import Column, Row, Table
from depoison.reporting.comparison import METRICS

Label = Callable[[str, str], str]
"""From a kind of method and a name to what it is called."""


def named(kind: str, name: str) -> str:
    """A `Label`: the name itself."""
    return name


def labels_of(table: Table) -> Label:
    """What the table calls attacks and defenses."""
    labels = {("attack", row.attack.name): row.label for row in table.rows}
    labels |= {("defense", column.defense.name): column.label for column in table.columns}
    return lambda kind, name: labels.get((kind, name), name)


def in_words(parts: Mapping[str, str], label: Label) -> str:
    """Columns of a transcription, and `metric`, as people say them: SSBA 0.5%, or LIRA, FT-SAM ASR."""
    rate, variant = parts.get("rate"), parts.get("variant")
    row = [
        label("attack", parts["attack"]) if "attack" in parts else "",
        f"{100 * float(rate):g}%" if rate else "",
        variant.partition("=")[2] if variant else "",
    ]
    cell = [label("defense", parts["defense"]) if "defense" in parts else "", METRICS.get(parts.get("metric", ""), "")]
    subject = [label(kind, parts[kind]) for kind in ("dataset", "model") if kind in parts]
    return ", ".join(filter(None, [*subject, *(" ".join(filter(None, words)) for words in (row, cell))]))


def printed_as(table: Table, row: Row, column: Column, metric: str) -> str:
    """What the paper says that a number is of, as far as it is of something else; "" where it is not corrected."""
    if table.corrections is None:
        return ""
    key = table.key(row, column)
    found = table.corrections.printed_at.get((key, metric))
    if found is None:
        return ""
    printed, now = (place._asdict() | {"metric": at} for place, at in (found, (key, metric)))
    differs = {name for name in printed if printed[name] != now[name]}
    for together in ({"attack", "rate", "variant"}, {"defense", "metric"}):
        differs |= together if differs & together else set()
    return in_words({name: value for name, value in printed.items() if name in differs}, labels_of(table))


def told(move: Move, label: Label) -> str:
    """SIG 5% (printed as SSBA 0.5%)."""
    return f"{in_words(move.belongs or {}, label)} (printed as {in_words(move.printed, label)})"


def footnote(table: Table) -> str:
    """Which published numbers were corrected, what was left out, and where the evidence is; "" without corrections."""
    if table.corrections is None:
        return ""
    moves, label = table.corrections.moves, labels_of(table)
    moved = ", ".join(told(move, label) for move in moves if move.belongs is not None)
    left_out = ", ".join(in_words(move.printed, label) for move in moves if move.belongs is None)
    sentences = [f"Published numbers that the paper prints in a wrong place, as corrected: {moved}"] * bool(moved)
    sentences += [f"Left out of the published numbers: what is printed as {left_out}"] * bool(left_out)
    return ". ".join([*sentences, f"The evidence is in {table.corrections.path}."])


def as_json(corrections: Corrections | None) -> dict[str, Any] | None:
    """The same for programs."""
    if corrections is None:
        return None
    moves = [{"printed": move.printed, "belongs": move.belongs} for move in corrections.moves]
    return {"file": corrections.path, "evidence": corrections.evidence, "moves": moves}
