"""What defenses share that prune neurons by a mask. A neuron is a channel of a BatchNorm layer; pruned, its weight is 0 and
its bias stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from depoison.defenses.tuning import Candidates, Labeled, Tuner, choose, hold_out
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier


def normalizations(model: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorm layers that have weights, by name, in the order of the network's modules."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine
    }


class Neurons:
    """The BatchNorm channels of a model that has some, as one vector over all layers.

    Attributes:
        weight, bias: (C,) the model's.
    """

    def __init__(self, model: Classifier):
        self.model, self.layers = model, normalizations(model)
        self.sizes = [layer.num_features for layer in self.layers.values()]
        self.weight = torch.cat([layer.weight.detach() for layer in self.layers.values()])
        self.bias = torch.cat([layer.bias.detach() for layer in self.layers.values()])

    def logits(self, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(B, K) logits of the model with these (C,) weights and biases in place of its own."""
        values = {}
        for name, w, b in zip(self.layers, weight.split(self.sizes), bias.split(self.sizes), strict=True):
            values |= {f"{name}.weight": w, f"{name}.bias": b}
        return functional_call(self.model, values, (images,))

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        for layer, part in zip(self.layers.values(), weight.split(self.sizes), strict=True):
            layer.weight.copy_(part)


def pruned(model: Classifier, mask: Tensor, threshold: float) -> Classifier:
    """A copy of the model in which the BatchNorm weight of each channel with mask <= threshold is 0."""
    model = copy.deepcopy(model)
    neurons = Neurons(model)
    neurons.set_weight(torch.where(mask <= threshold, 0.0, neurons.weight))
    return model


def pruned_by(
    defense: str,
    learn: Callable[[Labeled], Tensor],
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    thresholds: list[float],
    select: str,
    max_drop: float,
) -> Classifier | Candidates:
    """`model` without the neurons whose mask a threshold singles out.

    Args:
        defense: its name, for what it refuses.
        learn: makes the (C,) masks from the images that are not held out.
        thresholds: what is tried, in any order.
        select: "oracle" returns every candidate; "defender" holds out a part of the defender's own images and takes the
            highest threshold that costs at most `max_drop` there (if none does, the one with the highest accuracy); "fixed"
            takes the only threshold, whatever it costs.
        max_drop: largest fall of clean accuracy below the backdoored model's, in percentage points.

    Raises:
        DepoisonError: a model without BatchNorm, or several thresholds that are fixed.
    """
    if not normalizations(model):
        raise DepoisonError(
            f"{defense}: the model has no BatchNorm layers, whose channels are what {defense.upper()} prunes"
        )
    if select == "fixed" and len(set(thresholds)) > 1:
        raise DepoisonError(f"{defense}: select=fixed takes one threshold, and thresholds has {len(set(thresholds))}")
    held_out, learning = hold_out(clean, tune.rng) if select == "defender" else (None, clean)
    mask, values = learn(learning), tuple(sorted(set(thresholds)))
    if select == "fixed":
        return pruned(model, mask, values[0])
    candidates = Candidates("threshold", values, lambda value: pruned(model, mask, value), max_drop)
    return candidates if held_out is None else choose(candidates, model, held_out, tune)
