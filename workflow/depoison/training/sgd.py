"""SGD with momentum and weight decay, as `torch.optim.SGD(fused=True)`.

Creating any optimizer of torch.optim imports torch's compiler, which takes as long as a whole purification of a small model.
The kernel is the same one, so the numbers are the same bytes; a test compares.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class SGD:
    """Updates parameters in place.

    Attributes:
        parameters: each must have a gradient when a step is taken.
        buffers: the momentum of each parameter; None before the first step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, momentum: float, weight_decay: float):
        self.parameters = list(parameters)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.buffers: list[Tensor] | None = None

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """g += weight_decay * w; buffer = momentum * buffer + g (at first g); w -= lr * buffer."""
        first = self.buffers is None
        if self.buffers is None:
            self.buffers = [torch.empty_like(parameter) for parameter in self.parameters if self.momentum]
        torch._fused_sgd_(
            self.parameters,
            [parameter.grad for parameter in self.parameters],
            self.buffers,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=first,
        )

    def state(self) -> dict[str, Tensor]:
        # Before the first step the parameters stand for their buffers.
        buffers = self.buffers if self.buffers is not None else self.parameters if self.momentum else []
        return {str(number): buffer for number, buffer in enumerate(buffers)}

    def load(self, state: dict[str, Tensor]) -> None:
        # A buffer has its parameter's memory format, on its device.
        numbered = enumerate(self.parameters if self.momentum else [])
        self.buffers = [torch.empty_like(parameter).copy_(state[str(number)]) for number, parameter in numbered]
