"""Tables: ours, published and their difference, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from depoison.files import json_text, read_json, write_bytes
from depoison.plan.plan import Plan
from depoison.plan.tables import Entry, Table

METRICS = {"c_acc": "C-Acc", "asr": "ASR"}
SUFFIXES = (".md", ".tex", ".csv", ".json")
MINUS = "\N{MINUS SIGN}"
SUMMARIES: dict[str, tuple[str, Callable[[Sequence[float]], float]]] = {
    "average": ("Average", statistics.fmean),
    "standard-deviation": (
        "Standard deviation",
        lambda values: statistics.stdev(values) if len(values) > 1 else math.nan,
    ),
}


@dataclass(frozen=True)
class Figure:
    """One number of a table, in percent.

    Attributes:
        ours: mean over the seeds; None: not computed.
        interval: half width of the 95% confidence interval of the mean (Student's t); None for fewer than two seeds.
        values: one for each seed.
        published: as the paper prints it; None: not printed.
        best: whether it is the best of its row among the defenses.
    """

    ours: float | None = None
    interval: float | None = None
    values: tuple[float, ...] = ()
    published: float | None = None
    best: bool = False

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.published is None else self.ours - self.published


@dataclass(frozen=True)
class Line:
    """A row as it is shown: label, rate (None for a summary), and figures[column][metric]."""

    label: str
    rate: float | None
    figures: list[dict[str, Figure]]
    note: str = ""


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% confidence interval (Student's t) where there are two values or more."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    return mean, float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def lines_of(table: Table) -> list[Line]:
    """All rows of a table: its cells, then its summaries over the rows that we have, then those that the paper prints."""
    metrics = cache(lambda product: read_json(Path(product))["metrics"])
    grid = len(table.columns)
    entries = [table.entries[i : i + grid] for i in range(0, len(table.entries), grid)]
    rows = [
        (row, [_figures(table, entry, metrics) for entry in part])
        for row, part in zip(table.rows, entries, strict=True)
    ]
    lines = [Line(row.label, row.rate, _with_best(table, figures)) for row, figures in rows]
    shown = list(lines)
    complete = all(figure.ours is not None for line in lines for column in line.figures for figure in column.values())
    for name in table.file.summary:
        title, function = SUMMARIES[name]
        ours = [_summary(function, [line.figures[i] for line in shown]) for i in range(grid)]
        note = "" if complete else "over the rows that we have, in ours and in published alike"
        lines.append(Line(title, None, _with_best(table, ours) if name == "average" else ours, note))
    for name in table.file.summary:
        printed = [_printed(table, name, column.defense.name) for column in table.columns]
        if any(figure.published is not None for column in printed for figure in column.values()):
            lines.append(Line(f"{SUMMARIES[name][0]}, as printed", None, printed))
    return lines


def _figures(table: Table, entry: Entry, metrics: Callable[[str], dict[str, Any]]) -> dict[str, Figure]:
    printed = table.published.get((entry.row.attack.name, f"{entry.row.rate:g}", entry.column.defense.name), {})
    result = {}
    for metric in METRICS:
        published = printed.get(metric)
        values = [metrics(cell.evaluation.product)[metric] for cell in entry.cells]
        values = [value for value in values if value is not None]
        mean, interval = mean_and_interval(values) if values else (None, None)
        result[metric] = Figure(mean, interval, tuple(values), published)
    return result


def _printed(table: Table, attack: str, defense: str) -> dict[str, Figure]:
    numbers = table.published.get((attack, "", defense), {})
    return {metric: Figure(published=numbers.get(metric)) for metric in METRICS}


def _summary(function: Callable[[Sequence[float]], float], columns: list[dict[str, Figure]]) -> dict[str, Figure]:
    """A summary of the rows that we have; the published numbers of the same rows beside it."""
    result = {}
    for metric in METRICS:
        have = [column[metric] for column in columns if column[metric].ours is not None]
        # One summary for each seed, over the rows; its mean and interval over the seeds.
        seeds = zip(*(figure.values for figure in have), strict=True)
        values = tuple(value for value in map(function, seeds) if not math.isnan(value))
        ours, interval = mean_and_interval(values) if values else (None, None)
        known = [figure.published for figure in have if figure.published is not None]
        published = function(known) if values and len(known) == len(have) else None
        result[metric] = Figure(ours, interval, values, published)
    return result


def _with_best(table: Table, columns: list[dict[str, Figure]]) -> list[dict[str, Figure]]:
    """Mark the highest C-Acc and the lowest ASR among the defenses; the undefended model does not compete."""
    defended = [i for i, column in enumerate(table.columns) if column.defense.name != "none"]
    result = [dict(column) for column in columns]
    for metric, best_of in (("c_acc", max), ("asr", min)):
        found = [round(ours, 2) for i in defended if (ours := columns[i][metric].ours) is not None]
        for i in defended if len(found) > 1 else []:
            figure = columns[i][metric]
            if figure.ours is not None and round(figure.ours, 2) == best_of(found):
                result[i][metric] = replace(figure, best=True)
    return result


def gaps_of(table: Table) -> list[str]:
    """The methods whose cells are missing, each once."""
    return list(dict.fromkeys(entry.gap for entry in table.entries if entry.gap))


def signed(value: float) -> str:
    """+0.12, −0.12 (a true minus) or ±0.00."""
    text = f"{value:+.2f}".replace("-", MINUS)
    return text.replace("+", "±").replace(MINUS, "±") if float(f"{value:.2f}") == 0 else text


def write_table(plan: Plan, table: Table) -> None:
    """Write reports/….md, .tex, .csv and .json."""
    Path(table.target).parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in render_table(plan, table).items():
        write_bytes(Path(table.target + suffix), text.encode())


def table_is_current(plan: Plan, table: Table) -> bool:
    """Whether all evaluations are there and the four files say what would be written now."""
    files = {suffix: Path(table.target + suffix) for suffix in SUFFIXES}
    if not all(path.exists() for path in [*files.values(), *map(Path, table.evaluations())]):
        return False
    return all(files[suffix].read_bytes() == text.encode() for suffix, text in render_table(plan, table).items())


def render_table(plan: Plan, table: Table) -> dict[str, str]:
    """The text of each of the four files, by suffix."""
    made_from, lines = table.made_from(), lines_of(table)
    notes = _notes(plan, table)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("depoison.reporting"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"signed": signed, "percent": percent, "latex": escape_latex, "markdown": escape_markdown}
    context = {
        "table": table, "lines": lines, "gaps": gaps_of(table), "notes": notes, "made_from": made_from,
        "metrics": METRICS, "several_seeds": len(table.seeds) > 1, "heading": heading(table),
        "setting": f"{plan.label('dataset', table.dataset)}, {plan.label('model', table.model)}",
        "number": len(table.columns),
    }  # fmt: skip
    texts = {s: environment.get_template(f"table{s}.jinja").render(context) for s in (".md", ".tex")}
    return texts | {
        ".csv": _csv(table, lines),
        ".json": json_text({
            "made_from": made_from,
            "paper": table.paper,
            "table": table.name,
            "track": table.track,
            "dataset": table.dataset,
            "model": table.model,
            "seeds": list(table.seeds),
            "columns": [{"label": column.label, "defense": str(column.defense)} for column in table.columns],
            "metrics": _metrics(table, lines),
            "lines": [asdict(line) for line in lines],
            "cells": [
                {"attack": str(entry.row.attack), "defense": str(entry.column.defense), "gap": entry.gap,
                 "cells": [cell.name.path for cell in entry.cells],
                 "evaluations": [cell.evaluation.product for cell in entry.cells]}
                for entry in table.entries
            ],
        }),
    }  # fmt: skip


def _metrics(table: Table, lines: list[Line]) -> dict[str, Any]:
    """{line: {column: {metric: ours}}} of what is known: dictionaries down to the numbers, as `dvc metrics` reads them."""
    return {
        f"{line.label} {percent(line.rate)}".strip(): {
            column.label: {metric: figure.ours for metric, figure in figures.items() if figure.ours is not None}
            for column, figures in zip(table.columns, line.figures, strict=True)
        }
        for line in lines
    }


def heading(table: Table) -> str:
    """FST, Table 2."""
    words = re.fullmatch(r"(table|figure)(\d+)(.*)", table.name)
    return f"{table.paper.upper()}, " + (f"{words[1].title()} {words[2]}{words[3]}" if words else table.name)


def percent(rate: float | None) -> str:
    """0.005 → 0.5%."""
    return "" if rate is None else f"{100 * rate:g}%"


def _notes(plan: Plan, table: Table) -> list[str]:
    """What a reader must know to read the numbers."""
    track = plan.configuration.track(table.track).content
    notes = [f"Track {table.track}: {track.summary}."]
    moved = [
        f"{plan.label(kind, paper)} is replaced by {plan.label(kind, ours)}"
        for kind, paper, ours in (
            ("dataset", table.file.dataset, table.dataset),
            ("model", table.file.model, table.model),
        )
        if paper != ours
    ]
    if moved or track.models or track.training:
        because = f" ({'; '.join(moved)})" if moved else ""
        notes.append(
            f"This track does not reproduce the paper's setting{because}: the published numbers show the pattern to look "
            "for, and a difference is no verdict."
        )
    return notes


def _csv(table: Table, lines: list[Line]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["paper", "table", "track", "dataset", "model", "row", "rate", "column", "metric"]
    writer.writerow([*header, "ours", "interval95", "seeds", "published", "difference"])
    for line in lines:
        for column, figures in zip(table.columns, line.figures, strict=True):
            for metric, figure in figures.items():
                where = [table.paper, table.name, table.track, table.dataset, table.model, line.label, line.rate]
                numbers = [figure.ours, figure.interval, len(figure.values), figure.published, figure.difference]
                writer.writerow([*where, column.label, metric, *numbers])
    return text.getvalue()


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", MINUS: "$-$", "±": r"$\pm$"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}


def escape_latex(text: str) -> str:
    """Any text, so that LaTeX prints it."""
    return "".join(_LATEX.get(character, character) for character in " ".join(str(text).split()))


def escape_markdown(text: str) -> str:
    """Any text, so that it stays in its table cell and starts no markup."""
    escaped = "".join(
        "\\" + c if c in "\\`*_[]|~" else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(c, c) for c in str(text)
    )
    return " ".join(escaped.split())
