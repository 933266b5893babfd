"""The stages of a convolutional network, found by one forward pass: what it computes at one size of its feature maps."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from depoison.models.classifier import Classifier


def stages(model: Classifier, inputs: Tensor) -> dict[str, tuple[int, ...]]:
    """Where each stage ends, from the first: {name of a module: (C, H, W) of its output, for these inputs}.

    A stage is what follows one another at one size of the maps and has a convolution. It ends with its last block, if it has
    no convolution after that (ResNet); else before what changes the size, such as a pooling (VGG, after BatchNorm and
    activation; the transitions of DenseNet).

    Args:
        inputs: (B, …) a few, as stored; what they show does not matter.
    """
    network = copy.deepcopy(model).eval()
    modules = dict(_trunk(network.extractor, "extractor"))
    with torch.no_grad(), outputs_of(network, modules) as found:
        network.features(inputs.to(network.device))
    maps = {name: tuple(output.shape[1:]) for name, output in found.items() if output.ndim == 4}
    ends = {}
    for _, run in itertools.groupby(maps, lambda name: maps[name][1:]):
        names = list(run)
        convolving = [name for name in names if any(isinstance(part, nn.Conv2d) for part in modules[name].modules())]
        if convolving:
            end = names[-1] if isinstance(modules[convolving[-1]], nn.Conv2d) else convolving[-1]
            ends[end] = maps[end]
    return ends


def _trunk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a module that come one after another: blocks are whole, sequences of them are not."""
    for key, child in module.named_children():
        if type(child).forward is nn.Sequential.forward:
            yield from _trunk(child, f"{name}.{key}")
        else:
            yield f"{name}.{key}", child


@contextlib.contextmanager
def outputs_of(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """A context in which the latest output of each of these modules, if it is a tensor, is noted, in the order of calls."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                found[name] = output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
