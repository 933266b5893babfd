"""Tables: ours, published and their difference, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any

import jinja2

from depoison.errors import DepoisonError
from depoison.files import json_text
from depoison.papers.figures import Figure
from depoison.papers.grid import Part, Place, percent
from depoison.papers.tables import DropFile, Table, Tables, summary_name, told_apart
from depoison.plan.metrics import MINUS, Metric, Metrics
from depoison.plan.plan import Plan
from depoison.reports import corrections
from depoison.reports.comparison import Before, before, compare, model_of
from depoison.reports.latex import escape_latex, name_latex, points, prose_latex, typewriter
from depoison.reports.numbers import Number, Reader, signed

CSV = (
    *("paper", "table", "track", "dataset", "model", "row", "rate", "rate_here", "variant", "column", "oracle"),
    *("metric", "ours", "interval95", "seeds", "missing", "published", "printed_as", "difference"),
    *("untaken", "right", "no_rescue", "rows", "pairs", "left_out"),
    *("wins", "ties", "losses", "p"),
)
NEEDS = "% Needs \\usepackage{booktabs}, \\usepackage{graphicx} and \\usepackage{xcolor}.\n"
ORACLE = "Its threshold was chosen by looking at the test set."
NARROW = 4
"""A table of more columns has no room for differences, and intervals stand in lines of their own."""
ESCAPED = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})
"""What means something in Markdown."""
FEW = 6
"""So many cells that are missing are named one by one."""
FUNCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "average": statistics.fmean,
    "standard-deviation": lambda values: statistics.stdev(values) if len(values) > 1 else math.nan,
}


@dataclass(frozen=True)
class Line:
    """A row as it is shown.

    Attributes:
        value: what stands beside the label, such as 5%; of a summary that is not over all rows, over how many.
        rate: the paper's poisoning rate.
        rates_here: those of the cells, where the track scales rates.
        numbers: by column.
        summary: its name, such as average; "" for a row of the table.
        printed: whether it is a summary as the paper prints it, and none of ours.
        untaken: whether the attack did not take, for all columns or some; where columns are of attacks, for all.
        rows: of a summary: the places of the rows that it is over.
    """

    label: str
    value: str
    rate: float | None
    numbers: list[Number]
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
        return any(number.printed_as for number in self.numbers)


class Shown:
    """What a table shows of what is there.

    Args:
        metrics: the project's.
        read: reads evaluations and probes; one that is not there leaves its place empty.
    """

    def __init__(self, table: Table, metrics: Metrics, read: Reader | None = None):
        self.table, self.metrics, self.read = table, metrics, read or Reader()
        self.attack = metrics.attack
        self.before: Before = before(table, self.attack, self.read)

    def lines(self) -> list[Line]:
        """All rows: the cells, then summaries over the rows that we have, then those that the paper prints.

        A summary is over the same rows in each column: those that all columns have, less columns that have none, and in which
        the attack took. Where that leaves out some, a second average is over all that the columns have.
        """
        table = self.table
        shown = self._with_best([self._row(row) for row in table.rows])
        lines = list(shown)
        printed = []
        for metric in dict.fromkeys(row.metric for row in table.rows):
            own = [i for i, row in enumerate(table.rows) if row.metric is metric]
            all_rows = self._shared(shown, own)
            rows = tuple(i for i in all_rows if not shown[i].untaken)
            note = self._note(shown, own, rows, all_rows)
            for summary in table.file.summary:
                lines.append(self._summary(summary, metric, shown, own, rows, note))
                if summary == "average" and rows != all_rows:
                    lines.append(self._summary(summary, metric, shown, own, all_rows, note))
                printed.append(self._printed(summary, metric))
        return lines + [line for line in printed if any(number.published is not None for number in line.numbers)]

    def _row(self, row: Part) -> Line:
        places = [self.table.at(row, column) for column in self.table.columns]
        numbers = [self.number(row, column) for column in self.table.columns]
        rate = places[0].rate if row.names("attack") else None
        scaled = tuple(rates_here(places))
        value = rates(rate, scaled) if row.by_rate else row.value
        return Line(
            row.label,
            ", ".join(filter(None, [value, row.metric and row.metric.title])),
            rate,
            numbers,
            row.variant,
            untaken=(any if self.table.attack_in_rows else all)(number.untaken for number in numbers),
            rates_here=scaled,
        )

    def number(self, row: Part, column: Part) -> Number:
        """The number of a place, and whether the attack took there and the defense left images wrong."""
        place, metric = self.table.at(row, column), self.table.metric(row, column)
        values, missing = self.read.values(place, metric)
        printed = place.published.get(metric.name)
        told = corrections.printed_as(self.table, place, metric.name, self.metrics)
        more: dict[str, Any] = {"published": float(printed[0]) if printed else None, "printed_as": told}
        if rule := metric.no_rescue:
            # After the defense clean images may be as wrong as triggered ones: a network that calls everything one class.
            beside = {
                "right": self.read.values(place, self.metrics[rule.right])[0],
                "clean": self.read.before(place, self.metrics[rule.clean]),
            }
            more |= {name: statistics.fmean(found.values()) if found else None for name, found in beside.items()}
            more["beside"] = self.metrics[rule.right].label
        number = Number.of(metric, values, missing=missing, **more)
        known = self.before.get(model_of(place))
        if self.attack and known is not None and known < self.attack.took:
            return replace(number, untaken=True)
        fell = known is not None and number.ours is not None and number.ours < known
        return replace(number, no_rescue=fell and not _is_none(place) and number.leaves_wrong(metric))

    def _shared(self, lines: Sequence[Line], rows: Sequence[int]) -> tuple[int, ...]:
        """Those of these rows that every column has; a column that has none at all does not count."""
        has = [{i for i in rows if lines[i].numbers[j].ours is not None} for j in range(len(self.table.columns))]
        having = [found for found in has if found]
        return tuple(sorted(set.intersection(*having))) if having else ()

    def _summary(
        self,
        summary: str | DropFile,
        metric: Metric | None,
        shown: Sequence[Line],
        own: Sequence[int],
        rows: tuple[int, ...],
        note: str,
    ) -> Line:
        """A line of ours below the others, over these rows; if the attack did not take in some, nothing is the best in it."""
        every = any(shown[i].untaken for i in rows)
        function, numbers = FUNCTIONS.get(summary_name(summary), statistics.fmean), []
        for j, column in enumerate(self.table.columns):
            of = [line.numbers[j] for line in shown]
            if isinstance(summary, DropFile):
                of = self._drops(summary.drop_from, shown, j)
            number = summary_of(column.metric or metric, function, of, rows)
            # Where columns are of attacks, a row stays although the attack of some columns did not take.
            if not self.table.attack_in_rows and any(shown[i].numbers[j].untaken for i in rows):
                number = replace(number, untaken=True)
            elif summary == "average" and not every:
                wrong = any(shown[i].numbers[j].no_rescue for i in rows)
                number = replace(number, no_rescue=wrong and number.leaves_wrong(column.metric or metric))
            numbers.append(number)
        over = "" if len(rows) == len(own) else f"{len(rows)} of {len(own)} rows"
        value = ", ".join(filter(None, [metric and metric.title, over]))
        title = self._title(summary) + ", all rows" * every
        line = Line(title, value, None, numbers, summary=summary_name(summary), rows=rows, note=note)
        if summary == "average" and rows and not every:
            return self._with_best([line], self.table.rows[rows[0]])[0]
        return line

    def _drops(self, defense: str, shown: Sequence[Line], j: int) -> list[Number]:
        """By how much the numbers of a column are below those of a defense, of the same row and metric."""
        table, result = self.table, []
        for row, line in zip(table.rows, shown, strict=True):
            known = {
                (table.at(row, c).key, table.metric(row, c)): n
                for c, n in zip(table.columns, line.numbers, strict=True)
            }
            number, metric = line.numbers[j], table.metric(row, table.columns[j])
            full = known.get((table.at(row, table.columns[j]).key._replace(defense=defense), metric))
            if full is None or full is number:
                result.append(Number(number.metric, decimals=number.decimals))
                continue
            by_seed = dict(zip(full.seeds, full.values, strict=True))
            pairs = zip(number.seeds, number.values, strict=True)
            values = {seed: by_seed[seed] - value for seed, value in pairs if seed in by_seed}
            published = None if None in (full.published, number.published) else full.published - number.published
            result.append(Number.of(metric, values, missing=number.missing, published=published))
        return result

    def _title(self, summary: str | DropFile) -> str:
        return "Average drop" if isinstance(summary, DropFile) else summary.replace("-", " ").capitalize()

    def _printed(self, summary: str | DropFile, metric: Metric | None) -> Line:
        name, numbers = summary_name(summary), []
        for column in self.table.columns:
            of = column.metric or metric
            text = self.table.published.get(self.table.summary_key(name, column), {}).get(of.name)
            numbers.append(Number(of.key, published=None if text is None else float(text), decimals=of.decimals))
        value = metric.title if metric else ""
        return Line(f"{self._title(summary)}, as printed", value, None, numbers, summary=name, printed=True)

    def _note(self, shown: Sequence[Line], own: Sequence[int], rows: tuple[int, ...], all_rows: tuple[int, ...]) -> str:
        """What the summaries are over, where that is not simply the table."""
        missing = any(number.missing for line in shown for number in line.numbers)
        which = []
        if len(all_rows) < len(own):
            which.append("that all columns have, less columns without a number")
        if rows != all_rows:
            which.append("in which the attack took")
        seeds = " and the seeds that these share" if len(self.table.seeds) > 1 and missing else ""
        alike = ", in ours and in published alike" if self.table.published else ""
        return f"over the rows {' and '.join(which)}{seeds}{alike}" if which or seeds else ""

    def _with_best(self, lines: list[Line], of: Part | None = None) -> list[Line]:
        """Mark the best of each metric among the defenses of one backdoored model; no defense does not compete.

        They are looked for in a row, or where the rows are the defenses in a column. Nothing is marked where they are not
        means over the same seeds and rows, or where the attack did not take; nor what is no rescue, and then nothing else is
        in its place. What diverged does not compete: its numbers say nothing of its method.

        Args:
            of: what the one line is a summary of.
        """
        table = self.table
        groups: dict[Any, dict[tuple[int, int], Number]] = {}
        for i, line in enumerate(lines):
            row = of or table.rows[i]
            for j, column in enumerate(table.columns):
                place, metric, number = table.at(row, column), table.metric(row, column), line.numbers[j]
                behind = [table.at(table.rows[k], column) for k in line.rows] if of else [place]
                competes = not _is_none(place) and not any(map(self.read.diverged, behind))
                if metric.sign and competes and number.ours is not None:
                    at = i if table.defense_in_columns else j
                    groups.setdefault((at, model_of(place), metric), {})[i, j] = number
        best: set[tuple[int, int]] = set()
        for (*_, metric), numbers in groups.items():
            if len(numbers) < 2 or len({(number.seeds, number.rows) for number in numbers.values()}) > 1:
                continue
            taken = {
                at: metric.sign * round(number.ours, metric.decimals)
                for at, number in numbers.items()
                if not number.untaken
            }
            best |= {at for at, value in taken.items() if value == max(taken.values()) and not numbers[at].no_rescue}
        return [
            replace(line, numbers=[replace(number, best=(i, j) in best) for j, number in enumerate(line.numbers)])
            for i, line in enumerate(lines)
        ]


def _is_none(place: Place) -> bool:
    """Whether it is of no defense."""
    return place.defense.name == "none"


def rates_here(places: Sequence[Place]) -> list[float]:
    """The poisoning rates of cells where they are not the paper's, because the track scales them; ascending."""
    rate = places[0].rate
    settings = [cell.settings["attack"] for place in places for cell in place.cells]
    found = {of["rate"][-1].value for of in settings if "rate" in of}
    return [] if rate is None or found <= {rate} else sorted(found)


