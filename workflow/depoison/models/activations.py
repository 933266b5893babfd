"""What a network computes on its way: the convolutions of a forward pass, and what layers take and put out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.models.stages import outputs_of as latest_outputs


@torch.no_grad()
def last_convolution(model: Classifier, inputs: Tensor) -> str:
    """The name of the convolution that a forward pass comes to last, in evaluation mode.

    Args:
        inputs: (B, …), any that the model takes.

    Raises:
        DepoisonError: the pass comes to none.
    """
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.modules.conv._ConvNd)]
    with latest_outputs(model, names) as called:
        model(inputs.to(model.device))
    if not called:
        raise DepoisonError("the model has no convolution; valid: one that has, such as resnet18")
    return next(reversed(called))


@contextlib.contextmanager
def outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A context in which the list gets what a layer puts out in each forward pass, before whatever changes it in place."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        found.append(output)
        return output.clone()

    handle = layer.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@contextlib.contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A context in which the list gets what a layer takes in each forward pass."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        handle.remove()
