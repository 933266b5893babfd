"""Swin-T. Liu et al., ICCV 2021, section 3.3, as torchvision builds it, for images that are enlarged before they enter it.

FST (Min et al., NeurIPS 2023, appendix B.1 and B.2) fine-tunes torchvision's ImageNet weights on images of 224 px, which its
released code resizes with Pillow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import SwinTransformer

from depoison.errors import DepoisonError
from depoison.models.layers import GlobalAverage, Resize

HEADS = (3, 6, 12, 24)
URL = "https://download.pytorch.org/models/swin_t-704ceda3.pth"  # torchvision's Swin_T_Weights.IMAGENET1K_V1
# torchvision publishes the first eight digits, in the file's name; those who downloaded it give the others.
CHECKSUM = "sha256:704ceda373461b0a224fcdddd75cd2a5e9f8064512ed47adbddef7f343fd147b"


def swin_t(
    classes: int,
    channels: int,
    *,
    weights: str,
    size: int,
    width: int,
    depth: int,
    window: int,
    stochastic_depth: float,
) -> tuple[nn.Module, nn.Module]:
    """Four stages of 2, 2, `depth` and 2 blocks with `width`, 2, 4 and 8 × `width` channels, over patches of 4 × 4 px.

    Attention is within windows of `window` × `window` patches, to whose multiples torchvision pads: a small `size` wants a
    small one.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 8 * width), 768 for the paper's 96, and the linear classifier.

    Raises:
        DepoisonError: a width that the attention heads do not divide, or one that the pre-trained weights do not have.
    """
    if width % HEADS[0]:
        raise DepoisonError(f"model swin-t: width is {width}; valid: a multiple of {HEADS[0]}, its attention heads")
    if weights != "none" and (width, depth, window, channels) != (96, 6, 7, 3):
        raise DepoisonError(
            f"model swin-t: weights={weights} are for width 96, depth 6, window 7 and 3 channels, not {width}, {depth}, "
            f"{window} and {channels}; valid here: weights=none"
        )
    network = SwinTransformer(
        patch_size=[4, 4],
        embed_dim=width,
        depths=[2, 2, depth, 2],
        num_heads=list(HEADS),
        window_size=[window, window],
        stochastic_depth_prob=stochastic_depth,
    )
    if channels != 3:
        network.features[0][0] = nn.Conv2d(channels, width, 4, 4)
    extractor = nn.Sequential(Resize(size), network.features, network.norm, network.permute, GlobalAverage())
    return extractor, nn.Linear(8 * width, classes)  # drawn as PyTorch does, which FST's released code leaves at that


def pretrained(extractor: nn.Module, downloads: Path, *, weights: str, **_: Any) -> None:
    """Load torchvision's ImageNet weights into a fresh extractor.

    They are looked for in `downloads`, then in PyTorch's own cache; else they are downloaded.

    Raises:
        DepoisonError: a wrong or damaged file, or none and no network.
    """
    if weights == "none":
        return
    # Only training a new model needs these: `requests` takes as long to import as a small model to build.
    from depoison.data.download import download, verify

    path = downloads / URL.rpartition("/")[2]
    cached = Path(torch.hub.get_dir(), "checkpoints", path.name)
    if not path.exists() and cached.exists():
        path = cached
    if path.exists():
        verify(path, CHECKSUM)
    else:
        offline = f"put it at {path} or {cached}, or train from scratch (swin-t+weights=none)"
        download(URL, path, checksum=CHECKSUM, offline=offline)
    found = torch.load(path, map_location="cpu", weights_only=True)
    parts = {"features.": "1.", "norm.": "2."}  # not the head, of ImageNet's 1000 classes
    extractor.load_state_dict(
        {
            place + key.removeprefix(part): value
            for key, value in found.items()
            for part, place in parts.items()
            if key.startswith(part)
        }
    )
