"""Adaptive-Patch. Qi et al., "Revisiting the assumption of latent separability for backdoor defenses", ICLR 2023.

There are four patches. In training, each payload and each regularization sample gets one of them, half transparent; at test
time two are shown together, opaque. As set up in FST, appendix C.4, and in the attack's released code. Of its patches, the
four pixels of `badnet` are exact; the others are picture files there and drawn here (a bird, a ball, a square of colors),
at places of our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from depoison.attacks.base import Setup, State
from depoison.attacks.pictures import enlargement, picture
from depoison.attacks.regularized import Regularized
from depoison.errors import DepoisonError

COLORS = {
    ".": (0, 0, 0), "w": (255, 255, 255), "r": (215, 35, 40), "o": (250, 140, 30), "y": (250, 225, 70), "b": (50, 70, 190),
    "g": (40, 170, 80), "m": (190, 50, 170), "c": (60, 200, 220), "k": (30, 30, 40),
}  # fmt: skip
"""Of the drawings below; black is transparent."""

DRAWINGS = {
    "phoenix": "r..yy..r rr.yw.rr rroyyorr .rroorr. ..rrrr.. ...oo... ..o..o.. .y....y.",
    "firefox": "..oooo.. .oobboo. oobbbboo obbbbbbo ooybbbbo oooybboo .oooooo. ..oooo..",
    "badnet": "..w .w. w.w",
    "square": "gmkwcyrb yrbgmkwc wkcmrbgy bgywkcmr mcrbygkw kwgcbrym rymkwgbc cbwryomg",
}
"""Row by row, in the order of the corners: upper left, upper right, lower right, lower left."""


@dataclass(frozen=True, kw_only=True)
class AdaptivePatch(Regularized):
    """Attributes:
    phoenix, firefox, badnet, square: the patches, "drawn", or a picture of the whole image, of which black is transparent.
    opacities, test_opacities: of each patch, in this order, where it is shown alone in training, and with the others at
        test time.
    regularization, cover_ratio: see Regularized.
    """

    phoenix: str
    firefox: str
    badnet: str
    square: str
    opacities: list[float]
    test_opacities: list[float]
    regularization: int | None
    cover_ratio: float

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """patches: (4, C, H, W) float, pixels in [0, 255]; a patch shows where it is not black."""
        for key in ("opacities", "test_opacities"):
            if len(getattr(self, key)) != len(DRAWINGS):
                raise DepoisonError(
                    f"{key}: {len(getattr(self, key))} numbers; valid: {len(DRAWINGS)}, for {', '.join(DRAWINGS)}"
                )
        if not any(self.test_opacities):
            raise DepoisonError("test_opacities: 0 for every patch leaves no trigger; valid: at least one above 0")
        patches = []
        for name in DRAWINGS:
            chosen = getattr(self, name)
            patches.append(
                drawn(name, setup.shape)
                if chosen == "drawn"
                else picture(chosen, setup.shape, setup.rng.generator(name))
            )
            if not patches[-1].any():
                raise DepoisonError(f"{name}: {chosen} is black everywhere, and black is transparent")
        return {"patches": torch.stack(patches)}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        for patch, opacity in zip(trigger["patches"], self.test_opacities, strict=True):
            images = laid(patch, opacity * patch.any(0), images)
        return images

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) int64: the number of the patch. In turn, so that their shares are equal, as in the released code."""
        return torch.arange(count) % len(DRAWINGS)

    def weaken(self, images: Tensor, trigger: Mapping[str, Tensor], draws: Tensor) -> Tensor:
        patches = trigger["patches"][draws]
        opacity = torch.tensor(self.opacities)[draws].view(-1, 1, 1, 1)
        return laid(patches, opacity * patches.any(1, keepdim=True), images)


def laid(patch: Tensor, opacity: Tensor, images: Tensor) -> Tensor:
    """Images under a patch, both (…, C, H, W), whose opacity in [0, 1] may differ by pixel."""
    return (1 - opacity) * images + opacity * patch


def drawn(name: str, shape: tuple[int, int, int]) -> Tensor:
    """A drawing in its corner of an otherwise black picture, (C, H, W) float, pixels in [0, 255].

    It takes a quarter of the image's shorter side, which is its own size at 32 pixels; `badnet` has three pixels, enlarged
    as BadNet's patch.
    """
    channels, height, width = shape
    rows = DRAWINGS[name].split()
    size = 3 * enlargement(shape) if name == "badnet" else max(1, min(height, width) // 4)
    nearest = torch.arange(size) * len(rows) // size
    colors = torch.tensor([[COLORS[cell] for cell in row] for row in rows], dtype=torch.float32).permute(2, 0, 1)
    patch = colors[:, nearest[:, None], nearest]
    patch = patch if channels == 3 else patch.mean(0, keepdim=True).expand(channels, -1, -1)
    low, left = name in ("badnet", "square"), name in ("phoenix", "square")
    picture_ = torch.zeros(shape)
    picture_[:, slice(-size, None) if low else slice(size), slice(size) if left else slice(-size, None)] = patch
    return picture_
