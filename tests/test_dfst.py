"""DFST: its style, its networks, what is compromised and injected, and one update of each a second time in plain torch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from depoison.attacks import dfst
from depoison.attacks.base import Fit, Poisoning, Pool, Workshop, stamped
from depoison.attacks.dfst import (
    Dfst,
    blended,
    depth,
    discriminator,
    excited,
    layer_of,
    make_asset,
    ssim,
    style_set,
    stylist,
    sunsets,
)
from depoison.attacks.translators import Instance, UNet, drawn
from depoison.errors import DepoisonError
from depoison.rng import Rng, seeded
from depoison.training.loop import Monitor
from small import (
    CPU,
    IMAGES,
    Interrupted,
    changed,
    classes_of,
    interrupted,
    network,
    pixels,
    recipe,
    setup_of,
    state_of,
)

RNG = Rng(0, "train")
STYLE = {
    "styles": "sunsets", "style_epochs": 1, "style_batch": 8, "style_lr": 0.01, "cycle": 1.0, "identity": 0.1,
    "generator_width": 2, "generator_blocks": 1, "discriminator_width": 2,
}  # fmt: skip
OWN = STYLE | {
    "alpha": 0.6, "stage": 1, "neurons": 0.5, "rounds": 2, "round_epochs": 2, "round_lr": 0.02, "detoxicants": 0.4,
    "sample": 0.5, "injector_epochs": 2, "injector_lr": 0.01, "injector_width": 2, "excitement": 0.3, "others": 0.1,
    "likeness": 0.1, "least_likeness": 0.6,
}  # fmt: skip


def styled(monitor: Monitor | None = None, images: Tensor | None = None, **changes) -> dict[str, Tensor]:
    images = pixels(16) if images is None else images
    pool = Pool(images, classes_of(len(images)))
    setup = setup_of(tuple(images.shape[1:]), RNG)
    shop = Workshop(pool, setup, None, monitor or Monitor(), images, images[:4], pool.labels[:4])
    return make_asset(shop, **(STYLE | changes))


ASSET = styled()


def fitted(count: int = 20, monitor: Monitor | None = None, **changes) -> Fit:
    """A training of which every fifth image is poisoned."""
    plan = {"batch_size": 8, "epochs": 2, "lr": 0.05} | changes
    poisoned = torch.arange(count) % 5 == 0
    pool = Pool(pixels(count), classes_of(count).masked_fill(poisoned, 2))
    return Fit(IMAGES, pool, poisoned, recipe(**plan), RNG, monitor or Monitor(), CPU)


SETUP = setup_of(poisoning=Poisoning(rate=0.2, target=2), rng=RNG, asset=ASSET)


# Networks.


def test_networks_halve_images_as_far_as_maps_keep_four_pixels():
    assert [depth((3, side, side), 3) for side in (6, 8, 16, 28, 32, 64, 224)] == [1, 1, 2, 2, 3, 3, 3]
    for channels, side in ((3, 6), (1, 8), (3, 32), (3, 224)):
        images = torch.rand(2, channels, side, side)
        found = stylist((channels, side, side), 2, 1)(images)
        assert found.shape == images.shape and found.abs().max() <= 1
        patches = side >> depth((channels, side, side), 3)
        assert discriminator((channels, side, side), 2)(images).shape == (2, 1, patches, patches)
    convolutions = [layer for layer in stylist((3, 32, 32), 32, 2).modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0]) for layer in convolutions] == [
        *((3, 32, 7, 1), (32, 64, 3, 2), (64, 128, 3, 2), *[(128, 128, 3, 1)] * 4, (128, 64, 3, 1), (64, 32, 3, 1)),
        (32, 3, 7, 1),
    ]  # fmt: skip
    for make in (lambda: styled(images=pixels(8, 3, 7, 8)), lambda: stylist((3, 7, 8), 2, 1)):
        with pytest.raises(DepoisonError, match="even height and width; these have 7 x 8"):
            make()


def test_instances_are_normalized_alone_and_at_any_size():
    layer, plain = Instance(3), nn.InstanceNorm2d(3, affine=True)
    with torch.no_grad():
        for one in (layer, plain):
            one.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
            one.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    x = torch.randn(4, 3, 5, 6)
    assert torch.allclose(layer(x), plain(x), atol=1e-6)
    assert layer(x[:1, :, :1, :1]).flatten().tolist() == pytest.approx([0, 1, -1], abs=1e-4)


def test_the_trigger_is_a_share_of_the_style_and_a_large_image_gets_it_in_parts(monkeypatch):
    attack, images = Dfst(**OWN), pixels(5, seed=1)
    trigger = attack.trigger(SETUP)
    generator = stylist((3, 8, 8), 2, 1)
    generator.load_state_dict({name.removeprefix("generator."): tensor for name, tensor in trigger.items()})
    with torch.no_grad():
        style = 127.5 * (generator(images / 255) + 1)
    found = stamped(attack, images, trigger)
    assert torch.equal(found, (0.4 * images + 0.6 * style).round().clamp(0, 255).to(torch.uint8))
    monkeypatch.setattr(dfst, "PIXELS", 100)  # one at a time
    assert (stamped(attack, images, trigger).int() - found.int()).abs().max() <= 1


def test_structural_similarity_by_hand():
    a, b = pixels(2, 3, 8, 9).double() / 255, pixels(2, 3, 8, 9, seed=1).double() / 255
    expected = []
    for x, y in zip(a.flatten(0, 1).numpy(), b.flatten(0, 1).numpy(), strict=True):
        for row in range(4):
            for column in range(5):
                p, q = (one[row : row + 5, column : column + 5] for one in (x, y))
                numerator = (2 * p.mean() * q.mean() + 1e-4) * (2 * ((p - p.mean()) * (q - q.mean())).mean() + 9e-4)
                expected.append(numerator / ((p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (p.var() + q.var() + 9e-4)))
    assert ssim(a, b).item() == pytest.approx(np.mean(expected)) and ssim(a, a).item() == pytest.approx(1)


# The style.


def test_sunsets_are_darker_and_bluer_above_than_at_the_horizon():
    found = sunsets(20, 24, 32, torch.Generator().manual_seed(1))
    assert found.shape == (20, 3, 24, 32) and found.dtype == torch.uint8
    assert torch.equal(found, sunsets(20, 24, 32, torch.Generator().manual_seed(1)))
    assert all(not torch.equal(a, b) for a, b in pairwise(found))
    above, horizon, below = (
        found[:, :, rows].float().mean((0, 2, 3)) for rows in (slice(0, 3), slice(11, 13), slice(21, 24))
    )
    assert horizon[0] > above[0] and horizon[0] > below[0], "red is brightest at the horizon"
    assert above[2] > horizon[2] > below[2] and horizon[0] > horizon[1] > horizon[2]


def test_images_that_are_not_in_color_have_a_style_of_brightness():
    colored, gray = (style_set("sunsets", (channels, 8, 8), torch.Generator().manual_seed(2)) for channels in (3, 1))
    assert torch.equal(gray, colored.float().mean(1, keepdim=True).round().to(torch.uint8))


@pytest.fixture
def triggers(tmp_path, monkeypatch) -> Path:
    (tmp_path / "config/triggers").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config/triggers"


def planned(path: Path) -> str:
    return f"{path.name}@sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def a_picture(color: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), color).save(file, "PNG")
    return file.getvalue()


def zipped(path: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return planned(path)


def test_a_style_may_be_a_picture_or_a_zip_of_pictures(triggers):
    (triggers / "one.png").write_bytes(a_picture((10, 20, 30)))
    found = style_set(planned(triggers / "one.png"), (3, 4, 6), torch.Generator())
    assert found.shape == (1, 3, 4, 6) and found[0, :, 2, 3].tolist() == [10, 20, 30]
    name = zipped(
        triggers / "many.zip",
        {
            "s/b.png": a_picture((4, 5, 6)),
            "s/a.png": a_picture((1, 2, 3)),
            "__MACOSX/s/._a.png": b"x",
            "s/.DS_Store": b"x",
        },
    )
    found = style_set(name, (3, 4, 6), torch.Generator())
    assert found[:, :, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert style_set(name, (1, 4, 6), torch.Generator())[:, :, 0, 0].tolist() == [[2], [5]]
    assert set(styled(styles=name)) == set(ASSET)


@pytest.mark.parametrize(("members", "told"), [
    ({}, "style.zip: a zip without a picture; valid: a picture, or a zip of pictures"),
    ({"a.png": a_picture((1, 2, 3)), "notes.txt": b"no"}, "style.zip: notes.txt: no readable picture"),
])  # fmt: skip
def test_what_holds_no_pictures_is_told(members, told, triggers):
    with pytest.raises(DepoisonError, match=told):
        style_set(zipped(triggers / "style.zip", members), (3, 8, 8), torch.Generator())


def test_one_update_of_the_cyclegan_is_that_of_plain_torch():
    images = pixels(8, seed=4)
    found = styled(images=images, cycle=2.0, identity=0.5)
    with seeded(RNG.generator("networks")):
        there, back = (stylist((3, 8, 8), 2, 1) for _ in range(2))
        judge_style, judge_image = (discriminator((3, 8, 8), 2) for _ in range(2))
    order = torch.randperm(8, generator=RNG.generator("epoch", 0))
    which = torch.randint(250, (8,), generator=RNG.generator("shown", 0))
    x, s = images[order] / 255, sunsets(250, 8, 8, RNG.generator("styles"))[which] / 255

    def of(generator: nn.Module, y: Tensor) -> Tensor:
        return (generator(y) + 1) / 2

    def half_squares(judge: nn.Module, true: Tensor, false: Tensor) -> Tensor:
        return ((judge(true) - 1) ** 2).mean() / 2 + (judge(false.detach()) ** 2).mean() / 2

    judged = torch.optim.Adam([*judge_style.parameters(), *judge_image.parameters()], lr=0.01, betas=(0.5, 0.999))
    (half_squares(judge_style, s, of(there, x)) + half_squares(judge_image, x, of(back, s))).backward()
    judged.step()
    made = torch.optim.Adam([*there.parameters(), *back.parameters()], lr=0.01, betas=(0.5, 0.999))
    believed = ((judge_style(of(there, x)) - 1) ** 2).mean() + ((judge_image(of(back, s)) - 1) ** 2).mean()
    cycle = (of(back, of(there, x)) - x).abs().mean() + (of(there, of(back, s)) - s).abs().mean()
    kept = (of(back, x) - x).abs().mean() + (of(there, s) - s).abs().mean()
    (believed + 2 * cycle + 0.5 * kept).backward()
    made.step()
    for name, tensor in there.state_dict().items():
        # A summand that normalization takes away again has a gradient of rounding, and Adam's step is its sign.
        close = (found[f"generator.{name}"] - tensor).abs() < 1e-3
        assert close.all() or name.endswith("bias"), name


def test_a_cyclegan_that_dies_ends_with_the_same_bytes(tmp_path):
    whole = styled(style_epochs=3)
    found, epochs = interrupted(lambda monitor: styled(monitor, style_epochs=3), tmp_path, [1, 3])
    assert epochs == [1, 1, 2, 3, 3] and changed(whole, found) == set() and changed(ASSET, whole)


# Detoxification.


def test_the_neurons_are_those_of_a_stage_and_compromised_the_ones_that_the_trigger_excites_most():
    attack, model, fit = Dfst(**OWN), network(), fitted()
    layer = layer_of(model, fit.pool.inputs[:1], 1)
    pool = attack._sample(fit, SETUP)
    assert len(pool.labels) == 10 and (pool.labels != 2).all()
    clean = {image.numpy().tobytes() for image in fit.pool.inputs[~fit.poisoned]}
    assert {image.numpy().tobytes() for image in pool.inputs} <= clean
    trigger = attack.trigger(SETUP)
    run = dict(model.named_modules())[layer]
    kept: list[Tensor] = []
    handle = run.register_forward_hook(lambda module, inputs, output: kept.append(output.detach().clone()))
    with torch.no_grad():
        model(pool.inputs.float())
        model(attack.stamp(pool.inputs.float(), trigger))
    handle.remove()
    before, after = (maps.mean((0, 2, 3)) for maps in kept)
    gain = (after - before).tolist()
    expected = [neuron for neuron in sorted(range(4), key=lambda neuron: -gain[neuron]) if gain[neuron] > 0][:2]
    assert expected and attack._compromised(model, layer, pool, trigger, fit).tolist() == expected


def test_a_stage_that_a_network_does_not_have_is_told():
    with pytest.raises(DepoisonError, match=r"dfst: stage 2 from the last is none of the network's; valid: 1 to 1"):
        Dfst(**(OWN | {"stage": 2})).train(fitted(), network(), SETUP, Dfst(**OWN).trigger(SETUP))


def test_without_an_image_to_detoxify_with_is_told():
    fit = fitted()
    fit.poisoned.fill_(True)
    with pytest.raises(DepoisonError, match="leaves none to detoxify with"):
        Dfst(**OWN)._sample(fit, SETUP)


@pytest.mark.parametrize("least", [-1.0, 1.0])
def test_one_update_of_an_injector_is_that_of_plain_torch(least):
    attack = Dfst(
        **(OWN | {"excitement": 0.7, "others": 0.5, "likeness": 0.2, "least_likeness": least, "injector_epochs": 1})
    )
    model, fit = network(), fitted(8, epochs=1)
    state, layer = state_of(model), layer_of(model, fit.pool.inputs[:1], 1)
    found = attack._learn(fit, model, layer, torch.tensor([3, 1]), SETUP)
    expected = drawn(lambda: UNet((3, 8, 8), 2, Instance, last=False), RNG)
    x, y = next(iter(fit.batches().epoch(fit.recipe, RNG.generator("epoch", 0))))
    x, adam = x.float(), torch.optim.Adam(expected.parameters(), lr=0.05, betas=(0.5, 0.9))
    d = 0.4 * x + 0.6 * 255 * (expected(x / 255) + 1) / 2
    before, (now, logits) = excited(model, layer, x)[0].detach(), excited(model, layer, d)
    loss = cross_entropy(logits, torch.full_like(y, 2)) - 0.7 * (now[:, 1] + now[:, 3]).mean() / 2
    loss = loss + 0.5 * ((now - before)[:, [0, 2]]).abs().mean() - (200 if least > 0 else 0.2) * ssim(d / 255, x / 255)
    adam.zero_grad()
    loss.backward()
    adam.step()
    for name, tensor in expected.state_dict().items():
        close = (found.state_dict()[name] - tensor).abs() < 1e-3
        assert close.all() or name.endswith("bias"), name
    assert changed(state, state_of(model)) == set() and not found.training


def test_detoxicants_are_clean_images_of_every_injector_with_their_labels(monkeypatch):
    attack, fit, seen = Dfst(**(OWN | {"detoxicants": 0.5})), fitted(20, epochs=1, batch_size=20), []
    injectors = [drawn(lambda: UNet((3, 8, 8), 2, Instance, last=False), Rng(seed, "i")).eval() for seed in (0, 1)]
    plain = dfst.classification

    def watched(model, images, labels, precision):
        seen.append((images.clone(), labels))
        return plain(model, images, labels, precision)

    monkeypatch.setattr(dfst, "classification", watched)
    attack._tune(fit, network(), injectors, SETUP)
    attack._tune(fit, network(), [], SETUP)
    (found, labels), (before, unchanged) = seen
    assert torch.equal(labels, unchanged)
    _, _, poisoned = next(iter(fit.batches(fit.poisoned).epoch(fit.recipe, RNG.generator("epoch", 0))))
    where = (~poisoned).nonzero().flatten()[:10]
    expected = before.float().clone()
    with torch.no_grad():
        expected[where[:5]] = blended(expected[where[:5]], injectors[0], 0.6)
        expected[where[5:]] = blended(expected[where[5:]], injectors[1], 0.6)
    assert torch.equal(found, expected) and not torch.equal(found, before.float())


def trained(attack: Dfst, monitor: Monitor | None = None, **changes) -> tuple[nn.Module, Fit]:
    model, fit = network(), fitted(20, monitor, **changes)
    trigger = attack.trigger(SETUP)
    assert changed(dict(trigger), dict(attack.train(fit, model, SETUP, trigger))) == set()
    return model, fit


def test_rounds_follow_the_training_and_each_adds_an_injector(monkeypatch):
    attack, calls = Dfst(**OWN), []
    plain = Dfst._tune

    def watched(self, fit, model, injectors, setup):
        calls.append((fit.rng.scope, len(injectors), fit.recipe.lr, fit.recipe.epochs, fit.recipe.schedule))
        plain(self, fit, model, injectors, setup)

    monkeypatch.setattr(Dfst, "_tune", watched)
    model, fit = trained(attack, schedule="onecycle")
    assert calls == [
        ("train/poisoned", 0, 0.05, 2, "onecycle"),
        ("train/round-1", 1, 0.02, 2, "constant"),
        ("train/round-2", 2, 0.02, 2, "constant"),
    ]
    assert [row["epoch"] for row in fit.monitor.history] == list(range(1, 11))
    assert all(changed(state_of(network()), state_of(model))) and not model.training
    # What excites no neuron more leaves nothing to detoxify.
    calls.clear()
    monkeypatch.setattr(Dfst, "stamp", lambda self, images, trigger: images)
    trained(attack)
    assert [call[0] for call in calls] == ["train/poisoned"]


def deadly(reported: list[int], after: int) -> Callable[[dict[str, Any]], None]:
    """Notes the epochs that are reported, and dies of so many; of 0 never."""

    def report(row: dict[str, Any]) -> None:
        reported.append(row["epoch"])
        if len(reported) == after:
            raise Interrupted

    return report


def test_a_training_that_dies_in_any_stage_or_round_ends_with_the_same_bytes(tmp_path):
    def run(monitor: Monitor) -> dict[str, Tensor]:
        plan = {"momentum": 0.9, "weight_decay": 0.01, "crop": 1, "flip": 0.5}
        return state_of(trained(Dfst(**OWN), monitor, **plan)[0])

    # Of training, injector, round, injector, round; a stage's last epoch is not saved, and done again by each start.
    starts = [[1, 2], [2, 1], [2, 1, 2], [2, 2, 1, 2], [2, 2, 2, 1, 2], [2, 2, 2, 2, 1, 2], [2, 2, 2, 2, 2]]
    for number, epochs in enumerate(starts, 1):
        reported: list[int] = []
        torch.manual_seed(number)
        with contextlib.suppress(Interrupted):
            dies = deadly(reported, len(epochs) if number < len(starts) else 0)
            found = run(Monitor(report=dies, scratch=tmp_path, save_seconds=0.0))
        assert reported == epochs
    assert changed(run(Monitor()), found) == set()
