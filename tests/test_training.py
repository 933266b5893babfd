"""The training loop, its batches and random numbers, and the models."""

from __future__ import annotations

import functools
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d

from depoison.defenses.fst import fst
from depoison.defenses.ft_sam import ft_sam
from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.stages.history import Progress
from depoison.tasks._classification import predict
from depoison.tasks.image import ImageBatches, ImageClassifier, Images, draw, rotate
from depoison.tasks.image import ImageDraws as Draws
from depoison.training.loop import Monitor, classification, fit, steps
from small import (
    CPU,
    IMAGES,
    Interrupted,
    changed,
    classes_of,
    close,
    forward_by_hand,
    interrupted,
    network,
    pixels,
    recipe,
    state_of,
    tune_by_hand,
)

RNG = Rng(0, "train")
STATISTICS = {f"extractor.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


class Recorded(ImageBatches):
    """Plain batches that keep what they gave away."""

    def __init__(self, images, labels, plan, **more):
        super().__init__(images, labels, plan, CPU, **more)
        self.indices, self.given = [], []

    def batch(self, index, draws, generator):
        images, labels = super().batch(index, draws, generator)
        self.indices.append(index.tolist())
        self.given.append((images.clone(), labels.clone()))
        return images, labels


def data(plan, count: int = 20, **more) -> Recorded:
    return Recorded(pixels(count), classes_of(count), plan, **more)


def trained(plan, monitor: Monitor | None = None, count: int = 20, seed: int = 0, **hooks) -> Classifier:
    return fit(network(), data(plan, count), plan, Rng(seed, "train"), monitor or Monitor(), **hooks)


# The steps


@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.1), (0.9, 0.1)])
def test_fit_is_sgd_with_momentum_and_weight_decay(batchnorm, momentum, weight_decay):
    plan = recipe(epochs=5, momentum=momentum, weight_decay=weight_decay)
    model = network(batchnorm=batchnorm)
    batches = [(pixels(20), classes_of(20), 0.1)] * 5
    expected = tune_by_hand(model, batches, momentum=momentum, weight_decay=weight_decay)
    assert close(state_of(fit(model, data(plan), plan, RNG, Monitor())), expected)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.1] * 12),
        # Four epochs of three batches: (1 + cos(0, 45, 90, 135 degrees)) / 20.
        ("cosine", [r for r in (0.1, 0.1 * (2 + 2**0.5) / 4, 0.05, 0.1 * (2 - 2**0.5) / 4) for _ in range(3)]),
        # 35% and 75% of four epochs: from the third and from the fourth.
        ("multistep", [0.1] * 6 + [0.01] * 3 + [0.001] * 3),
        # The peak is at step 3.6 of 12.
        (
            "onecycle",
            [0.004 + 0.096 * i / 3.6 for i in range(4)]
            + [0.05 + 0.05 * math.cos(math.pi * (i - 3.6) / 8.4) for i in range(4, 12)],
        ),
    ],
)
@pytest.mark.parametrize("epoch_batches", [None, 3])
def test_fit_steps_over_each_batch_at_its_learning_rate(schedule, rates, epoch_batches):
    plan = recipe(epochs=4, batch_size=8, schedule=schedule, momentum=0.9)
    batches, model = data(plan, epoch_batches=epoch_batches), network()
    found = state_of(fit(network(), batches, plan, RNG, Monitor()))
    steps = [(*batch, rate) for batch, rate in zip(batches.given, rates, strict=True)]
    assert close(found, tune_by_hand(model, steps, momentum=0.9), 1e-4)


def test_fit_with_frozen_statistics_normalizes_by_them_and_keeps_them():
    plan, model = recipe(epochs=3), network()
    before = state_of(model)
    found = state_of(trained(plan, frozen_statistics=True))
    assert close(found, tune_by_hand(model, [(pixels(20), classes_of(20), 0.1)] * 3, statistics="running"))
    assert not changed(before, found) & STATISTICS


def test_frozen_statistics_leave_dropout_in_the_classifier_at_work():
    modes = set()
    evaluate = Monitor(evaluate=lambda model: {"c_acc": float(predict(model, pixels(2))[0])})
    trained(
        recipe(epochs=3, batch_size=8, evaluate_every=1),
        evaluate,
        frozen_statistics=True,
        after_step=lambda model: modes.add(
            (model.classifier.training, *(m.training for m in model.extractor.modules()))
        ),
    )
    assert modes == {(True, *[False] * 6)}


