"""Tables: ours, published and their difference, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from depoison.artifacts import read_evaluation
from depoison.errors import DepoisonError
from depoison.files import json_text, write_bytes
from depoison.plan.plan import Plan
from depoison.plan.tables import Column, Entry, Row, Subject, Table, Tables, percent, told_apart
from depoison.reporting import corrections
from depoison.reporting.comparison import METRICS, TAKEN, compare, mean_and_interval, undefended_asr
from depoison.reporting.latex import MINUS, escape_latex, name_latex, points, prose_latex, runs, typewriter

SUFFIXES = (".md", ".tex", ".csv", ".json")
CSV = (
    *("paper", "table", "track", "dataset", "model", "row", "rate", "rate_here", "variant", "column", "oracle"),
    *("metric", "ours", "interval95", "seeds", "missing", "published", "printed_as", "difference"),
    *("untaken", "lcr", "left_wrong", "rows", "pairs", "left_out"),
    *("wins", "ties", "losses", "p"),
)
NEEDS = "% Needs \\usepackage{booktabs}, \\usepackage{graphicx} and \\usepackage{xcolor}.\n"
ORACLE = "Its threshold was chosen by looking at the test set."
WRONG = 20
"""LCR stands beside an ASR where so many percent of the triggered images are wrong that a clean image would not be."""
LEFT_WRONG = (
    "LCR n: only n% of the triggered images are classified as what they show, although few or none are as the attack wants "
    f"(C-Acc − ASR − LCR ≥ {WRONG}). The defense stopped the attack and left these images wrong: a low ASR is no rescue "
    "then, and never bold."
)
NARROW = 4
"""A table of more columns has no room for differences, and intervals stand in lines of their own."""
FEW = 6
"""So many cells that are missing are named one by one."""
SUMMARIES: dict[str, tuple[str, Callable[[Sequence[float]], float]]] = {
    "average": ("Average", statistics.fmean),
    "standard-deviation": (
        "Standard deviation",
        lambda values: statistics.stdev(values) if len(values) > 1 else math.nan,
    ),
}


NOT_THERE: dict[str, Any] = dict.fromkeys(METRICS)
"""The metrics of an evaluation that is not there."""


@dataclass(frozen=True)
class Figure:
    """One number of a table, in percent.

    Attributes:
        ours: mean over the seeds; None: not computed.
        interval: half width of the 95% confidence interval of the mean (Student's t); None for fewer than two seeds.
        values: one for each of `seeds`.
        missing: seeds whose evaluation is not there.
        rows: of a summary: the places of the rows that it is over.
        published: as the paper prints it, or as corrected; None: not printed.
        printed_as: of a corrected number: what the paper says that it is of.
        best: whether it is the best of its row among the defenses.
        untaken: whether it says nothing of a defense, as the attack did not take.
        lcr: of an ASR: the LCR of the same triggered images, mean over the seeds.
        left_wrong: of an ASR: whether the LCR must be seen with it (`leaves_wrong`).
    """

    ours: float | None = None
    interval: float | None = None
    values: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    published: float | None = None
    printed_as: str = ""
    best: bool = False
    untaken: bool = False
    lcr: float | None = None
    left_wrong: bool = False

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.published is None else self.ours - self.published


@dataclass(frozen=True)
class Line:
    """A row as it is shown.

    Attributes:
        value: what stands beside the label, such as 5%; of a summary that is not over all rows, over how many.
        rate: the paper's poisoning rate.
        rates_here: those of the cells, where the track scales rates.
        figures: by column, then by metric.
        summary: its name, such as average; "" for a row of the table.
        printed: whether it is a summary as the paper prints it, and none of ours.
        untaken: whether the attack did not take, for all columns or some.
        rows: of a summary: the places of the rows that it is over.
    """

    label: str
    value: str
    rate: float | None
    figures: list[dict[str, Figure]]
    variant: str = ""
    summary: str = ""
    printed: bool = False
    untaken: bool = False
    rows: tuple[int, ...] = ()
    note: str = ""
    rates_here: tuple[float, ...] = ()

    @property
    def corrected(self) -> bool:
        """Whether a published number of the row is not where the paper prints it."""
        return any(figure.printed_as for column in self.figures for figure in column.values())


def lines_of(table: Table, metrics: Callable[[str], dict[str, Any]] | None = None) -> list[Line]:
    """All rows of a table: its cells, then its summaries over the rows that we have, then those that the paper prints.

    A summary is over the same rows in each column: those that all columns have, less columns that have none, and in which
    the attack took. Where that leaves out some, a second average is over all that the columns have.
    An evaluation that is not there leaves its place empty.
    """
    metrics = metrics or metrics_reader()
    grid = len(table.columns)
    before = undefended_asr(table, metrics)
    shown = []
    for i, row in enumerate(table.rows):
        figures = [_judged(table, entry, metrics, before) for entry in table.entries[i * grid : (i + 1) * grid]]
        shown.append(
            Line(
                row.label,
                row.value or rates(row.rate, table.rates_here(row)),
                row.rate,
                _with_best(table, figures),
                row.variant,
                untaken=any(column["asr"].untaken for column in figures),
                rates_here=tuple(table.rates_here(row)),
            )
        )
    lines = list(shown)
    all_rows = shared_rows(shown)
    rows = tuple(i for i in all_rows if not shown[i].untaken)
    note = _note(table, shown, rows, all_rows)
    for name in table.file.summary:
        lines.append(_summary(table, name, shown, rows, note))
        if name == "average" and rows != all_rows:
            lines.append(_summary(table, name, shown, all_rows, note))
    for name in table.file.summary:
        printed = [_printed(table, name, column) for column in table.columns]
        if any(figure.published is not None for column in printed for figure in column.values()):
            lines.append(Line(f"{SUMMARIES[name][0]}, as printed", "", None, printed, summary=name, printed=True))
    return lines


def _summary(table: Table, name: str, shown: Sequence[Line], rows: tuple[int, ...], note: str) -> Line:
    """A line of ours below the others, over these rows; if the attack did not take in some, nothing is the best in it."""
    title, function = SUMMARIES[name]
    ours = [summary_of(function, [line.figures[j] for line in shown], rows) for j in range(len(table.columns))]
    every = any(shown[i].untaken for i in rows)
    if name == "average" and not every:
        ours = [_marked_wrong(column, figures) for column, figures in zip(table.columns, ours, strict=True)]
        ours = _with_best(table, ours)
    value = "" if len(rows) == len(shown) else f"{len(rows)} of {len(shown)} rows"
    return Line(title + ", all rows" * every, value, None, ours, summary=name, rows=rows, note=note)


def shared_rows(lines: Sequence[Line]) -> tuple[int, ...]:
    """The places of the rows that every column has; a column that has none at all does not count."""
    columns = range(len(lines[0].figures))
    has = {j: {i for i, line in enumerate(lines) if line.figures[j]["c_acc"].ours is not None} for j in columns}
    having = [rows for rows in has.values() if rows]
    return tuple(sorted(set.intersection(*having))) if having else ()


def _note(table: Table, shown: Sequence[Line], rows: tuple[int, ...], all_rows: tuple[int, ...]) -> str:
    """What the summaries are over, where that is not simply the table."""
    missing = any(figure.missing for line in shown for column in line.figures for figure in column.values())
    which = []
    if len(all_rows) < len(shown):
        which.append("that all columns have, less columns without a number")
    if rows != all_rows:
        which.append("in which the attack took")
    seeds = " and the seeds that these share" if len(table.seeds) > 1 and missing else ""
    alike = ", in ours and in published alike" if table.published else ""
    return f"over the rows {' and '.join(which)}{seeds}{alike}" if which or seeds else ""


def _judged(
    table: Table,
    entry: Entry,
    metrics: Callable[[str], dict[str, Any]],
    before: dict[tuple[Row, Subject], float],
) -> dict[str, Figure]:
    """The numbers of a place, and whether the attack took there and the defense left images wrong."""
    figures = numbers_of(table, entry, metrics)
    undefended = before.get((entry.row, entry.column.printed))
    if undefended is not None and undefended < TAKEN:
        return {metric: replace(figure, untaken=True) for metric, figure in figures.items()}
    fell = undefended is not None and figures["asr"].ours is not None and figures["asr"].ours < undefended
    return _marked_wrong(entry.column, figures) if fell else figures


def _marked_wrong(column: Column, figures: dict[str, Figure]) -> dict[str, Figure]:
    wrong = column.defense.name != "none" and leaves_wrong(*(figures[m].ours for m in METRICS), figures["asr"].lcr)
    return figures | {"asr": replace(figures["asr"], left_wrong=wrong)}


def leaves_wrong(c_acc: float | None, asr: float | None, lcr: float | None) -> bool:
    """Whether a low ASR is no rescue: triggered images go neither where the attack wants them nor where they belong.

    These are 100 - ASR - LCR percent of them; of clean images 100 - C-Acc percent are wrong anyway. `WRONG` is how many more
    it takes.
    """
    return None not in (c_acc, asr, lcr) and c_acc - asr - lcr >= WRONG


def metrics_reader() -> Callable[[str], dict[str, Any]]:
    """Reads the metrics of an evaluation, each once; `NOT_THERE` for one that is not there."""

    def read(product: str) -> dict[str, Any]:
        if not Path(product).exists():
            return NOT_THERE
        evaluation = read_evaluation(product)
        return {"diverged": evaluation.content.get("diverged", False)} | evaluation.metrics

    return cache(read)


def numbers_of(
    table: Table, entry: Entry, metrics: Callable[[str], dict[str, Any]], names: Iterable[str] = METRICS
) -> dict[str, Figure]:
    printed = table.published.get(table.key(entry.row, entry.column), {})
    by_seed = {cell.name.seed: metrics(cell.evaluation.product) for cell in entry.cells}
    missing = tuple(seed for seed, found in by_seed.items() if found is NOT_THERE)
    lcr = [found["lcr"] for found in by_seed.values() if found.get("lcr") is not None]
    result = {}
    for metric in names:
        values = {seed: value for seed, found in by_seed.items() if (value := found.get(metric)) is not None}
        more = {"lcr": statistics.fmean(lcr)} if metric == "asr" and lcr else {}
        told = corrections.printed_as(table, entry.row, entry.column, metric)
        result[metric] = _figure(values, missing=missing, published=printed.get(metric), printed_as=told, **more)
    return result


def _figure(values: dict[int, float], **more: Any) -> Figure:
    """The mean of values by their seeds."""
    mean, interval = mean_and_interval(list(values.values())) if values else (None, None)
    return Figure(mean, interval, tuple(values.values()), tuple(values), **more)


def _printed(table: Table, name: str, column: Column) -> dict[str, Figure]:
    numbers = table.published.get(table.summary_key(name, column), {})
    return {metric: Figure(published=numbers.get(metric)) for metric in METRICS}


def summary_of(
    function: Callable[[Sequence[float]], float], columns: list[dict[str, Figure]], rows: Sequence[int]
) -> dict[str, Figure]:
    """A summary of a column over these rows; the published numbers of the same rows beside it.

    Args:
        columns: the column's numbers in each row of the table.
        rows: places in it. A column that has none of them has no summary; one without defense has no DER, and a clean
            model no ASR.
    """
    result = {}
    for metric in columns[0]:
        have = {i: columns[i][metric] for i in rows if columns[i][metric].ours is not None}
        by_seed = [dict(zip(figure.seeds, figure.values, strict=True)) for figure in have.values()]
        # One summary for each seed that all rows have, over the rows; its mean and interval over the seeds.
        seeds = [seed for seed in by_seed[0] if all(seed in row for row in by_seed)] if by_seed else []
        found = {seed: function([row[seed] for row in by_seed]) for seed in seeds}
        values = {seed: value for seed, value in found.items() if not math.isnan(value)}
        known = [figure.published for figure in have.values() if figure.published is not None]
        published = function(known) if values and len(known) == len(have) else None
        lcr = [figure.lcr for figure in have.values() if figure.lcr is not None]
        more = {"lcr": function(lcr)} if values and lcr and len(lcr) == len(have) else {}
        result[metric] = _figure(values, rows=tuple(have), published=published, **more)
    return result


def _with_best(table: Table, columns: list[dict[str, Figure]]) -> list[dict[str, Figure]]:
    """Mark the highest C-Acc and the lowest ASR among the defenses of a subject; no defense does not compete.

    Nothing is marked where they are not means over the same seeds and rows, or where the attack did not take; nor is the
    lowest ASR where it leaves images wrong, and then no higher one is in its place.
    """
    result = [dict(column) for column in columns]
    for subject in {column.printed for column in table.columns}:
        defended = [
            i for i, column in enumerate(table.columns) if column.printed == subject and column.defense.name != "none"
        ]
        for metric, best_of in (("c_acc", max), ("asr", min)):
            found = {i: figure for i in defended if (figure := columns[i][metric]).ours is not None}
            if len(found) < 2 or len({(figure.seeds, figure.rows) for figure in found.values()}) > 1:
                continue
            found = {i: figure for i, figure in found.items() if not figure.untaken}
            best = best_of((round(figure.ours, 2) for figure in found.values()), default=None)
            for i, figure in found.items():
                if round(figure.ours, 2) == best and not figure.left_wrong:
                    result[i][metric] = replace(figure, best=True)
    return result


def gaps_of(table: Table) -> list[str]:
    """The methods whose cells are missing, each once."""
    return list(dict.fromkeys(entry.gap for entry in table.entries if entry.gap))


def signed(value: float) -> str:
    """+0.12, −0.12 (a true minus) or ±0.00."""
    text = f"{value:+.2f}".replace("-", MINUS)
    return text.replace("+", "±").replace(MINUS, "±") if float(f"{value:.2f}") == 0 else text


def write_table(plan: Plan, table: Table | Tables, partial: bool = False) -> None:
    """Write reports/….md, .tex, .csv and .json; arguments and errors as of `render`."""
    texts = render(plan, table, partial)
    Path(table.target).parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in texts.items():
        write_bytes(Path(table.target + suffix), text.encode())


def table_is_current(plan: Plan, table: Table | Tables, partial: bool = False) -> bool:
    """Whether the four files say what would be written now.

    Args:
        partial: whether evaluations may be missing; else it is not current then.
    """
    files = {suffix: Path(table.target + suffix) for suffix in SUFFIXES}
    if not all(path.exists() for path in files.values()) or (table.missing() and not partial):
        return False
    return all(files[suffix].read_bytes() == text.encode() for suffix, text in render(plan, table, partial).items())


def render(plan: Plan, table: Table | Tables, partial: bool = False) -> dict[str, str]:
    """The text of each of the four files, by suffix.

    Args:
        partial: whether evaluations may be missing; then their places are empty, and a footnote says what makes them.

    Raises:
        DepoisonError: evaluations are missing, or one cannot be read.
    """
    if not partial:
        refuse_missing(plan, f"{table.target}.md", table)
    made_from = table.made_from()
    if isinstance(table, Table):
        content = content_of(plan, table)
        return {
            ".md": f"<!-- made from {made_from} -->\n{_page('.md', content)}",
            ".tex": f"% made from {made_from}\n{NEEDS}{_page('.tex', content)}",
            ".csv": _csv(content),
            ".json": json_text({"made_from": made_from} | _json(content)),
        }
    folder = table.target.rpartition("/")[0]
    everything = [content_of(plan, each) for each in table.tables]
    contents = [content_of(plan, each, f"{folder}/{each.name}.md", same) for each, same in told_apart(table.tables)]
    entries = [f"- [{escape_markdown(content['title'])}](#{content['table'].name})" for content in contents]
    pages = [f'<a id="{c["table"].name}"></a>\n\n{_page(".md", c, level="##", collapse=True)}' for c in contents]
    head = f"<!-- made from {made_from} -->\n# {escape_markdown(table.tables[0].paper.upper())}, all tables\n\n"
    return {
        ".md": head + "\n".join(entries) + "\n\n" + "\n".join(pages),
        ".tex": f"% made from {made_from}\n{NEEDS}" + "\n".join(_page(".tex", c, collapse=True) for c in contents),
        ".csv": _csv(*everything),
        ".json": json_text([{"made_from": c["table"].made_from()} | _json(c) for c in everything]),
    }


def refuse_missing(plan: Plan, target: str, table: Table | Tables) -> None:
    """Raises: DepoisonError: evaluations of a table, or of all tables of `target`, are missing."""
    if missing := table.missing():
        raise DepoisonError(
            f"{target}: {len(missing)} of {len(table.evaluations())} evaluations are missing, the first is that of "
            f"{missing[0].name.path}; `{command(plan, target)}` computes them, --partial shows what is there"
        )


def command(plan: Plan, *targets: str) -> str:
    """What a user types to make targets, with the configuration as it is."""
    configfiles = ["--configfile", *plan.overlays] if plan.overlays else []
    return shlex.join(["snakemake", *configfiles, "--", *targets])


def content_of(plan: Plan, table: Table, target: str = "", same: Sequence[Table] = ()) -> dict[str, Any]:
    """Everything that a table's files show.

    Args:
        target: what to ask for where evaluations are missing; default: the table.
        same: tables that the track does not tell from this one (`told_apart`).
    """
    folder, missing = table.target.rpartition("/")[0], table.missing()
    names = [cell.name.path for cell in missing]
    labels = {
        kind: list(dict.fromkeys(plan.label(kind, getattr(column.subject, kind)) for column in table.columns))
        for kind in ("dataset", "model")
    }
    metrics = metrics_reader()
    lines = lines_of(table, metrics)
    figures = [figure for line in lines for column in line.figures for figure in column.values()]
    return {
        "table": table,
        "title": f"{heading(table)}: {table.file.title}",
        "heading": heading(table),
        "setting": ", ".join(" and ".join(names) for names in labels.values()),
        "lines": lines,
        "comparisons": (comparisons := compare(table, metrics)),
        "compared": [comparison for comparison in comparisons if comparison.rows or comparison.left_out],
        "gaps": gaps_of(table),
        "prints": any(figure.published is not None for figure in figures),
        "untaken": _untaken(table, lines),
        "left_wrong": LEFT_WRONG if any(figure.left_wrong for figure in figures) else "",
        "notes": [*_notes(plan, table), *filter(None, [_diverged(table, metrics)])],
        "oracles": [any(e.oracle for e in table.entries if e.column == column) for column in table.columns],
        "by": table.file.by.label if table.file.by else "Rate",
        "groups": any(column.group for column in table.columns),
        "metrics": METRICS,
        "several_seeds": len(table.seeds) > 1,
        "number": len(table.columns),
        "wide": len(table.columns) > NARROW,
        "identifier": re.sub(r"[^\w.-]", "-", f"{table.paper}-{table.name}-{table.track}", flags=re.ASCII),
        "footnotes": {"oracle": ORACLE, "corrected": corrections.footnote(table)},
        "missing": missing,
        "empty": len(missing) == len(table.evaluations()),
        "same": _same(plan, table, same),
        "same_made_by": command(plan, *(f"{folder}/{other.name}.md" for other in same)) if same else "",
        "evaluations": len(table.evaluations()),
        "makes_all": command(plan, target or f"{table.target}.md"),
        "makes_each": command(plan, *names) if len(missing) <= FEW else "",
    }


def _same(plan: Plan, table: Table, same: Sequence[Table]) -> str:
    """A sentence that names the tables that this one stands for, too."""
    told = [
        f"{name_of(other)} ({plan.label('dataset', other.file.dataset)}, {plan.label('model', other.file.model)})"
        for other in same
    ]
    names, one = [", ".join(told[:-1]), *told[-1:]] if len(told) > 1 else told, len(told) == 1
    return (
        f"The track {table.track} does not tell {' and '.join(names)} from this table: it replaces what "
        f"{'it differs' if one else 'they differ'} in, and all {'its' if one else 'their'} cells stand here. "
        f"In {'a file of its' if one else 'files of their'} own {'it stands' if one else 'they stand'} beside "
        f"{'its' if one else 'their'} own published numbers:"
        if told
        else ""
    )


def _page(suffix: str, content: dict[str, Any], collapse: bool = False, **more: Any) -> str:
    """Args: collapse: whether of a table without a single number only the heading is left."""
    content = content | {"collapsed": collapse and content["empty"]}
    return templates().get_template(f"table{suffix}.jinja").render(content | more, c=content)


@cache
def templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("depoison.reporting"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"signed": signed, "p": p_value, "latex": escape_latex, "markdown": escape_markdown}
    environment.filters |= {
        "typewriter": typewriter,
        "name": name_latex,
        "prose": prose_latex,
        "points": points,
        "runs": runs,
        "code": code,
    }
    environment.filters |= {"pick": lambda values, at: [values[i] for i in at], "values": dict.values}
    return environment


def _json(content: dict[str, Any]) -> dict[str, Any]:
    table: Table = content["table"]
    missing = {cell.evaluation.product for cell in content["missing"]}
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
        "missing": [cell.name.path for cell in content["missing"]],
        "missing_made_by": content["makes_all"] if missing else None,
        "corrections": corrections.as_json(table.corrections),
        "cells": [
            {"attack": str(entry.row.attack), "defense": str(entry.column.defense), "gap": entry.gap,
             "missing": [cell.name.path for cell in entry.cells if cell.evaluation.product in missing],
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
    return f"{table.paper.upper()}, {name_of(table)}"


def name_of(table: Table) -> str:
    """Table 2, or its file's name where that has no number."""
    words = re.fullmatch(r"(table|figure)(\d+)(.*)", table.name)
    return f"{words[1].title()} {words[2]}{words[3]}" if words else table.name


def rates(rate: float | None, here: Sequence[float]) -> str:
    """A poisoning rate, and what a track makes of it: 1% (here 6.1%)."""
    shown = list(dict.fromkeys(f"{100 * value:.2g}" for value in here))
    return percent(rate) + (f" (here {'–'.join(dict.fromkeys((shown[0], shown[-1])))}%)" if shown else "")


def p_value(p: float | None) -> str:
    """Three decimals; a dash where there is none."""
    return "–" if p is None else "<0.001" if p < 0.0005 else f"{p:.3f}"


def replaced(plan: Plan, table: Table) -> Iterator[tuple[str, str]]:
    """Labels of what the track replaces: the paper's dataset or model, and ours; a pair for each column."""
    for kind in Subject._fields:
        for column in table.columns:
            if (paper := getattr(column.printed, kind)) != (ours := getattr(column.subject, kind)):
                yield plan.label(kind, paper), plan.label(kind, ours)


def _notes(plan: Plan, table: Table) -> list[str]:
    """What a reader must know to read the numbers."""
    track = plan.configuration.track(table.track).content
    notes = [f"Track {table.track}: {track.summary}."]
    moved = dict.fromkeys(f"{paper} is replaced by {ours}" for paper, ours in replaced(plan, table))
    if moved or track.models or track.training.keys() - {"precision"}:  # papers name no precision
        because = f" ({'; '.join(moved)})" if moved else ""
        notes.append(
            f"This track does not reproduce the paper's setting{because}: the published numbers show the pattern to look "
            "for, and a difference is no verdict."
            if table.published
            else f"This track is not the table's setting{because}."
        )
    if any(map(table.rates_here, table.rows)):
        notes.append(
            "This track poisons as many images as the paper does, because their number implants a trigger, up to "
            f"{percent(track.poisoning.cap)} of the attacker's images: the rate in parentheses."
        )
    return notes


def _untaken(table: Table, lines: list[Line]) -> str:
    """A sentence on the rows in which the attack did not take, as nothing is learned there of a defense; "" without any."""
    count = sum(line.untaken for line in lines)
    some = " in some columns or all" if len({column.printed for column in table.columns}) > 1 else ""
    told = f"In {count} of {len(table.rows)} rows the attack did not take{some} (ASR without a defense below {TAKEN}%)"
    left_out = " Paired differences and averages, but for the one of all rows, leave them out."
    below = left_out if table.file.summary or table.comparisons else ""
    return f"{told}: what a defense leaves there says nothing about it.{below}" if count else ""


def _diverged(table: Table, metrics: Callable[[str], dict[str, Any]]) -> str:
    """A sentence that names the cells whose training or tuning diverged; "" without any."""
    found = [
        " ".join(filter(None, [entry.row.label, entry.row.value or percent(entry.row.rate), f"({entry.column.title})"]))
        for entry in table.entries
        if any(metrics(cell.evaluation.product).get("diverged") for cell in entry.cells)
    ]
    told = "The training or tuning behind these cells diverged, so their numbers say nothing about a method"
    return f"{told}: {', '.join(found)}." if found else ""


def _csv(*contents: dict[str, Any]) -> str:
    """The tables' numbers one a line, then their comparisons."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV, restval="", lineterminator="\n")
    writer.writeheader()

    def write(row: dict[str, Any]) -> None:
        writer.writerow({key: no_formula(value) for key, value in row.items()})

    for content in contents:
        table: Table = content["table"]
        where = {"paper": table.paper, "table": table.name, "track": table.track}
        for line in content["lines"]:
            here = " ".join(f"{rate:g}" for rate in line.rates_here)
            row = where | {"row": line.label, "rate": line.rate, "rate_here": here, "variant": line.variant}
            for column, oracle, figures in zip(table.columns, content["oracles"], line.figures, strict=True):
                place = row | column.subject._asdict() | {"column": column.title, "oracle": oracle}
                for metric, figure in figures.items():
                    write(place | {
                        "metric": metric, "ours": figure.ours, "interval95": figure.interval,
                        "seeds": len(figure.values), "missing": len(figure.missing),
                        "published": figure.published, "printed_as": figure.printed_as, "difference": figure.difference,
                        "untaken": figure.untaken, "lcr": figure.lcr,
                        "left_wrong": figure.left_wrong if metric == "asr" else None,
                    })  # fmt: skip
        for comparison in content["comparisons"]:
            for metric, found in comparison.differences.items():
                write(where | {
                    "row": "paired difference", "column": f"{comparison.first} {MINUS} {comparison.second}",
                    "metric": metric, "ours": found.mean, "interval95": found.interval, "published": found.published,
                    "difference": found.difference, "rows": found.rows, "pairs": found.pairs,
                    "left_out": comparison.left_out, "wins": found.wins,
                    "ties": found.ties, "losses": found.losses, "p": found.p,
                })  # fmt: skip
    return text.getvalue()


def no_formula(value: Any) -> Any:
    """A value for a CSV: a text that begins as a formula does, which spreadsheets compute, gets a quote before it."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def escape_markdown(text: str) -> str:
    """Any text, so that it stays in its table cell and starts no markup."""
    escaped = "".join(
        "\\" + c if c in "\\`*_[]|~" else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(c, c) for c in str(text)
    )
    return " ".join(escaped.split())


def code(text: str) -> str:
    """Text such as a command, in Markdown: verbatim between as many backticks as it takes."""
    text = " ".join(str(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"
