"""Where the stages of the project's networks end, as their papers' tables say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from depoison.models.stages import outputs_of, stages
from small import changed, network, pixels, state_of
from test_clp import MODELS
from test_models import model

SWIN = {"weights": "none", "size": 32, "width": 6, "depth": 1, "window": 2, "stochastic_depth": 0.0}
AFTER_STEM = {"resnet18": 3, "preactresnet18": 1, "resnet50": 3, "wrn-16-1": 1}
"""How many modules come before the first block."""


def ends(name: str, size: int = 32, parameters: dict[str, Any] | None = None) -> dict[str, tuple[int, ...]]:
    return stages(model(name, parameters or MODELS[name]).train(), torch.zeros(2, 3, size, size))


@pytest.mark.parametrize(
    ("name", "blocks", "channels"),
    [
        ("resnet18", (2, 2, 2, 2), 8), ("preactresnet18", (2, 2, 2, 2), 9), ("wrn-16-1", (2, 2, 2), 8),
        ("resnet50", (3, 4, 6, 3), 4 * 8),
    ],
)  # fmt: skip
def test_a_residual_stage_ends_with_its_last_block(name, blocks, channels):
    expected, last = {}, AFTER_STEM[name] - 1
    for stage, count in enumerate(blocks):
        last += count
        expected[f"extractor.{last}"] = (channels * 2**stage, 32 >> stage, 32 >> stage)
    found = ends(name)
    assert found == expected and list(found) == list(expected)


def test_vggs_end_before_its_poolings_after_the_activation():
    """Convolution, BatchNorm and ReLU, two, two, four, four and four times, with a pooling after each of the five."""
    last, expected = -1, {}
    for stage, (count, channels) in enumerate([(2, 2), (2, 4), (4, 8), (4, 16), (4, 16)]):
        last += 3 * count
        expected[f"extractor.{last}"] = (channels, 32 >> stage, 32 >> stage)
        last += 1
    assert ends("vgg19-bn") == expected


def test_densenets_end_before_the_poolings_of_its_transitions_and_with_its_last_block():
    """Growth 2: 4 channels at first; 6, 12 and 36 layers add 2 each, and a transition halves what there is."""
    found = ends("densenet161", 64)
    assert list(found) == [
        "extractor.0.relu0", *(f"extractor.0.transition{i}.conv" for i in (1, 2, 3)), "extractor.0.denseblock4",
    ]  # fmt: skip
    assert [shape[0] for shape in found.values()] == [4, (4 + 12) // 2, (8 + 24) // 2, (16 + 72) // 2, 44 + 48]
    assert [shape[1] for shape in found.values()] == [32, 16, 8, 4, 2]


def test_torchvisions_stages_are_its_layers():
    found = ends("torchvision", 64, {"architecture": "resnet18"})
    assert list(found) == ["extractor.relu", *(f"extractor.layer{i}.1" for i in (1, 2, 3, 4))]


def test_a_transformer_has_only_the_convolution_that_cuts_its_patches():
    assert len(ends("swin-t", parameters=SWIN)) == 1


def test_looking_for_stages_leaves_the_model_as_it_is_and_notes_outputs_while_it_is_asked_to():
    found = network().train()
    before = state_of(found)
    assert stages(found, pixels(1)) == {"extractor.2": (4, 8, 8)}
    assert not changed(before, state_of(found)) and found.training
    with outputs_of(found, ["extractor.0", "extractor.2"]) as noted:
        found(pixels(2))
    assert list(noted) == ["extractor.0", "extractor.2"]
    assert torch.equal(noted["extractor.2"], found.extractor[1:3](noted["extractor.0"]))
    kept = noted["extractor.0"]
    found(pixels(3))
    assert noted["extractor.0"] is kept
