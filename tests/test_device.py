"""Every attack, defense and model with its tensors on another device than the CPU, a pretended one (pretend_gpu.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from conftest import OF_TASK, ROOT, Project, cell, with_tiny
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.tasks.image import ImageBatches
from depoison.training.loop import Monitor, fit
from pretend_gpu import pretend_gpu
from small import classes_of, interrupted, network, pixels, recipe, state_of

CONFIGURATION = Plan(ROOT).configuration
SMALLEST = {
    "densenet121": "growth=2",
    "densenet161": "growth=2",
    "efficientnet-b0": "width=0.1+depth=0.1",
    "googlenet": "width=8",
    "inception-v3": "width=2",
    "mobilenetv2": "width=0.1",
    "preactresnet18": "width=8",
    "resnet18": "width=8",
    "resnet34": "width=8",
    "resnet50": "width=8",
    "swin-t": "weights=none+size=32+width=12+depth=1+window=2",
    "torchvision": "",
    "vgg16-bn": "width=2+hidden=8",
    "vgg19-bn": "width=2+hidden=8",
    "vit-s": "size=16+width=12+depth=1+heads=3",
    "wrn-16-1": "width=8",
    "pointnet2": "width=4+centers1=16+centers2=8+neighbors1=4+neighbors2=4",
    "solids": "size=64",
}
"""Each as small as it gets; others as they are."""
FEW_STEPS = {
    "input-aware": "generator_width=4+mask_epochs=5+mask_batch=512",
    "ssba": "encoder_epochs=1+encoder_batch=512",
    "label-consistent": "steps=3",
    "lf": "images=4+passes=1",
    "trojan": "steps=3",
}
LARGER = {"ssba": "digits+size=16", "densenet161": "digits+size=32", "mobilenetv2": "digits+size=16"}
"""Images for those that halve their sides more often than the smallest allow; of maps of one pixel nobody can tell the format
of their memory, by which the CPU chooses MobileNetV2's kernels."""


def small_cell(kind: str, name: str) -> str:
    """A cell of the track `tiny` with a method, and with LP (or no defense) and whatever else goes with its task."""
    chosen = OF_TASK[CONFIGURATION.method(kind, name).content.task or "image"]
    chosen = chosen | {"defense": "none" if kind == "attack" else "lp", kind: name}
    chosen["dataset"] = LARGER.get(name, chosen["dataset"])
    for part, added in (
        ("attack", "rate=0.05"), ("attack", FEW_STEPS.get(name)),
        ("model", SMALLEST[chosen["model"]]), ("dataset", SMALLEST.get(chosen["dataset"])),
    ):  # fmt: skip
        chosen[part] += f"+{added}" if added else ""
    return cell(track="tiny", **chosen)


# What the pretended device refuses, as a real one does.


@pytest.mark.parametrize(("mistake", "told"), [
    (lambda there: there + torch.zeros(3), r"tensors on the GPU, and of shapes \[\(3,\)\] on the CPU"),
    (lambda there: torch.zeros(3)[there[0].long()], "on the CPU"),
    (lambda there: there.index_put_((torch.arange(2),), torch.ones(2, 3)), r"\[\(2, 3\)\] on the CPU"),
    (lambda there: there.numpy(), "numpy"),
    (lambda there: torch.rand(3, device=there.device, generator=torch.Generator()), "generator of the CPU"),
    (lambda there: torch.randn(3, device=there.device), "draws on the GPU"),
    (lambda there: there.cumsum(0), "no deterministic implementation"),
    (lambda there: adaptive_avg_pool2d(there[None].requires_grad_(), (1, 2)).sum().backward(), "no deterministic"),
])  # fmt: skip
def test_mistakes_raise(mistake: Callable[[Tensor], Any], told: str):
    with pretend_gpu() as device:
        there = torch.zeros(2, 3).to(device)
        torch.set_deterministic_debug_mode("error")
        try:
            with pytest.raises((RuntimeError, TypeError), match=told):
                mistake(there)
        finally:
            torch.set_deterministic_debug_mode("default")


def test_what_a_device_can_do():
    with pretend_gpu() as device:
        there = torch.arange(6.0).view(2, 3).to(device)
        assert there.device.type == "cuda" and there.cpu().device.type == "cpu"
        there[0] += 1
        there.view(-1)[5] = 9
        there[torch.tensor([0])] *= 1
        assert there.tolist() == [[1, 2, 3], [3, 4, 9]] and there.sum().item() == 22
        assert there[there > 2].tolist() == [3, 3, 4, 9] and (there * torch.tensor(2.0)).device.type == "cuda"


# Our code on it.


def test_an_interrupted_training_goes_on_there(tmp_path):
    def trained(device: torch.device, monitor: Monitor) -> dict[str, Tensor]:
        settings = recipe(epochs=3, momentum=0.9, crop=1, crop_probability=1.0, flip=0.5, batch_size=16)
        model = network().to(device)
        data = ImageBatches(pixels(40), classes_of(40), settings, device)
        return {
            name: tensor.cpu() for name, tensor in state_of(fit(model, data, settings, Rng(0, "t"), monitor)).items()
        }

    expected = trained(torch.device("cpu"), Monitor())
    with pretend_gpu() as device:
        found, epochs = interrupted(lambda monitor: trained(device, monitor), tmp_path / "scratch", [2, 3])
    assert epochs == [1, 2, 2, 3, 3]
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


CELLS = [
    small_cell(kind, name)
    for kind in ("attack", "defense", "model")
    for name in CONFIGURATION.names(kind)
    if name != "none"
]
ALWAYS = [small_cell("defense", "fst"), small_cell("defense", "anp")]
"""A defense with the common loop and one with its own."""


@pytest.fixture(scope="module")
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Project]:
    """The cells of the tests that run, made on the CPU and on the pretended device."""
    cells = [item.callspec.params["name"] for item in request.session.items if "both" in item.fixturenames]
    made = []
    for where, command in (("cpu", "depoison"), ("gpu", str(ROOT / "tests/pretend_gpu.py"))):
        project = with_tiny(Project(tmp_path_factory.mktemp(where) / "project"))
        project.edit("config/tracks/tiny.yaml", lambda data: data.pop("replace"))
        for part in ("training", "tuning"):  # few steps: each operation on the pretended device takes a while
            project.set("config/tracks/tiny.yaml", part, "batch_size", to=512)
        done = project.python(command, "run", *cells)
        assert done.returncode == 0, done.stderr
        made.append(project)
    return made[0], made[1]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.drill] * (name not in ALWAYS)) for name in CELLS]
)
def test_a_cell_is_the_same_on_another_device(name, both):
    cpu, gpu = both
    *made, measured = cpu.plan().cell(name).evaluation.chain().values()
    for artifact in made:
        if artifact.stage != "evaluate":  # their metrics say how the model came about, the device included
            assert (cpu / artifact.product).read_bytes() == (gpu / artifact.product).read_bytes(), artifact.product
    metrics = [json.loads((project / measured.product).read_text(encoding="utf-8"))["metrics"] for project in both]
    assert metrics[0] == metrics[1]
