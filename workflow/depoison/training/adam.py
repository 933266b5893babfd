"""Adam, as `torch.optim.Adam(fused=True)`; why not torch's own, `depoison.training.sgd` says."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Adam:
    """Updates parameters in place. Kingma and Ba, ICLR 2015, Algorithm 1, with beta2 0.999 and epsilon 1e-8.

    Attributes:
        parameters: each must have a gradient, in its own memory format, when a step is taken.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, beta1: float, weight_decay: float):
        self.parameters = list(parameters)
        self.beta1, self.weight_decay = beta1, weight_decay
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """g += weight_decay * w; then Adam's step along the corrected means of g and of its square."""
        torch._foreach_add_(self.steps, 1)
        torch._fused_adam_(
            self.parameters,
            [parameter.grad for parameter in self.parameters],
            self.means,
            self.squares,
            [],
            self.steps,
            lr=lr,
            beta1=self.beta1,
            beta2=0.999,
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        kinds = {"mean": self.means, "square": self.squares, "step": self.steps}
        return {f"{kind}.{i}": tensor for kind, tensors in kinds.items() for i, tensor in enumerate(tensors)}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
