"""Pictures as data URIs: the papers' figures, and test images with triggers."""

from __future__ import annotations

import base64
import io
from typing import Any

from depoison.papers.figures import Figure
from depoison.plan.specs import Artifact
from depoison.reports.figures.examples import amplification, load_examples, residual_of
from depoison.reports.figures.write import draw, kind_of

COLORS = 128
"""Of a drawn figure; photographs keep all of theirs."""

IMAGES = 4
"""So many of the images that the stage `examples` keeps are shown."""


def drawn(figure: Figure, rows: list[dict[str, Any]]) -> tuple[str, tuple[int, int]]:
    """A figure as a PNG's data URI, and its width and height in pixels."""
    from PIL import Image

    picture = Image.open(io.BytesIO(draw(figure, rows, "png", {"Software": None}))).convert("RGB")
    if not getattr(kind_of(figure), "PHOTOGRAPHS", False):
        # A third of the bytes; a page holds a dozen and a half of them.
        picture = picture.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return png(picture), picture.size


def examples_of(artifact: Artifact) -> dict[str, Any]:
    """Test images: clean, backdoored, and what the trigger changed, around gray and amplified.

    Raises:
        DepoisonError: as `load_examples`.
    """
    from PIL import Image

    def picture(pixels: Any) -> str:
        channels_last = pixels.transpose(1, 2, 0)
        return png(Image.fromarray(channels_last[..., 0] if channels_last.shape[2] == 1 else channels_last))

    found, images = load_examples(artifact), []
    kept = (found[key][:IMAGES] for key in ("clean", "backdoored", "indices"))
    for clean, backdoored, index in zip(*kept, strict=True):
        residual = residual_of(clean, backdoored)
        factor = amplification(residual)
        changed = (128 + residual * factor).clip(0, 255).astype("uint8")
        images.append({
            "index": int(index), "amplified": factor, "largest": int(abs(residual).max()),
            "clean": picture(clean), "backdoored": picture(backdoored), "difference": picture(changed),
        })  # fmt: skip
    return {"directory": artifact.directory, "images": images}


def png(picture: Any) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return data_uri(content.getvalue())


def data_uri(content: bytes) -> str:
    """Of a PNG."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
