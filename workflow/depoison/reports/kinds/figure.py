"""A figure as pictures, with its numbers as CSV."""

from __future__ import annotations

from pathlib import Path

from depoison.papers.figures import read_figure
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact
from depoison.reports.figures.write import kind_of, made_from_of, render_csv, render_figure
from depoison.reports.kinds import Report


class FigureReport(Report):
    what = "a figure"
    name = r"figure(?!s\b)[^/.]*"
    suffixes = (".png", ".pdf", ".csv")
    section, shown = "Figures", {".png": "picture", ".csv": "numbers"}

    def __init__(self, plan: Plan, target: str, partial: bool = False):
        super().__init__(plan, target, partial)
        self.figure = read_figure(plan, target)

    def artifacts(self) -> list[Artifact]:
        return self.figure.artifacts()

    def render(self) -> dict[str, bytes]:
        return render_figure(self.figure)

    def is_current(self) -> bool:
        """To draw takes too long to do it here: each picture holds a hash of all that it follows from."""
        if not self.is_here() or self.missing():
            return False
        text = render_csv(self.figure, kind_of(self.figure).numbers(self.figure))
        files = {suffix: Path(self.target + suffix).read_bytes() for suffix in self.suffixes}
        made_from = made_from_of(self.figure, text).encode()
        return files[".csv"] == text and all(made_from in files[suffix] for suffix in (".png", ".pdf"))

    def holds(self) -> bool | None:
        return None if self.missing() else self.is_current()
