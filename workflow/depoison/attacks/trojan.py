"""Trojan (TrojanNN). Liu et al., "Trojaning attack on neural networks", NDSS 2018, section IV: trigger generation.

Inside a mask, pixels are changed until chosen neurons of a clean network take a large value: what they are then is the
trigger. The network is one of the attacker's own, of the backdoored model's kind. Then a training set is poisoned with this
fixed trigger, as in BackdoorBench; the paper retrains a given network, on images that it makes by inverting it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depoison.attacks.base import Attack, Setup, State, Workshop
from depoison.attacks.pictures import picture
from depoison.attacks.surrogate import trained_surrogate
from depoison.errors import DepoisonError
from depoison.models.activations import inputs_of
from depoison.models.classifier import Classifier

log = logging.getLogger("depoison")

NEAR = 1e-3
"""The cost at which the trigger is good enough (BackdoorBench)."""


@dataclass(frozen=True, kw_only=True)
class Trojan(Attack):
    """Attributes:
    mask: the picture that the trigger starts as; where it is black, images stay.
    neurons: how many are to be excited, of the inputs of the last linear layer.
    chosen_by: "incoming" for the neurons with the largest weights from the layer before, "outgoing" to the one behind.
    value: what their activations shall be.
    steps, step, bound: of the descent: how many, and by how many grey levels a pixel moves in one, and in all.
    placing: "replace": the trigger covers images; "add": it is added to them, modulo 256.
    """

    mask: str
    neurons: int
    chosen_by: str
    value: float
    steps: int
    step: float
    bound: float
    placing: str

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """pattern: (C, H, W) float, whole numbers in [0, 255], 0 outside the mask; mask: (1, H, W) bool."""
        return {"pattern": setup.asset["pattern"].float(), "mask": setup.asset["mask"].bool()}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        if self.placing == "add":
            return (images + trigger["pattern"]) % 256
        return torch.where(trigger["mask"], trigger["pattern"], images)


def make_asset(
    workshop: Workshop, *, mask: str, neurons: int, chosen_by: str, value: float, steps: int, step: float, bound: float
) -> dict[str, Tensor]:
    """The trigger, made with a network that is trained for it on the clean pool.

    The record has the neurons, and their activations by the picture that the trigger starts as and by the trigger.

    Returns:
        pattern (C, H, W) and mask (1, H, W), uint8.

    Raises:
        DepoisonError: the mask covers no pixel, or the network has no such neurons.
    """
    setup, monitor = workshop.setup, workshop.monitor
    assert setup.new_model is not None
    start = picture(mask, setup.shape, setup.rng.generator("mask"))
    where = start.amax(0, keepdim=True) > 0
    if not where.any():
        named, (_, height, width) = mask.partition("@")[0], setup.shape
        raise DepoisonError(
            f"trojan's mask {named} covers no pixel of images of {height} x {width} px; valid: a picture, not all black"
        )
    choose(setup.new_model(setup.rng), neurons, chosen_by)  # what it refuses, before the network is trained
    model = trained_surrogate(workshop, "its neurons stand for nothing. It may need more epochs").requires_grad_(False)
    chosen = choose(model, neurons, chosen_by)
    start, where = start.to(setup.device), where.to(setup.device)
    pattern = excite(model, start, where, chosen, value, steps, step, bound).round()
    before, after = (activations(model, one)[chosen].tolist() for one in (start, pattern))
    monitor.facts["trigger"] = {"neurons": chosen.tolist(), "activations_before": before, "activations": after}
    for neuron, *two in zip(chosen.tolist(), before, after, strict=True):
        log.info("neuron %d: the trigger brings it from %.3g to %.3g; wanted: %g", neuron, *two, value)
    if idle := [neuron for neuron, *two in zip(chosen.tolist(), before, after, strict=True) if two[0] == two[1]]:
        log.warning("no pixel of the mask excites the neurons %s: their activations stay as they are", idle)
    return {"pattern": pattern.to("cpu", torch.uint8), "mask": where.to("cpu", torch.uint8)}


def choose(model: Classifier, count: int, chosen_by: str) -> Tensor:
    """The most connected of the neurons that the last linear layer takes, (count,) int64, the most connected first.

    A neuron's connection is the sum of the absolute weights that lead to it from the layer before (Liu et al., section IV.A),
    or from it to the layer behind, as released code has it.

    Raises:
        DepoisonError: there is no linear layer, it takes fewer neurons, or the layer before has others.
    """
    if not model.head:
        raise DepoisonError("trojan needs a network whose classifier is linear: what it takes are the neurons")
    last = model.head[-1]
    if count > last.in_features:
        raise DepoisonError(f"trojan: {count} neurons of {last.in_features}; the maximum is {last.in_features}")
    connection = last.weight.abs().sum(0)
    if chosen_by == "incoming":
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        before = layers[: layers.index(last)][-1:]
        found = len(before[0].weight) if before else 0
        if found != last.in_features:
            raise DepoisonError(
                f"trojan: the last linear layer takes {last.in_features} neurons and the layer before it gives {found}, so "
                "whose weights are whose is not known; valid: chosen_by=outgoing"
            )
        connection = before[0].weight.abs().flatten(1).sum(1)
    return connection.detach().sort(descending=True, stable=True).indices[:count]


def activations(model: Classifier, image: Tensor) -> Tensor:
    """What the last linear layer takes of a (C, H, W) image, pixels in [0, 255]: (D,)."""
    with inputs_of(model.head[-1]) as taken:
        model(image[None])
    return taken[0][0]


def cost_of(found: Tensor, value: float) -> Tensor:
    """Squared distance of activations (count,) from what they shall be."""
    return ((found - value) ** 2).sum()


def excite(
    model: Classifier, start: Tensor, mask: Tensor, chosen: Tensor, value: float, steps: int, step: float, bound: float
) -> Tensor:
    """An image whose pixels in the mask bring the chosen neurons nearest to a value (Liu et al., Algorithm 1).

    Each step moves every pixel by `step` against the sign of its gradient, as in BackdoorBench; of all images that with the
    lowest cost counts. A step that changes nothing ends it, and so does a cost below NEAR.

    Args:
        start: (C, H, W) float pixels in [0, 255].
        mask: (1, H, W) bool, which pixels may change.
        chosen: (count,) int64, neurons.
        bound: how far a pixel may be from that of `start`.

    Returns:
        (C, H, W) float pixels in [0, 255].
    """
    low, high = (start - bound).clamp(0, 255), (start + bound).clamp(0, 255)
    found, best, lowest = start, start, float("inf")
    for taken in range(steps + 1):
        with torch.enable_grad():
            found = found.detach().requires_grad_()
            cost = cost_of(activations(model, found)[chosen], value)
        if cost.item() < lowest:
            best, lowest = found.detach(), cost.item()
        if lowest < NEAR or taken == steps:
            break
        (gradient,) = torch.autograd.grad(cost, found)
        moved = torch.minimum(torch.maximum(found.detach() - step * gradient.sign() * mask, low), high)
        if torch.equal(moved, found):
            break
        found = moved
    return best
