"""Batches from images that live on the device: gather, random crop, mirror and rotation, each sample with its own draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from depoison.training.recipe import Recipe


@dataclass(frozen=True)
class Draws:
    """What an epoch draws for each image, all (N, …), in the order in which the epoch visits them.

    Attributes:
        offset: (N, 2) int64 row and column at which the window is cut out of the padded image.
        mirrored: (N,) bool.
        angle: (N,) float, radians; None where the recipe rotates nothing.
    """

    offset: Tensor
    mirrored: Tensor
    angle: Tensor | None

    def __getitem__(self, index: slice) -> Draws:
        return Draws(self.offset[index], self.mirrored[index], None if self.angle is None else self.angle[index])

    def to(self, device: torch.device) -> Draws:
        angle = None if self.angle is None else self.angle.to(device)
        return Draws(self.offset.to(device), self.mirrored.to(device), angle)


def draw(recipe: Recipe, count: int, generator: torch.Generator) -> Draws:
    """Draw the augmentation of `count` images. An image that is not cropped keeps its place, offset = padding."""

    def happens(probability: float) -> Tensor:
        return torch.rand(count, generator=generator) < probability

    offset = torch.randint(0, 2 * recipe.crop + 1, (count, 2), generator=generator)
    offset = torch.where(happens(recipe.crop_probability)[:, None], offset, recipe.crop)
    mirrored = happens(recipe.flip)
    # Drawn in any case, so that a recipe that rotates sees the same crops, mirrors and batches as one that does not.
    degrees = (torch.rand(count, generator=generator) * 2 - 1) * recipe.rotation
    angle = torch.where(happens(recipe.rotation_probability), torch.deg2rad(degrees), 0.0)
    return Draws(offset, mirrored, angle if recipe.rotation else None)


class Images:
    """Images on the device, zero-padded for cropping, channels last.

    Args:
        images: (N, C, H, W) uint8, or float pixels in [0, 255].
        padding: zeros on each side.
    """

    def __init__(self, images: Tensor, padding: int, device: torch.device):
        padded = torch.nn.functional.pad(images, (padding,) * 4)
        self.padded = padded.permute(0, 2, 3, 1).contiguous().to(device)
        self.height, self.width = images.shape[2:]
        self.device = device

    def __len__(self) -> int:
        return len(self.padded)

    def batch(self, index: Tensor, draws: Draws) -> Tensor:
        """Cut out, mirror and rotate images.

        Args:
            index: (B,) int64 which images.
            draws: of the same B images.

        Returns:
            (B, C, H, W) in channels_last memory; uint8 unless rotated (then float) or stored as float.
        """
        rows = draws.offset[:, :1] + torch.arange(self.height, device=self.device)
        columns = draws.offset[:, 1:] + torch.arange(self.width, device=self.device)
        columns = torch.where(draws.mirrored[:, None], columns.flip(1), columns)
        # One gather crops, mirrors and collects the batch; advanced indices put the channels last by themselves.
        batch = self.padded[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return batch if draws.angle is None else rotate(batch, draws.angle)


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate each image about its center, bilinear, zeros outside.

    Args:
        images: (B, C, H, W).
        angle: (B,) radians.
    """
    height, width = images.shape[2:]
    cosine, sine, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    # In affine_grid's coordinates both axes run from -1 to 1: a rotation of a non-square image needs the ratio.
    matrix = torch.stack(
        [torch.stack([cosine, -sine * height / width, zero], 1), torch.stack([sine * width / height, cosine, zero], 1)],
        1,
    )
    images = images.float()
    return grid_sample(images, affine_grid(matrix, list(images.shape), align_corners=False), align_corners=False)
