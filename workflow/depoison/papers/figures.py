"""Figures of a paper: which cells a figure draws on a track, and the artifacts behind them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from depoison.errors import DepoisonError, unknown
from depoison.papers import kinds
from depoison.papers.grid import AxisFile, Grid, Part, Place
from depoison.papers.published import Key, published_in
from depoison.papers.tables import PAPERS, locate, numbered, on_every_track, stem_of
from depoison.plan.config import load_as
from depoison.plan.documents import Document, names_in, read_document
from depoison.plan.metrics import Metric
from depoison.plan.plan import Cell, Plan
from depoison.plan.specs import Artifact, fingerprint, unique

FOLDER = "figures"
PAGE = "figures"
"""reports/[{track}/][{paper}/]figures.md lists all figures of a paper."""


@dataclass(frozen=True)
class Figure:
    """A paper's figure on a track.

    Attributes:
        target: path without suffix, such as reports/digits/figure6.
        dataset, model: as used on this track; `printed` are the paper's.
        subject: labels of the first two.
        groups: along the x axis; only bars have them.
        metrics: that it shows; of a trade-off first the one whose fall it shows.
        attack: the metric that says whether an attack took.
        published_of: labels of the datasets and models that printed numbers are of; empty where none are shown.
    """

    target: str
    paper: str
    name: str
    track: str
    file: Any
    dataset: str
    model: str
    printed: tuple[str, str]
    subject: tuple[str, str]
    seeds: tuple[int, ...]
    rows: tuple[Part, ...]
    columns: tuple[Part, ...]
    lines: tuple[Part, ...]
    groups: tuple[Part, ...]
    metrics: tuple[Metric, ...]
    attack: Metric | None
    places: tuple[Place, ...]
    definition: str
    published_of: tuple[tuple[str, str], ...] = ()

    def cells(self) -> list[Cell]:
        """Every cell."""
        return [cell for place in self.places for cell in place.cells]

    def artifacts(self) -> list[Artifact]:
        """Every artifact that the figure reads, each once."""
        kind = kinds.kind_of(self.file.kind, self.name)
        needs = getattr(kind, "needs", Place.needs)
        return unique(artifact for place in self.places for artifact in needs(place))

    def gaps(self) -> list[str]:
        """Why points are missing, each once."""
        return list(dict.fromkeys(gap for place in self.places for gap in place.gaps))

    def axis(self, row: Part, column: Part) -> AxisFile:
        """The x axis of a panel of a sweep."""
        return column.axis or row.axis or self.file.axes.x


@dataclass(frozen=True)
class Page:
    """All figures of a paper on a track."""

    target: str
    paper: str
    track: str
    figures: tuple[Figure, ...]


def read_page(plan: Plan, target: str) -> Page:
    """Resolve every figure of a paper on a track; they lie beside the page.

    Raises:
        DepoisonError: as `read_figure`.
    """
    paper, track, _ = locate(plan, target)
    folder = target.rpartition("/")[0]
    figures = tuple(read_figure(plan, f"{folder}/{name}") for name in figures_of(plan.root, paper))
    return Page(f"{folder}/{PAGE}", paper, track, figures)


def figures_of(root: Path, paper: str) -> list[str]:
    """The names of a paper's figures, figure10 after figure9."""
    return sorted(names_in(root / PAPERS / paper / FOLDER, root, "_-"), key=numbered)


def all_figures(plan: Plan) -> list[str]:
    """The target, without suffix, of every figure of every paper on every track."""
    return on_every_track(plan, figures_of)


def read_figure(plan: Plan, target: str) -> Figure:
    """Resolve every place of a figure.

    Raises:
        DepoisonError: not of the form reports/[{track}/][{paper}/]{figure}, an unknown paper, track or figure; a fault in the
            figure's file; a cell that cannot be.
    """
    paper, track, name = locate(plan, target)
    if name not in (known := figures_of(plan.root, paper)):
        raise unknown(f"figure of {paper}", name, known, target)
    stem = stem_of(target)
    found = plan.once(("figure", paper, track, name), lambda: _resolved(plan, stem, paper, track, name))
    return replace(found, target=stem)


def _resolved(plan: Plan, stem: str, paper: str, track: str, name: str) -> Figure:
    document = read_document(plan.root / PAPERS / paper / FOLDER / f"{name}.yaml", plan.root)
    kind = kinds.kind_of(str(document.data.get("kind")), document.place("kind"))
    file = load_as(kind.File, document).content
    if not re.fullmatch(r"figure\d.*", name):
        raise DepoisonError(f"{document.path}: a figure's name is figure and its number, such as figure6")
    if hasattr(kind, "places"):
        found = kind.places(plan, stem, file, document)
    else:
        found = _places(plan, paper, track, kind, file, document)
    subject = plan.label("dataset", found["dataset"]), plan.label("model", found["model"])
    return Figure(
        target=stem, paper=paper, name=name, track=track, file=file, subject=subject, attack=plan.metrics.attack,
        **found,
    )  # fmt: skip


def _places(
    plan: Plan, paper: str, track: str, kind: Any, file: kinds.FigureFile, document: Document
) -> dict[str, Any]:
    """What a figure with axes of its own has."""
    picture = hasattr(kind, "drawn")  # of one run
    published = _read_published(plan, file, document)
    grid = Grid(plan, paper, track, file, document, published=published, merge=True, seeds=1 if picture else None)
    rows, columns, lines, groups = map(grid.axis, ("rows", "columns", "lines", "groups"))
    metrics = plan.metrics.find_all(getattr(file, "metrics", ()), document.where("metrics"))
    places = []
    for row, column, line in product(rows, columns, lines):
        parts = {"row": row, "column": column, "line": line}
        for x in kind.along(grid, file, parts) if hasattr(kind, "along") else (None,):
            place = grid.place(metrics, **parts, **({"x": x} if x else {}))
            if place is not None and picture:
                place = replace(place, artifacts=tuple(kind.drawn(file, cell) for cell in place.cells))
                plan.remember(place.artifacts)
            places += [place] if place is not None else []
    grid.note_overruled()
    of = dict.fromkeys(tuple(map(plan.label, ("dataset", "model"), key)) for key in grid.shown_of)
    return {
        "dataset": grid.base.dataset, "model": grid.base.model, "printed": (file.dataset, file.model), "seeds": grid.seeds,
        "rows": rows, "columns": columns, "lines": lines, "groups": groups, "metrics": metrics, "places": tuple(places),
        "definition": fingerprint(document.data), "published_of": tuple(of),
    }  # fmt: skip


def _read_published(plan: Plan, file: Any, document: Document) -> dict[Key, dict[str, str]]:
    """The paper's numbers of the files that the figure names, as corrected.

    Raises:
        DepoisonError: as `read_published`.
    """
    folder, found = (plan.root / document.path).parent, {}
    for name in getattr(file, "published", []):
        for key, numbers in published_in(plan, (folder / name).resolve()).numbers().items():
            found[key] = found.get(key, {}) | numbers
    return found
