"""Neural Cleanse (NC). Wang et al., "Neural Cleanse", IEEE S&P 2019.

For each class the smallest trigger is looked for that turns images into it (depoison.training.inversion), and a class that
needs far less than the others is taken for a backdoor's target. The model then unlearns (section VI, patching by
unlearning): it is tuned on the defender's data, of which a part carries the trigger that was found, with its right labels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from depoison.defenses.tuning import Labeled, Tuner
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.training.inversion import FEWEST, Search, Trigger, anomaly, recorded, stamped


def nc(
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    inversion_epochs: int,
    mask_lr: float,
    cost: float,
    success: float,
    patience: int,
    multiplier: float,
    stop_patience: int,
    stop_ratio: float,
    threshold: float,
    stamped_part: float,
) -> Classifier:
    """Purify `model` of the triggers that are found in it; where none is, it stays as it is.

    Args:
        inversion_epochs: most passes over the data for each class; each ends with a judgment of the trigger.
        mask_lr: learning rate of Adam for masks and patterns.
        cost, success, patience, multiplier, stop_patience, stop_ratio: see `Search`.
        threshold: the anomaly index above which a class is a target.
        stamped_part: of the data, at least one sample, which each trigger that was found is put on.

    Raises:
        DepoisonError: fewer than three classes.
    """
    classes = model.head[-1].out_features
    if classes < FEWEST:
        raise DepoisonError(f"nc: the model has {classes} classes; of fewer than {FEWEST} none can be an outlier")
    search = Search(
        cost=cost, success=success, patience=patience, factor=multiplier, idle=stop_patience, gain=stop_ratio
    )
    inverting = tune.part(
        "invert", epochs=inversion_epochs, lr=mask_lr, schedule="constant", augmentation={}, evaluate_every=0
    )
    found = invert(model, clean, inverting, search, classes)
    index = anomaly(found.size)
    targets = (index > threshold).nonzero()[:, 0].tolist()
    tune.monitor.facts |= {
        "targets": targets, "anomaly_index": recorded(index), "mask_sizes": recorded(found.size),
    }  # fmt: skip
    purified = copy.deepcopy(model)
    if not targets:
        return purified
    triggers = [(found.mask[target], found.pattern[target]) for target in targets]
    return tune(purified, unlearning(clean, triggers, stamped_part, tune.rng.generator("stamped")))


class Triggers(nn.Module):
    """The triggers of K classes, on the CPU.

    Attributes:
        mask, pattern: (K, 1, H, W) and (K, C, H, W) in [0, 1].
        size: (K,) |m|₁.
    """

    mask: Tensor
    pattern: Tensor
    size: Tensor

    def __init__(self, classes: int, shape: Sequence[int]):
        super().__init__()
        for name, own in (("mask", (1, *shape[1:])), ("pattern", shape), ("size", ())):
            self.register_buffer(name, torch.zeros(classes, *own))


def invert(model: Classifier, clean: Labeled, tune: Tuner, search: Search, classes: int) -> Triggers:
    """The smallest trigger of each class.

    Args:
        tune: the loop of each class.
    """
    assert tune.recipe is not None
    fixed = copy.deepcopy(model).requires_grad_(False).eval()
    data, shape = tune.batches(fixed, clean), clean.inputs.shape[1:]
    found = Triggers(classes, shape)
    for target in range(tune.monitor.resume(found=found), classes):
        part = tune.part(str(target))
        trigger = Trigger(shape, target, search, part.rng.generator("start"), model.device)
        optimizer = trigger.optimizer(tune.recipe.lr)
        for step in part.steps(data, model=trigger, optimizer=optimizer):
            step.count(trigger.step(fixed, step.batch[0], optimizer, tune.recipe.precision))
            if step.last:
                trigger.judge()
                if trigger.over:  # the one look at the device in an epoch
                    break
        for name, tensor in found.named_buffers():
            tensor[target] = getattr(trigger, name)
        tune.monitor.save(target + 1, found=found)
    return found


def unlearning(
    clean: Labeled, triggers: Sequence[tuple[Tensor, Tensor]], part: float, generator: torch.Generator
) -> Labeled:
    """The defender's data, of which a part carries a trigger; of several triggers each has its copy of that part.

    Args:
        triggers: (1, H, W) masks and (C, H, W) patterns in [0, 1].
    """
    order = torch.randperm(len(clean.labels), generator=generator)
    count = max(1, round(part * len(order)))
    chosen, rest = order[:count], order[count:]
    inputs = [stamped(clean.inputs[chosen], *trigger).round().to(clean.inputs.dtype) for trigger in triggers]
    labels = [clean.labels[chosen]] * len(triggers)
    return Labeled(torch.cat([clean.inputs[rest], *inputs]), torch.cat([clean.labels[rest], *labels]))
