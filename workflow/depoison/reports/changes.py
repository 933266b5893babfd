"""`depoison compare`: which cells of two runs, tracks or commits differ beyond noise."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from depoison.errors import DepoisonError
from depoison.files import json_text
from depoison.plan.cells import CellName, Choice
from depoison.plan.metrics import decimal
from depoison.plan.plan import Plan
from depoison.reports.noise import Change, holm, newcombe, welch
from depoison.reports.numbers import signed
from depoison.reports.runs import Run, Side
from depoison.reports.tables import escape_markdown, p_value

ALPHA = 0.05
SHOWN = 5
"""How many cells with the same spec and other bytes are named in a text."""


@dataclass(frozen=True)
class Row:
    """One metric of one cell, over its seeds, on both sides.

    Attributes:
        cell: track/dataset/model/attack/defense; where the sides call it differently, both.
        first, second: means over the seeds, in percent.
        difference, low, high: second - first and its 95% interval, in percentage points; without interval where nothing
            is known of the noise.
        test: "seeds" (Welch's t), "images" (Newcombe's interval of two proportions), or "" where there is no test.
        p, adjusted: two-sided, and after Holm's correction over all rows that have a test.
        seeds: how many each side has.
    """

    cell: str
    metric: str
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    test: str
    p: float | None
    adjusted: float | None
    seeds: tuple[int, int]

    @property
    def beyond_noise(self) -> bool:
        return self.adjusted is not None and self.adjusted < ALPHA


@dataclass(frozen=True)
class Same:
    """A cell, with its seed, whose spec is the same on both sides, and whose bytes are not.

    Attributes:
        numbers: whether a metric differs, too; else only the model's bytes do.
        devices: that made the two models.
    """

    cell: str
    numbers: bool
    devices: tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """Two sides compared.

    Attributes:
        rows: of cells that both have and that are not the same artifacts with the same numbers.
        unchanged: how many metrics of cells are the same artifacts with the same numbers: there is nothing to test.
        same: same spec, other bytes.
        only_first, only_second: names of cells that the other lacks.
        notes: what the reader should know.
        labels: of the metrics, by key.
    """

    first: str
    second: str
    rows: tuple[Row, ...]
    unchanged: int
    same: tuple[Same, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    notes: tuple[str, ...]
    labels: Mapping[str, str]

    @property
    def changed(self) -> list[Row]:
        return [row for row in self.rows if row.beyond_noise]


Runs = Mapping[CellName, Mapping[int, Run]]
"""By cell, with seed 0 in its name, the runs by seed."""


def compare_sides(plan: Plan, first: Side, second: Side) -> Comparison:
    """Match the cells of two sides and test each metric.

    Raises:
        DepoisonError: they have no cell in common.
    """
    track = first.track or second.track
    one, other = (_by_cell(side, None if side.track else track) for side in (first, second))
    two_tracks = None not in (first.track, second.track) and first.track != second.track
    pairs = _across_tracks(plan, one, other) if two_tracks else [(name, name) for name in one if name in other]
    if not pairs:
        told = " and ".join(f"{side.what} has {len(runs)}" for side, runs in ((first, one), (second, other)))
        raise DepoisonError(f"no cell stands on both sides: {told}")
    labels = _compared(plan, [*one.values(), *other.values()])
    rows, unchanged, seen = [], 0, set()
    for a, b in pairs:
        # Cells of two names may be one artifact, as fst is fst+alpha=0.2: what stands twice is no evidence twice.
        both = (a, one[a]), (b, other[b])
        artifacts = tuple(tuple((seed, run.evaluation or name.path) for seed, run in of.items()) for name, of in both)
        if artifacts in seen:
            continue
        seen.add(artifacts)
        for metric in labels:
            runs = [{seed: run for seed, run in of.items() if metric in run.metrics} for _, of in both]
            if all(runs) and _unchanged(*runs, metric):
                unchanged += 1
            elif all(runs):
                rows.append(_row(_both(a, b), metric, *runs))
    adjusted = iter(holm([row.p for row in rows if row.p is not None]))
    rows = [row if row.p is None else replace(row, adjusted=next(adjusted)) for row in rows]
    return Comparison(
        first.what,
        second.what,
        tuple(sorted(rows, key=lambda row: (not row.beyond_noise, -abs(row.difference), row.cell, row.metric))),
        unchanged,
        tuple(_same(one, other, pairs)),
        tuple(sorted(map(_short, one.keys() - {a for a, _ in pairs}))),
        tuple(sorted(map(_short, other.keys() - {b for _, b in pairs}))),
        tuple(_notes(first, second, pairs, two_tracks)),
        labels,
    )


def _compared(plan: Plan, sides: Iterable[Mapping[int, Run]]) -> dict[str, str]:
    """Labels of what is measured of each cell; what only follows from others is no evidence of its own."""
    counted = {key for runs in sides for run in runs.values() for key in run.counts}
    keys = {metric.key: metric.label for metric in plan.metrics.values() if metric.source == "evaluate"}
    return {key: label for key, label in keys.items() if not counted or key in counted}


def _by_cell(side: Side, track: str | None) -> Runs:
    """Args: track: leave out the cells of all others."""
    found: dict[CellName, dict[int, Run]] = defaultdict(dict)
    for name, run in sorted(side.runs.items(), key=lambda item: (len(item[0].path), item[0].path)):
        if track in (None, name.track):
            found[replace(name, seed=0)][name.seed] = run
    return found


def _across_tracks(plan: Plan, one: Runs, other: Runs) -> list[tuple[CellName, CellName]]:
    """Cells of two tracks that differ in nothing but the track and what either puts in place of datasets and models."""

    def moved(name: CellName, track: str) -> CellName:
        instead = plan.configuration.track(track).content.replace.instead
        subject = {kind: getattr(name, kind).name for kind in ("dataset", "model")}
        changed = {kind: Choice(new) for kind, old in subject.items() if (new := instead(kind, old)) != old}
        return replace(name, track=track, **changed)

    here, there = (next(iter({name.track for name in side})) for side in (one, other))
    found = {(name, moved(name, there)): None for name in one if moved(name, there) in other}
    found |= {(moved(name, here), name): None for name in other if moved(name, here) in one}
    return list(found)


def _unchanged(first: Mapping[int, Run], second: Mapping[int, Run], metric: str) -> bool:
    """Whether nothing can differ: one side's seeds are among the other's, from the same specs, with the same numbers."""
    common = first.keys() & second.keys()
    pairs = [(first[seed], second[seed]) for seed in common]
    return len(common) == min(len(first), len(second)) and all(
        a.evaluation == b.evaluation != "" and a.metrics[metric] == b.metrics[metric] for a, b in pairs
    )


def _row(cell: str, metric: str, first: Mapping[int, Run], second: Mapping[int, Run]) -> Row:
    """A metric of a cell that both sides measured."""
    several = min(len(first), len(second)) > 1
    # With one seed on a side only seeds that both have, if any: other seeds differ by more than test images.
    common = first.keys() & second.keys()
    seeds = [sorted(side) if several or not common else sorted(common) for side in (first, second)]
    runs = [[side[seed] for seed in chosen] for side, chosen in zip((first, second), seeds, strict=True)]
    values = [[run.metrics[metric] for run in side] for side in runs]
    change, test = (welch(*values), "seeds") if several else (None, "")
    if change is None and all(metric in run.counts for side in runs for run in side):
        change, test = _of_counts(runs, metric), "images"
    means = [statistics.fmean(side) for side in values]
    row = Row(cell, metric, *means, means[1] - means[0], None, None, "", None, None, (len(values[0]), len(values[1])))
    return replace(row, low=change.low, high=change.high, test=test, p=change.p) if change else row


def _of_counts(sides: Iterable[Iterable[Run]], metric: str) -> Change:
    """From how many test images are counted, over the seeds together."""
    totals = []
    for side in sides:
        hits = [(round(run.metrics[metric] / 100 * run.counts[metric]), run.counts[metric]) for run in side]
        totals.append((sum(hit for hit, _ in hits), sum(total for _, total in hits)))
    found = newcombe(*totals)
    return Change(*(100 * value for value in found[:3]), found.p)


def _same(one: Runs, other: Runs, pairs: Iterable[tuple[CellName, CellName]]) -> Iterator[Same]:
    seen = {""}
    for a, b in pairs:
        for seed in sorted(one[a].keys() & other[b].keys()):
            first, second = one[a][seed], other[b][seed]
            if first.evaluation != second.evaluation or first.evaluation in seen:
                continue
            seen.add(first.evaluation)
            numbers = first.metrics != second.metrics
            if numbers or (first.model and second.model and first.model != second.model):
                yield Same(f"{_short(a)}/s{seed}", numbers, (first.device, second.device))


def _short(name: CellName) -> str:
    return "/".join(map(str, (name.track, name.dataset, name.model, name.attack, name.defense)))


def _both(first: CellName, second: CellName) -> str:
    """A cell's name, and where the sides call it differently both, part by part."""
    parts = zip(_short(first).split("/"), _short(second).split("/"), strict=True)
    return "/".join(a if a == b else f"{a}→{b}" for a, b in parts)


