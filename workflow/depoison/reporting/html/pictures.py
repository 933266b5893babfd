"""Pictures as data URIs: the papers' figures, and test images with triggers."""

from __future__ import annotations

import base64
import io
from typing import Any

from depoison.errors import DepoisonError
from depoison.plan.figures import Figure
from depoison.plan.specs import Artifact
from depoison.reporting.figures.examples import amplification, residual_of
from depoison.reporting.figures.write import draw

COLORS = 128
"""Of a drawn figure; photographs keep all of theirs."""

IMAGES = 4
"""So many of the images that the stage `examples` keeps are shown."""


def drawn(figure: Figure, rows: list[dict[str, Any]]) -> tuple[str, tuple[int, int]]:
    """A figure as a PNG's data URI, and its width and height in pixels."""
    from PIL import Image

    picture = Image.open(io.BytesIO(draw(figure, rows, "png", {"Software": None}))).convert("RGB")
    if figure.file.kind != "examples":
        # A third of the bytes; a page holds a dozen and a half of them.
        picture = picture.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return png(picture), picture.size


def examples_of(artifact: Artifact) -> dict[str, Any]:
    """Test images: clean, backdoored, and what the trigger changed, around gray and amplified.

    Raises:
        DepoisonError: a file that is no such artifact's.
    """
    from PIL import Image
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    def picture(pixels: Any) -> str:
        channels_last = pixels.transpose(1, 2, 0)
        return png(Image.fromarray(channels_last[..., 0] if channels_last.shape[2] == 1 else channels_last))

    try:
        found = load_file(artifact.product)
        images = []
        for clean, backdoored, index in list(zip(*(found[k] for k in ("clean", "backdoored", "indices")), strict=True))[
            :IMAGES
        ]:
            residual = residual_of(clean, backdoored)
            factor = amplification(residual)
            changed = (128 + residual * factor).clip(0, 255).astype("uint8")
            images.append({
                "index": int(index), "amplified": factor, "largest": int(abs(residual).max()),
                "clean": picture(clean), "backdoored": picture(backdoored), "difference": picture(changed),
            })  # fmt: skip
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DepoisonError(f"{artifact.product}: cannot be read ({error!r}); delete it and run again") from None
    return {"directory": artifact.directory, "images": images}


def png(picture: Any) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
