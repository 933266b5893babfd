"""An audit in words, as a table and as a page: which defense purifies a model that was brought, and what it costs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depoison.artifacts import read_record
from depoison.papers.audit import Audit
from depoison.papers.grid import Place
from depoison.plan.metrics import Metric
from depoison.plan.plan import Plan
from depoison.reports.figures.tradeoff import MARKERS
from depoison.reports.html.pictures import data_uri, examples_of
from depoison.reports.numbers import Number, Reader
from depoison.reports.tables import templates

PLOT = re.compile(rb'(<img class="plot" src=)"[^"]*"')
NO_PLOT = rb'\1""'


@dataclass(frozen=True)
class Row:
    """What is known of a defense.

    Attributes:
        values: by the metric's name; None: nothing to measure.
        cleans: whether its model is clean; None: nobody knows.
        wrong: whether triggered images go neither where the attack wants them nor where they belong (`Metric.no_rescue`).
        cell: its path.
        missing: whether the file that would say so is not there.
    """

    label: str
    values: dict[str, float | None]
    cleans: bool | None
    wrong: bool
    cell: str
    missing: bool = False


def content_of(plan: Plan, audit: Audit) -> dict[str, Any]:
    """Whatever is said of it."""
    read, rows = Reader(), []
    for place in audit.places:
        found = {metric.name: read.values(place, metric) for metric in place.metrics}
        values = {name: next(iter(there.values()), None) for name, (there, _) in found.items()}
        judged, (_, missing) = values[audit.judge.name], found[audit.judge.name]
        cleans = None if judged is None else judged <= audit.clean
        label = plan.label("defense", place.defense.name)
        wrong = _leaves_wrong(audit.judge, values, rows[0].values if rows else values)
        rows.append(Row(label, values, cleans, wrong, place.cells[0].name.path, bool(missing)))
    before, *others = rows
    # What is clean, or nobody knows to be suspect, needs no defense.
    best, summary = _best(audit, before, others) if before.cleans is False else None, audit.content.summary
    suspect = _suspect(audit.places[0], audit)
    verdict = _verdict(audit, before, best, others, (suspect or {}).get("why", ""))
    return {
        "name": audit.name, "audit": audit, "rows": rows, "best": best, "verdict": verdict,
        "model": plan.label("model", audit.content.model), "dataset": plan.label("dataset", audit.content.dataset),
        "suspect": suspect, "told": _told(plan, audit), "summary": summary[:1].upper() + summary[1:],
        "suffix": Path(audit.content.weights).suffix,
    }  # fmt: skip


def render(plan: Plan, audit: Audit, draw: bool = True) -> dict[str, str]:
    """The files by suffix.

    Args:
        draw: whether the page has its plot.
    """
    content = content_of(plan, audit)
    numbers = {row.cell: row.values | {"clean": row.cleans} for row in content["rows"]}
    best = content["best"].cell if content["best"] else None
    data = {"checkpoint": audit.name, "cells": numbers, "take": best, "verdict": content["verdict"]}
    shown = audit.examples is not None and Path(audit.examples.product).exists()
    pictures = examples_of(audit.examples)["images"] if shown else []
    plot = {"plot": _plot(audit, content["rows"]) if draw else "", "pictures": pictures}
    return {
        ".md": templates().get_template("audit.md.jinja").render(content),
        ".html": templates().get_template("audit.html.jinja").render(content | plot),
        ".json": json.dumps(data, indent=1, ensure_ascii=False) + "\n",
    }


def _leaves_wrong(judge: Metric, values: Mapping[str, float | None], before: Mapping[str, float | None]) -> bool:
    """Args: before: the values without a defense."""
    if (rule := judge.no_rescue) is None:
        return False
    ours, right, clean = values.get(judge.name), values.get(rule.right), before.get(rule.clean)
    return Number(judge.key, ours, right=right, clean=clean).leaves_wrong(judge)


def _best(audit: Audit, before: Row, rows: list[Row]) -> Row | None:
    """Of the defenses that purify and keep enough the one that keeps the most; first of those that set images right."""
    least = (before.values[audit.keep.name] or 0.0) - audit.lose
    kept = [(value, row) for row in rows if row.cleans and (value := row.values[audit.keep.name]) is not None]
    fitting = [(not row.wrong, value, row) for value, row in kept if value >= least]
    return max(fitting, key=lambda each: each[:2], default=(True, 0.0, None))[2]


def _verdict(audit: Audit, before: Row, best: Row | None, rows: list[Row], why: str = "") -> str:
    """In one sentence.

    Args:
        why: the model as it was brought has no value of the judge, where that is on record.
    """
    judge, keep = audit.judge, audit.keep
    was = before.values[judge.name]
    if was is None:
        return f"{judge.label} could not be measured{f' ({why})' if why else ''}: nothing can be said."
    is_, limit = f"{judge.label} is {judge.text(was)} without a defense", f"{audit.clean:g}{judge.unit}"
    if before.cleans and audit.content.trigger:
        return f"This trigger does not work on the model: {is_}, at most {limit}."
    if before.cleans:
        return (
            f"Nothing suspicious was found: {is_}, at most {limit}. That is no proof: a trigger over the whole image, or one "
            "that differs from image to image, is not what inversion looks for."
        )
    had = before.values[keep.name] or 0.0
    missing = sum(row.missing for row in rows)
    rest = f"; {missing} {'defense is' if missing == 1 else 'defenses are'} not measured" if missing else ""
    if best is None:
        judged = [(left, row.label) for row in rows if (left := row.values[judge.name]) is not None]
        broken = [(left, row.label) for row in rows if row.cleans and (left := row.values[keep.name]) is not None]
        price = "none was measured"
        if broken:
            kept, label = max(broken)
            lost = f"of {keep.label} {keep.text(had)} those that do lose more than {audit.lose:g}"
            price = f"{lost}, the least {label}, which leaves {keep.text(kept)}"
        elif judged:
            price = f"the nearest is {min(judged)[1]} with {judge.text(min(judged)[0])}"
        return f"No defense purifies it at an acceptable price: {is_}; {price}{rest}."
    now, kept = (best.values[metric.name] or 0.0 for metric in (judge, keep))
    cleaning = [row for row in rows if row.cleans]
    than = f"it keeps the most of {len(cleaning)} that purify" if len(cleaning) > 1 else "no other one purifies"

    def left(row: Row) -> str:
        told = f" ({audit.right.label} {row.values[audit.right.name] or 0.0:.0f})" if audit.right else ""
        return f"leaves triggered images wrong{told}"

    more = [row for row in cleaning if (row.values[keep.name] or 0.0) > kept]
    if best.wrong:
        than += f"; but it {left(best)}"
    elif more:
        than = "; ".join(f"{row.label} keeps {keep.text(row.values[keep.name] or 0.0)} but {left(row)}" for row in more)
    return (
        f"Take {best.label}: {judge.label} {judge.text(was)} → {judge.text(now)}, {keep.label} {keep.text(had)} → "
        f"{keep.text(kept)}; {than}{rest}."
    )


def _suspect(place: Place, audit: Audit) -> dict[str, Any] | None:
    """What the record says of the model as it was brought, where a probe judged it."""
    probe = place.source(0, audit.judge)
    return read_record(probe.directory) if audit.judge.source == "probe" and Path(probe.product).exists() else None


def _told(plan: Plan, audit: Audit) -> str:
    """What was told of the trigger, for people."""
    if (trigger := audit.content.trigger) is None:
        return ""
    values = ", ".join(f"{key} {value}" for key, value in trigger.values.items())
    return plan.label("attack", trigger.attack) + (f" ({values})" if values else "")


def _plot(audit: Audit, rows: list[Row]) -> str:
    """What each defense costs and what it leaves, as a PNG's data URI."""
    from matplotlib.figure import Figure

    judge, keep = audit.judge, audit.keep
    had = rows[0].values[keep.name] or 0.0
    figure = Figure(figsize=(6.4, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for row, marker in zip(rows, MARKERS * len(rows), strict=False):
        left, kept = row.values[judge.name], row.values[keep.name]
        if left is not None and kept is not None:
            color = "#9a9a9a" if row is rows[0] else "#1b7f5a" if row.cleans else "#b3402a"
            axes.plot(left, had - kept, marker, color=color, markersize=7, fillstyle="none", label=row.label)
    axes.axvline(audit.clean, color="#9a9a9a", linewidth=0.8, linestyle="--")
    axes.set_xlabel(f"{judge.title} that remains")
    axes.set_ylabel(f"Fall of {keep.label}")
    axes.margins(0.12)
    if axes.get_legend_handles_labels()[1]:  # of an audit that has hardly begun there is none
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return data_uri(content.getvalue())