@pytest.mark.parametrize(
    ("trainable", "kept"), [("head", "extractor.0."), ("extractor", "classifier."), ("all", "mean")]
)
def test_fit_keeps_what_is_not_trainable(trainable, kept):
    before = state_of(network())
    model = trained(recipe(epochs=2, batch_size=8, momentum=0.9, weight_decay=0.1), trainable=trainable)
    moved = changed(before, state_of(model))
    weights = {name for name, _ in model.named_parameters()}
    part = {"head": "classifier.", "extractor": "extractor.", "all": ""}[trainable]
    assert moved == {name for name in weights if name.startswith(part)} | STATISTICS
    assert not any(name.startswith(kept) for name in moved)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_extra_loss_and_after_step_act_on_every_step():
    plan, calls = recipe(epochs=3, batch_size=8), []

    def after(model):
        assert not torch.is_grad_enabled()
        calls.append(model.classifier.bias[0].item())
        model.classifier.bias.fill_(0.25)

    def penalty(model):
        return 0.5 * (model.classifier.weight**2).sum()

    batches = data(plan)
    found = state_of(fit(network(), batches, plan, RNG, Monitor(), extra_loss=penalty, after_step=after))
    expected = tune_by_hand(
        network(),
        [(*batch, 0.1) for batch in batches.given],
        penalty=lambda state: 0.5 * (state["classifier.weight"] ** 2).sum(),
        after=lambda state: state.update({"classifier.bias": torch.full((3,), 0.25).double()}),
    )
    assert len(calls) == 9 and 0.25 not in calls
    assert found["classifier.bias"].tolist() == [0.25] * 3 and close(found, expected)


def test_history_holds_loss_and_accuracy_over_all_images_of_each_epoch():
    plan, batches, monitor = recipe(epochs=3, batch_size=8), data(recipe()), Monitor()
    fit(network(), batches, plan, RNG, monitor)
    steps = [(*batch, 0.1) for batch in batches.given]
    for epoch, row in enumerate(monitor.history):
        loss = correct = 0.0
        for number in range(3 * epoch, 3 * epoch + 3):
            state = tune_by_hand(network(), steps[:number])
            logits, _ = forward_by_hand(state, steps[number][0])
            loss -= float(logits.log_softmax(1)[torch.arange(len(logits)), steps[number][1]].sum())
            correct += int((logits.argmax(1) == steps[number][1]).sum())
        assert row["loss"] == pytest.approx(loss / 20, abs=1e-4)
        assert row["train_acc"] == pytest.approx(100 * correct / 20)
        assert (row["epoch"], row["epochs"]) == (epoch + 1, 3)
        assert row["images_per_second"] > 0
    assert monitor.history[-1]["seconds_left"] == 0


def test_bf16_rounds_what_fp32_does_not():
    full, half, again = (state_of(trained(recipe(epochs=2, precision=p))) for p in ("fp32", "bf16", "bf16"))
    assert changed(full, half) and not changed(half, again)
    assert close(full, half, 0.02) and all(tensor.dtype == full[name].dtype for name, tensor in half.items())


# Learning rates


