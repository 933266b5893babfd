"""Channel Lipschitzness based pruning (CLP). Zheng et al., "Data-free backdoor removal based on channel Lipschitzness", 2022.

A channel that answers to a trigger is more sensitive than the others of its layer. How sensitive one can be is bounded by

    sigma(W) |gamma| / sqrt(var + eps)

where W is the channel's kernel as a matrix of (input channels, positions), sigma its largest singular value, and gamma and
var are of the BatchNorm that normalizes the channel. A channel whose bound is above the mean of its layer's plus u standard
deviations is pruned: its BatchNorm gives 0. No data is looked at. (The norm of what a kernel does to a whole image is at most
sqrt(positions) sigma(W): Singla and Feizi, ICLR 2021. A factor that is one for a whole layer decides nothing.)

A BatchNorm belongs to a convolution whose output, and nothing else, it normalizes. Where BatchNorm comes after each
convolution these are all (ResNet, VGG). Where it comes before (PreActResNet, WRN, DenseNet), one that normalizes a sum or a
concatenation belongs to none, nor does a convolution whose output goes into one: there, pairs are the convolutions within
blocks that another BatchNorm follows, and the network's first.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier


def clp(model: Classifier, *, u: float, pairing: str) -> Classifier:
    """Purify `model` by pruning the channels that stand out by the bound on their Lipschitz constant.

    Args:
        u: how many standard deviations above the mean.
        pairing: "graph": as above; "order": a BatchNorm belongs to the convolution that the network's modules have before it,
            as in the released code, whatever it normalizes.

    Raises:
        DepoisonError: no BatchNorm belongs to a convolution, or it cannot be said which.
    """
    purified = copy.deepcopy(model)
    modules = dict(purified.extractor.named_modules())
    pairs = in_graph(purified.extractor) if pairing == "graph" else in_order(purified.extractor)
    if not pairs:
        raise DepoisonError(
            "clp: no BatchNorm normalizes the output of a convolution, whose channels are what CLP prunes"
        )
    with torch.no_grad():
        for norm, convolution in pairs.items():
            bounds = lipschitz_bounds(modules[convolution], modules[norm])
            outliers = (
                bounds > bounds.mean() + u * bounds.std()
            )  # none in a layer of one channel, whose deviation is NaN
            for parameter in modules[norm].parameters():
                parameter[outliers] = 0
    return purified


@torch.no_grad()
def lipschitz_bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """(C,) the bound of each output channel of a convolution with its BatchNorm."""
    spectral = torch.linalg.matrix_norm(convolution.weight.flatten(2).cpu().double(), ord=2)
    scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    return spectral.to(scale) * scale


def in_graph(extractor: nn.Module) -> dict[str, str]:
    """{BatchNorm: the convolution whose output is its input}, by names.

    Raises:
        DepoisonError: a network whose operations depend on values, so that it has no one graph.
    """
    try:
        graph = _Tracer().trace(extractor)
    except Exception as error:  # of a user's network
        told = str(error).partition("\n")[0]
        raise DepoisonError(
            f"clp: the network cannot be traced ({told}); valid: one without branches on values"
        ) from None
    modules, pairs = dict(extractor.named_modules()), {}
    for node in graph.nodes:
        if node.op == "call_module" and _normalizes(modules[node.target]):
            before = node.args[0]
            if before.op == "call_module" and isinstance(modules[before.target], nn.Conv2d):
                pairs[node.target] = before.target
    return pairs


class _Tracer(fx.Tracer):
    """Looks into modules that have a BatchNorm, and into no others, whatever they do."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _normalizes(m) or not any(map(_normalizes, m.modules()))


def in_order(extractor: nn.Module) -> dict[str, str]:
    """{BatchNorm: the convolution before it among the modules}, by names.

    Raises:
        DepoisonError: one of another number of channels.
    """
    latest, pairs = "", {}
    for name, module in extractor.named_modules():
        if isinstance(module, nn.Conv2d):
            latest = name
        elif _normalizes(module) and latest:
            outputs = extractor.get_submodule(latest).out_channels
            if outputs != module.num_features:
                told = f"{name} has {module.num_features} channels, {latest} before it {outputs}"
                raise DepoisonError(f"clp: {told}; valid for this network: pairing=graph")
            pairs[name] = latest
    return pairs


def _normalizes(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.affine and module.running_var is not None
