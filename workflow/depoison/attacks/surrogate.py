"""A network of the attacker's own: of the backdoored model's kind, or another, trained on his clean pool."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from depoison.attacks.base import Workshop
from depoison.models.classifier import Classifier
from depoison.tasks.image import ImageBatches
from depoison.training.loop import autocast, classification, descend, prepare, sgd, steps, unchanged_statistics

log = logging.getLogger("depoison")

MEASURED = 1000
"""Of how many test images a network's accuracy is recorded."""

Pgd = Callable[[Classifier, Tensor, Tensor], Tensor]
"""From a network, (B, C, H, W) float pixels in [0, 255] and (B,) int64 labels to what PGD makes of these images."""


def trained_surrogate(workshop: Workshop, useless: str, pgd: Pgd | None = None) -> Classifier:
    """The network that the asset lists as `model`, trained on the clean pool as a backdoored model of its kind is.

    The record gets its accuracy on test images. A network that has learned next to nothing is told in one line.

    Args:
        useless: what that means to the attack and what helps, for this line.
        pgd: trains it adversarially (Madry et al., ICLR 2018, Eq. 2.1): every batch is replaced by what this makes of it;
            BatchNorm's running statistics follow the replaced batches only.

    Returns:
        In evaluation mode, on the setup's device.
    """
    pool, setup, recipe = workshop.pool, workshop.setup, workshop.recipe
    assert setup.new_model is not None and recipe is not None
    model = setup.new_model(setup.rng).to(setup.device)
    optimizer, data = sgd(prepare(model), recipe), ImageBatches(pool.inputs, pool.labels, recipe, setup.device)
    for step in steps(data, recipe, setup.rng, workshop.monitor, model=model, optimizer=optimizer):
        images, labels = step.batch
        if pgd is not None:
            with unchanged_statistics(model), autocast(setup.device, recipe.precision):
                images = pgd(model, images.float(), labels)
        loss, logits = classification(model, images, labels, recipe.precision)
        descend(optimizer, loss)
        step.count(loss, logits)
    workshop.monitor.facts["surrogate"] = _measured(model.eval(), workshop, useless, pgd)
    return model


def _measured(model: Classifier, workshop: Workshop, useless: str, pgd: Pgd | None) -> dict[str, float | str]:
    """Accuracies for the record, in percent, of a thousand test images; warns of one that has learned next to nothing."""
    total = len(workshop.test_labels)
    count = min(MEASURED, total)
    where = torch.arange(count) * total // count  # over the whole set: a folder's images come class by class
    correct = {"c_acc": 0, "pgd_acc": 0} if pgd else {"c_acc": 0}
    for part in where.split(250):
        images, labels = workshop.test_inputs[part].to(workshop.setup.device), workshop.test_labels[part]
        labels = labels.to(workshop.setup.device)
        found = {"c_acc": images}
        if pgd:
            found["pgd_acc"] = pgd(model, images.float(), labels)
        with torch.no_grad():
            for key, images in found.items():
                correct[key] += int((model(images).argmax(1) == labels).sum())
    accuracies = {key: 100 * number / count for key, number in correct.items()}
    chance = 100 * int(workshop.test_labels[where].bincount().max()) / count
    if accuracies["c_acc"] < chance + (100 - chance) / 10:
        log.warning(
            "the attacker's network is near chance: C-Acc %.1f, always one class %.1f; %s",
            accuracies["c_acc"], chance, useless,
        )  # fmt: skip
    return {"measured_on": "test images", "images": count} | accuracies
