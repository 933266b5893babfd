"""Any network as a `Classifier`: what comes before its linear classifier, and that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from depoison.errors import DepoisonError

TOLERANCE = 1e-4
"""How much of their largest value logits may differ by after a network was taken apart; rounding differs by less."""
BETWEEN = (nn.Linear, nn.Dropout, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.Hardswish, nn.LeakyReLU, nn.Identity)
"""What may stand between the linear layers of a classifier of several, as VGG's."""


def split(network: nn.Module, inputs: Tensor) -> tuple[nn.Module, nn.Module, Callable[[], nn.Module]]:
    """Take a copy of a network apart.

    Args:
        inputs: (B, …) some, on its device and as it takes them.

    Returns:
        The extractor, (B, …) inputs → (B, D) features, the linear classifier, (B, D) → (B, K) logits, and what puts them
        together again, a network as the one that was given.

    Raises:
        DepoisonError: its output is not that of its last linear layer.
    """
    whole = copy.deepcopy(network)
    modes = [(module, module.training) for module in whole.modules()]
    whole.eval()
    linear: list[nn.Module] = []

    def note(module: nn.Module, _: Any, found: Tensor) -> None:
        if isinstance(module, nn.Linear) or _is_linear(module, found):
            linear.append(module)

    names = {module: name for name, module in whole.named_modules()}
    handles = [module.register_forward_hook(note) for module in names if isinstance(module, nn.Linear | nn.Conv2d)]
    try:
        with torch.no_grad():
            expected = whole(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(expected, Tensor) or expected.ndim != 2:
        shape = f"shape {tuple(expected.shape)}" if isinstance(expected, Tensor) else type(expected).__name__
        raise DepoisonError(f"the model returns {shape}; valid: logits, (B, K)")
    if not linear:
        raise DepoisonError("the model has no linear layer, which these defenses take for its classifier")
    last = _whole_of(whole, names[linear[-1]])
    place, _, name = names[last].rpartition(".")
    setattr(whole.get_submodule(place), name, nn.Identity())
    classifier = _as_linear(last)
    if not _agrees(expected, whole, classifier, inputs):
        raise DepoisonError(
            f"the model's output is not that of its last linear layer, {names[last]}; valid: a classifier that returns "
            "its logits, without softmax or a second head"
        )
    for module, training in modes:
        module.training = training
    classifier.training = last.training

    def joined() -> nn.Module:
        again, part = copy.deepcopy(whole), copy.deepcopy(last)
        shapes = part.state_dict()
        part.load_state_dict({key: tensor.view_as(shapes[key]) for key, tensor in classifier.state_dict().items()})
        setattr(again.get_submodule(place), name, part)
        return again

    return whole, classifier, joined


def _is_linear(module: nn.Module, found: Tensor) -> bool:
    """Whether a module is a convolution of one pixel, as some networks' classifiers are."""
    one = (module.kernel_size, module.stride, module.groups) == ((1, 1), (1, 1), 1)
    return one and found.shape[2:] == (1, 1)


def _as_linear(classifier: nn.Module) -> nn.Module:
    """What is of linear layers as it is; a convolution of one pixel as the linear layer that it is."""
    if not isinstance(classifier, nn.Conv2d):
        return classifier
    weight, bias = classifier.weight, classifier.bias
    linear = nn.Linear(*weight.shape[1::-1], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    linear.load_state_dict(
        {key: tensor.flatten(1) if tensor.ndim > 1 else tensor for key, tensor in classifier.state_dict().items()}
    )
    return linear


def _agrees(expected: Tensor, extractor: nn.Module, classifier: nn.Module, inputs: Tensor) -> bool:
    """Whether a network's parts compute what it computes."""
    try:
        with torch.no_grad():
            found = classifier(extractor(inputs))
    except Exception:  # of the user's code, which was written for logits in this place
        return False
    if found.shape != expected.shape:
        return False
    allowed = TOLERANCE * expected.abs().max().clamp(min=1)
    return not (found - expected).abs().max() > allowed  # a network may give NaN


def _whole_of(network: nn.Module, name: str) -> nn.Module:
    """The linear layer of this name, or the sequence of linear layers that it ends."""
    parent = network.get_submodule(name.rpartition(".")[0])
    ends = parent is not network and isinstance(parent, nn.Sequential) and parent[-1] is network.get_submodule(name)
    if ends and isinstance(parent[0], BETWEEN) and all(isinstance(module, BETWEEN) for module in parent):
        return parent
    return network.get_submodule(name)
