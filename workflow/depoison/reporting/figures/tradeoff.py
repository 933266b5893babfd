"""What purification costs and leaves: the fall of C-Acc against the remaining ASR, a point for each row and defense."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from depoison.artifacts import read_evaluation
from depoison.plan.figures import Figure, Point
from depoison.plan.plan import Cell
from depoison.reporting.figures.curves import Row, measured
from depoison.reporting.figures.style import blank, looks, new_canvas, plain
from depoison.reporting.tables import TAKEN

FILLS = ("full", "left", "none", "right", "bottom", "top")
"""How the markers of a defense are filled, one after the other, then again with black edges: they differ in gray, too."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
"""Those of attacks, in the order of the rows."""
STEEP, LINEAR = 12, 4
"""Where a fall is above the first, in percentage points, the axis is logarithmic above the second: others need room, too."""


def numbers(figure: Figure) -> list[Row]:
    """`fall` of C-Acc below the model without a defense, in percentage points, and `asr`; beside them `undefended_asr`."""
    read = cache(lambda product: read_evaluation(product).metrics)

    def metrics(cell: Cell) -> dict[str, Any]:
        after, before = read(cell.evaluation.product), read(_undefended(cell))
        fall = None if None in (before["c_acc"], after["c_acc"]) else before["c_acc"] - after["c_acc"]
        return {"fall": fall, "asr": after["asr"]}

    def taken(point: Point) -> float | None:
        values = [read(_undefended(cell))["asr"] for cell in point.cells]
        return sum(values) / len(values) if values and None not in values else None

    return [
        row | {"undefended_asr": taken(point)}
        for point in figure.points
        for row in measured(figure, point, point.x, metrics)
    ]


def _undefended(cell: Cell) -> str:
    return cell.evaluation.upstream.get("undefended", cell.evaluation).product


def drawn(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    """(fall, asr) of each point whose attack took; elsewhere a low ASR is no merit of a defense."""
    for fall, asr in zip(rows[::2], rows[1::2], strict=True):
        if None not in (fall["mean"], asr["mean"]) and (asr["undefended_asr"] or 0) >= TAKEN:
            yield fall, asr


def draw(figure: Figure, rows: list[Row]) -> Any:
    from matplotlib.lines import Line2D

    points = list(drawn(rows))
    names = {point.x: point.attack.name for point in figure.points}
    shapes = dict(zip(dict.fromkeys(names.values()), MARKERS * len(names), strict=False))
    fills = {part.label: divmod(i, len(FILLS)) for i, part in enumerate(p for p in figure.lines if not _is_none(p))}
    look = looks(figure)

    def style(line: str, marker: str) -> dict[str, Any]:
        if line not in fills:  # no defense
            return {"marker": marker, "color": "#9a9a9a", "markersize": 4, "fillstyle": "none", "markeredgewidth": 0.7}
        color, (again, fill) = look[line].color, fills[line]
        return {
            "marker": marker, "color": color, "markersize": 6.5, "fillstyle": FILLS[fill], "markerfacecoloralt": "white",
            "markeredgecolor": "black" if again else color, "markeredgewidth": 1.0,
        }  # fmt: skip

    canvas = new_canvas(figure, 3.2)
    axes = canvas.subplots()
    for fall, asr in points:
        x, y = asr["mean"], fall["mean"]
        axes.errorbar(
            x, y, xerr=asr["interval95"], yerr=fall["interval95"], ecolor="#c8c8c8", elinewidth=0.7, linestyle="",
            **style(fall["line"], shapes[names[fall["x"]]]),
        )  # fmt: skip
    if not points:
        blank(axes, "none of the attacks took")
        return canvas
    falls = [fall["mean"] for fall, _ in points]
    steep = max(falls) > STEEP
    if steep:
        axes.set_yscale("symlog", linthresh=LINEAR, linscale=1.2)
        ticks = [tick for tick in (0, 1, 2, 3, 4, 6, 10, 20, 40, 80) if tick <= 1.2 * max(falls)]
        axes.set_yticks(ticks, ticks)
    axes.set_ylim(min(falls) - 0.7, (1.5 if steep else 1.1) * max(*falls, 2.0))
    axes.set_xlim(-4, 104)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("Remaining ASR (%)")
    axes.set_ylabel("Fall of C-Acc (percentage points)")
    axes.annotate(
        "better",
        (0.012, 0.02),
        (0.085, 0.1),
        xycoords="axes fraction",
        color="#777777",
        arrowprops={"arrowstyle": "->", "color": "#777777"},
    )
    shown = {fall["line"] for fall, _ in points}
    handles = [Line2D([], [], linestyle="", **style(p.label, "o")) for p in figure.lines if p.label in shown]
    labels = [p.label for p in figure.lines if p.label in shown]
    attacks = {row: shapes[name] for row, name in names.items() if any(fall["x"] == row for fall, _ in points)}
    handles += [Line2D([], [], linestyle="", marker=m, color="#333333", markersize=5) for m in attacks.values()]
    canvas.legend(handles, [*map(plain, labels), *map(plain, attacks)], loc="outside right upper", handlelength=1.2)
    return canvas


def _is_none(part: Any) -> bool:
    return part.defense == "none"
