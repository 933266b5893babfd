"""A paper's tables and figures, ours beside the published ones, as one LaTeX document and its PDF."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from depoison.artifacts import read_record
from depoison.errors import DepoisonError
from depoison.files import RUN, sha256_of
from depoison.papers.figures import PAGE, figures_of
from depoison.papers.tables import ALL, PAPER, Table, Tables, locate, read_report, told_apart
from depoison.plan.cells import parts_of
from depoison.plan.parameters import text_of
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact, fingerprint
from depoison.reports.figures.write import setting
from depoison.reports.kinds import Report
from depoison.reports.kinds.figure import FigureReport
from depoison.reports.latex import BIBLIOGRAPHY, compile_latex, points, read_bibliography, reference
from depoison.reports.numbers import Number
from depoison.reports.tables import Head, command, content_of, directions, refuse_missing, replaced, templates

WIDTHS = {"portrait": 480.0, "landscape": 728.0}
"""Of a line on A4 with margins of 2 cm, in pt."""
HEIGHTS = {"portrait": 690.0, "landscape": 470.0}
SIZES = {"small": 0.93, "footnotesize": 0.86, "scriptsize": 0.81}
"""Widths of text, relative to 10 pt: small fonts are wider."""
LEADING = {"small": 11.0, "footnotesize": 9.5, "scriptsize": 8.0}
METHODS = {"dataset": "Datasets", "model": "Models", "attack": "Attacks", "defense": "Defenses"}


class PaperReport(Report):
    """
    Attributes:
        figures: they lie beside the document.
    """

    what = "the document of a paper"
    name = PAPER
    suffixes = (".pdf", ".tex")
    section, shown = "Document", {".pdf": "document"}

    def __init__(self, plan: Plan, target: str, partial: bool = False):
        super().__init__(plan, target, partial)
        self.paper, self.track, _ = locate(plan, target)
        self.folder = target.rpartition("/")[0]
        self.tables: Tables = read_report(plan, f"{self.folder}/{ALL}")
        self.figures = [FigureReport(plan, f"{self.folder}/{name}") for name in figures_of(plan.root, self.paper)]

    def parts(self) -> list[str]:
        return [f"{self.folder}/{name}" for name in (ALL, PAGE)]

    def needs(self) -> list[str]:
        return [*self.tables.products(), *(f"{figure.target}.pdf" for figure in self.figures)]

    def refuse_missing(self) -> None:
        refuse_missing(self.plan, self.main, self.tables)
        for figure in self.figures:
            if missing := figure.missing():
                raise DepoisonError(
                    f"{self.main}: {figure.figure.name} lacks {len(missing)} of {len(figure.needs())} artifacts; "
                    f"`{command(self.plan, self.main)}` computes them, --partial leaves the figure out"
                )

    def render(self) -> dict[str, bytes]:
        """Without the PDF, which LaTeX makes."""
        return {".tex": render_paper(self.plan, self).encode()}

    def is_current(self) -> bool:
        """To run LaTeX takes too long to do it here: the PDF holds the hash of all that it follows from."""
        if not super().is_current() or not all(figure.is_current() for figure in self.figures):
            return False
        text = Path(f"{self.target}.tex").read_bytes()
        return re.search(rb"/MadeFrom \((.*?)\)", text)[1] in Path(self.main).read_bytes()

    def holds(self) -> bool | None:
        return None if any(not Path(one.product).exists() for one in self.artifacts()) else self.is_current()

    def put(self) -> None:
        for figure in self.figures:
            if not figure.is_current() and not figure.missing():
                figure.write()
        super().put()
        compile_latex(Path(f"{self.target}.tex"), Path(f"logs/{self.target}.latex.log"))


def render_paper(plan: Plan, paper: PaperReport) -> str:
    """The document; what is not there is left out."""
    figures = [_figure(plan, figure) for figure in paper.figures]
    tables = [_table(plan, paper, table, same) for table, same in told_apart(paper.tables.tables)]
    methods = _methods(plan, paper)
    path = plan.root / BIBLIOGRAPHY
    entries = read_bibliography(path.read_text(encoding="utf-8")) if path.exists() else {}
    configuration, label = plan.configuration, plan.paper_label(paper.paper)
    own = configuration.paper(paper.paper).content if paper.paper in configuration.papers else None
    cite = own.cite if own else ""
    cited = dict.fromkeys([cite, *(cite for found in methods.values() for _, cite, _ in found)])
    content = {
        "paper": paper,
        "label": label,
        "title": own.title if own else label,
        "cite": cite if cite in entries else "",
        "track": configuration.track(paper.track).content,
        "replaced": _replaced(plan, paper),
        "seeds": sorted({seed for table in paper.tables.tables for seed in table.seeds}),
        "metrics": (shown := list(dict.fromkeys(metric for table in paper.tables.tables for metric in table.metrics))),
        "directions": directions(shown),
        "methods": methods,
        "tables": tables,
        "figures": figures,
        "missing": len(paper.tables.missing()),
        "evaluations": len(paper.tables.evaluations()),
        "makes": command(plan, paper.main),
        "budget": list(_budget(plan, paper)),
        "made_by": _made_by(paper),
        "references": {key: reference(entries[key]) for key in cited if key in entries},
    }
    text = templates().get_template("paper.tex.jinja").render(content)
    shown = {c["path"]: c["sha256"] for c in figures}
    return text.replace("MADE-FROM", f"depoison-{fingerprint([text, shown])}", 1)


def _table(plan: Plan, paper: PaperReport, table: Table, same: Sequence[Table]) -> dict[str, Any]:
    content = content_of(plan, table, f"{paper.folder}/{table.name}.md", same)
    return content | ({"page": "portrait", "need": 60} if content["empty"] else _layout(content))


def _layout(content: dict[str, Any]) -> dict[str, Any]:
    """The page, the size of type and the columns of each part, so that a table is read without a magnifying glass.

    A table that is too wide for a landscape page comes in parts; one that is too tall goes on on the next page by itself.
    One that is not begins where there is room for all of it.
    """

    def place(page: str, size: str, *parts: Sequence[Head]) -> dict[str, Any]:
        cells = (
            2.0 + any(number.interval for number in line.numbers) + any(number.no_rescue for number in line.numbers)
            for line in lines
        )
        height = 70 + LEADING[size] * (3 + sum(cells)) + 3 * len(lines)
        need = height if height <= HEIGHTS[page] else HEIGHTS[page] / 2
        return {"page": page, "size": size, "parts": list(parts), "need": round(need)}

    heads, lines, wide = content["heads"], content["lines"], content["wide"]
    gap = 2 * (3 if wide else 4)
    first = min(max(points(line.label) for line in lines), 100.0) + max(points(line.value) for line in lines)
    first = max(first, points(content["rows"]) + min(points(content["by"]), 100.0))

    def width(size: str, heads: Sequence[Head]) -> float:
        """Of the first two columns and these, in pt."""
        total = SIZES[size] * first + 2 * gap
        for head in heads:
            cells = (_cell_width(line.numbers[j], wide, size) for line in lines for j in head.at)
            titles = (SIZES[size] * points(metric.title) for metric in head.metrics)
            label = SIZES[size] * min(points(head.label), 100.0)
            total += max(len(head.at) * (max(*titles, *cells, 0.0, 0.0) + gap), label + 12)
        return total

    for page, sizes in (("portrait", ("small", "footnotesize")), ("landscape", tuple(SIZES))):
        for size in sizes:
            if width(size, heads) <= WIDTHS[page]:
                return place(page, size, heads)
    parts: list[list[Head]] = [[]]
    for head in heads:
        if parts[-1] and width("footnotesize", [*parts[-1], head]) > WIDTHS["landscape"]:
            parts.append([])
        parts[-1].append(head)
    return place("landscape", "footnotesize", *parts)


def _cell_width(number: Number, wide: bool, size: str) -> float:
    """In pt. Of narrow tables the printed number and the difference are scriptsize, whatever the table's size is."""
    ours = 1.15 * points(number.text(number.ours))
    spread = 0.75 * points(number.text(number.interval, "±"))
    printed = points(number.text(number.published))
    if wide:
        return SIZES[size] * max(ours, spread, printed)
    difference = points(f" ({number.change})") + 3 if number.change else 0
    return max(SIZES[size] * ours + spread, SIZES["scriptsize"] * (printed + difference))