def summary_of(
    metric: Metric, function: Callable[[Sequence[float]], float], column: Sequence[Number], rows: Sequence[int]
) -> Number:
    """A summary of a column over these rows; the published numbers of the same rows beside it.

    Args:
        column: its numbers in each row of the table.
        rows: places in it. A column that has none of them has no summary.
    """
    have = {i: column[i] for i in rows if column[i].ours is not None}
    by_seed = [dict(zip(number.seeds, number.values, strict=True)) for number in have.values()]
    # One value for each seed that all rows have; its mean and interval are over these.
    seeds = [seed for seed in by_seed[0] if all(seed in row for row in by_seed)] if by_seed else []
    found = {seed: function([row[seed] for row in by_seed]) for seed in seeds}
    values = {seed: value for seed, value in found.items() if not math.isnan(value)}
    known = [number.published for number in have.values() if number.published is not None]
    published = function(known) if values and len(known) == len(have) else None
    more = {}
    for name in ("right", "clean"):
        of = [getattr(number, name) for number in have.values() if getattr(number, name) is not None]
        more[name] = function(of) if values and of and len(of) == len(have) else None
    return Number.of(metric, values, rows=tuple(have), published=published, beside=column[0].beside, **more)


def render(plan: Plan, table: Table | Tables) -> dict[str, str]:
    """The text of each of the four files, by suffix; places without an evaluation are empty, and a footnote says so.

    Raises:
        DepoisonError: an evaluation cannot be read.
    """
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
    head = (
        f"<!-- made from {made_from} -->\n# {escape_markdown(plan.paper_label(table.tables[0].paper))}, all tables\n\n"
    )
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


