"""FT+SAM. FST (Min et al., NeurIPS 2023), appendix B.3: fine-tuning whose optimizer is replaced by plain SAM.

SAM: Foret et al., ICLR 2021, Eq. 2 and 3. The step is taken with the gradient at w + rho g / ||g||, where g is the gradient
at w and the norm runs over all weights together. (Zhu et al.'s FT-SAM, ICCV 2023, is the adaptive variant.)
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn

from depoison.defenses.tuning import Tuner, TuningSet
from depoison.models.classifier import Classifier


def ft_sam(model: Classifier, tuning_set: TuningSet, tune: Tuner, *, rho: float) -> Classifier:
    """Purify `model` by fine-tuning with sharpness-aware minimization.

    Args:
        rho: radius of the ascent step in the L2 norm over all weights.
    """

    @contextlib.contextmanager
    def ascended(parameters: list[nn.Parameter]) -> Iterator[None]:
        kept = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()
            for parameter in parameters:
                parameter.add_(parameter.grad * (rho / (norm + 1e-12)))
        yield
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)

    return tune(copy.deepcopy(model), tuning_set, perturbed=ascended)
