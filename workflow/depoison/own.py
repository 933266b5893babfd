"""Any network as a `Classifier`: what comes before its linear classifier, and that."""

from __future__ import annotations

import copy
from collections.abc import Callable

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
    called: list[nn.Module] = []
    names = {module: name for name, module in whole.named_modules()}
    handles = [module.register_forward_hook(lambda module, *_: called.append(module)) for module in names]
    try:
        with torch.no_grad():
            expected = whole(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(expected, Tensor) or expected.ndim != 2:
        shape = f"shape {tuple(expected.shape)}" if isinstance(expected, Tensor) else type(expected).__name__
        raise DepoisonError(f"the model returns {shape}; valid: logits, (B, K)")
    linear = [module for module in called if isinstance(module, nn.Linear)]
    if not linear:
        raise DepoisonError("the model has no linear layer, which these defenses take for its classifier")
    classifier = _whole_of(whole, names[linear[-1]])
    place, _, name = names[classifier].rpartition(".")
    setattr(whole.get_submodule(place), name, nn.Identity())
    with torch.no_grad():
        found = classifier(whole(inputs))
    if found.shape != expected.shape or (found - expected).abs().max() > TOLERANCE * expected.abs().max().clamp(min=1):
        raise DepoisonError(
            f"the model's output is not that of its last linear layer, {names[classifier]}; valid: a classifier that returns "
            "its logits, without softmax"
        )
    for module, training in modes:
        module.training = training

    def joined() -> nn.Module:
        again = copy.deepcopy(whole)
        setattr(again.get_submodule(place), name, copy.deepcopy(classifier))
        return again

    return whole, classifier, joined


def _whole_of(network: nn.Module, name: str) -> nn.Module:
    """The linear layer of this name, or the sequence of linear layers that it ends."""
    parent = network.get_submodule(name.rpartition(".")[0])
    ends = parent is not network and isinstance(parent, nn.Sequential) and parent[-1] is network.get_submodule(name)
    if ends and isinstance(parent[0], BETWEEN) and all(isinstance(module, BETWEEN) for module in parent):
        return parent
    return network.get_submodule(name)