def _figure(plan: Plan, report: FigureReport) -> dict[str, Any]:
    path, figure = Path(f"{report.target}.pdf"), report.figure
    there = report.is_current()
    return {
        "number": figure.name.removeprefix("figure"),
        "file": figure.file,
        "path": path.name,
        "there": there,
        "published": figure.published_of,
        "sha256": sha256_of(path) if there else None,
        "setting": setting(plan, figure),
        "gaps": figure.gaps(),
        "makes": command(plan, str(path)),
    }


def _replaced(plan: Plan, paper: PaperReport) -> dict[str, list[str]]:
    """What the track puts in place of what: labels."""
    found = {(ours, printed) for table in paper.tables.tables for printed, ours in replaced(plan, table)}
    result: dict[str, list[str]] = {}
    for ours, printed in sorted(found):
        result.setdefault(ours, []).append(printed)
    return result


def _methods(plan: Plan, paper: PaperReport) -> dict[str, list[tuple[str, str, str]]]:
    """Label, citation key and summary of each method that has a file, by kind, in the order of the tables."""
    names: dict[str, dict[str, None]] = {kind: {} for kind in METHODS}
    for table in paper.tables.tables:
        for place in table.places.values():
            used = ((place.dataset,), (place.model,), parts_of(place.attack.name), (place.defense.name,))
            for kind, found in zip(METHODS, used, strict=True):
                names[kind] |= dict.fromkeys(found)
    result = {}
    for kind, title in METHODS.items():
        known = [name for name in names[kind] if name in plan.configuration.names(kind) and name != "none"]
        contents = [plan.configuration.method(kind, name).content for name in known]
        result[title] = [(content.label, content.cite, content.summary) for content in contents]
    return {title: found for title, found in result.items() if found}


def _budget(plan: Plan, paper: PaperReport) -> Iterator[str]:
    """What the track's file sets, as in the file: training.epochs = 12."""
    content = plan.configuration.track(paper.track).content

    def walk(prefix: str, value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}", inner)
        else:
            yield f"{prefix} = {text_of(value)}"

    for section in ("training", "tuning", "datasets", "models", "attacks", "defenses"):
        yield from walk(section, getattr(content, section))


def _made_by(paper: PaperReport) -> list[tuple[str, int]]:
    """Versions, commit and device that artifacts were made with, as they recorded it, and how many."""
    chain: dict[str, Artifact] = {}
    for cell in paper.tables.cells():
        if cell.evaluation.directory not in chain:
            chain |= cell.evaluation.chain()
    counts: Counter[str] = Counter()
    for artifact in chain.values():
        if Path(artifact.product).exists() and Path(artifact.directory, RUN).exists():
            told = read_record(artifact.directory)
            versions = [f"{name} {version}" for name, version in sorted(told.get("packages", {}).items())]
            commit = f"commit {told['commit']}" if told.get("commit") else "no commit"
            counts[", ".join([commit, str(told.get("device", "unknown device")), *versions])] += 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