def content_of(
    plan: Plan, table: Table, target: str = "", same: Sequence[Table] = (), read: Reader | None = None
) -> dict[str, Any]:
    """Everything that a table's files show.

    Args:
        target: what to ask for where evaluations are missing; default: the table.
        same: tables that the track does not tell from this one (`told_apart`).
    """
    folder, missing = table.target.rpartition("/")[0], table.missing()
    names = [cell.name.path for cell in missing]
    places = list(table.places.values())
    labels = {
        kind: list(dict.fromkeys(plan.label(kind, getattr(place, kind)) for place in places))
        for kind in ("dataset", "model")
    }
    shown = Shown(table, plan.metrics, read)
    lines = shown.lines()
    numbers = [number for line in lines for number in line.numbers]
    comparisons = compare(table, shown.read, shown.attack, shown.before)
    return {
        "table": table,
        "shown": shown,
        "title": f"{heading(plan, table)}: {table.file.title}",
        "heading": heading(plan, table),
        "setting": ", ".join(" and ".join(names) for names in labels.values()),
        "lines": lines,
        "comparisons": comparisons,
        "compared": [comparison for comparison in comparisons if comparison.rows or comparison.left_out],
        "gaps": list(dict.fromkeys(gap for place in places for gap in place.gaps)),
        "prints": any(number.published is not None for number in numbers),
        "untaken": _untaken(shown, lines),
        "best_of": "row" if table.defense_in_columns else "column",
        "no_rescue": [
            _no_rescue(plan.metrics, m)
            for m in table.metrics
            if any(n.no_rescue and n.metric == m.key for n in numbers)
        ],
        "notes": [*_notes(plan, table), *filter(None, [_diverged(shown)])],
        "rows": _named_rows(table),
        "by": ", ".join(
            dict.fromkeys(filter(None, [*(row.parameter for row in table.rows), "Metric" * bool(table.rows[0].metric)]))
        ),
        "groups": any(column.group for column in table.columns),
        "heads": _heads(table),
        "metrics": table.metrics,
        "unit": unit_of(table.metrics),
        "directions": directions(table.metrics),
        "several_seeds": len(table.seeds) > 1,
        "number": len(table.columns),
        "wide": len(table.heads) > NARROW,
        "identifier": re.sub(r"[^\w.-]", "-", f"{table.paper}-{table.name}-{table.track}", flags=re.ASCII),
        "footnotes": {"oracle": ORACLE, "corrected": corrections.footnote(table, plan.metrics)},
        "missing": missing,
        "empty": len(missing) == len(table.evaluations()),
        "same": _same(plan, table, same),
        "same_made_by": command(plan, *(f"{folder}/{other.name}.md" for other in same)) if same else "",
        "evaluations": len(table.evaluations()),
        "makes_all": command(plan, target or f"{table.target}.md"),
        "makes_each": command(plan, *names) if len(missing) <= FEW else "",
    }


