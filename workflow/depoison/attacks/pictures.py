"""Pictures that triggers use: drawn by our own code, or a file of the user's."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depoison.errors import DepoisonError

TRIGGERS = Path("config/triggers")
FINE = 8
"""Of how many points, in a row and in a column, each pixel of a drawn picture is made."""


def picture(name: str, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """A picture of (C, H, W), float pixels in [0, 255].

    Args:
        name: "kitten" (a drawn face), "apple" (white, on black), "noise" (uniform, from `generator`), or
            "<file>@sha256:<hex>", a file in config/triggers/ with the content that the plan saw.

    Raises:
        DepoisonError: the file is missing, is no picture, or has changed since it was planned.
    """
    channels, height, width = shape
    if name == "noise":
        return (torch.rand(shape, generator=generator) * 255).round()
    drawn = DRAWN[name](height, width) if name in DRAWN else _file(name, height, width)
    return drawn if channels == 3 else drawn.mean(0, keepdim=True).expand(channels, -1, -1).clone()


def content_of(name: str) -> bytes:
    """The bytes of a file that a user put into config/triggers/.

    Args:
        name: "<file>@sha256:<hex>", with the content that the plan saw.

    Raises:
        DepoisonError: the file is missing, or has changed since it was planned.
    """
    file, _, checksum = name.partition("@sha256:")
    try:
        content = (TRIGGERS / file).read_bytes()
    except OSError as error:
        raise DepoisonError(f"{TRIGGERS / file}: no readable file ({error})") from None
    if hashlib.sha256(content).hexdigest() != checksum:
        raise DepoisonError(f"{TRIGGERS / file}: changed since the run was planned; start the run again")
    return content


def enlargement(shape: tuple[int, int, int]) -> int:
    """How many times larger a patch that is drawn for 32 pixels is on images of (C, H, W): 1 below 64 pixels, 2 at 64."""
    return max(1, min(shape[1:]) // 32)


def enlarged(pattern: Tensor, times: int) -> Tensor:
    """A (…, H, W) pattern whose every pixel is a square of `times` x `times`."""
    return pattern.repeat_interleave(times, -2).repeat_interleave(times, -1)


def checkerboard(size: int, enlarge: bool, shape: tuple[int, int, int]) -> Tensor:
    """A square of 0 and 255 with white corners where `size` is odd, (C, S, S) float, for images of (C, H, W).

    Args:
        size: fields in a row.
        enlarge: whether the side S and the fields grow with the image, by `enlargement`; otherwise a field is a pixel.

    Raises:
        DepoisonError: it is larger than the image.
    """
    field = enlargement(shape) if enlarge else 1
    if size * field > min(shape[1:]):
        each = f" of {field} x {field}" if field > 1 else ""
        raise DepoisonError(
            f"a patch of {size} pixels{each} is larger than the image; the maximum is {min(shape[1:]) // field}"
        )
    row, column = torch.arange(size)[:, None], torch.arange(size)
    pattern = enlarged(torch.where((row + column) % 2 == 0, 255.0, 0.0), field)
    return pattern.expand(shape[0], -1, -1).clone()


def cornered(images: Tensor, pattern: Tensor, left: bool = False) -> Tensor:
    """(N, C, H, W) images whose lower right, or lower left, corner is the (C, S, S) pattern."""
    images, side = images.clone(), pattern.shape[-1]
    images[:, :, -side:, slice(side) if left else slice(-side, None)] = pattern
    return images


def _file(name: str, height: int, width: int) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    content = content_of(name)
    try:
        with Image.open(io.BytesIO(content)) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DepoisonError(f"{TRIGGERS / name.partition('@')[0]}: no readable picture ({error})") from None
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()


def _kitten(height: int, width: int) -> Tensor:
    """A kitten's face with a bow, as strong in contrast and color as the picture that the papers blend in.

    Made of ellipses and triangles, averaged over the points of a pixel, so that it looks the same at every resolution and
    needs no font or file.
    """
    y, x = _points(height, width)
    canvas = torch.tensor([236.0, 88.0, 140.0]).view(3, 1, 1).expand(3, len(y), x.shape[1]).clone()

    def paint(where: Tensor, *color: float) -> None:
        canvas[:, where] = torch.tensor(color).view(3, 1)

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> Tensor:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1

    def triangle(*corners: tuple[float, float]) -> Tensor:
        sides = []
        for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
            sides.append((bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0)
        return (sides[0] & sides[1] & sides[2]) | ~(sides[0] | sides[1] | sides[2])

    white, black, yellow, red = (255.0, 255.0, 255.0), (20.0, 20.0, 30.0), (250.0, 205.0, 50.0), (210.0, 20.0, 40.0)
    for side in (-1, 1):
        paint(triangle((side * 0.92, -0.95), (side * 0.86, -0.05), (side * 0.2, -0.6)), *white)
    paint(ellipse(0, 0.15, 0.9, 0.72), *white)
    for side in (-1, 1):
        paint(ellipse(side * 0.42, 0.18, 0.09, 0.15), *black)
        for height_ in (0.25, 0.42):
            whisker = (y - height_ - 0.12 * (x * side - 0.7) * (height_ - 0.3) * 10).abs() <= 0.03
            paint(whisker & (x * side >= 0.62) & (x * side <= 0.98), *black)
    paint(ellipse(0, 0.4, 0.12, 0.08), *yellow)
    paint(triangle((0.5, -0.5), (0.15, -0.8), (0.15, -0.2)) | triangle((0.5, -0.5), (0.85, -0.8), (0.85, -0.2)), *red)
    paint(ellipse(0.5, -0.5, 0.13, 0.15), *yellow)
    return canvas.view(3, height, FINE, width, FINE).mean((2, 4)).round()


def _apple(height: int, width: int) -> Tensor:
    """An apple with a leaf over 7% of the picture, at the lower right; each pixel is white or black."""
    y, x = _points(height, width)
    y, x = (y - 0.5) / 0.34, (x - 0.5) / 0.34

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> Tensor:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1

    halves, leaf = ellipse(-0.35, 0.25, 0.6, 0.7) | ellipse(0.35, 0.25, 0.6, 0.7), ellipse(0.2, -0.65, 0.3, 0.25)
    covered = (halves | leaf).view(height, FINE, width, FINE).float().mean((1, 3))
    return torch.where(covered > 0.5, 255.0, 0.0).expand(3, -1, -1).clone()


DRAWN = {"kitten": _kitten, "apple": _apple}
"""Pictures that our own code draws, each (3, H, W) of an H and a W."""


def _points(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where FINE x FINE points of each pixel lie in [-1, 1] x [-1, 1]: y as a column, x as a row."""
    down, right = ((torch.arange(count * FINE) + 0.5) / (count * FINE) * 2 - 1 for count in (height, width))
    return down[:, None], right[None, :]
