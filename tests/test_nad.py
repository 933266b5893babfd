"""NAD: its loss by hand and by finite differences, and teacher and student tuned a second time by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from depoison.defenses.nad import attention, distilled, nad
from depoison.defenses.tuning import Labeled, Tuner
from depoison.errors import DepoisonError
from depoison.rng import Rng
from depoison.tasks.image import ImageClassifier
from depoison.training.loop import Monitor
from small import (
    IMAGES,
    MEAN,
    STD,
    changed,
    classes_of,
    close,
    interrupted,
    network,
    pixels,
    recipe,
    state_of,
    tune_by_hand,
)
from test_clp import MODELS
from test_models import model

DATA = Labeled(pixels(12), classes_of(12))
OWN = {
    "betas": [3.0], "power": 2.0, "distance": "square", "teacher_epochs": 3, "first_epochs": 1, "first_lr": 0.2,
}  # fmt: skip


def tuner(monitor: Monitor | None = None, **changes) -> Tuner:
    plan = recipe(**({"epochs": 2, "lr": 0.05, "momentum": 0.9} | changes))
    return Tuner(plan, Rng(0, "purify"), monitor or Monitor(), IMAGES)


# The loss


def test_attention_of_a_map_by_hand():
    maps = torch.tensor([[[[1.0, -2.0]], [[2.0, 0.0]]], [[[0.0, 0.0]], [[-3.0, 3.0]]]])  # two of 2 channels, 1 x 2
    found = attention(maps, 2.0)
    assert found[0].tolist() == pytest.approx([5 / math.sqrt(41), 4 / math.sqrt(41)])
    assert found[1].tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert attention(maps, 1.0)[0].tolist() == pytest.approx([3 / math.sqrt(13), 2 / math.sqrt(13)])


@pytest.mark.parametrize(
    ("distance", "first", "second"), [("square", 1.0, 0.5), ("norm", math.sqrt(2), math.sqrt(2) / 2)]
)
def test_the_loss_of_two_stages_by_hand(distance, first, second):
    """Attentions (1, 0) and (0, 1) differ by sqrt(2); at the second stage those of one image of two do."""
    left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 5.0]]]])
    student, teacher = ({"a": a, "b": torch.cat([a, left])} for a in (left, right))
    found = distilled(student, teacher, [("a", 10.0), ("b", 100.0)], power=2.0, distance=distance)
    assert found.item() == pytest.approx(10 * first + 100 * second)


@pytest.mark.parametrize("distance", ["square", "norm"])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_the_gradient_of_the_loss_is_that_of_finite_differences(distance, power):
    generator = torch.Generator().manual_seed(2)
    maps, taught = (torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))

    def loss(at: Tensor) -> Tensor:
        return distilled({"a": at}, {"a": taught}, [("a", 7.0)], power=power, distance=distance)

    maps.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(maps), maps)
    h = 1e-6
    for i in range(maps.numel()):
        shift = torch.zeros(maps.numel(), dtype=torch.float64)
        shift[i] = h
        slope = (loss(maps.detach() + shift.view_as(maps)) - loss(maps.detach() - shift.view_as(maps))) / (2 * h)
        assert gradient.flatten()[i].item() == pytest.approx(slope.item(), abs=1e-7)


# The whole


def attention_by_hand(state: dict[str, Tensor], statistics: str) -> Tensor:
    x = (DATA.inputs.double() / 255 - torch.tensor(MEAN).double().view(1, 3, 1, 1)) / torch.tensor(STD).double().view(
        1, 3, 1, 1
    )
    x = conv2d(x, state["extractor.0.weight"], state["extractor.0.bias"], padding=1)
    mean, variance = state["extractor.1.running_mean"], state["extractor.1.running_var"]
    if statistics == "batch":
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    x = (x - mean.view(1, -1, 1, 1)) / (variance.view(1, -1, 1, 1) + 1e-5).sqrt()
    x = (x * state["extractor.1.weight"].view(1, -1, 1, 1) + state["extractor.1.bias"].view(1, -1, 1, 1)).clamp(min=0)
    squares = (x**2).sum(1).flatten(1)
    return squares / (squares**2).sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("distance", ["square", "norm"])
def test_the_student_is_tuned_towards_the_attention_of_a_teacher_that_was_tuned_before(distance):
    model = network()
    before = state_of(model)
    found = nad(model, DATA, tuner(), **(OWN | {"distance": distance}))
    assert not changed(before, state_of(model)) and not any(module.training for module in found.modules())

    rates = [0.2, 0.05, 0.05]
    teacher = tune_by_hand(model, [(DATA.inputs, DATA.labels, lr) for lr in rates], momentum=0.9)
    wanted = attention_by_hand(teacher, "running").detach()

    def distillation(state: dict[str, Tensor]) -> Tensor:
        difference = attention_by_hand(state, "batch") - wanted
        return 3.0 * ((difference**2).mean() if distance == "square" else (difference**2).sum(1).sqrt().mean())

    batches = [(DATA.inputs, DATA.labels, lr) for lr in rates[:2]]
    assert close(state_of(found), tune_by_hand(model, batches, momentum=0.9, penalty=distillation))
    assert not close(state_of(found), tune_by_hand(model, batches, momentum=0.9), 1e-4)


def test_without_distillation_the_student_is_the_fine_tuned_model():
    found = nad(network(), DATA, tuner(), **(OWN | {"betas": [0.0], "first_epochs": 0}))
    assert close(state_of(found), tune_by_hand(network(), [(DATA.inputs, DATA.labels, 0.05)] * 2, momentum=0.9))


def test_history_has_the_teachers_epochs_and_then_the_students():
    tune = tuner()
    nad(network(), DATA, tune, **OWN)
    assert [row["epoch"] for row in tune.monitor.history] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("stops", [[2], [1, 4], [4]])
def test_interrupted_in_either_part_it_ends_with_the_same_bytes(stops, tmp_path):
    changes = {"epochs": 4, "batch_size": 5, "crop": 1}
    expected = state_of(nad(network(), DATA, tuner(**changes), **OWN))
    found, _ = interrupted(lambda monitor: nad(network(), DATA, tuner(monitor, **changes), **OWN), tmp_path, stops)
    assert not changed(expected, state_of(found))


@pytest.mark.parametrize("name", ["resnet18", "vgg19-bn"])
def test_the_last_stages_are_compared_and_of_them_none_of_one_position(name, monkeypatch):
    """At 16 px, ResNet-18 ends at 2 x 2; VGG at 1 x 1, where there is nothing to attend to."""
    compared = []
    monkeypatch.setattr(
        "depoison.defenses.nad.distilled",
        lambda own, taught, pairs, **how: compared.append((pairs, own, taught)) or own[pairs[0][0]].sum() * 0,
    )
    images = Labeled(pixels(4, height=16, width=16), classes_of(4))
    nad(model(name, MODELS[name]).eval(), images, tuner(epochs=1), **(OWN | {"betas": [1.0, 2.0, 3.0]}))
    pairs, own, taught = compared[0]
    assert [beta for _, beta in pairs] == [1.0, 2.0, 3.0]
    assert [own[stage].shape[2] for stage, _ in pairs] == [8, 4, 2]
    assert all(own[stage].requires_grad and not taught[stage].requires_grad for stage, _ in pairs)


def test_a_model_of_too_few_stages_is_refused():
    with pytest.raises(
        DepoisonError, match=r"^nad: the model has 1 stages .* betas are for 3; valid: a model that has as many, .*$"
    ):
        nad(network(), DATA, tuner(), **(OWN | {"betas": [1.0, 1.0, 1.0]}))
    flat = ImageClassifier(nn.Flatten(), nn.Linear(192, 3), (0.5,) * 3, (0.25,) * 3).eval()
    with pytest.raises(DepoisonError, match=r"^nad: the model has 0 stages of convolutions"):
        nad(flat, DATA, tuner(), **OWN)
