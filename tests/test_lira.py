"""LIRA: its trigger's bound after every step, its stages, and one update of each written out a second time in plain torch."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from depoison.attacks import lira
from depoison.attacks.base import Fit, Poisoning, Pool, stamped
from depoison.attacks.lira import Lira, UNet, put
from depoison.attacks.translators import drawn
from depoison.errors import DepoisonError
from depoison.rng import Rng
from depoison.training import loop
from depoison.training.loop import Monitor
from small import CPU, IMAGES, changed, classes_of, interrupted, network, pixels, recipe, setup_of, state_of

RNG = Rng(0, "train")
OWN = {
    "eps": 0.1, "final_eps": 0.02, "alpha": 0.5, "portion": 1.0, "classifier": "tuned", "trigger_epochs": 2,
    "generator_lr": 0.01, "generator_width": 2,
}  # fmt: skip
GENERATOR = drawn(lambda: UNet((3, 8, 8), 2), RNG)
"""As a training begins with it."""


def trained(
    attack: Lira, count: int = 16, labels: str = "all-to-one", monitor: Monitor | None = None, **changes
) -> tuple[nn.Module, dict[str, Tensor], Fit]:
    """A model after its training with the attack, the trigger, and what it was trained with."""
    plan = {"batch_size": 8, "epochs": 2, "lr": 0.05} | changes
    pool, model = Pool(pixels(count), classes_of(count)), network()
    fit = Fit(IMAGES, pool, torch.zeros(count, dtype=torch.bool), recipe(**plan), RNG, monitor or Monitor(), CPU)
    setup = setup_of(poisoning=Poisoning(rate=0.25, target=2, labels=labels), rng=RNG)
    return model, attack.train(fit, model, setup, attack.trigger(setup)), fit


def test_a_u_net_has_a_level_for_each_halving_and_gives_the_images_size_back():
    for side, levels in ((32, 3), (28, 2), (6, 1)):
        made = UNet((3, side, side), 4)
        found = made(torch.rand(2, 3, side, side))
        assert len(made.down) == levels + 1 and len(made.up) == levels
        assert found.shape == (2, 3, side, side) and found.abs().max() <= 1
    # Double convolutions, of 64 to 512 channels, and back beside what each level was made of.
    convolutions = [layer for layer in UNet((3, 32, 32), 64).modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [
        *((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)),
        *((192, 64), (64, 64), (384, 128), (128, 128), (768, 256), (256, 256), (64, 3)),
    ]
    with pytest.raises(DepoisonError, match="even height and width; these have 7 x 8"):
        UNet((3, 7, 8), 4)


def test_what_a_level_was_made_of_stands_beside_it():
    made = UNet((3, 8, 8), 2).eval()
    x = torch.rand(2, 3, 8, 8)
    levels = [made.down[0](2 * x - 1)]
    for layers in made.down[1:]:
        levels.append(layers(torch.max_pool2d(levels[-1], 2)))
    found = levels.pop()
    for layers, level in zip(made.up[::-1], levels[::-1], strict=True):
        found = layers(torch.cat([interpolate(found, scale_factor=2, mode="bilinear"), level], 1))
    convolution, norm, _ = made.last
    assert torch.allclose(made(x), norm(convolution(found)).tanh(), atol=1e-6)


@given(st.integers(0, 999), st.sampled_from([0.01, 0.1, 1.0]), st.floats(0, 1))
def test_a_trigger_keeps_to_its_bound_and_to_the_pixels(seed, eps, share):
    """Also of images at black and white, and of a generator at its extremes."""
    images = pixels(4, seed=seed).float() / 255
    images = torch.where(torch.rand(images.shape) < share, images.round(), images)
    for generator in (GENERATOR.eval(), lambda x: torch.ones_like(x), lambda x: -torch.ones_like(x)):
        with torch.no_grad():
            found = put(images, generator, eps)
        assert (found - images).abs().max() <= eps + 1e-6 and 0 <= found.min() <= found.max() <= 1


def test_after_every_step_the_trigger_is_within_its_bound_and_the_second_stage_leaves_the_generator_alone(monkeypatch):
    attack, seen, generators = Lira(**OWN), [], []
    plain, counted = lira.put, loop.Step.count

    def watched(images: Tensor, generator: nn.Module, eps: float) -> Tensor:
        found = plain(images, generator, eps)
        assert found.min() >= 0 and found.max() <= 1 and (found - images).abs().max() <= eps + 1e-6
        seen.append((eps, generator.training))
        if not generator.training:
            generators.append(generator)
        return found

    states = []

    def count(step, *arguments, **measured):
        states.append((step.epoch, step.last, state_of(generators[-1])))
        counted(step, *arguments, **measured)

    monkeypatch.setattr(lira, "put", watched)
    monkeypatch.setattr(loop.Step, "count", count)
    _, trigger, fit = trained(attack, batch_size=8)
    # In each step of the first stage the copy's trigger, then that of the generator, which stays; then that alone.
    assert seen == [(0.1, True), (0.1, False)] * 4 + [(0.02, False)] * 4
    assert len({id(generator) for generator in generators}) == 1
    assert changed(states[0][2], state_of(GENERATOR)) == set(), (
        "it is as it was drawn until the first epoch's last step"
    )
    renewed = [bool(changed(before[2], after[2])) for before, after in pairwise(states)]
    assert renewed == [True, False, True, False, False, False, False]
    assert {name.removeprefix("generator.") for name in trigger} == set(state_of(GENERATOR))
    assert changed({f"generator.{name}": tensor for name, tensor in states[3][2].items()}, dict(trigger)) == set()
    assert [row["epoch"] for row in fit.monitor.history] == [1, 2, 3, 4]
    # And what is stored of the test set: half a gray level more, by rounding.
    images = pixels(9, seed=3)
    found = stamped(attack, images, trigger).int() - images.int()
    assert 0 < found.abs().max() <= 0.02 * 255 + 0.5


@pytest.mark.parametrize(
    ("labels", "portion", "count"), [("all-to-one", 1.0, 8), ("all-to-all", 0.5, 4), ("all-to-one", None, 2)]
)
def test_one_update_of_each_is_that_of_plain_torch(labels, portion, count):
    """A stage of one step: the copy's by Adam against the classifier as it was, then the classifier's by SGD."""
    attack = Lira(**(OWN | {"portion": portion, "trigger_epochs": 1, "final_eps": 0.05, "alpha": 0.3}))
    model, trigger, fit = trained(attack, 8, labels, epochs=1, momentum=0.9, weight_decay=0.01)
    expected, generator = network().train(), copy.deepcopy(GENERATOR).eval()
    learner = copy.deepcopy(GENERATOR).train()
    x, y = next(iter(fit.batches().epoch(fit.recipe, Rng(0, "train/trigger").generator("epoch", 0))))
    x, goals = x / 255, (y + 1) % 3 if labels == "all-to-all" else torch.full_like(y, 2)

    adam = torch.optim.Adam(learner.parameters(), lr=0.01)
    cross_entropy(expected(255 * (x + 0.1 * learner(x)).clamp(0, 1)), goals).backward()
    adam.step()

    def tuned(x: Tensor, y: Tensor, goals: Tensor, eps: float, **more: float) -> None:
        sgd = torch.optim.SGD(expected.parameters(), lr=0.05, momentum=0.9, **more)
        sgd.zero_grad()
        with torch.no_grad():
            triggered = (x + eps * generator(x)).clamp(0, 1)[:count]
        logits = expected(255 * torch.cat([x, triggered]))
        (0.3 * cross_entropy(logits[:8], y) + 0.7 * cross_entropy(logits[8:], goals[:count])).backward()
        sgd.step()

    tuned(x, y, goals, 0.1)
    generator.load_state_dict(learner.state_dict())
    # The second stage: with the generator as it is then, weight decay, and no memory of the first one's momentum.
    x, y = next(iter(fit.batches().epoch(fit.recipe, Rng(0, "train/classifier").generator("epoch", 0))))
    x, goals = x / 255, (y + 1) % 3 if labels == "all-to-all" else torch.full_like(y, 2)
    tuned(x, y, goals, 0.05, weight_decay=0.01)

    for name, tensor in state_of(learner).items():
        assert torch.allclose(trigger[f"generator.{name}"].double(), tensor.double(), atol=1e-5), name
    for name, tensor in state_of(expected).items():
        assert torch.allclose(model.state_dict()[name].double(), tensor.double(), atol=1e-4), name
    assert all(changed(state_of(network()), state_of(model))) and not model.training


def test_the_second_stage_may_start_from_a_new_classifier(monkeypatch):
    starts = []
    plain = lira.prepare
    monkeypatch.setattr(lira, "prepare", lambda model: starts.append(state_of(model)) or plain(model))
    trained(Lira(**(OWN | {"classifier": "new"})))
    assert len(starts) == 2 and changed(starts[0], starts[1]) == set()
    starts.clear()
    trained(Lira(**OWN))
    assert len(starts) == 2 and changed(starts[0], starts[1])


def test_a_training_that_dies_in_either_stage_ends_with_the_same_bytes(tmp_path):
    def run(monitor: Monitor) -> dict[str, Tensor]:
        model, trigger, _ = trained(
            Lira(**(OWN | {"portion": 0.4, "trigger_epochs": 3})), 20, monitor=monitor, momentum=0.9, crop=1, flip=0.5
        )
        return {**state_of(model), **trigger}

    found, reported = interrupted(run, tmp_path, [3, 1, 2])
    assert changed(run(Monitor()), found) == set()
    # In the first stage's last epoch, in the second's first and in its last; a stage's last epoch is not saved.
    assert reported == [*(1, 2, 3), *(3, 1), *(3, 1, 2), *(3, 2)]
