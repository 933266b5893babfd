"""Fine-Pruning (FP). Liu, Dolan-Gavitt and Garg, RAID 2018, section 4.

Channels of the last convolution are pruned in the order of their mean activation on clean images, the least active first,
until clean accuracy has fallen by a set amount; what is left is fine-tuned.

A channel is one of the map that the last stage of the network ends with (`depoison.models.stages`), as the first linear layer
reads it: one input for each channel where positions are averaged (ResNet, DenseNet), and 49 where they are not (VGG, whose
first of three linear layers reads 7 x 7 positions of each). A channel is pruned by setting the weights of its inputs to 0,
where tuning keeps them: nothing of it reaches the logits, nor does a gradient reach it.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from depoison.defenses.tuning import Candidates, Labeled, Tuner, choose, hold_out
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.models.stages import stages
from depoison.training.loop import autocast


def fp(
    model: Classifier, clean: Labeled, tune: Tuner, *, step: float, max_drop: float, select: str
) -> Classifier | Candidates:
    """Purify `model` by pruning what clean images leave dormant, and fine-tuning.

    Args:
        step: fraction of the channels that is pruned at a time.
        max_drop: largest fall of clean accuracy by the pruning, in percent of the backdoored model's.
        select: where the fall is looked at: "defender": on images that he holds out, which the order of the channels does not
            follow from, and on which he tunes in the end, too; "oracle": on the test set.

    Raises:
        DepoisonError: a model without convolutions, or whose classifier does not read their channels one by one.
    """
    held_out, rest = hold_out(clean, tune.rng) if select == "defender" else (None, clean)
    activations = mean_activations(model, rest, tune)
    order = activations.argsort(stable=True)
    each = model.head[0].in_features // len(order)

    def dead(count: float) -> Tensor:
        """(D,) which inputs of the classifier are of the `count` least active channels."""
        found = torch.zeros(len(order), dtype=torch.bool)
        found[order[: int(count)]] = True
        return found.repeat_interleave(each).to(model.device)

    def tuned(count: float) -> Classifier:
        alive = ~dead(count)
        return tune(pruned(model, dead(count)), clean, after_step=lambda of: of.head[0].weight.mul_(alive))

    counts = tuple(range(0, len(order), math.ceil(step * len(order))))
    candidates = Candidates(
        "pruned_channels",
        counts,
        lambda count: pruned(model, dead(count)),
        max_drop,
        relative=True,
        stops=True,
        final=tuned,
    )
    return candidates if held_out is None else choose(candidates, model, held_out, tune)


def pruned(model: Classifier, dead: Tensor) -> Classifier:
    """A copy of the model whose first linear layer does not read these (D,) of its inputs."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.head[0].weight[:, dead] = 0
    return model


@torch.no_grad()
def mean_activations(model: Classifier, clean: Labeled, tune: Tuner) -> Tensor:
    """(C,) mean over images and positions of each channel that the classifier reads, on the CPU.

    Raises:
        DepoisonError: see `fp`.
    """
    assert tune.recipe is not None
    channels = read_channels(model, clean.inputs[:1])
    total = torch.zeros(model.head[0].in_features, dtype=torch.float64)
    for inputs in clean.inputs.split(250):
        with autocast(model.device, tune.recipe.precision):
            features = model.features(inputs.to(model.device))
        total += features.double().sum(0).cpu()
    return total.view(channels, -1).mean(1) / len(clean.inputs)


def read_channels(model: Classifier, inputs: Tensor) -> int:
    """How many channels of a convolution the classifier reads, each by as many inputs as the others, in their order.

    Raises:
        DepoisonError: see `fp`.
    """
    ends = stages(model, inputs)
    if not ends:
        raise DepoisonError("fp: the model has no convolutions, whose channels are what fine-pruning prunes")
    name, (channels, *_) = list(ends.items())[-1]
    network = copy.deepcopy(model).eval()
    features = network.features(inputs.to(network.device))
    each = features.shape[1] // channels

    def moved(module: object, inputs: object, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1] + 1000, output[:, 1:]], 1)

    network.get_submodule(name).register_forward_hook(moved)
    others = network.features(inputs.to(network.device))[:, each:]
    if features.shape[1] % channels or not torch.allclose(others, features[:, each:], rtol=0, atol=0, equal_nan=True):
        raise DepoisonError(
            f"fp: the classifier does not read the {channels} channels of {name} one by one; valid: a network with nothing "
            "but BatchNorm, activations and pooling between its last convolution and its classifier"
        )
    return channels