@pytest.mark.parametrize(("batches", "epochs"), [(1, 4), (3, 4), (7, 100)])
def test_cosine_falls_by_epoch_and_is_constant_within_one(batches, epochs):
    plan = recipe(lr=0.2, epochs=epochs, schedule="cosine")
    found = np.array([plan.learning_rate(step, batches * epochs) for step in range(batches * epochs)])
    by_epoch = found.reshape(epochs, batches)
    assert (by_epoch == by_epoch[:, :1]).all()
    assert np.allclose(by_epoch[:, 0], [0.1 + 0.1 * np.cos(np.pi * epoch / epochs) for epoch in range(epochs)])
    assert (
        by_epoch[0, 0] == 0.2 and by_epoch[epochs // 2, 0] == pytest.approx(0.1) and (np.diff(by_epoch[:, 0]) < 0).all()
    )


@pytest.mark.parametrize(("epochs", "falls"), [(100, (35, 75)), (20, (7, 15)), (10, (4, 8)), (2, (1, 2)), (1, (1, 1))])
def test_multistep_falls_to_a_tenth_after_35_and_75_percent_of_the_epochs(epochs, falls):
    plan = recipe(lr=0.5, epochs=epochs, schedule="multistep")
    first, second = falls
    by_hand = [0.5] * first + [0.05] * (second - first) + [0.005] * (epochs - second)
    found = [plan.learning_rate(step, 8 * epochs) for step in range(8 * epochs)]
    assert found == pytest.approx([rate for rate in by_hand for _ in range(8)])


@pytest.mark.parametrize(
    ("lr", "decay", "every", "epochs", "rates"),
    [
        (0.01, 0.1, 40, 100, {0: 0.01, 39: 0.01, 40: 0.001, 79: 0.001, 80: 0.0001, 99: 0.0001}),
        (0.01, 0.3, 1, 15, {0: 0.01, 1: 0.003, 2: 0.0009, 14: 0.01 * 0.3**14}),
        (0.01, 0.1, None, 100, {0: 0.01, 99: 0.01}),
    ],
)
def test_step_falls_by_its_factor_after_every_so_many_epochs(lr, decay, every, epochs, rates):
    plan = recipe(lr=lr, epochs=epochs, schedule="step", lr_decay=decay, lr_decay_every=every)
    for epoch, rate in rates.items():
        found = [plan.learning_rate(step, 7 * epochs) for step in range(7 * epoch, 7 * epoch + 7)]
        assert found == pytest.approx([rate] * 7)


def test_constant_learning_rate_stays():
    assert {recipe(lr=0.3, epochs=5).learning_rate(step, 50) for step in range(50)} == {0.3}


@pytest.mark.parametrize("epochs", [1, 35])
def test_recurring_is_what_a_schedule_over_100_epochs_gives_that_is_stepped_by_batch(epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    plan = recipe(lr=0.2, epochs=epochs, schedule="recurring")
    for step in range(350):
        assert plan.learning_rate(step, 350) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_onecycle_rises_linearly_for_three_tenths_and_falls_to_zero(steps):
    plan = recipe(lr=0.5, epochs=10, schedule="onecycle")
    found = np.array([plan.learning_rate(step, steps) for step in range(steps)])
    peak = 3 * steps // 10
    assert found[0] == pytest.approx(0.02) and found.argmax() == peak and found[peak] == pytest.approx(0.5)
    assert np.allclose(np.diff(found[: peak + 1]), 0.48 / peak)
    assert (np.diff(found[peak:]) < 0).all() and found[-1] > 0
    # The last step is a small angle before the end: 1 - cos(x) is about x * x / 2.
    assert found[-1] == pytest.approx(0.25 * (np.pi / (steps - peak)) ** 2 / 2, rel=0.02)
    if steps > 10:
        assert found[peak + (steps - peak) // 2] == pytest.approx(0.25) and found[peak // 2] == pytest.approx(0.26)


# Which images make a batch


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(2, 16))
def test_batches_cover_every_image_once_an_epoch_and_none_holds_one_image(count, size):
    plan = recipe(epochs=2, batch_size=size, lr=1e-3)
    batches = data(plan, count)
    fit(network(), batches, plan, RNG, Monitor())
    half = len(batches.indices) // 2
    for epoch in (batches.indices[:half], batches.indices[half:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(count))
        sizes = [len(batch) for batch in epoch]
        if count % size == 1 and count > size:
            assert sizes == [size] * (count // size - 1) + [size + 1]
        else:
            assert sizes == [size] * (count // size) + [count % size] * (count % size > 0)
        assert min(sizes) >= 2


@pytest.mark.parametrize(("count", "size"), [(5, 8), (20, 8)])
def test_epochs_of_a_number_of_batches_draw_each_image_from_all_with_replacement(count, size):
    plan = recipe(epochs=200, batch_size=size, lr=1e-6)
    batches = data(plan, count, epoch_batches=3)
    fit(network(), batches, plan, RNG, Monitor())
    assert [len(index) for index in batches.indices] == [size] * 600
    drawn = np.array(batches.indices)
    # 600 * size draws: each image as often as any other within five standard deviations, and pairs within a batch, too.
    expected = drawn.size / count
    assert np.abs(np.bincount(drawn.ravel(), minlength=count) - expected).max() < 5 * expected**0.5
    twice = (drawn[:, 0] == drawn[:, 1]).sum()
    assert abs(twice - 600 / count) < 5 * (600 / count) ** 0.5 and twice
    assert len({tuple(epoch) for epoch in drawn.reshape(200, -1).tolist()}) == 200


def test_each_epoch_and_seed_has_an_order_of_its_own():
    orders = []
    for seed in (0, 0, 1):
        batches = data(recipe())
        fit(network(), batches, recipe(epochs=3), Rng(seed, "train"), Monitor())
        orders.append([tuple(order) for order in batches.indices])
    assert orders[0] == orders[1] and len(set(orders[0] + orders[2])) == 6


# Augmentation


def cut_out(image: np.ndarray, padding: int, row: int, column: int, mirrored: bool) -> np.ndarray:
    """What crop and mirror make of one (C, H, W) image, pixel by pixel."""
    height, width = image.shape[1:]
    found = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            y, x = i + row - padding, (width - 1 - j if mirrored else j) + column - padding
            if 0 <= y < height and 0 <= x < width:
                found[:, i, j] = image[:, y, x]
    return found


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(4, 9), st.integers(4, 9), st.sampled_from([1, 3]), st.data())
def test_crop_and_mirror_move_the_pixels_of_each_image_by_its_own_draw(padding, height, width, channels, more):
    count = 5
    images = pixels(count, channels, height, width)
    index = more.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    place = st.integers(0, 2 * padding)
    offset = more.draw(st.lists(st.tuples(place, place), min_size=len(index), max_size=len(index)))
    mirrored = more.draw(st.lists(st.booleans(), min_size=len(index), max_size=len(index)))
    draws = Draws(torch.tensor(offset), torch.tensor(mirrored), None)
    found = Images(images, padding, CPU).batch(torch.tensor(index), draws)
    assert found.dtype == torch.uint8 and found.is_contiguous(memory_format=torch.channels_last)
    for number, image in enumerate(index):
        expected = cut_out(images[image].numpy(), padding, *offset[number], mirrored[number])
        assert np.array_equal(found[number].numpy(), expected)


def turned(image: np.ndarray, angle: float) -> np.ndarray:
    """A (C, H, W) image turned about its center by an angle (radians, counterclockwise on the screen), bilinear."""
    height, width = image.shape[1:]
    found, center_y, center_x = np.zeros(image.shape), (height - 1) / 2, (width - 1) / 2
    for i in range(height):
        for j in range(width):
            dy, dx = i - center_y, j - center_x
            y = center_y + math.sin(angle) * dx + math.cos(angle) * dy
            x = center_x + math.cos(angle) * dx - math.sin(angle) * dy
            for m in (math.floor(y), math.floor(y) + 1):
                for n in (math.floor(x), math.floor(x) + 1):
                    if 0 <= m < height and 0 <= n < width:
                        found[:, i, j] += image[:, m, n] * (1 - abs(y - m)) * (1 - abs(x - n))
    return found


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (9, 5)])
@pytest.mark.parametrize("degrees", [-130.0, -10.0, 7.5, 30.0, 90.0])
def test_rotation_is_bilinear_about_the_center_without_distortion(height, width, degrees):
    images = pixels(2, 3, height, width)
    found = rotate(images, torch.deg2rad(torch.tensor([degrees, -degrees]))).numpy()
    for number, angle in enumerate((degrees, -degrees)):
        assert np.abs(found[number] - turned(images[number].double().numpy(), math.radians(angle))).max() < 0.02


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 3])
def test_rotation_by_quarter_turns_is_rot90(quarters):
    images = pixels(2, 3, 8, 8)
    found = rotate(images, torch.full((2,), quarters * math.pi / 2)).numpy()
    assert np.abs(found - np.rot90(images.numpy().astype(float), quarters, (2, 3))).max() < 0.01


