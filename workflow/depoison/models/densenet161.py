"""DenseNet-161. Huang et al., CVPR 2017, table 1 (k = 48), as for large images: its first layers shrink fourfold."""

from __future__ import annotations

from torch import nn

from depoison.models._densenet import densenet


def densenet161(classes: int, channels: int, *, growth: int) -> tuple[nn.Module, nn.Module]:
    """Dense blocks of 6, 12, 36 and 24 layers; 2208 features for the paper's growth of 48. See `densenet`."""
    return densenet((6, 12, 36, 24), classes, channels, growth=growth, stem="large")
