"""What every model is: a feature extractor and a linear classifier, each known by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from depoison.errors import DepoisonError, returned
from depoison.rng import seeded


class Classifier(nn.Module):
    """A classifier of inputs as they are stored; the task of its data says what these are (depoison.tasks).

    Attributes:
        extractor: (B, …) prepared inputs → (B, D) features; the paper's phi(theta; x).
        classifier: (B, D) features → (B, K) logits; the paper's f(w; ·).
    """

    def __init__(self, extractor: nn.Module, classifier: nn.Module):
        super().__init__()
        self.extractor = extractor
        self.classifier = classifier

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def head(self) -> list[nn.Linear]:
        """The linear layers of the classifier, in order; one for most networks, three for VGG."""
        return [layer for layer in self.classifier.modules() if isinstance(layer, nn.Linear)]

    def prepared(self, inputs: Tensor) -> Tensor:
        """What the extractor takes of inputs; such as normalized pixels, where a task says so."""
        return inputs

    def features(self, inputs: Tensor) -> Tensor:
        """(B, …) inputs → (B, D) features."""
        return self.extractor(self.prepared(inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, …) inputs → (B, K) logits."""
        return self.classifier(self.features(inputs))


def build(
    model: Mapping[str, Any], *, classes: int, channels: int, generator: torch.Generator
) -> tuple[nn.Module, nn.Module]:
    """A freshly initialized extractor and classifier.

    Args:
        model: {name, version, parameters, …} of a spec.
        generator: its seed decides every initial weight.

    Raises:
        DepoisonError: its code returns something else.
    """
    make = architecture(model)
    with seeded(generator):
        found = make(classes, channels, **model["parameters"])
    if not isinstance(found, tuple) or [isinstance(part, nn.Module) for part in found] != [True, True]:
        raise returned(
            make, f"model {model['name']}", found, "two modules, a feature extractor and a linear classifier"
        )
    return found


def architecture(model: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that builds a model of a spec."""
    module = _module_of(model)
    return getattr(module, module.__name__.rpartition(".")[2])


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], assign: bool = False) -> None:
    """Give a network these parameters and buffers.

    Args:
        assign: whether they take the place of its own, which may be on no device, instead of being copied.

    Raises:
        DepoisonError: they are not of its names, types and shapes.
    """
    own, given = (
        {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in of.items()}
        for of in (network.state_dict(), weights)
    )
    if differing := sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name)):
        has, wants = (of.get(differing[0], "not there") for of in (given, own))
        raise DepoisonError(f"weights of another network: {differing[0]} is {has}, here {wants}")
    network.load_state_dict(weights, assign=assign)


def load_pretrained(built: Classifier, model: Mapping[str, Any], downloads: Path) -> None:
    """Give a freshly built model the pre-trained weights that its training starts from, if it has any.

    The file of such an architecture holds, beside it, `pretrained(extractor, downloads, **parameters)`. A model that was
    trained before needs none of this.

    Args:
        downloads: the folder that keeps downloaded files.

    Raises:
        DepoisonError: no such weights here, and they cannot be downloaded.
    """
    pretrained = getattr(_module_of(model), "pretrained", None)
    if pretrained is not None:
        pretrained(built.extractor, downloads, **model["parameters"])


def _module_of(model: Mapping[str, Any]) -> ModuleType:
    return importlib.import_module(f"depoison.models.{model['name'].replace('-', '_')}")