def test_batch_rotates_after_crop_and_mirror_and_only_the_images_that_turn():
    images = pixels(3)
    draws = Draws(
        torch.tensor([[0, 3], [2, 2], [1, 4]]), torch.tensor([True, False, True]), torch.tensor([0.3, 0.0, math.pi])
    )
    found = Images(images, 2, CPU).batch(torch.tensor([2, 0, 1]), draws).numpy()
    expected = [
        turned(cut_out(images[2].numpy(), 2, 0, 3, True).astype(float), 0.3),
        images[0].numpy(),
        cut_out(images[1].numpy(), 2, 1, 4, True)[:, ::-1, ::-1],
    ]
    assert np.abs(found - np.stack(expected)).max() < 0.01


def test_draws_with_probability_0_change_nothing():
    plan = recipe(crop=4, crop_probability=0.0, flip=0.0, rotation=15.0, rotation_probability=0.0)
    draws, images = draw(plan, 200, torch.Generator().manual_seed(0)), pixels(200)
    assert (draws.offset == 4).all() and not draws.mirrored.any() and not draws.angle.any()
    found = Images(images, 4, CPU).batch(torch.arange(200), draws)
    assert (found - images.float()).abs().max() < 0.01  # turned by 0 degrees


def test_recipe_without_augmentation_gives_the_images_themselves():
    images = pixels(50)
    draws = draw(recipe(), 50, torch.Generator().manual_seed(0))
    found = Images(images, 0, CPU).batch(torch.arange(50), draws)
    assert found.dtype == torch.uint8 and torch.equal(found, images)


def test_draws_with_probability_1_reach_every_offset_and_angle():
    plan = recipe(crop=2, crop_probability=1.0, flip=1.0, rotation=15.0, rotation_probability=1.0)
    draws = draw(plan, 2000, torch.Generator().manual_seed(0))
    counts = np.bincount((draws.offset[:, 0] * 5 + draws.offset[:, 1]).numpy(), minlength=25)
    assert len(counts) == 25 and np.abs(counts - 80).max() < 4 * 80**0.5  # 25 places, rows independent of columns
    assert draws.mirrored.all() and draws.angle.all()
    degrees = np.degrees(draws.angle.double().numpy())
    assert -15 <= degrees.min() < -14.5 and 14.5 < degrees.max() <= 15
    assert abs(degrees.mean()) < 4 * 15 / (3 * 2000) ** 0.5


