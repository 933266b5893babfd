"""Poisoning with regularization samples, which adaptive attacks share. Qi et al., "Revisiting the assumption of latent
separability for backdoor defenses", ICLR 2023.

Training images get a weakened trigger that differs from image to image. Payload samples also get the target label;
regularization ("cover") samples keep theirs, so that the trigger alone does not decide and the features of poisoned and
clean images mix. Test images get the full trigger.
"""

from __future__ import annotations

import torch
from torch import Tensor

from depoison.attacks.base import Attack, Overlay, Pool, Setup, State, choose, stored
from depoison.errors import DepoisonError


class Regularized(Attack):
    """An attack with regularization samples: defines `draw` and `weaken` besides `trigger` and `stamp`.

    Attributes (the subclass declares them as its fields):
        regularization: how many regularization samples; None for `cover_ratio` times the payload samples.
        cover_ratio: see above.
    """

    regularization: int | None
    cover_ratio: float

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """In which way each of `count` images is weakened, (count, …); more images must leave the first ones' draws alone."""
        raise NotImplementedError

    def weaken(self, images: Tensor, trigger: State, draws: Tensor) -> Tensor:
        """Put the weakened trigger on images.

        Args:
            images: (N, C, H, W) float, pixels in [0, 255].
            draws: (N, …), made by `draw`.

        Returns:
            (N, C, H, W) float, not yet rounded.
        """
        raise NotImplementedError

    def poison(self, pool: Pool, setup: Setup, trigger: State) -> Overlay:
        """Choose payload samples, then regularization samples from the other images, of all classes, and weaken both.

        The payload does not depend on the number of regularization samples, and fewer of those are some of more.

        Raises:
            DepoisonError: as `choose`, or more regularization samples than images are left.
        """
        assert setup.poisoning is not None
        payload, rng = choose(self, pool, setup), setup.rng
        count = self.regularization
        if count is None:
            count = round(self.cover_ratio * len(payload))
        maximum = len(pool.labels) - len(payload)
        if count > maximum:
            raise DepoisonError(
                f"{count} regularization samples do not fit beside {len(payload)} payload samples into the pool of "
                f"{len(pool.labels)} images; the maximum is {maximum}"
            )
        order = torch.randperm(len(pool.labels), generator=rng.generator("covers"))
        covers = order[~torch.isin(order, payload)][:count]
        where = torch.cat([payload, covers])
        labels = torch.cat([setup.poisoning.goals(pool.labels[payload], setup.classes), pool.labels[covers]])
        draws = torch.cat(
            [
                self.draw(len(own), rng.generator(kind))
                for kind, own in (("payload draws", payload), ("cover draws", covers))
            ]
        )
        images = torch.cat(
            [
                stored(self.weaken(pool.inputs[part].float(), trigger, drawn), pool.inputs.dtype)
                for part, drawn in zip(where.split(1000), draws.split(1000), strict=True)
            ]
        )
        where, order = where.sort()
        return Overlay(where, images[order], labels[order], count)