@dataclass(frozen=True)
class Head:
    """The columns of one part: what stands above them, and their places."""

    label: str
    title: str
    group: str
    at: tuple[int, ...]
    oracle: bool
    metrics: tuple[Metric, ...] = ()
    """Empty where metrics stand in rows."""

    @property
    def labels(self) -> str:
        return "/".join(metric.title for metric in self.metrics)


def _heads(table: Table) -> list[Head]:
    heads = []
    for at in table.heads:
        column = table.columns[at[0]]
        oracle = any(place.oracle for (_, j), place in table.places.items() if j == column.index)
        metrics = tuple(found for j in at if (found := table.columns[j].metric))
        label = " ".join(filter(None, [column.label, column.value]))
        heads.append(Head(label, column.title, column.group, at, oracle, metrics))
    return heads


def column_groups(heads: Sequence[Head]) -> list[tuple[str, int]]:
    """What stands above neighboring heads, and over how many columns."""
    return [(group, sum(len(head.at) for head in of)) for group, of in groupby(heads, lambda head: head.group)]


def _named_rows(table: Table) -> str:
    """What the rows are: Attack, Model, …"""
    kinds = [kind for kind in ("dataset", "model", "attack", "defense") if any(row.names(kind) for row in table.rows)]
    return ", ".join(kinds).capitalize()