def test_draws_happen_as_often_as_their_probabilities_say_and_independently():
    plan = recipe(crop=4, crop_probability=0.8, flip=0.3, rotation=10.0, rotation_probability=0.5)
    draws = draw(plan, 4000, torch.Generator().manual_seed(0))
    cropped, mirrored, rotated = (draws.offset != 4).any(1), draws.mirrored, draws.angle != 0
    for happened, probability in ((cropped, 0.8 * 80 / 81), (mirrored, 0.3), (rotated, 0.5)):
        assert abs(happened.double().mean() - probability) < 4 * (probability * (1 - probability) / 4000) ** 0.5
    table = torch.stack([cropped, mirrored, rotated]).double().numpy()
    assert np.abs(np.corrcoef(table) - np.eye(3)).max() < 4 / 4000**0.5


def test_draws_depend_on_their_generator_only():
    plan = recipe(crop=4, flip=0.5, rotation=10.0, rotation_probability=0.5)
    found = []
    for noise, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(noise)
        draws = draw(plan, 50, torch.Generator().manual_seed(seed))
        found.append(torch.cat([draws.offset.double(), draws.mirrored[:, None], draws.angle[:, None]], 1))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    "change", [{"crop": 2}, {"crop_probability": 0.1}, {"rotation": 0.0}, {"rotation_probability": 0.9}]
)
def test_one_kind_of_augmentation_does_not_change_the_draws_of_another(change):
    plan = {"crop": 4, "crop_probability": 0.8, "flip": 0.5, "rotation": 10.0, "rotation_probability": 0.5}
    first, second = (draw(recipe(**p), 100, torch.Generator().manual_seed(0)) for p in (plan, plan | change))
    assert torch.equal(first.mirrored, second.mirrored)
    assert torch.equal(first.offset, second.offset) == ("rotation" in "".join(change))


class Drawing(Recorded):
    """Plain batches that keep numbers drawn from each batch's own generator."""

    def batch(self, index, draws, generator):
        self.__dict__.setdefault("drawn", []).append(tuple(numbers(generator)))
        return super().batch(index, draws, generator)


def drawn_with(**changes) -> tuple[list[list[int]], list[tuple[float, ...]]]:
    """The images of six batches, and what each batch source drew."""
    plan = recipe(**({"epochs": 2, "batch_size": 8} | changes))
    batches = Drawing(pixels(20), classes_of(20), plan)
    fit(network(), batches, plan, RNG, Monitor())
    return batches.indices, batches.drawn


def test_each_batch_has_a_generator_of_its_own():
    drawn = drawn_with()[1]
    assert len(set(drawn)) == 6 and drawn == drawn_with()[1]


@pytest.mark.parametrize("change", [{"crop": 4}, {"flip": 0.5}, {"rotation": 10.0, "rotation_probability": 1.0}])
def test_augmentation_does_not_change_what_a_batch_source_draws(change):
    assert drawn_with(**change) == drawn_with()


# Determinism, evaluation, interruption

