"""DenseNet-121. Huang et al., CVPR 2017, table 1 (k = 32)."""

from __future__ import annotations

from torch import nn

from depoison.models._densenet import densenet


def densenet121(classes: int, channels: int, *, growth: int, stem: str) -> tuple[nn.Module, nn.Module]:
    """Dense blocks of 6, 12, 24 and 16 layers; 1024 features for the paper's growth of 32. See `densenet`."""
    return densenet((6, 12, 24, 16), classes, channels, growth=growth, stem=stem)
