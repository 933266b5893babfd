"""Tables: ours, published and their difference, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from depoison.files import json_text, read_json, write_bytes
from depoison.plan.plan import Plan
from depoison.plan.tables import Column, Entry, Table, Tables
from depoison.reporting.comparison import METRICS, compare, mean_and_interval

SUFFIXES = (".md", ".tex", ".csv", ".json")
CSV = (
    *("paper", "table", "track", "dataset", "model", "row", "rate", "variant", "column", "oracle", "metric"),
    *("ours", "interval95", "seeds", "published", "difference", "rows", "pairs", "wins", "ties", "losses", "p"),
)
MINUS = "\N{MINUS SIGN}"
NEEDS = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
ORACLE = "Its threshold was chosen by looking at the test set."
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
    """A row as it is shown.

    Attributes:
        value: what stands beside the label, such as 5%; "" for a summary.
        figures: by column, then by metric.
    """

    label: str
    value: str
    rate: float | None
    figures: list[dict[str, Figure]]
    variant: str = ""
    summary: bool = False
    note: str = ""


def lines_of(table: Table, metrics: Callable[[str], dict[str, Any]] | None = None) -> list[Line]:
    """All rows of a table: its cells, then its summaries over the rows that we have, then those that the paper prints.

    Args:
        metrics: reads the metrics of an evaluation by its path; None where one is not known.
    """
    metrics = metrics or _metrics_reader()
    grid = len(table.columns)
    entries = [table.entries[i : i + grid] for i in range(0, len(table.entries), grid)]
    rows = [
        (row, [_figures(table, entry, metrics) for entry in part])
        for row, part in zip(table.rows, entries, strict=True)
    ]
    lines = [
        Line(row.label, row.value or percent(row.rate), row.rate, _with_best(table, figures), row.variant)
        for row, figures in rows
    ]
    shown = list(lines)
    complete = all(figure.ours is not None for line in lines for column in line.figures for figure in column.values())
    for name in table.file.summary:
        title, function = SUMMARIES[name]
        ours = [
            _summary(function, [(part[i], line.figures[i]) for part, line in zip(entries, shown, strict=True)], metrics)
            for i in range(grid)
        ]
        note = "" if complete else "over the rows that we have, in ours and in published alike"
        shown_ours = _with_best(table, ours) if name == "average" else ours
        lines.append(Line(title, "", None, shown_ours, summary=True, note=note))
    for name in table.file.summary:
        printed = [_printed(table, name, column) for column in table.columns]
        if any(figure.published is not None for column in printed for figure in column.values()):
            lines.append(Line(f"{SUMMARIES[name][0]}, as printed", "", None, printed, summary=True))
    return lines


def _metrics_reader() -> Callable[[str], dict[str, Any]]:
    """Reads the metrics of an evaluation, each once; those of one that is not there are None."""

    def read(product: str) -> dict[str, Any]:
        return read_json(Path(product))["metrics"] if Path(product).exists() else dict.fromkeys(METRICS)

    return cache(read)


def _figures(
    table: Table, entry: Entry, metrics: Callable[[str], dict[str, Any]], names: Iterable[str] = METRICS
) -> dict[str, Figure]:
    printed = table.published.get(table.key(entry.row, entry.column), {})
    result = {}
    for metric in names:
        published = printed.get(metric)
        values = list(_by_seed(entry, metrics, metric).values())
        mean, interval = mean_and_interval(values) if values else (None, None)
        result[metric] = Figure(mean, interval, tuple(values), published)
    return result


def _printed(table: Table, name: str, column: Column) -> dict[str, Figure]:
    numbers = table.published.get(table.summary_key(name, column), {})
    return {metric: Figure(published=numbers.get(metric)) for metric in METRICS}


def _by_seed(entry: Entry, metrics: Callable[[str], dict[str, Any]], metric: str) -> dict[int, float]:
    """A metric of the seeds that we have."""
    found = {cell.name.seed: metrics(cell.evaluation.product).get(metric) for cell in entry.cells}
    return {seed: value for seed, value in found.items() if value is not None}


def _summary(
    function: Callable[[Sequence[float]], float],
    column: list[tuple[Entry, dict[str, Figure]]],
    metrics: Callable[[str], dict[str, Any]],
) -> dict[str, Figure]:
    """A summary of the rows that we have; the published numbers of the same rows beside it."""
    result = {}
    for metric in column[0][1]:
        have = [(entry, figures[metric]) for entry, figures in column if figures[metric].ours is not None]
        # One summary for each seed that all have, over the rows; its mean and interval over the seeds.
        found = [_by_seed(entry, metrics, metric) for entry, _ in have]
        seeds = [seed for seed in found[0] if all(seed in row for row in found)] if found else []
        values = tuple(v for seed in seeds if not math.isnan(v := function([row[seed] for row in found])))
        ours, interval = mean_and_interval(values) if values else (None, None)
        known = [figure.published for _, figure in have if figure.published is not None]
        published = function(known) if values and len(known) == len(have) else None
        result[metric] = Figure(ours, interval, values, published)
    return result


def _with_best(table: Table, columns: list[dict[str, Figure]]) -> list[dict[str, Figure]]:
    """Mark the highest C-Acc and the lowest ASR among the defenses of a subject; no defense does not compete."""
    result = [dict(column) for column in columns]
    for subject in {column.printed for column in table.columns}:
        defended = [
            i for i, column in enumerate(table.columns) if column.printed == subject and column.defense.name != "none"
        ]
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


def write_table(plan: Plan, table: Table | Tables) -> None:
    """Write reports/….md, .tex, .csv and .json."""
    Path(table.target).parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in render(plan, table).items():
        write_bytes(Path(table.target + suffix), text.encode())


def table_is_current(plan: Plan, table: Table | Tables) -> bool:
    """Whether all evaluations are there and the four files say what would be written now."""
    files = {suffix: Path(table.target + suffix) for suffix in SUFFIXES}
    if not all(path.exists() for path in [*files.values(), *map(Path, table.evaluations())]):
        return False
    return all(files[suffix].read_bytes() == text.encode() for suffix, text in render(plan, table).items())


def render(plan: Plan, table: Table | Tables) -> dict[str, str]:
    """The text of each of the four files, by suffix."""
    made_from = table.made_from()
    if isinstance(table, Table):
        content = _content(plan, table)
        return {
            ".md": f"<!-- made from {made_from} -->\n{_page('.md', content)}",
            ".tex": f"% made from {made_from}\n{NEEDS}{_page('.tex', content)}",
            ".csv": _csv(content),
            ".json": json_text({"made_from": made_from} | _json(content)),
        }
    contents = [_content(plan, each) for each in table.tables]
    entries = [f"- [{escape_markdown(content['title'])}](#{content['table'].name})" for content in contents]
    pages = [f'<a id="{c["table"].name}"></a>\n\n{_page(".md", c, level="##")}' for c in contents]
    head = f"<!-- made from {made_from} -->\n# {escape_markdown(table.tables[0].paper.upper())}, all tables\n\n"
    return {
        ".md": head + "\n".join(entries) + "\n\n" + "\n".join(pages),
        ".tex": f"% made from {made_from}\n{NEEDS}" + "\n".join(_page(".tex", content) for content in contents),
        ".csv": _csv(*contents),
        ".json": json_text([{"made_from": c["table"].made_from()} | _json(c) for c in contents]),
    }


def _content(plan: Plan, table: Table) -> dict[str, Any]:
    """Everything that a table's files show."""
    labels = {
        kind: list(dict.fromkeys(plan.label(kind, getattr(column.subject, kind)) for column in table.columns))
        for kind in ("dataset", "model")
    }
    metrics = _metrics_reader()
    groups = [(group, len(list(columns))) for group, columns in groupby(table.columns, lambda column: column.group)]
    return {
        "table": table,
        "title": f"{heading(table)}: {table.file.title}",
        "heading": heading(table),
        "setting": ", ".join(" and ".join(names) for names in labels.values()),
        "lines": lines_of(table, metrics),
        "comparisons": (comparisons := compare(table, metrics)),
        "compared": [comparison for comparison in comparisons if comparison.rows],
        "gaps": gaps_of(table),
        "notes": _notes(plan, table),
        "oracles": [any(e.oracle for e in table.entries if e.column == column) for column in table.columns],
        "by": table.file.by.label if table.file.by else "Rate",
        "groups": groups if any(column.group for column in table.columns) else [],
        "metrics": METRICS,
        "several_seeds": len(table.seeds) > 1,
        "number": len(table.columns),
        "footnotes": {"oracle": ORACLE},
    }