def unit_of(metrics: Sequence[Metric]) -> str:
    """In what the numbers are, as the beginning of a sentence."""
    units = {metric.unit for metric in metrics}
    return "In percent" if units <= {"%"} else "In percent where no other unit is named" if "%" in units else ""


def directions(metrics: Sequence[Metric]) -> str:
    """Which way each is better, a sentence without its full stop."""
    found = []
    for better in ("higher", "lower"):
        labels = [metric.label for metric in metrics if metric.better == better]
        found += [f"{better} {listed(labels)}"] if labels else []
    told = " and ".join(found)
    are = "are" if sum(metric.sign != 0 for metric in metrics) > 1 else "is"
    return f"{told[:1].upper()}{told[1:]} {are} better" if told else ""


def listed(words: Sequence[str]) -> str:
    """A, b and c."""
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else "".join(words)


def _no_rescue(metrics: Metrics, metric: Metric) -> str:
    """What it means where another number stands below a metric's."""
    rule = metric.no_rescue
    right, clean = metrics[rule.right].label, metrics[rule.clean].label
    return (
        f"{right} n: only n% of the triggered images are classified as what they show, although few or none are as the "
        f"attack wants ({clean} without a defense − {metric.label} − {right} ≥ {rule.by:g}). The defense stopped the attack "
        f"and left these images wrong: a low {metric.label} is no rescue then, and never bold."
    )


def _same(plan: Plan, table: Table, same: Sequence[Table]) -> str:
    """A sentence that names the tables that this one stands for, too; nothing where there are none."""
    if not same:
        return ""
    told = [
        f"{name_of(other)} ({plan.label('dataset', other.file.dataset)}, {plan.label('model', other.file.model)})"
        for other in same
    ]
    one = len(told) == 1
    return (
        f"The track {table.track} does not tell {listed(told)} from this table: it replaces what "
        f"{'it differs' if one else 'they differ'} in, and all {'its' if one else 'their'} cells stand here. "
        f"In {'a file of its' if one else 'files of their'} own {'it stands' if one else 'they stand'} beside "
        f"{'its' if one else 'their'} own published numbers:"
    )


