"""Masks on the weights of a network, factors that learn while the weights stay; and a network of plain layers again."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from depoison.models.classifier import Classifier, load_weights

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Mask(nn.Module):
    """What a weight is multiplied by, a parametrization of it.

    Attributes:
        values: of the weight's shape, or one for each of its output channels.
    """

    def __init__(self, values: Tensor):
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, weight: Tensor) -> Tensor:
        return self.values * weight


def put_masks(layers: Iterable[nn.Module], *, per: str) -> list[nn.Parameter]:
    """Put a mask of ones on the weight of each layer, in place, and return them in order.

    Args:
        per: "channel": one value for the weights of each output channel, (C, 1, …); "element": one for each weight.
    """
    masks = []
    for layer in layers:
        weight = layer.weight.detach()
        shape = weight.shape if per == "element" else (len(weight), *[1] * (weight.ndim - 1))
        mask = Mask(weight.new_ones(shape))
        parametrize.register_parametrization(layer, "weight", mask, unsafe=True)
        masks.append(mask.values)
    return masks


def plain(tuned: nn.Module, model: Classifier) -> Classifier:
    """A copy of `model` that computes what `tuned` does, itself a copy of it that may have other modules in place of layers
    or their weights: they have, under the names of the layer's own tensors, those that they compute with.
    """
    found = copy.deepcopy(model)
    with torch.no_grad():
        places = {name: name.rpartition(".") for name in found.state_dict()}
        load_weights(found, {name: getattr(tuned.get_submodule(at), own) for name, (at, _, own) in places.items()})
    return found.eval()
