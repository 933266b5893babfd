"""Anti-backdoor learning (ABL). Li et al., "Anti-backdoor learning: training clean models on poisoned data", NeurIPS 2021.

A model is trained on the poisoned set itself. At first, by local gradient ascent (section 3.2), no loss stays below a limit
gamma, which keeps clean samples there, while poisoned ones are learned at once and fall through: those of the lowest loss
are isolated. Then the model is trained on the others, and at last unlearns what was isolated, by gradient ascent (Eq. 3).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from depoison.defenses.tuning import Labeled, NewModel, Tuner
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.training.loop import autocast, descend, prepare, sgd


def abl(
    suspect: Labeled,
    new_model: NewModel,
    fit: Tuner,
    *,
    isolation: float,
    gamma: float,
    isolate_epochs: int,
    unlearn_epochs: int,
    unlearn_lr: float,
) -> Classifier:
    """Train a model on `suspect` that has not its backdoor.

    Args:
        isolation: which part of the set is isolated.
        gamma: the limit of the loss.
        isolate_epochs: before the isolation, at the recipe's learning rate; its own epochs are of the training after it.
        unlearn_epochs, unlearn_lr: of the last part; the learning rate is constant.

    Raises:
        DepoisonError: fewer than two samples to isolate, or to train on.
    """
    count, total = round(isolation * len(suspect.labels)), len(suspect.labels)
    if not 2 <= count <= total - 2:
        raise DepoisonError(
            f"isolation {isolation:g} of {total} samples leaves {count} and {total - count}; each needs 2"
        )
    model = new_model()
    first = fit.part("isolate", epochs=isolate_epochs, schedule="constant")
    _train(first, model, suspect, lambda loss: (loss.detach() - gamma).sign() * loss)

    order = losses(model, suspect, first.recipe.precision).argsort(stable=True)
    isolated, others = (Labeled(suspect.inputs[part], suspect.labels[part]) for part in (order[:count], order[count:]))
    fit.part("train")(model, others)

    last = fit.part("unlearn", epochs=unlearn_epochs, lr=unlearn_lr, schedule="constant")
    _train(last, model, isolated, torch.neg)
    fit.monitor.facts["isolated"] = count
    return model.eval()


def _train(part: Tuner, model: Classifier, data: Labeled, objective: Callable[[Tensor], Tensor]) -> None:
    """Train `model` in place, down what `objective` makes of the loss."""
    assert part.recipe is not None
    optimizer = sgd(prepare(model), part.recipe)
    for step in part.steps(part.batches(model, data), model=model, optimizer=optimizer):
        loss, outputs = part.task.loss(model, *step.batch, part.recipe.precision)
        descend(optimizer, objective(loss))
        step.count(loss, outputs)


@torch.no_grad()
def losses(model: Classifier, data: Labeled, precision: str) -> Tensor:
    """(N,) the loss of each sample as it is stored, on the CPU; a model that diverged isolates at random."""
    model.eval()
    found = []
    for inputs, labels in zip(data.inputs.split(250), data.labels.split(250), strict=True):
        with autocast(model.device, precision):
            logits = model(inputs.to(model.device)).float()
        found.append(cross_entropy(logits, labels.to(model.device), reduction="none").cpu())
    return torch.cat(found)