def _page(suffix: str, content: dict[str, Any], collapse: bool = False, **more: Any) -> str:
    """Args: collapse: whether of a table without a single number only the heading is left."""
    content = content | {"collapsed": collapse and content["empty"]}
    return templates().get_template(f"table{suffix}.jinja").render(content | more, c=content)


@cache
def templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("depoison.reports"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "signed": signed, "p": p_value, "markdown": escape_markdown, "code": code, "column_groups": column_groups,
        "latex": escape_latex, "name": name_latex, "prose": prose_latex, "typewriter": typewriter, "points": points,
        "pick": lambda values, at: [values[i] for i in at],
    }  # fmt: skip
    return environment


def _json(content: dict[str, Any]) -> dict[str, Any]:
    table: Table = content["table"]
    missing, read = {cell.evaluation.product for cell in content["missing"]}, content["shown"].read
    rows, columns = ({part.index: part for part in parts} for parts in (table.rows, table.columns))
    return {
        "paper": table.paper,
        "table": table.name,
        "track": table.track,
        "dataset": table.dataset,
        "model": table.model,
        "seeds": list(table.seeds),
        "columns": [
            {"label": head.title, "metrics": [metric.key for metric in head.metrics], "oracle": head.oracle}
            for head in content["heads"]
        ],
        "metrics": _metrics(content),
        "lines": [asdict(line) for line in content["lines"]],
        "comparisons": [
            asdict(one) | {"differences": {metric.key: asdict(found) for metric, found in one.differences.items()}}
            for one in content["comparisons"]
        ],
        "missing": [cell.name.path for cell in content["missing"]],
        "missing_made_by": content["makes_all"] if missing else None,
        "corrections": corrections.as_json(table.corrections),
        "cells": [
            {"row": rows[i].title, "column": columns[j].title, **place.key._asdict(), "gap": "; ".join(place.gaps),
             "missing": [cell.name.path for cell in place.cells if cell.evaluation.product in missing],
             "cells": [cell.name.path for cell in place.cells],
             "evaluations": [cell.evaluation.product for cell in place.cells],
             "numbers": {metric.key: list(read.values(place, metric)[0].values()) for metric in place.metrics}}
            for (i, j), place in table.places.items()
        ],
    }  # fmt: skip


def _metrics(content: dict[str, Any]) -> dict[str, Any]:
    """{line: {column: {metric: ours}}} of what is known: dictionaries down to the numbers, as `dvc metrics` reads them."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for line in content["lines"]:
        columns = found.setdefault(f"{line.label} {line.value}".strip(), {})
        for head in content["heads"]:  # several may have one title, as where one more metric is a part of its own
            known = [line.numbers[j] for j in head.at if line.numbers[j].ours is not None]
            columns.setdefault(head.title, {}).update({number.metric: number.ours for number in known})
    return found


def heading(plan: Plan, shown: Table | Figure) -> str:
    """FST, Table 2."""
    return f"{plan.paper_label(shown.paper)}, {name_of(shown)}"


def name_of(shown: Table | Figure) -> str:
    """Table 2, or its file's name where that has no number."""
    words = re.fullmatch(r"(table|figure)(\d+)(.*)", shown.name)
    return f"{words[1].title()} {words[2]}{words[3]}" if words else shown.name


def rates(rate: float | None, here: Sequence[float]) -> str:
    """A poisoning rate, and what a track makes of it: 1% (here 6.1%)."""
    shown = list(dict.fromkeys(f"{100 * value:.2g}" for value in here))
    return percent(rate) + (f" (here {'–'.join(dict.fromkeys((shown[0], shown[-1])))}%)" if shown else "")


def p_value(p: float | None) -> str:
    """Three decimals; a dash where there is none."""
    return "–" if p is None else "<0.001" if p < 0.0005 else f"{p:.3f}"


def replaced(plan: Plan, table: Table) -> Iterator[tuple[str, str]]:
    """Labels of what the track replaces: the paper's dataset or model, and ours; a pair for each place."""
    for kind in ("dataset", "model"):
        for place in table.places.values():
            if (paper := getattr(place.key, kind)) != (ours := getattr(place, kind)):
                yield plan.label(kind, paper), plan.label(kind, ours)


