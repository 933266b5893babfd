"""Image classification: uint8 images (C, H, W), of one label each; a model takes pixels in [0, 255] and normalizes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from depoison import files
from depoison.models.classifier import Classifier, build
from depoison.tasks._classification import Classification
from depoison.training.batches import BatchSource, Draws, PlainBatches
from depoison.training.recipe import Recipe


class ImageClassifier(Classifier):
    """A classifier that takes pixels in [0, 255], uint8 or float, (B, C, H, W).

    Attributes:
        mean, std: (1, C, 1, 1) normalization of pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, extractor: nn.Module, classifier: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__(extractor, classifier)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def prepared(self, inputs: Tensor) -> Tensor:
        return (inputs / 255 - self.mean) / self.std


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A recipe's hyper-parameters that are of images alone (config/tasks/image.yaml says what each is)."""

    crop: int = 0
    crop_probability: float = 0.0
    flip: float = 0.0
    rotation: float = 0.0
    rotation_probability: float = 0.0


@dataclass(frozen=True)
class ImageDraws(Draws):
    """See `Draws`.

    Attributes:
        offset: (N, 2) int64 row and column at which the window is cut out of the padded image.
        mirrored: (N,) bool.
        angle: (N,) float, radians; None where the recipe rotates nothing.
    """

    offset: Tensor
    mirrored: Tensor
    angle: Tensor | None


def draw(recipe: Recipe, count: int, generator: torch.Generator) -> ImageDraws:
    """Draw the augmentation of `count` images. An image that is not cropped keeps its place, offset = padding."""
    plan = Augmentation(**recipe.augmentation)

    def happens(probability: float) -> Tensor:
        return torch.rand(count, generator=generator) < probability

    offset = torch.randint(0, 2 * plan.crop + 1, (count, 2), generator=generator)
    offset = torch.where(happens(plan.crop_probability)[:, None], offset, plan.crop)
    mirrored = happens(plan.flip)
    # Drawn in any case, so that a recipe that rotates sees the same crops, mirrors and batches as one that does not.
    degrees = (torch.rand(count, generator=generator) * 2 - 1) * plan.rotation
    angle = torch.where(happens(plan.rotation_probability), torch.deg2rad(degrees), 0.0)
    return ImageDraws(offset, mirrored, angle if plan.rotation else None)


class Images:
    """Images on the device, zero-padded for cropping, channels last; of a large set each batch's come there by themselves.

    Args:
        images: (N, C, H, W) uint8, or float pixels in [0, 255].
        padding: zeros on each side.
    """

    def __init__(self, images: Tensor, padding: int, device: torch.device):
        self.height, self.width = images.shape[2:]
        self.padding, self.device = padding, device
        self.large = images.nbytes >= files.LARGE
        self.images = images if self.large else self.padded(images)

    def __len__(self) -> int:
        return len(self.images)

    def padded(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images → (N, H + 2 padding, W + 2 padding, C), on the device."""
        padded = torch.nn.functional.pad(images, (self.padding,) * 4)
        return padded.permute(0, 2, 3, 1).contiguous().to(self.device)

    def batch(self, index: Tensor, draws: ImageDraws) -> Tensor:
        """Cut out, mirror and rotate images.

        Args:
            index: (B,) int64 which images.
            draws: of the same B images.

        Returns:
            (B, C, H, W) in channels_last memory; uint8 unless rotated (then float) or stored as float.
        """
        images = self.images
        if self.large:
            images, index = self.padded(images[index.cpu()]), torch.arange(len(index), device=self.device)
        rows = draws.offset[:, :1] + torch.arange(self.height, device=self.device)
        columns = draws.offset[:, 1:] + torch.arange(self.width, device=self.device)
        columns = torch.where(draws.mirrored[:, None], columns.flip(1), columns)
        # One gather crops, mirrors and collects the batch; advanced indices put the channels last by themselves.
        batch = images[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
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


class ImageSource(BatchSource):
    """Batches of images: what an epoch draws for each of them. To be subclassed."""

    def draw(self, recipe: Recipe, count: int, generator: torch.Generator) -> ImageDraws:
        return draw(recipe, count, generator)


class ImageBatches(ImageSource, PlainBatches):
    """Images with fixed labels, (N, C, H, W) uint8."""

    def keep(self, inputs: Tensor, recipe: Recipe) -> None:
        self.images = Images(inputs, Augmentation(**recipe.augmentation).crop, self.device)

    def inputs(self, index: Tensor, draws: Draws, generator: torch.Generator) -> Tensor:
        assert isinstance(draws, ImageDraws)
        return self.images.batch(index, draws)


class ImageClassification(Classification):
    """See `Task`."""

    inputs = "images"
    dtype = torch.uint8
    axes = "C H W"

    def shape(self, size: int) -> tuple[int, ...]:
        return 3, size, size

    def network(
        self, model: Mapping[str, Any], *, classes: int, shape: tuple[int, ...], generator: torch.Generator
    ) -> Classifier:
        extractor, classifier = build(model, classes=classes, channels=shape[0], generator=generator)
        made = ImageClassifier(extractor, classifier, model["mean"], model["std"])
        return made.to(memory_format=torch.channels_last)

    batches = ImageBatches


TASK = ImageClassification()
