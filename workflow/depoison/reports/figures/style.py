"""How all figures look: sizes, fonts, colors, and a grid of panels with one legend."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from textwrap import wrap
from typing import Any

from depoison.papers.figures import Figure
from depoison.papers.grid import Part
from depoison.plan.metrics import Metric

VERSION = 4
"""Raised when figures look otherwise for the same numbers: then all are drawn again."""

WIDTHS = {"column": 3.3, "full": 6.9}
"""Inches."""

RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs everywhere
    "font.size": 7, "axes.titlesize": 8, "axes.labelsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "figure.labelsize": 7, "axes.titlepad": 4, "axes.labelpad": 2,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.5,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "xtick.minor.size": 0, "ytick.minor.size": 0,
    "lines.linewidth": 1.1, "lines.markersize": 3.2, "hatch.linewidth": 0.5,
    "legend.frameon": False, "legend.handlelength": 2.4, "legend.columnspacing": 1.4,
    "savefig.dpi": 200, "figure.dpi": 200, "pdf.fonttype": 42, "svg.hashsalt": "depoison",
}  # fmt: skip

# Okabe and Ito's colors, which the color-blind can tell apart, and two more in lightness between them.
COLORS = {
    "fst": ("#D55E00", "o"), "ft": ("#0072B2", "s"), "lp": ("#AA3377", "D"), "ft-sam": ("#009E73", "^"),
    "ngf": ("#E69F00", "v"), "fe-tuning": ("#56B4E9", "P"), "ft-init": ("#7A5195", "X"), "none": ("#555555", "."),
    "anp": ("#8C6D1F", "<"), "i-bau": ("#999999", ">"),
    "badnet": ("#0072B2", "s"), "blended": ("#D55E00", "o"), "ssba": ("#009E73", "^"), "label-consistent": ("#CC79A7", "D"),
    "wanet": ("#E69F00", "v"), "sig": ("#56B4E9", "P"),
}  # fmt: skip
"""Color and marker of a defense; of an attack where all lines are one defense's."""

SPARE = [("#332288", "h"), ("#117733", "p"), ("#882255", "*"), ("#44AA99", "H"), ("#AA4499", "d")]
DASHES = ["-", (0, (4, 1.6)), (0, (1.2, 1.2)), (0, (4, 1.4, 1.2, 1.4))]


@dataclass(frozen=True)
class Look:
    """How a line is drawn: variants of one method share its color, ever lighter, and differ in dashes.

    Attributes:
        variant: 0 for the first line of a method.
    """

    color: Any
    marker: str
    variant: int

    def line(self) -> dict[str, Any]:
        face = self.color if self.variant == 0 else "white"
        return {"color": self.color, "linestyle": DASHES[self.variant % len(DASHES)], "marker": self.marker,
                "markerfacecolor": face, "markeredgewidth": 0.8, "dash_capstyle": "butt"}  # fmt: skip


def looks(figure: Figure) -> dict[str, Look]:
    """The look of each line, by its label."""
    from matplotlib.colors import to_rgb

    methods = {place.label("line"): (place.defense.name, place.attack.name) for place in figure.places}
    one = len({defense for defense, _ in methods.values()}) == 1
    of_attacks = one and any(line.names("attack") for line in figure.lines)
    seen: dict[str, int] = {}
    found = {}
    for part in figure.lines:
        defense, attack = methods[part.label]
        name = attack if of_attacks else defense
        variant = seen[name] = seen.get(name, -1) + 1
        color, marker = COLORS.get(name) or SPARE[(len(seen) - 1) % len(SPARE)]
        lighter = [channel + (1 - channel) * min(0.22 * variant, 0.6) for channel in to_rgb(color)]
        found[part.label] = Look(tuple(lighter), marker, variant)
    return found


LONGEST = 48