def _notes(plan: Plan, table: Table) -> list[str]:
    """What a reader must know to read the numbers."""
    track = plan.configuration.track(table.track).content
    notes = [f"Track {table.track}: {track.summary}."]
    moved = dict.fromkeys(f"{paper} is replaced by {ours}" for paper, ours in replaced(plan, table))
    if moved or not track.is_papers:
        because = f" ({'; '.join(moved)})" if moved else ""
        notes.append(
            f"This track does not reproduce the paper's setting{because}: the published numbers show the pattern to look "
            "for, and a difference is no verdict."
            if table.published
            else f"This track is not the table's setting{because}."
        )
    if any(rates_here([place]) for place in table.places.values()):
        notes.append(
            "This track poisons as many images as the paper does, because their number implants a trigger, up to "
            f"{percent(track.poisoning.cap)} of the attacker's images: the rate in parentheses."
        )
    return notes


def _untaken(shown: Shown, lines: list[Line]) -> str:
    """A sentence on where the attack did not take, as nothing is learned there of a defense; "" where it took."""
    table, attack = shown.table, shown.attack
    some = ""
    if table.attack_in_rows:
        parts, of = "rows", [line.untaken for line in lines if not line.summary]
        some = " in some columns or all" if len({place.key[:2] for place in table.places.values()}) > 1 else ""
        left_out = " Paired differences and averages, but for the one of all rows, leave them out."
    else:
        parts, rows = "columns", [line.numbers for line in lines if not line.summary]
        of = [any(numbers[j].untaken for numbers in rows for j in at) for at in table.heads]
        left_out = (
            " Paired differences leave them out; averages over them look as they do, and none of these is the best."
        )
    if not any(of):
        return ""
    told = f"In {sum(of)} of {len(of)} {parts} the attack did not take{some} ({untaken_if(attack)})"
    below = left_out if table.file.summary or table.comparisons else ""
    return f"{told}: what a defense leaves there says nothing about it.{below}"


def untaken_if(attack: Metric) -> str:
    """When an attack did not take, in words."""
    return f"{attack.label} without a defense below {attack.took:g}{attack.unit}"


def _diverged(shown: Shown) -> str:
    """A sentence that names the cells whose training or tuning diverged; "" without any."""
    found = [
        f"{place.parts['row'].title} ({place.parts['column'].title})"
        for place in shown.table.places.values()
        if shown.read.diverged(place)
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
        for i, line in enumerate(content["lines"]):
            here = " ".join(f"{rate:g}" for rate in line.rates_here)
            row = where | {"row": line.label, "rate": line.rate, "rate_here": here, "variant": line.variant}
            over = [table.rows[k] for k in line.rows] or table.rows if line.summary else table.rows[i : i + 1]
            for head in content["heads"]:
                for j in head.at:
                    number, places = line.numbers[j], [table.at(part, table.columns[j]) for part in over]
                    of = {kind: {getattr(place, kind) for place in places} for kind in ("dataset", "model")}
                    write(row | {kind: found.pop() if len(found) == 1 else "" for kind, found in of.items()} | {
                        "column": head.title, "oracle": head.oracle, "rows": len(number.rows) or "",
                        "metric": number.metric, "ours": number.ours, "interval95": number.interval,
                        "seeds": len(number.values), "missing": len(number.missing),
                        "published": number.published, "printed_as": number.printed_as, "difference": number.difference,
                        "untaken": number.untaken, "right": number.right, "no_rescue": number.no_rescue,
                    })  # fmt: skip
        for comparison in content["comparisons"]:
            for metric, found in comparison.differences.items():
                write(where | {
                    "row": "paired difference", "column": f"{comparison.first} {MINUS} {comparison.second}",
                    "metric": metric.key, "ours": found.mean, "interval95": found.interval, "published": found.published,
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
    return " ".join(str(text).translate(ESCAPED).split())


def code(text: str) -> str:
    """Text such as a command, in Markdown: verbatim between as many backticks as it takes."""
    text = " ".join(str(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"