def _page(suffix: str, content: dict[str, Any], **more: Any) -> str:
    return _templates().get_template(f"table{suffix}.jinja").render(content | more)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("depoison.reporting"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"signed": signed, "p": p_value, "latex": escape_latex, "markdown": escape_markdown}
    return environment


def _json(content: dict[str, Any]) -> dict[str, Any]:
    table: Table = content["table"]
    return {
        "paper": table.paper,
        "table": table.name,
        "track": table.track,
        "dataset": table.dataset,
        "model": table.model,
        "seeds": list(table.seeds),
        "columns": [
            {"label": column.title, "defense": str(column.defense), **column.subject._asdict(), "oracle": oracle}
            for column, oracle in zip(table.columns, content["oracles"], strict=True)
        ],
        "metrics": _metrics(table, content["lines"]),
        "lines": [asdict(line) for line in content["lines"]],
        "comparisons": [asdict(comparison) for comparison in content["comparisons"]],
        "cells": [
            {"attack": str(entry.row.attack), "defense": str(entry.column.defense), "gap": entry.gap,
             "cells": [cell.name.path for cell in entry.cells],
             "evaluations": [cell.evaluation.product for cell in entry.cells]}
            for entry in table.entries
        ],
    }  # fmt: skip


def _metrics(table: Table, lines: list[Line]) -> dict[str, Any]:
    """{line: {column: {metric: ours}}} of what is known: dictionaries down to the numbers, as `dvc metrics` reads them."""
    return {
        f"{line.label} {line.value}".strip(): {
            column.title: {metric: figure.ours for metric, figure in figures.items() if figure.ours is not None}
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


def p_value(p: float | None) -> str:
    """Three decimals; a dash where there is none."""
    return "–" if p is None else "<0.001" if p < 0.0005 else f"{p:.3f}"


def _notes(plan: Plan, table: Table) -> list[str]:
    """What a reader must know to read the numbers."""
    track = plan.configuration.track(table.track).content
    notes = [f"Track {table.track}: {track.summary}."]
    moved = dict.fromkeys(
        f"{plan.label(kind, paper)} is replaced by {plan.label(kind, ours)}"
        for kind in ("dataset", "model")
        for column in table.columns
        if (paper := getattr(column.printed, kind)) != (ours := getattr(column.subject, kind))
    )
    if moved or track.models or track.training:
        because = f" ({'; '.join(moved)})" if moved else ""
        notes.append(
            f"This track does not reproduce the paper's setting{because}: the published numbers show the pattern to look "
            "for, and a difference is no verdict."
        )
    return notes


def _csv(*contents: dict[str, Any]) -> str:
    """The tables' numbers one a line, then their comparisons."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV, restval="", lineterminator="\n")
    writer.writeheader()
    for content in contents:
        table: Table = content["table"]
        where = {"paper": table.paper, "table": table.name, "track": table.track}
        for line in content["lines"]:
            row = where | {"row": line.label, "rate": line.rate, "variant": line.variant}
            for column, oracle, figures in zip(table.columns, content["oracles"], line.figures, strict=True):
                place = row | column.subject._asdict() | {"column": column.title, "oracle": oracle}
                for metric, figure in figures.items():
                    writer.writerow(place | {
                        "metric": metric, "ours": figure.ours, "interval95": figure.interval,
                        "seeds": len(figure.values), "published": figure.published, "difference": figure.difference,
                    })  # fmt: skip
        for comparison in content["comparisons"]:
            for metric, found in comparison.differences.items():
                writer.writerow(where | {
                    "row": "paired difference", "column": f"{comparison.first} {MINUS} {comparison.second}",
                    "metric": metric, "ours": found.mean, "interval95": found.interval, "published": found.published,
                    "difference": found.difference, "rows": found.rows, "pairs": found.pairs, "wins": found.wins,
                    "ties": found.ties, "losses": found.losses, "p": found.p,
                })  # fmt: skip
    return text.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    MINUS: "$-$",
    "±": r"$\pm$",
}
_LATEX |= {"–": "--", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
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
