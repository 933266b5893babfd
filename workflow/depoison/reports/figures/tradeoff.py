"""What purification costs and leaves: the fall of one metric against what remains in another, for each row and defense."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from depoison.papers.figures import Figure
from depoison.papers.grid import Part
from depoison.reports.figures.curves import Row, measured
from depoison.reports.figures.style import blank, limit_axis, looks, new_canvas, plain, with_unit
from depoison.reports.numbers import Reader

FILLS = ("full", "left", "none", "right", "bottom", "top")
"""How the markers of a defense are filled, one after the other, then again with black edges: they differ in gray, too."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
"""Those of attacks, in the order of the rows."""
STEEP, LINEAR = 12, 4
"""Where a fall is above the first, in percentage points, the axis is logarithmic above the second: others need room, too."""


def numbers(figure: Figure) -> list[Row]:
    """`fall` of the first metric below the model without a defense, and the second; beside them `undefended`: whether the
    attack took."""
    read, rows = Reader(), []
    falls, remains = figure.metrics
    for place in figure.places:
        after, before = read.values(place, falls)[0], read.before(place, falls)
        fall = {seed: before[seed] - value for seed, value in after.items() if seed in before}
        known = read.before(place, figure.attack) if figure.attack else {}
        undefended = statistics.fmean(known.values()) if known and len(known) == len(place.cells) else None
        values = {"fall": fall, remains.key: read.values(place, remains)[0]}
        rows += [row | {"undefended": undefended} for row in measured(place, place.x, values, figure.metrics)]
    return rows


def drawn(figure: Figure, rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    """What falls and what remains, of each point whose attack took; elsewhere a low remainder is no merit of a defense."""
    took = figure.attack.took if figure.attack else 0
    for fall, left in zip(rows[::2], rows[1::2], strict=True):
        if None not in (fall["mean"], left["mean"]) and (fall["undefended"] or 0) >= took:
            yield fall, left


def draw(figure: Figure, rows: list[Row]) -> Any:
    from matplotlib.lines import Line2D

    points = list(drawn(figure, rows))
    names = {place.x: place.attack.name for place in figure.places}
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
    for fall, left in points:
        x, y = left["mean"], fall["mean"]
        axes.errorbar(
            x, y, xerr=left["interval95"], yerr=fall["interval95"], ecolor="#c8c8c8", elinewidth=0.7, linestyle="",
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
    falls_of, remains = figure.metrics
    if remains.axis:
        limit_axis(axes.set_xlim, axes.set_xticks, remains)
    axes.set_xlabel(f"Remaining {with_unit(remains)}")
    axes.set_ylabel(
        f"Fall of {plain(falls_of.label)} ({'percentage points' if falls_of.unit == '%' else falls_of.unit})"
    )
    axes.annotate(
        "better",
        (0.012, 0.02),
        (0.085, 0.1),
        xycoords="axes fraction",
        color="#777777",
        arrowprops={"arrowstyle": "->", "color": "#777777"},
    )
    there = {fall["line"] for fall, _ in points}
    labels = [part.label for part in figure.lines if part.label in there]
    handles = [Line2D([], [], linestyle="", **style(label, "o")) for label in labels]
    attacks = {row: shapes[name] for row, name in names.items() if any(fall["x"] == row for fall, _ in points)}
    handles += [Line2D([], [], linestyle="", marker=m, color="#333333", markersize=5) for m in attacks.values()]
    canvas.legend(handles, [*map(plain, labels), *map(plain, attacks)], loc="outside right upper", handlelength=1.2)
    return canvas


def _is_none(part: Part) -> bool:
    return any((text.kind, text.text) == ("defense", "none") for text in part.methods)
