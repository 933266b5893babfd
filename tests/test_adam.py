"""Our Adam against torch's, byte by byte, and against its formulas."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from depoison.training.adam import Adam
from small import same_bytes_as_torch


@pytest.mark.parametrize(("beta1", "weight_decay"), [(0.9, 0.0), (0.5, 0.01)])
def test_same_bytes_as_torchs_fused_adam(beta1, weight_decay):
    assert same_bytes_as_torch(
        partial(Adam, beta1=beta1, weight_decay=weight_decay),
        partial(torch.optim.Adam, lr=1.0, betas=(beta1, 0.999), weight_decay=weight_decay, fused=True),
    )


def test_steps_follow_algorithm_1():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    adam, expected = Adam([weight], beta1=0.8, weight_decay=0.1), np.array([1.0, -2.0])
    mean, square = np.zeros(2), np.zeros(2)
    for t, gradient in enumerate(([0.5, -3.0], [1.0, 0.2], [-4.0, 0.0]), start=1):
        weight.grad = torch.tensor(gradient)
        adam.step(0.1)
        decayed = np.array(gradient) + 0.1 * expected
        mean = 0.8 * mean + 0.2 * decayed
        square = 0.999 * square + 0.001 * decayed**2
        expected = expected - 0.1 * (mean / (1 - 0.8**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        assert np.allclose(weight.detach().numpy(), expected, rtol=1e-5)
