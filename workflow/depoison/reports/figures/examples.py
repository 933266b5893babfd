"""A test image, clean and with each attack's trigger, and what the trigger changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depoison.artifacts import load_arrays
from depoison.files import corrupted, sha256_of
from depoison.papers.figures import Figure
from depoison.papers.grid import Place
from depoison.plan.specs import Artifact
from depoison.reports.figures.curves import Row, of_drawn
from depoison.reports.figures.style import WIDTHS, blank, new_canvas, plain

PHOTOGRAPHS = True


def numbers(figure: Figure) -> list[Row]:
    """A row for each attack: which image it is, how much the trigger changes, and where the pixels are."""
    columns = ("seed", "index", "largest", "mean", "amplified", "pixels", "sha256")
    return of_drawn(figure, columns, lambda place: [_numbers(figure, place)])


def _numbers(figure: Figure, place: Place) -> Row:
    (artifact,) = place.artifacts
    clean, backdoored, index = _images(figure, artifact)
    residual = residual_of(clean, backdoored)
    return {
        "seed": place.cells[0].name.seed, "index": index, "largest": int(abs(residual).max()),
        "mean": float(abs(residual).mean()), "amplified": amplification(residual), "pixels": artifact.product,
        "sha256": sha256_of(Path(artifact.product)),
    }  # fmt: skip


def _images(figure: Figure, artifact: Artifact) -> tuple[Any, Any, int]:
    """The clean and the backdoored image, (C, H, W) uint8, and their index in the test set."""
    found = load_examples(artifact)
    i = figure.file.image % len(found["indices"])
    return found["clean"][i], found["backdoored"][i], int(found["indices"][i])


def load_examples(artifact: Artifact) -> dict[str, Any]:
    """`clean` and `backdoored` (n, C, H, W) uint8, C of 1 or 3, and `indices` (n,) int64; n is at least 1.

    Raises:
        DepoisonError: as `load_arrays`.
    """
    path = Path(artifact.product)
    found = load_arrays(path, {"clean": "uint8 n C H W", "backdoored": "uint8 n C H W", "indices": "int64 n"})
    require_images(path, found["clean"])
    return found


def require_images(path: Path, images: Any) -> None:
    """Raises: DepoisonError: an artifact's (n, C, H, W) are not at least one image of 1 or 3 channels."""
    if 0 in images.shape or images.shape[1] not in (1, 3):
        raise corrupted(path, f"no images of 1 or 3 channels: {list(images.shape)}")


def residual_of(clean: Any, backdoored: Any) -> Any:
    """Backdoored minus clean, (C, H, W) int16."""
    return backdoored.astype("int16") - clean.astype("int16")


def amplification(residual: Any) -> float:
    """The largest whole factor, or a half, at which no pixel leaves the range around gray."""
    return 127 // max(1, int(abs(residual).max())) or 0.5


def draw(figure: Figure, rows: list[Row]) -> Any:
    columns = len(figure.places)
    side = WIDTHS[figure.file.width] / (columns + 0.6)
    canvas = new_canvas(figure, 3 * side + 0.55)
    grid = canvas.subplots(3, columns, squeeze=False)
    for i, (place, row) in enumerate(zip(figure.places, rows, strict=True)):
        panels: list[Any] = [None, None, None]
        if not place.gap:
            clean, backdoored, _ = _images(figure, place.artifacts[0])
            changed = (128 + residual_of(clean, backdoored) * row["amplified"]).clip(0, 255).astype("uint8")
            panels = [clean, backdoored, changed]
            grid[2][i].set_xlabel(f"× {row['amplified']:g}\nat most {row['largest']} of 255")
        for axes, pixels in zip(grid[:, i], panels, strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=pixels is not None, color="#bbbbbb", linewidth=0.4)  # white images have an edge
            if pixels is not None:
                show(axes, pixels)
            else:
                axes.set_box_aspect(1)
                blank(axes, "not\navailable")
        grid[0][i].set_title(", ".join(map(plain, filter(None, [place.label("row"), place.label("column")]))))
    for axes, label in zip(grid[:, 0], ("Clean", "Backdoored", "Difference"), strict=True):
        axes.set_ylabel(label)
    return canvas


def show(axes: Any, pixels: Any) -> None:
    """An image, (C, H, W) uint8."""
    picture = pixels.transpose(1, 2, 0)
    gray = {"cmap": "gray", "vmin": 0, "vmax": 255} if picture.shape[2] == 1 else {}
    axes.imshow(picture[..., 0] if gray else picture, interpolation="nearest", **gray)
