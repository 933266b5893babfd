"""FT+SAM. FST (Min et al., NeurIPS 2023), appendix B.3: fine-tuning whose optimizer is replaced by SAM.

SAM: Foret et al., ICLR 2021, Eq. 2 and 3. The step is taken with the gradient at w + eps, where eps raises the loss most
within a radius rho. FST raises the radii of Zhu et al.'s FT-SAM (ICCV 2023), which bounds ||T^-1 eps|| with T = diag(|w|), as
ASAM does (Kwon et al., ICML 2021): eps = rho T^2 g / ||T g|| (Zhu et al., supplement, Eq. 4), where g is the gradient at w
and the norm runs over all weights together.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.training.batches import Batch
from depoison.training.loop import classification, prepare, sgd, unchanged_statistics


def ft_sam(
    model: Classifier, clean: Labeled, tune: Tuner, *, rho: float, constraint: str, smoothing: float = 0.0
) -> Classifier:
    """Purify `model` by fine-tuning with sharpness-aware minimization.

    Args:
        rho: radius of the ascent step in the L2 norm over all weights, biases and BatchNorm's included.
        constraint: "adaptive": the step of each weight is measured relative to the weight, T = diag(|w|); "none": T is the
            identity, plain SAM.
        smoothing: what of a label all other classes share.
    """
    recipe, tuned = tune.recipe, copy.deepcopy(model)
    assert recipe is not None

    def loss_of(batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = classification(tuned, *batch, recipe.precision)
        if smoothing:
            classes = logits.shape[1]  # PyTorch's smoothing is shared by all classes, the label's included
            loss = cross_entropy(logits, batch[1], label_smoothing=smoothing * classes / (classes - 1))
        return loss, logits

    parameters = prepare(tuned)
    optimizer = sgd(parameters, recipe)
    for step in tune.steps(tune.batches(tuned, clean), model=tuned, optimizer=optimizer):
        loss, logits = loss_of(step.batch)
        optimizer.zero_grad()
        loss.backward()
        with ascended(parameters, rho, adaptive=constraint == "adaptive"), unchanged_statistics(tuned):
            optimizer.zero_grad()
            loss_of(step.batch)[0].backward()
        optimizer.step()
        step.count(loss, logits)
    return tuned.eval()


@contextlib.contextmanager
def ascended(parameters: Sequence[nn.Parameter], rho: float, *, adaptive: bool) -> Iterator[None]:
    """A context in which the weights are at w + eps, from the gradients g at w."""
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        scales = [value.abs() if adaptive else 1.0 for value in kept]
        slopes = [parameter.grad * scale for parameter, scale in zip(parameters, scales, strict=True)]  # T g
        norm = torch.stack([slope.norm() for slope in slopes]).norm()
        for parameter, slope, scale in zip(parameters, slopes, scales, strict=True):
            parameter.add_(slope * scale * (rho / (norm + 1e-12)))
    yield
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