def plain(text: str) -> str:
    """A name as a picture can show it: cut, without mathematics, and what the font lacks by its code, as [U+4E2D]."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(RC["font.family"]))
    text = " ".join(str(text).split())
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    visible = (one for one in text if unicodedata.category(one) not in ("Cc", "Cf"))
    known = (one if font.get_char_index(ord(one)) else f"[U+{ord(one):04X}]" for one in visible)
    # A label that starts with an underscore is none in a legend.
    return re.sub("^_", "\N{ZERO WIDTH SPACE}_", "".join(known)).replace("$", r"\$")


Panel = Callable[[Any, Part, Part, Metric], None]


def curves_grid(figure: Figure, fill: Panel, *, height: float = 1.35, share_x: bool = True) -> Any:
    """A grid of panels: the file's rows times its metrics, by its columns.

    Args:
        fill: draws one panel, given its axes, row, column and metric.
        height: of a panel, in inches.

    Returns:
        A matplotlib Figure.
    """
    rows = [(row, metric) for row in figure.rows for metric in figure.metrics]
    canvas = new_canvas(figure, height * len(rows) + 0.55)
    grid = canvas.subplots(
        len(rows), len(figure.columns), squeeze=False, sharey="row", sharex="col" if share_x else False
    )
    lowest: dict[int, tuple[Any, str]] = {}
    for i, (row, metric) in enumerate(rows):
        for j, (axes, column) in enumerate(zip(grid[i], figure.columns, strict=True)):
            if metric.scale == "log":  # before anything is drawn, so that the margins are those of this scale
                axes.set_yscale("symlog", linthresh=1)
            fill(axes, row, column, metric)
            drawn, label = lowest.get(j, (None, ""))
            lowest[j] = axes if axes.has_data() else drawn, axes.get_xlabel() or label
            if metric.axis:
                limit_axis(axes.set_ylim, axes.set_yticks, metric)
            if i == 0:
                axes.set_title(plain(column.label))
            if not axes.has_data():
                there = any((p.label("row"), p.label("column")) == (row.label, column.label) for p in figure.places)
                blank(axes, "not available" if there else "not shown")
        grid[i][0].set_ylabel("\n".join(filter(None, [plain(row.label), with_unit(metric)])))
    for axes, label in lowest.values():
        if axes is not None:  # where nothing is drawn in the panels below, these do not say what is on the axis
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(label)
    canvas.align_ylabels(list(grid[:, 0]))
    return canvas


def models_grid(
    figure: Figure,
    rows: Sequence[dict[str, Any]],
    fill: Callable[[Any, list[dict[str, Any]], str], None],
    *,
    x: str,
    y: str,
    **share: bool,
) -> Any:
    """A panel for each row and column of a figure of models.

    Args:
        rows: of the figure's CSV.
        fill: draws one panel, given its axes, its rows and the color of its defense.
        x, y: what the axes are of.
        share: which axes of the panels are one, as matplotlib's `subplots` has it.

    Returns:
        A matplotlib Figure.
    """
    canvas = new_canvas(figure, 1.5 * len(figure.rows) + 0.2)
    grid = canvas.subplots(len(figure.rows), len(figure.columns), squeeze=False, **share)
    names = {(place.label("row"), place.label("column")): place.defense.name for place in figure.places}
    for axes, (row, column) in zip(grid.ravel(), product(figure.rows, figure.columns), strict=True):
        shown = [one for one in rows if (one["row"], one["column"]) == (row.label, column.label)]
        if row is figure.rows[0]:
            axes.set_title(plain(column.label))
        if not shown or shown[0]["gap"]:
            blank(axes)
            continue
        color, _ = COLORS.get(names[row.label, column.label], SPARE[0])
        fill(axes, shown, color)
    for line, row in zip(grid, figure.rows, strict=True):
        line[0].set_ylabel("\n".join(filter(None, [plain(row.label), y])))
    for axes in grid[-1]:
        axes.set_xlabel(x)
    return canvas


def limit_axis(set_limits: Callable[..., Any], set_ticks: Callable[..., Any], metric: Metric) -> None:
    """The range of a metric that has one, with four ticks after the first."""
    low, high = metric.axis or (0, 1)
    set_limits(low - 0.04 * (high - low), high + 0.04 * (high - low))
    set_ticks([low + (high - low) * part / 4 for part in range(5)])


def with_unit(metric: Metric) -> str:
    """What stands on a metric's axis."""
    return f"{plain(metric.label)} ({metric.unit})" if metric.unit else plain(metric.label)


def blank(axes: Any, words: str = "not available") -> None:
    """Say in a panel that nothing is drawn in it."""
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("")
    axes.tick_params(bottom=False, left=False, labelbottom=False)
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="#777777")


def new_canvas(figure: Figure, height: float) -> Any:
    """An empty matplotlib Figure of the file's width; below it stands what a reader must know to read it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    notes = footnotes(figure)
    canvas = Canvas(figsize=(WIDTHS[figure.file.width], height + 0.13 * len(notes)), layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.04, hspace=0.03)
    if notes:
        canvas.supxlabel("\n".join(notes), x=0.01, ha="left", color="#555555")
    return canvas


def footnotes(figure: Figure) -> list[str]:
    """Lines below the picture: the track where it is not the paper's, the seeds, what ticks are, and what is missing."""
    width = 58 if figure.file.width == "column" else 125
    lines = [] if figure.track == "paper" else [f"track {figure.track}: {', '.join(map(plain, figure.subject))}"]
    if any(cell.name.attack != place.attack for place in figure.places for cell in place.cells):
        lines.append("poisoning rates are the paper's; here as many images are poisoned as there, up to a cap")
    if len(figure.seeds) > 1:
        lines.append(f"mean of seeds {', '.join(map(str, figure.seeds))}, with its 95% confidence interval")
    if figure.published_of:
        several = max(len(texts) for place in figure.places for texts in place.published.values()) > 1
        by_dataset = {
            dataset: [model for of, model in figure.published_of if of == dataset] for dataset, _ in figure.published_of
        }
        of = "; ".join(f"{', '.join(map(plain, models))} on {plain(dataset)}" for dataset, models in by_dataset.items())
        lines.append(f"black ticks: as the paper prints them{f', one each of {of}' if several else ''}")
    if gaps := figure.gaps():
        lines.append(f"not implemented: {', '.join(map(plain, gaps))}")
    return [part for line in lines for part in wrap(line, width)]


def legend(canvas: Any, handles: Sequence[Any], labels: Sequence[str], width: str, handle_length: float = 2.4) -> None:
    """One legend above all panels, in as few rows as fit."""
    if len(labels) < 2:
        return
    inches = sum(0.25 + 0.097 * handle_length + 0.061 * min(len(label), LONGEST) for label in labels)
    columns = -(-len(labels) // (int(inches / WIDTHS[width]) + 1))
    canvas.legend(
        handles, list(map(plain, labels)), loc="outside upper center", ncols=columns, handlelength=handle_length
    )
