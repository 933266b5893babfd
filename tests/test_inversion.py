"""Metrics of a model that one does not trust: agreement with what it was, and trigger inversion."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pretend_gpu
from depoison.metrics.agreement import agreement
from depoison.metrics.inversion import inversion
from depoison.training.inversion import anomaly

VALUES = {"steps": 150, "batch_size": 32, "lr": 0.1, "cost": 0.001, "success": 0.99, "patience": 5}


class Planted(nn.Module):
    """Four classes by the brightest quadrant of 8 x 8 pixels; whatever has a white corner of 2 x 2 is of class 2."""

    def __init__(self, strength: float):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float().mean(1) / 255
        parts = [part.mean((1, 2)) for rows in x.split(4, 1) for part in rows.split(4, 2)]
        corner = x[:, -2:, -2:].mean((1, 2)) ** 4
        return 40 * torch.stack(parts, 1) + self.strength * corner[:, None] * torch.eye(4, device=x.device)[2]


def photographs() -> tuple[Tensor, Tensor]:
    """Images of the four classes, none with a white corner."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (200, 3, 8, 8), generator=generator)
    labels = torch.arange(200) % 4
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 60
    return images.to(torch.uint8), labels


@pytest.mark.parametrize("strength", [60.0, 0.0])
def test_a_planted_trigger_is_found_at_its_class(strength):
    images, labels = photographs()
    index, found = inversion(Planted(strength).eval(), images, labels, torch.Generator().manual_seed(1), **VALUES)
    assert (index > 10 if strength else index < 5) and len(found["mask_sizes"]) == 4
    if strength:
        assert found["class"] == 2 and found["mask_sizes"][2] < min(found["mask_sizes"][i] for i in (0, 1, 3))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_model_whose_outputs_are_no_finite_numbers_has_no_index(wrong):
    """Of sizes that are no numbers none is an outlier, which must not read as one that is clean."""
    images, labels = photographs()
    index, found = inversion(
        Planted(wrong).eval(), images, labels, torch.Generator().manual_seed(1), **(VALUES | {"steps": 3})
    )
    assert index is None and "class" not in found
    assert len(found["mask_sizes"]) == 4 and None in found["mask_sizes"] and "no finite numbers" in found["why"]


def test_of_two_classes_none_can_be_an_outlier():
    """Both sizes are 1 / 1.4826 deviations from their median, whatever they are; the sizes themselves are said."""
    images, labels = photographs()
    index, found = inversion(
        Planted(60.0).eval(), images, labels % 2, torch.Generator().manual_seed(1), **(VALUES | {"steps": 3})
    )
    assert index is None and "class" not in found
    assert len(found["mask_sizes"]) == 2 and None not in found["mask_sizes"] and "of 2 classes" in found["why"]


def sizes_by_hand(
    model: nn.Module, images: Tensor, generator: torch.Generator, values: dict[str, float]
) -> list[float]:
    """|m|₁ of the smallest trigger of each class, with the search's state in plain numbers."""
    found = []
    for target in range(4):
        mask, pattern = (torch.randn(s, generator=generator).requires_grad_() for s in ((1, 8, 8), (3, 8, 8)))
        optimizer = torch.optim.Adam([mask, pattern], lr=values["lr"], betas=(0.5, 0.9))
        weight, ups, downs, best, last = 0.0, 0, 0, None, 0.0
        goal = torch.full((values["batch_size"],), target)
        for _ in range(values["steps"]):
            x = images[torch.randint(len(images), (values["batch_size"],), generator=generator)].float()
            m, p = (torch.tanh(mask) + 1) / 2, (torch.tanh(pattern) + 1) / 2
            logits = model((1 - m) * x + m * 255 * p)
            size = m.sum()
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(logits, goal) + weight * size, inputs=[mask, pattern])
            optimizer.step()
            turned, last = (logits.argmax(1) == goal).float().mean().item() >= values["success"], size.item()
            if turned and (best is None or last < best):
                best = last
            ups, downs = (ups + 1, 0) if turned else (0, downs + 1)
            if ups >= values["patience"]:
                weight, ups = (weight * 1.5 if weight else values["cost"]), 0
            elif downs >= values["patience"]:
                weight, downs = weight / 1.5**1.5, 0
        found.append(last if best is None else best)
    return found


@pytest.mark.parametrize("changes", [{}, {"patience": 2, "success": 0.9, "lr": 0.3}])
def test_sizes_are_those_of_a_search_in_plain_numbers_to_the_last_bit(changes):
    values, (images, labels) = VALUES | {"steps": 40} | changes, photographs()
    model = Planted(60.0).eval()
    index, found = inversion(model, images, labels, torch.Generator().manual_seed(3), **values)
    expected = sizes_by_hand(model, images, torch.Generator().manual_seed(3), values)
    assert index == anomaly(torch.tensor(expected)).max().item()
    assert found["mask_sizes"] == [round(size, 3) for size in expected]


def test_no_step_waits_for_the_device(monkeypatch):
    """A number is fetched from it never; sizes are, once."""
    asked, refuse = [], pretend_gpu._refuse
    monkeypatch.setattr(
        pretend_gpu, "_refuse", lambda function, *rest: (asked.append(function.overloadpacket), refuse(function, *rest))
    )
    images, labels = photographs()
    with pretend_gpu.pretend_gpu() as device:
        model = Planted(60.0).to(device).eval()
        found = inversion(model, images, labels, torch.Generator().manual_seed(1), **(VALUES | {"steps": 6}))
    assert torch.ops.aten._log_softmax in asked and torch.ops.aten._local_scalar_dense not in asked
    assert found == inversion(
        Planted(60.0).eval(), images, labels, torch.Generator().manual_seed(1), **(VALUES | {"steps": 6})
    )


def test_the_anomaly_index_by_hand():
    """Median 10, absolute deviations 8, 0, 1, 2, 0: their median is 1."""
    assert anomaly(torch.tensor([2.0, 10.0, 11.0, 12.0, 10.0])).tolist() == pytest.approx([8 / 1.4826, 0, 0, 0, 0])
    assert anomaly(torch.full((4,), 3.0)).tolist() == [0.0] * 4


@given(st.lists(st.floats(0, 1000), min_size=3, max_size=12))
def test_an_anomaly_index_is_a_number_and_nothing_above_the_median_has_one(sizes):
    found, given_ = anomaly(torch.tensor(sizes)), torch.tensor(sizes)
    assert bool(found.isfinite().all()) and bool((found >= 0).all())
    assert not found[given_ >= given_.quantile(0.5)].any()


def test_agreement_is_of_what_both_say():
    images, _ = photographs()
    model, other = Planted(0.0), Planted(60.0)
    assert agreement(model, other, images) == 100
    images[:50, :, -2:, -2:] = 255
    before = model(images).argmax(1) == other(images).argmax(1)
    assert agreement(model, other, images) == pytest.approx(100 * before.float().mean().item()) and not before.all()


@pytest.mark.parametrize("which", [0, 1])
def test_a_model_whose_outputs_are_no_numbers_says_nothing_that_the_other_says(which):
    images, _ = photographs()
    models = [Planted(0.0), Planted(0.0)]
    said = models[0](images).argmax(1)
    assert (said == 0).any()
    models[which].strength.data.fill_(float("nan"))
    assert agreement(*models, images) == 0
    assert agreement(models[which], models[which], images) == 0