def _notes(first: Side, second: Side, pairs: Iterable[tuple[CellName, CellName]], two_tracks: bool) -> Iterator[str]:
    if two_tracks:
        alike = ((x, y) for a, b in pairs for x, y in ((a.dataset, b.dataset), (a.model, b.model)))
        moved = dict.fromkeys(f"{x} → {y}" for x, y in alike if x != y)
        what = f" ({', '.join(moved)})" if moved else ""
        yield (
            f"{first.what} and {second.what} are different settings: dataset, model or budget differ{what}, so a change says "
            "nothing about a method's code"
        )
    yield from (f"{side.what}: {note}" for side in (first, second) for note in side.notes)


# --- text --------------------------------------------------------------------------------------------------------


def as_json(found: Comparison) -> str:
    content = asdict(found) | {"rows": [asdict(row) | {"beyond_noise": row.beyond_noise} for row in found.rows]}
    return json_text(content | {"beyond_noise": len(found.changed)})


def as_text(found: Comparison, markdown: bool = False) -> str:
    """The numbers that are not the same, and what has to be said beside them, for a terminal or as Markdown."""
    head = ["Cell", "Metric", "First", "Second", "Change", "95% interval", "Noise of", "Holm p", ""]
    rows = [_cells(row, found.labels) for row in found.rows if row.first != row.second]
    lines = [
        f"First: {found.first}. Second: {found.second}. In percent; changes in percentage points, second − first.",
        "",
    ]
    if markdown:
        lines = [escape_markdown(line) for line in lines]
    if rows:
        lines += _markdown(head, rows) if markdown else _aligned(head, rows)
        lines.append("")
    words = [*_summary(found), *found.notes]
    return "\n".join([*lines, *(f"- {escape_markdown(word)}" if markdown else f"{word}." for word in words)]) + "\n"


