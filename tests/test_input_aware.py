"""Input-aware: its networks and losses by hand, and what of a batch is triggered, crossed and left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from depoison.attacks import input_aware
from depoison.attacks.base import Fit, Poisoning, Pool, stamped
from depoison.attacks.input_aware import InputAware, alikeness, covered, new, pattern, put, translator, whole
from depoison.attacks.translators import Doubled
from depoison.errors import DepoisonError
from depoison.rng import Rng
from depoison.training.loop import Monitor
from small import CPU, IMAGES, classes_of, network, pixels, recipe, setup_of, state_of

OWN = {
    "diversity": 1.0, "generator_width": 2, "density": 0.03, "density_weight": 100.0, "mask_epochs": 1, "mask_batch": 8,
    "mask_lr": 0.01,
}  # fmt: skip
RNG = Rng(0, "train")


def attack_of(**changes) -> InputAware:
    return InputAware(**(OWN | {"cross_rate": 0.25, "generator_lr": 0.01} | changes))


def weights(channels: int, seed: int) -> dict[str, torch.Tensor]:
    return new((3, 8, 8), 2, channels, Rng(seed, "test")).state_dict()


def test_doubling_is_bilinear():
    x = torch.rand(2, 3, 5, 4)
    assert torch.allclose(Doubled()(x), interpolate(x, scale_factor=2, mode="bilinear"), atol=1e-6)


def test_networks_halve_as_often_as_the_image_allows_and_give_its_size_back():
    for side, levels in ((32, 3), (28, 2), (6, 1)):
        made = translator((3, side, side), 4, 3)
        assert sum(isinstance(layer, nn.MaxPool2d) for layer in made) == levels
        found = made(torch.rand(2, 3, side, side))
        assert found.shape == (2, 3, side, side) and found.abs().max() <= 1
    # The released code's: two convolutions a level, 32, 64 and 128 channels; one in the middle; two a level back, 3 at last.
    widths = [layer.out_channels for layer in translator((3, 32, 32), 32, 3) if isinstance(layer, nn.Conv2d)]
    assert widths == [32, 32, 64, 64, 128, 128, 128, 128, 64, 64, 32, 32, 3]
    with pytest.raises(DepoisonError, match="even height and width; these have 7 x 8"):
        translator((3, 7, 8), 4, 3)


def test_a_trigger_is_the_generators_pattern_where_the_mask_is():
    attack, images = attack_of(), pixels(5)
    trigger = {f"generator.{k}": v for k, v in weights(3, 1).items()} | {
        f"mask.{k}": v for k, v in weights(1, 2).items()
    }
    generator, mask = translator((3, 8, 8), 2, 3), translator((3, 8, 8), 2, 1)
    generator.load_state_dict(weights(3, 1))
    mask.load_state_dict(weights(1, 2))
    x = images / 255
    g, raw = generator.eval()(x) / 2 + 0.5, mask.eval()(x) / 2 + 0.5
    m = torch.tanh(20 * raw - 10) / 2 + 0.5
    expected = (255 * (x + m * (g - x))).round().clamp(0, 255).to(torch.uint8)
    found = stamped(attack, images, trigger)
    assert (found.int() - expected.int()).abs().max() <= 1 and (found != images).any()
    # Of each image alone: a batch of others changes nothing.
    assert (stamped(attack, images[2:3], trigger)[0].int() - found[2].int()).abs().max() <= 1


def test_alikeness_by_hand():
    rng = np.random.default_rng(0)
    a, b, fa, fb = (rng.random((3, 2, 4, 4)) for _ in range(4))
    expected = np.mean(
        [
            np.sqrt(((x - y) ** 2).mean()) / (np.sqrt(((u - v) ** 2).mean()) + 1e-7)
            for x, y, u, v in zip(a, b, fa, fb, strict=True)
        ]
    )
    assert alikeness(*map(torch.from_numpy, (a, b, fa, fb))).item() == pytest.approx(expected)
    same = torch.from_numpy(fa).requires_grad_()
    alikeness(torch.from_numpy(a), torch.from_numpy(a), same, same.detach()).backward()  # one image twice
    assert same.grad.isfinite().all()


def test_a_share_of_a_batch_is_kept_on_average():
    counts = [whole(1.6, RNG.generator("counts", step)) for step in range(400)]
    assert set(counts) == {1, 2} and abs(np.mean(counts) - 1.6) < 0.1


@pytest.mark.parametrize(("labels", "cross_rate"), [("all-to-one", 0.25), ("all-to-all", 0.25), ("all-to-one", None)])
def test_a_batch_is_triggered_crossed_and_left_alone_in_its_parts(labels, cross_rate, monkeypatch):
    """Of 16 images in one batch: 4 triggered and relabeled, 4 with a foreign trigger and their label, 8 as they are."""
    images, own, plan, seen = pixels(16), classes_of(16), recipe(batch_size=16, lr=0.1), {}
    mask = weights(1, 2)
    setup = setup_of(asset=mask, poisoning=Poisoning(rate=0.25, target=2, labels=labels), rng=RNG)
    fit = Fit(IMAGES, Pool(images, own), torch.zeros(16, dtype=torch.bool), plan, RNG, Monitor(), CPU)
    model, attack = network(), attack_of(diversity=0.0, cross_rate=cross_rate)

    def keep(module, given):
        seen["inputs"] = given[0].detach()

    hook = model.register_forward_pre_hook(keep)
    plain = input_aware.cross_entropy
    monkeypatch.setattr(
        input_aware, "cross_entropy", lambda logits, targets: seen.update(targets=targets) or plain(logits, targets)
    )
    before = new((3, 8, 8), 2, 3, RNG)
    trigger = attack.train(fit, model, setup, attack.trigger(setup))
    hook.remove()

    generator = RNG.generator("epoch", 0)
    (x, y), (partners, _) = (next(iter(fit.batches().epoch(plan, generator))) for _ in range(2))
    x, partners = x / 255, partners / 255
    made = pattern(before.train(), torch.cat([x[:4], partners[:4]]))
    network_of_mask = translator((3, 8, 8), 2, 1)
    network_of_mask.load_state_dict(mask)
    network_of_mask.eval()
    with torch.no_grad():
        expected = torch.cat(
            [
                put(x[:4], made[:4], covered(network_of_mask, x[:4])),
                put(x[4:8], made[4:], covered(network_of_mask, partners[:4])),
                x[8:],
            ]
        )
    assert torch.allclose(seen["inputs"], 255 * expected, atol=1e-2)
    goals = (y[:4] + 1) % 3 if labels == "all-to-all" else torch.full((4,), 2)
    assert seen["targets"].tolist() == [*goals.tolist(), *y[4:].tolist()]
    assert {name.partition(".")[0] for name in trigger} == {"generator", "mask"}
    assert all(torch.equal(trigger[f"mask.{name}"], tensor) for name, tensor in mask.items())
    moved = [not torch.equal(trigger[f"generator.{name}"], tensor) for name, tensor in state_of(before).items()]
    assert any(moved)
