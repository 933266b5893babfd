"""Our Adam against torch's, byte by byte, and against its formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from depoison.training.adam import Adam


@pytest.mark.parametrize(("beta1", "weight_decay"), [(0.9, 0.0), (0.5, 0.01)])
def test_same_bytes_as_torchs_fused_adam(beta1, weight_decay):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    ours = ours.to(memory_format=torch.channels_last)
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    theirs = theirs.to(memory_format=torch.channels_last)
    theirs.load_state_dict(ours.state_dict())
    mine = Adam(ours.parameters(), beta1=beta1, weight_decay=weight_decay)
    reference = torch.optim.Adam(
        theirs.parameters(), lr=1.0, betas=(beta1, 0.999), weight_decay=weight_decay, fused=True
    )
    for lr in (0.1, 0.05, 0.3):
        images = torch.randn(5, 3, 4, 4).to(memory_format=torch.channels_last)
        for model in (ours, theirs):
            model.zero_grad()
            model(images).square().sum().backward()
        mine.step(lr)
        reference.param_groups[0]["lr"] = lr
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


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