FULL = {
    "epochs": 6, "batch_size": 6, "momentum": 0.9, "weight_decay": 0.01, "schedule": "cosine",
    "crop": 2, "flip": 0.5, "rotation": 10.0, "rotation_probability": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_spec_gives_the_same_weights_whatever_was_drawn_before(precision):
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        found.append(state_of(trained(recipe(**FULL, precision=precision))))
    assert not changed(*found)
    assert changed(found[0], state_of(trained(recipe(**FULL, precision=precision), seed=1)))


def test_dropout_draws_from_the_seed_alone():
    found = []
    for noise, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(noise)
        found.append(state_of(dropped(Monitor(), seed)))
    assert not changed(found[0], found[1]) and changed(found[0], found[2])


def test_fit_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    trained(recipe(**FULL))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("every", "epochs"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_evaluation_comes_at_every_nth_epoch_and_at_the_last(every, epochs):
    monitor = Monitor(evaluate=lambda model: {"c_acc": 1.5})
    trained(recipe(epochs=5, evaluate_every=every), monitor)
    assert [row["epoch"] for row in monitor.history if row.get("c_acc") == 1.5] == epochs


def test_a_long_epoch_tells_how_far_it_is_from_the_first_one_on(monkeypatch, caplog):
    monkeypatch.setattr("depoison.training.loop.WITHIN_SECONDS", 0.0)
    caplog.set_level("INFO", logger="depoison")
    told, progress = [], Progress("train")
    monitor = Monitor(report=lambda row: (told.append(row), progress(row)))
    monitor.within = lambda row: (told.append(row), progress.within(row))
    plain, watched = trained(recipe(**FULL)), trained(recipe(**FULL), monitor)
    assert not changed(state_of(plain), state_of(watched))
    first = [row for row in told if row["epoch"] == 1]
    parts = [row.get("part", 1.0) for row in first]
    assert len(parts) > 2 and parts == sorted(parts) and 0 < parts[0] < parts[-2] < 1.0 == parts[-1]
    assert all(row["seconds_left"] > 0 and row["images_per_second"] > 0 for row in first)
    assert [row["epoch"] for row in monitor.history] == [1, 2, 3, 4, 5, 6], "the history is of whole epochs"
    # A log hears of the middle of the first epoch at once, and then no oftener than every half minute.
    lines = [record.getMessage() for record in caplog.records if "epoch" in record.getMessage()]
    assert len([line for line in lines if "% of it" in line]) == 1
    assert re.fullmatch(r"train epoch 1/\d+  \d+% of it  \d+ img/s  \d+ s left", lines[0])
    assert re.match(r"train epoch 1/\d+  loss ", lines[1])


@pytest.mark.parametrize("hooks", [{}, {"trainable": "head", "frozen_statistics": True}, {"trainable": "extractor"}])
def test_evaluating_in_between_does_not_change_the_weights(hooks):
    def evaluate(model):
        torch.rand(3)
        seen.append(predict(model, pixels(9, seed=5)))
        return {"c_acc": 0.0}

    seen: list[torch.Tensor] = []
    plain = trained(recipe(**FULL), **hooks)
    watched = trained(recipe(**FULL, evaluate_every=1), Monitor(evaluate=evaluate), **hooks)
    assert len(seen) == 6 and not changed(state_of(plain), state_of(watched))


class Counted:
    """How many steps there were, counted where the loop cannot see it."""

    def __init__(self):
        self.number = torch.zeros((), dtype=torch.int64)

    def state(self):
        return {"number": self.number}

    def load(self, state):
        self.number = state["number"]


def counted_run(monitor: Monitor) -> Classifier:
    """A loop of its own: Adam, each gradient times the number of the step, as a part that is saved beside the two counts."""
    plan, model, counted = recipe(**FULL), network().train(), Counted()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for step in steps(data(plan), plan, RNG, monitor, model=model, optimizer=optimizer, counted=counted):
        assert counted.number == step.number
        counted.number = counted.number + 1
        loss, logits = classification(model, *step.batch, plan.precision)
        optimizer.zero_grad()
        (loss * counted.number).backward()
        optimizer.step()
        step.count(loss, logits)
    return model.eval()


def test_a_step_says_where_it_is_and_at_what_learning_rate():
    plan, model = recipe(epochs=3, batch_size=8, schedule="cosine"), network().train()
    optimizer, source = torch.optim.SGD([model.classifier.bias], lr=9.0), data(recipe())
    seen = []
    for step in steps(source, plan, RNG, Monitor(), model=model, optimizer=optimizer):
        seen.append((step.number, step.epoch, step.first, step.last, step.lr))
        assert optimizer.param_groups[0]["lr"] == step.lr
        assert all(torch.equal(*pair) for pair in zip(step.batch, source.given[-1], strict=True))
        step.count(torch.zeros(()))
    assert [row[:4] for row in seen] == [(n, n // 3, n % 3 == 0, n % 3 == 2) for n in range(9)]
    assert [row[4] for row in seen] == pytest.approx([rate for rate in (0.1, 0.075, 0.025) for _ in range(3)])


def test_history_has_the_mean_over_all_images_of_what_a_body_measures():
    plan, monitor, model, total = recipe(batch_size=8), Monitor(), network(), 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for step in steps(data(plan), plan, RNG, monitor, model=model, optimizer=optimizer):
        own = step.batch[0].double().mean((1, 2, 3))
        total += own.sum().item()
        step.count(torch.tensor(float(len(own))), brightness=own)
    (row,) = monitor.history
    assert row["brightness"] == pytest.approx(total / 20) and row["loss"] == pytest.approx((64 + 64 + 16) / 20)
    assert "train_acc" not in row


def test_a_loss_that_is_no_number_ends_the_run_with_its_epoch(tmp_path):
    """As one epoch does, the third ends: measured, reported as the last; nothing of it is saved."""
    plan, model = recipe(epochs=9, batch_size=8, evaluate_every=9), network()
    monitor = Monitor(evaluate=lambda model: {"c_acc": 0.0}, scratch=tmp_path, save_seconds=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for step in steps(data(plan), plan, RNG, monitor, model=model, optimizer=optimizer):
        step.count(torch.tensor(math.nan if step.number == 7 else math.inf))
    rows = [(row["epoch"], row["epochs"], str(row["loss"]), row.get("c_acc")) for row in monitor.history]
    assert rows == [(1, 9, "inf", None), (2, 9, "inf", None), (3, 3, "nan", 0.0)]
    assert monitor.history[-1]["seconds_left"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-2.safetensors", "state.json"]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_saved_and_read_again(loss, tmp_path):
    first = Monitor(scratch=tmp_path, save_seconds=0.0, history=[{"epoch": 1, "loss": loss, "c_acc": 10.0}])
    first.save(1, model=network())
    json.loads((tmp_path / "state.json").read_text(), parse_constant=pytest.fail)
    again = Monitor(scratch=tmp_path)
    assert again.resume(model=network()) == 1
    (row,) = again.history
    assert (row["epoch"], str(row["loss"]), row["c_acc"]) == (1, str(loss), 10.0)


def plain_run(monitor: Monitor) -> Classifier:
    return trained(recipe(**FULL), monitor)


def defended(defense, monitor: Monitor) -> Classifier:
    return defense(network(), Labeled(pixels(20), classes_of(20)), Tuner(recipe(**FULL), RNG, monitor, IMAGES))


def dropped(monitor: Monitor, seed: int = 0) -> Classifier:
    """A run of a network that draws random numbers itself."""
    model = network()
    model.classifier = nn.Sequential(nn.Dropout(0.5), model.classifier)
    plan = recipe(**FULL)
    return fit(model, ImageBatches(pixels(20), classes_of(20), plan, CPU), plan, Rng(seed, "train"), monitor)


def drawing(monitor: Monitor) -> Classifier:
    plan = recipe(**FULL)
    return fit(network(), data(plan, epoch_batches=4), plan, RNG, monitor)


RUNS = {
    "drawn with replacement": drawing,
    "plain": plain_run,
    "dropout": dropped,
    "a loop of its own": counted_run,
    "ft-sam": functools.partial(defended, functools.partial(ft_sam, rho=0.5, constraint="adaptive")),
    "fst": functools.partial(defended, functools.partial(fst, alpha=0.2, projection="fst", layers="all")),
}


def steady(history: list[dict]) -> list[dict]:
    """The history without what the clock puts in."""
    return [{key: row[key] for key in ("epoch", "epochs", "loss", "train_acc")} for row in history]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("stops", [[4], [1], [6], [2, 3, 6]])
def test_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(name, stops, tmp_path):
    run, whole = RUNS[name], Monitor()
    expected = state_of(run(whole))
    (model, monitor), reported = interrupted(lambda monitor: (run(monitor), monitor), tmp_path / "scratch", stops)
    # Each epoch once, and again the one after which it died, before it was saved: it went on, and did not start again.
    assert reported == sorted([*range(1, 7), *stops])
    assert not changed(expected, state_of(model))
    assert steady(monitor.history) == steady(whole.history) and len(whole.history) == 6


def test_resumable_state_is_saved_only_as_often_as_asked(tmp_path):
    monitor = Monitor(scratch=tmp_path / "scratch", save_seconds=3600.0)
    trained(recipe(**FULL), monitor)
    assert not (tmp_path / "scratch").exists()


def test_saved_state_of_an_older_epoch_does_not_pile_up(tmp_path):
    def die(row):
        if row["epoch"] == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        plain_run(Monitor(report=die, scratch=tmp_path, save_seconds=0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-4.safetensors", "state.json"]


# Random numbers


def numbers(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def test_generator_does_not_depend_on_what_was_drawn_before():
    rng = Rng(3, "train")
    first = numbers(rng.generator("epoch", 2))
    rng.generator("epoch", 1)
    torch.rand(10, generator=rng.generator("epoch", 2))
    torch.manual_seed(99)
    assert numbers(rng.generator("epoch", 2)) == first == numbers(Rng(3, "train").generator("epoch", 2))


def test_generator_differs_by_seed_scope_and_purpose():
    found = [
        numbers(Rng(seed, scope).generator(*purpose))
        for seed in (0, 1, 10)
        for scope in ("train", "purify", "split")
        for purpose in (("epoch", 0), ("epoch", 1), ("epoch", 11), ("epoch", 1, 1), ("head",), ())
    ]
    assert len({tuple(values) for values in found}) == 54


# Models


def resnet(width: int, classes: int = 10, channels: int = 3, seed: int = 0) -> Classifier:
    spec = {
        "name": "resnet18",
        "version": 1,
        "parameters": {"width": width},
        "mean": [0.5] * channels,
        "std": [0.2] * channels,
    }
    return IMAGES.network(spec, classes=classes, shape=(channels, 8, 8), generator=torch.Generator().manual_seed(seed))


def test_resnet18_has_the_11173962_parameters_of_the_cifar_network():
    assert sum(parameter.numel() for parameter in resnet(64).parameters()) == 11_173_962


@pytest.mark.parametrize(("width", "classes", "channels"), [(4, 10, 3), (8, 43, 3), (4, 5, 1)])
def test_resnet18_parameters_add_up_layer_by_layer(width, classes, channels):
    total = 9 * channels * width + 2 * width
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        total += 9 * inputs * outputs + 3 * 9 * outputs * outputs + 4 * 2 * outputs
        total += (inputs * outputs + 2 * outputs) * (stage > 0)
        inputs = outputs
    total += 8 * width * classes + classes
    assert sum(parameter.numel() for parameter in resnet(width, classes, channels).parameters()) == total


@pytest.mark.parametrize("size", [8, 32, 33])
def test_resnet18_halves_the_image_three_times_and_averages_over_the_rest(size):
    model, sizes = resnet(4).eval(), []
    for module in model.extractor.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda layer, _, found: sizes.append((tuple(found.shape[1:]), layer.kernel_size))
            )
    features = model.features(pixels(2, 3, size, size))
    assert features.shape == (2, 32) and model(pixels(2, 3, size, size)).shape == (2, 10)
    sides = [math.ceil(size / divisor) for divisor in (1, 2, 4, 8)]
    three = [shape for shape, kernel in sizes[:20] if kernel == (3, 3)]
    assert three == [(4, sides[0], sides[0])] * 5 + [
        (4 * 2**n, sides[n], sides[n]) for n in (1, 2, 3) for _ in range(4)
    ]
    assert [shape[0] for shape, kernel in sizes[:20] if kernel == (1, 1)] == [8, 16, 32]


def test_resnet18_is_the_network_of_the_paper():
    model, images = resnet(2, classes=4).eval(), pixels(2, 3, 16, 16)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) + 0.5)
    # In each block the first convolution and norm, the second ones, then the shortcut's.
    layers = iter([module for module in model.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)])

    def convolved(x, stride=1, padding=1):
        conv, norm = next(layers), next(layers)
        x = conv2d(x, conv.weight.double(), stride=stride, padding=padding).transpose(1, 3)
        x = (x - norm.running_mean) / (norm.running_var.double() + 1e-5).sqrt()
        return (x * norm.weight + norm.bias).transpose(1, 3)

    with torch.no_grad():
        x = convolved((images.double() / 255 - 0.5) / 0.2).relu()
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage and not block else 1
                y = convolved(convolved(x, stride).relu())
                x = (y + (convolved(x, 2, 0) if stride == 2 else x)).relu()
        assert next(layers, None) is None
        features = x.mean((2, 3))
        logits = features @ model.classifier.weight.double().T + model.classifier.bias.double()
        assert torch.allclose(model(images).double(), logits, atol=1e-3 * logits.abs().max())
        assert torch.allclose(model.features(images).double(), features, atol=1e-3 * features.abs().max())


def test_head_lists_the_linear_layers_of_the_classifier_in_order():
    (layer,) = resnet(4).head
    assert isinstance(layer, nn.Linear) and (layer.in_features, layer.out_features) == (32, 10)
    assert [(layer.in_features, layer.out_features) for layer in network(layers=3).head] == [(16, 8), (8, 6), (6, 3)]


def test_initial_weights_follow_from_the_generator_alone():
    torch.manual_seed(1)
    first, state = state_of(resnet(4)), torch.get_rng_state()
    torch.manual_seed(2)
    assert not changed(first, state_of(resnet(4)))
    random = {name for name, tensor in first.items() if tensor.dim() > 1 and tensor.numel() > 3} | {"classifier.bias"}
    assert changed(first, state_of(resnet(4, seed=1))) == random
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())  # building draws nothing from the global generator


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_classifier_normalizes_pixels_by_mean_and_standard_deviation(dtype):
    model = ImageClassifier(nn.Flatten(), nn.Identity(), [0.4914, 0.4822], [0.247, 0.243])
    images = torch.tensor([[[[0, 255]], [[128, 51]]]], dtype=dtype)
    expected = [(0 - 0.4914) / 0.247, (1 - 0.4914) / 0.247, (128 / 255 - 0.4822) / 0.243, (0.2 - 0.4822) / 0.243]
    assert model(images)[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert model.features(images)[0].tolist() == pytest.approx(expected, abs=1e-5)
