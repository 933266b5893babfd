"""Masks on the weights of a network: factors that learn while the weights stay."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from depoison.models.classifier import Classifier

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


def unmasked(masked: Classifier, model: Classifier) -> Classifier:
    """A copy of `model` that computes what `masked` does, a masked copy of it, whose products become its own weights.

    `masked` is of no use after it: torch puts a weight that was masked behind the layer's bias.
    """
    for layer in list(masked.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
    found = copy.deepcopy(model)
    found.load_state_dict(masked.state_dict())
    return found.eval()
