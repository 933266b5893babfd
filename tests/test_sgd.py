"""Our SGD against torch's, byte by byte."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from depoison.training.sgd import SGD


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 5e-4), (0.9, 0.0), (0.0, 0.01)])
def test_same_bytes_as_torchs_fused_sgd(momentum, weight_decay):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    ours = ours.to(memory_format=torch.channels_last)
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    theirs = theirs.to(memory_format=torch.channels_last)
    theirs.load_state_dict(ours.state_dict())
    mine = SGD(ours.parameters(), momentum=momentum, weight_decay=weight_decay)
    reference = torch.optim.SGD(theirs.parameters(), lr=1.0, momentum=momentum, weight_decay=weight_decay, fused=True)
    for lr in (0.1, 0.05, 0.3):
        images = torch.randn(5, 3, 4, 4).to(memory_format=torch.channels_last)
        mine.zero_grad()
        ours(images).square().sum().backward()
        mine.step(lr)
        reference.zero_grad()
        theirs(images).square().sum().backward()
        reference.param_groups[0]["lr"] = lr
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_momentum_accumulates():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = SGD([weight], momentum=0.5, weight_decay=0.1)
    weight.grad = torch.tensor([1.0, 1.0])
    optimizer.step(0.1)  # g = (1.1, 0.8), buffer = g
    assert torch.allclose(weight, torch.tensor([0.89, -2.08]))
    weight.grad = torch.tensor([0.0, 0.0])
    optimizer.step(0.1)  # g = (0.089, -0.208), buffer = (0.639, 0.192)
    assert torch.allclose(weight, torch.tensor([0.8261, -2.0992]))
