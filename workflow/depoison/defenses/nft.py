"""Neural mask fine-tuning (NFT). Karim et al., "Augmented Neural Fine-Tuning for Efficient Backdoor Purification", ECCV 2024.

Each neuron's weights are multiplied by a mask m, which starts at 1 and minimizes, on the defender's data, the loss of MixUp
(Eq. 4) and a pull towards 1 (Eq. 9),

    E loss(lam y_i + (1 - lam) y_j, f(lam x_i + (1 - lam) x_j)) + eta / n_c sum |1 - m|,        lam ~ Beta

with n_c images a class, and stays in [mu(l), 1], where the floor mu falls with the depth l of its layer. Biases stay.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from depoison.defenses.tuning import Labeled, Tuner
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.models.masks import CONVOLUTIONS, plain, put_masks
from depoison.training.loop import autocast, descend, prepare, sgd

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "weights": (*CONVOLUTIONS, nn.Linear),
    "batchnorm": (nn.modules.batchnorm._BatchNorm,),
}
"""Layers whose weights have masks."""


def nft(
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    mu: str,
    alpha: float,
    beta: float,
    eta: float,
    mixup: bool,
    mixup_alpha: float,
    mixup_beta: float,
    masks: str,
    batchnorm: str,
) -> Classifier:
    """Purify `model` by masks on the weights of its neurons.

    Args:
        mu, alpha, beta: see `floor`.
        eta: weight of the masks' distance from 1, times the images of a class; 0: none.
        mixup: whether images are mixed; a batch has one lam, and each of its images another of them.
        mixup_alpha, mixup_beta: of lam's distribution.
        masks: "weights": of convolutions and linear layers, the classifier's included; "batchnorm": BatchNorm's, as the
            released code has them. Layers count in the order of the network's modules.
        batchnorm: "frozen": running statistics stay, and normalize; "updated": they follow the data, and batches are
            normalized by their own. Then a mask right before a BatchNorm changes nothing.

    Raises:
        DepoisonError: a model without BatchNorm, where its weights shall have masks.
    """
    recipe, tuned = tune.recipe, copy.deepcopy(model)
    assert recipe is not None
    prepare(tuned, frozen_statistics=batchnorm == "frozen")
    tuned.requires_grad_(False)
    layers = [layer for layer in tuned.modules() if isinstance(layer, KINDS[masks]) and layer.weight is not None]
    if not layers:
        raise DepoisonError("nft: the model has no BatchNorm to mask; valid: masks=weights")
    learned = put_masks(layers, per="channel")
    floors = [floor(mu, number, len(layers), alpha, beta) for number in range(1, len(layers) + 1)]
    classes = model.head[-1].out_features
    pull = eta * classes / len(clean.labels)
    optimizer = sgd(learned, recipe)
    for step in tune.steps(tune.batches(tuned, clean), model=tuned, optimizer=optimizer):
        inputs, labels = step.batch
        targets: Tensor = one_hot(labels, classes).float()
        if mixup:
            draw = np.random.default_rng(tune.rng.generator("mixup", step.number).initial_seed())
            lam, others = draw.beta(mixup_alpha, mixup_beta), torch.from_numpy(draw.permutation(len(labels)))
            inputs, targets = (mixed(values, others.to(labels.device), lam) for values in (inputs.float(), targets))
        with autocast(inputs.device, recipe.precision):
            logits = tuned(inputs).float()
        loss = cross_entropy(logits, targets)
        descend(optimizer, loss + pull * torch.stack([(1 - mask).abs().sum() for mask in learned]).sum())
        with torch.no_grad():
            for mask, lowest in zip(learned, floors, strict=True):
                mask.clamp_(lowest, 1)
        step.count(loss, train_acc=100 * targets.gather(1, logits.argmax(1, keepdim=True))[:, 0])
    return plain(tuned, model)


def mixed(values: Tensor, others: Tensor, lam: float) -> Tensor:
    """Eq. 4: each of (B, …) values with the one that (B,) `others` says."""
    return lam * values + (1 - lam) * values[others]


def floor(mu: str, layer: int, layers: int, alpha: float, beta: float) -> float:
    """mu(l), the least mask of a layer, which falls with its depth.

    Args:
        mu: "exponential": alpha e^(-beta l); from alpha in the first layer to 0 in the last one "cosine", "logarithmic",
            "cubic" or "linear"; "none": 0.
        layer: l, from 1.
        layers: how many there are.
    """
    passed = (layer - 1) / max(1, layers - 1)
    shape = {
        "exponential": math.exp(-beta * layer),
        "cosine": (1 + math.cos(math.pi * passed)) / 2,
        "logarithmic": 1 - math.log(layer) / math.log(max(2, layers)),
        "cubic": (1 - passed) ** 3,
        "linear": 1 - passed,
        "none": 0.0,
    }
    return alpha * shape[mu]
