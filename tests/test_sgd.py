"""Our SGD against torch's, byte by byte."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from depoison.training.sgd import SGD
from small import same_bytes_as_torch


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 5e-4), (0.9, 0.0), (0.0, 0.01)])
def test_same_bytes_as_torchs_fused_sgd(momentum, weight_decay):
    assert same_bytes_as_torch(
        partial(SGD, momentum=momentum, weight_decay=weight_decay),
        partial(torch.optim.SGD, lr=1.0, momentum=momentum, weight_decay=weight_decay, fused=True),
    )


def test_momentum_accumulates():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = SGD([weight], momentum=0.5, weight_decay=0.1)
    weight.grad = torch.tensor([1.0, 1.0])
    optimizer.step(0.1)  # g = (1.1, 0.8), buffer = g
    assert torch.allclose(weight, torch.tensor([0.89, -2.08]))
    weight.grad = torch.tensor([0.0, 0.0])
    optimizer.step(0.1)  # g = (0.089, -0.208), buffer = (0.639, 0.192)
    assert torch.allclose(weight, torch.tensor([0.8261, -2.0992]))