def _cells(row: Row, labels: Mapping[str, str]) -> list[str]:
    interval = "unknown" if row.low is None or row.high is None else f"{signed(row.low)} to {signed(row.high)}"
    noise = {"seeds": f"seeds ({row.seeds[0]}, {row.seeds[1]})", "images": "test images", "": "–"}[row.test]
    mark = "beyond noise" if row.beyond_noise else ""
    number = [decimal(row.first, 2), decimal(row.second, 2), signed(row.difference)]
    return [row.cell, labels[row.metric], *number, interval, noise, p_value(row.adjusted), mark]


def _summary(found: Comparison) -> Iterator[str]:
    tested = sum(row.p is not None for row in found.rows)
    yield f"{len(found.changed)} of {tested} tested changes are beyond noise (Holm over all of them, at 5% together)"
    if found.unchanged:
        yield f"{found.unchanged} numbers are the same, from the same spec, and were not tested"
    if equal := sum(row.first == row.second for row in found.rows):
        yield f"{equal} numbers are the same, from another spec"
    if unknown := len(found.rows) - tested:
        yield f"of {unknown} numbers the noise is unknown: one seed, and no count of test images"
    for numbers, told in (
        (True, "same spec, other numbers"),
        (False, "same spec and numbers, other bytes of the model"),
    ):
        if same := [entry for entry in found.same if entry.numbers == numbers]:
            devices = sorted({" and ".join(dict.fromkeys(filter(None, entry.devices))) for entry in same} - {""})
            where = f" (made on {'; '.join(devices)})" if devices else ""
            more = f" and {len(same) - SHOWN} more (--json has all)" if len(same) > SHOWN else ""
            yield f"{told}{where}: {', '.join(entry.cell for entry in same[:SHOWN])}{more}"
    for names, side in ((found.only_first, "first"), (found.only_second, "second")):
        if names:
            yield f"only in the {side}: {len(names)} cells"


def _aligned(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    right = range(2, 6)
    return [
        "  ".join(cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        .rstrip()
        for row in [head, *rows]
    ]  # fmt: skip


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = "|:--|:--|--:|--:|--:|--:|:--|--:|:--|"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(map(escape_markdown, row))} |" for row in rows)]
