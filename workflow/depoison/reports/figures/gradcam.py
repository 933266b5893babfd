"""Triggered test images, and where models look on them: the images first, then a row of heat maps for each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depoison.artifacts import load_arrays
from depoison.files import corrupted, sha256_of
from depoison.papers.figures import Figure
from depoison.papers.grid import Place
from depoison.reports.figures.curves import Row, of_drawn
from depoison.reports.figures.examples import require_images, show
from depoison.reports.figures.style import WIDTHS, blank, new_canvas, plain

PHOTOGRAPHS = True

COLORS, OPACITY = "turbo", 0.55
"""Of heat."""


def numbers(figure: Figure) -> list[Row]:
    """A row for each image and model: what the image shows, what the model says that it does, the largest value of the heat
    map, and where the pixels are.
    """
    return of_drawn(figure, ("seed", "index", "label", "predicted", "largest", "pixels", "sha256"), _numbers)


def _numbers(place: Place) -> list[Row]:
    (cell,), (artifact,) = place.cells, place.artifacts
    path, found = Path(artifact.product), load_heat(Path(artifact.product))
    of = {"seed": cell.name.seed, "pixels": artifact.product, "sha256": sha256_of(path)}
    keys = {"index": "indices", "label": "labels", "predicted": "predicted"}
    return [
        of | {key: int(found[name][i]) for key, name in keys.items()} | {"largest": float(heat.max())}
        for i, heat in enumerate(found["heat"])
    ]


def load_heat(path: Path) -> dict[str, Any]:
    """`images` (n, C, H, W) uint8, C of 1 or 3, their `heat` (n, H, W) float32, at least 0, and `indices`, `labels` and
    `predicted`, (n,) int64; n is at least 1.

    Raises:
        DepoisonError: as `load_arrays`.
    """
    shapes = {"images": "uint8 n C H W", "heat": "float32 n H W"}
    found = load_arrays(path, shapes | dict.fromkeys(("indices", "labels", "predicted"), "int64 n"))
    require_images(path, found["images"])
    if not (found["heat"] >= 0).all():
        raise corrupted(path, "heat: not all of it is at least 0")
    return found


def draw(figure: Figure, rows: list[Row]) -> Any:
    from matplotlib.cm import ScalarMappable

    found = [None if place.gap else load_heat(Path(place.artifacts[0].product)) for place in figure.places]
    known = next(filter(None, found), None)
    count = len(known["images"]) if known else figure.file.images
    side = WIDTHS[figure.file.width] / (max(4, count) + 0.7)
    canvas = new_canvas(figure, (side + 0.13) * (1 + len(found)))
    grid = canvas.subplots(1 + len(found), count, squeeze=False)
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[], box_aspect=1)
        axes.spines[:].set_visible(False)
        axes.grid(False)
    for line, label in zip(grid, ("Poisoned", *(place.label("row") for place in figure.places)), strict=True):
        line[0].set_ylabel(plain(label))
    for i, axes in enumerate(grid[0] if known else ()):
        show(axes, known["images"][i])
        axes.set_xlabel(f"label {known['labels'][i]}")
    for line, own in zip(grid[1:], found, strict=True):
        for i, axes in enumerate(line):
            if own is None:
                blank(axes, "not\navailable")
                continue
            axes.imshow(overlaid(own["images"][i], own["heat"][i]), interpolation="nearest")
            axes.set_xlabel(f"predicted {own['predicted'][i]}")
    if known:
        scale = ScalarMappable(cmap=COLORS)
        bar = canvas.colorbar(scale, ax=list(grid[1:].ravel()), ticks=[0, 1], pad=0.01, aspect=30, alpha=OPACITY)
        bar.ax.set_yticklabels(["0", "max"])
    return canvas


def overlaid(pixels: Any, heat: Any) -> Any:
    """(H, W, 3) in [0, 1]: an image, (C, H, W) uint8, under its heat map, (H, W), as colors from 0 to its largest value.

    Blended here, since Matplotlib applies the opacity of an image twice where it makes a PDF of several.
    """
    from matplotlib import colormaps

    colors = colormaps[COLORS](heat / (heat.max() or 1))[..., :3]
    return (1 - OPACITY) * pixels.transpose(1, 2, 0) / 255 + OPACITY * colors
