"""Neural attention distillation (NAD). Li et al., "Neural attention distillation: erasing backdoor triggers", ICLR 2021.

A teacher is the backdoored model, fine-tuned on the clean data. A student, again the backdoored model, is tuned on them by

    cross-entropy + sum over stages l of beta_l d(A(F_l of the teacher), A(F_l of the student))

where F_l is the map at the end of a stage (`depoison.models.stages`) and A, the attention, is the sum over channels of |F|^p,
scaled to length 1 over the positions (section 3.2). The teacher no longer changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from depoison.defenses.tuning import Labeled, Tuner
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.models.stages import outputs_of, stages
from depoison.training.loop import autocast, descend, prepare, sgd


def nad(
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    betas: list[float],
    power: float,
    distance: str,
    teacher_epochs: int,
    first_epochs: int,
    first_lr: float,
) -> Classifier:
    """Purify `model` by distilling the attention of a fine-tuned copy of it.

    Args:
        betas: weights of the network's last stages, in their order; of those with more than one position, since the attention
            to a single one is always 1.
        power: p.
        distance: d of two attentions: "square": the mean over positions of the squared differences, as in the released code,
            for which its betas are; "norm": the length of the difference (section 3.2).
        teacher_epochs: how long the teacher is tuned; the recipe's epochs are the student's.
        first_epochs, first_lr: how many epochs of both have this learning rate in place of the recipe's.

    Raises:
        DepoisonError: a model of fewer stages than `betas`.
    """
    assert tune.recipe is not None
    precision = tune.recipe.precision
    maps = [name for name, (_, *size) in stages(model, clean.inputs[:1]).items() if max(size) > 1]
    if len(maps) < len(betas):
        raise DepoisonError(
            f"nad: the model has {len(maps)} stages of convolutions, not counting maps of one position, and betas are for "
            f"{len(betas)}; valid: a model that has as many, or fewer betas"
        )
    pairs = list(zip(maps[len(maps) - len(betas) :], betas, strict=True))

    def tuned(part: Tuner, extra: Callable[[dict[str, Tensor], Tensor], Tensor | float]) -> Classifier:
        """The backdoored model, tuned with a term that is made of its maps and a batch's inputs."""
        assert part.recipe is not None
        found = copy.deepcopy(model)
        optimizer = sgd(prepare(found), part.recipe)
        with outputs_of(found, dict(pairs)) as own:
            for step in part.steps(part.batches(found, clean), model=found, optimizer=optimizer):
                if step.epoch < first_epochs:
                    for group in optimizer.param_groups:
                        group["lr"] = first_lr
                loss, outputs = part.task.loss(found, *step.batch, precision)
                descend(optimizer, loss + extra(own, step.batch[0]))
                step.count(loss, outputs)
        return found.eval()

    teacher = tuned(tune.part("teacher", epochs=teacher_epochs), lambda own, inputs: 0.0)

    def distillation(own: dict[str, Tensor], inputs: Tensor) -> Tensor:
        with torch.no_grad(), autocast(inputs.device, precision), outputs_of(teacher, dict(pairs)) as taught:
            teacher.features(inputs)
        return distilled(own, taught, pairs, power=power, distance=distance)

    return tuned(tune.part("student"), distillation)


def distilled(
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    pairs: Sequence[tuple[str, float]],
    *,
    power: float,
    distance: str,
) -> Tensor:
    """The term of the loss for a batch.

    Args:
        student, teacher: {stage: (B, C, H, W) its map}.
        pairs: (stage, beta).
    """
    terms = []
    for name, beta in pairs:
        difference = attention(teacher[name], power) - attention(student[name], power)
        terms.append(beta * (difference.square() if distance == "square" else difference.norm(dim=1)).mean())
    return torch.stack(terms).sum()


def attention(maps: Tensor, power: float) -> Tensor:
    """(B, C, H, W) → (B, H * W), each row of length 1."""
    exact = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return normalize(exact.abs().pow(power).sum(1).flatten(1))
