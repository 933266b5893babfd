"""Features of test images and backdoored ones in the plane: colors are classes, black is backdoored."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from depoison.artifacts import EMBEDDING, read_rows
from depoison.papers.figures import Figure
from depoison.papers.grid import Place
from depoison.reports.figures.curves import Row, of_drawn
from depoison.reports.figures.style import WIDTHS, blank, legend, new_canvas, plain
from depoison.reports.numbers import Reader

# Petroff's ten colors, which the color-blind can tell apart; red is kept for the target class, as in the paper.
TARGET = "#bd1f01"
OTHERS = ["#3f90da", "#ffa90e", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]


def numbers(figure: Figure) -> list[Row]:
    """A row for each point, with how far the attack is a success in its panel; without an implementation one that says so."""
    read = Reader()

    def points(place: Place) -> list[Row]:
        (cell,), (embedding,) = place.cells, place.artifacts
        success = read.values(place, figure.attack)[0].get(cell.name.seed) if figure.attack else None
        target = cell.settings["attack"]["target"][-1].value if "target" in cell.settings["attack"] else None
        of = {"seed": cell.name.seed, "success": success, "target": target}
        return [of | row for row in read_rows(Path(embedding.product), EMBEDDING)]

    return of_drawn(figure, ("seed", "success", "target", *EMBEDDING), points)


def draw(figure: Figure, rows: list[Row]) -> Any:
    per_row = figure.file.per_row or len(figure.columns)
    blocks = [figure.columns[i : i + per_row] for i in range(0, len(figure.columns), per_row)]
    down = len(blocks) * len(figure.rows)
    side = WIDTHS[figure.file.width] / max(per_row, 2 if figure.file.width == "column" else 3)
    canvas = new_canvas(figure, (0.9 * side + 0.3) * down + 0.4)
    grid = canvas.subplots(down, per_row, squeeze=False)
    colors: dict[int, Any] = {}
    for line, (block, row) in zip(grid, product(blocks, figure.rows), strict=True):
        line[0].set_ylabel(plain(row.label))
        for axes in line[len(block) :]:
            axes.set_visible(False)
        for axes, column in zip(line, block, strict=False):
            shown = [one for one in rows if (one["row"], one["column"]) == (row.label, column.label)]
            title = plain(column.label)
            axes.set(xticks=[], yticks=[], aspect="auto")
            axes.spines[["top", "right"]].set_visible(True)
            axes.grid(False)
            if shown[0]["gap"]:
                axes.set_title(title)
                blank(axes)
                continue
            success, attack = shown[0]["success"], figure.attack
            told = f"\n{attack.label} {attack.text(success)}{attack.unit}" if attack and success is not None else ""
            axes.set_title(title + told)
            colors = _colors(shown)
            for black in (False, True):  # backdoored ones above the others
                part = [one for one in shown if bool(one["backdoored"]) == black]
                size = min(6.0, max(1.0, 3000 / max(len(shown), 1)))
                axes.scatter(
                    [one["x"] for one in part], [one["y"] for one in part], s=size, linewidths=0,
                    c=["black" if black else colors[one["label"]] for one in part], rasterized=True,
                )  # fmt: skip
    _legend(canvas, figure, rows, colors)
    return canvas


def _colors(rows: list[Row]) -> dict[int, Any]:
    """A color for each class; of many classes they go around the circle of hues."""
    from matplotlib import colormaps

    labels = sorted({one["label"] for one in rows})
    target = rows[0]["target"]
    others = [label for label in labels if label != target]
    if len(others) <= len(OTHERS):
        found = dict(zip(others, OTHERS, strict=False))
    else:
        found = {label: colormaps["hsv"](0.1 + 0.85 * i / len(others)) for i, label in enumerate(others)}
    return found | {target: TARGET}


def _legend(canvas: Any, figure: Figure, rows: list[Row], colors: dict[int, Any]) -> None:
    from matplotlib.lines import Line2D

    targets = {one["target"] for one in rows if not one["gap"]}
    target = next(iter(targets)) if len(targets) == 1 else None

    entries = {"backdoored": "black"}
    if target is not None:
        entries[f"class {target} (target)"] = TARGET
    if len(colors) <= 10:
        entries |= {
            str(label): color for label, color in sorted(colors.items(), key=str) if label not in (None, target)
        }
    if colors:
        dot = {"linestyle": "", "marker": "o", "markersize": 3.5}
        dots = [Line2D([], [], **dot, color=color) for color in entries.values()]
        legend(canvas, dots, list(entries), figure.file.width, handle_length=1.0)
