"""ViT-S. Dosovitskiy et al., ICLR 2021, section 3.1, of the width of DeiT-S (Touvron et al., ICML 2021).

Modules are called as in timm, whose checkpoints therefore fit. Attention is written out, with a linear layer for what goes
in: PyTorch's module keeps that in a parameter of its own, which no defense would find among a network's layers, and its fast
kernels have no second derivative, which SFT and the Hessian take.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from depoison.errors import DepoisonError
from depoison.models.layers import Resize


def vit_s(
    classes: int, channels: int, *, size: int, patch: int, width: int, depth: int, heads: int
) -> tuple[nn.Module, nn.Module]:
    """`depth` blocks of attention with `heads` heads over patches of `patch` × `patch` px, each of `width` channels.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, width), that of the class token, and the linear classifier.

    Raises:
        DepoisonError: a size that patches do not divide, or a width that the heads do not.
    """
    for what, whole, by, part in (("size", size, "patch", patch), ("width", width, "heads", heads)):
        if whole % part:
            raise DepoisonError(f"model vit-s: {what} is {whole} and {by} {part}; valid: a multiple of {by}")
    extractor = nn.Sequential(Resize(size), _Transformer(channels, size // patch, patch, width, depth, heads))
    return extractor, nn.Linear(width, classes)


class _Transformer(nn.Module):
    """(B, C, H, W) → (B, width), the class token's features."""

    def __init__(self, channels: int, along: int, patch: int, width: int, depth: int, heads: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + along**2, width))
        self.patch_embed = nn.Conv2d(channels, width, patch, patch)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1)
        return self.norm(self.blocks(tokens + self.pos_embed)[:, 0])


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """(B, N, width) → (B, N, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(2, 3) * query.shape[3] ** -0.5).softmax(3)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))
