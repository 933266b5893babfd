"""Swin-T against torchvision's, its resizing, and where its ImageNet weights come from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn.functional import interpolate

from conftest import ROOT, Project, cell
from depoison.errors import DepoisonError
from depoison.models import swin_t
from depoison.models.classifier import Classifier, load_pretrained
from depoison.models.layers import Resize
from depoison.plan.plan import Plan
from depoison.plan.specs import directory_of
from depoison.rng import Rng
from depoison.stages.inputs import Dataset, new_model, read_model
from small import IMAGES, changed, classes_of, pixels, state_of, write_artifact

FULL = {"weights": "none", "size": 224, "width": 96, "depth": 6, "window": 7, "stochastic_depth": 0.2}
SMALL = {"weights": "none", "size": 32, "width": 12, "depth": 1, "window": 2, "stochastic_depth": 0.2}
NAME = "swin_t-704ceda3.pth"


def model(parameters: dict[str, Any], classes: int = 10, channels: int = 3, seed: int = 0) -> Classifier:
    generator = torch.Generator().manual_seed(seed)
    return IMAGES.network(spec(parameters, channels), classes=classes, shape=(channels, 32, 32), generator=generator)


def spec(parameters: dict[str, Any], channels: int = 3) -> dict[str, Any]:
    normalization = {"mean": [0.5] * channels, "std": [0.25] * channels}
    return {"name": "swin-t", "version": 1, "parameters": parameters, **normalization}


# The network


@pytest.fixture(scope="module")
def theirs() -> torchvision.models.SwinTransformer:
    torch.manual_seed(7)
    return torchvision.models.swin_t().eval()


def test_the_network_is_torchvisions(theirs):
    ours, other = model(FULL, classes=1000).double(), theirs.double()
    weights = list(ours.extractor.state_dict().values()) + list(ours.classifier.state_dict().values())
    reference = list(other.state_dict().values())
    assert [tuple(w.shape) for w in weights] == [tuple(w.shape) for w in reference]
    assert sum(parameter.numel() for parameter in ours.parameters()) == 28_288_354
    for weight, value in zip(weights, reference, strict=True):
        weight.copy_(value)
    images = pixels(1, height=224, width=224).double()
    with torch.no_grad():
        features, logits = ours.eval().features(images), ours(images)
        assert features.shape == (1, 768)
        assert torch.allclose(logits, other((images / 255 - 0.5) / 0.25), atol=1e-9, rtol=1e-9)
        assert torch.equal(ours.classifier(features), logits)


def test_stochastic_depth_is_torchvisions(theirs):
    def rates(network: torch.nn.Module) -> list[float]:
        layers = network.modules()
        return [layer.p for layer in layers if isinstance(layer, torchvision.ops.StochasticDepth)]

    assert rates(model(FULL)) == rates(theirs) and max(rates(theirs)) == 0.2
    assert max(rates(model(SMALL | {"stochastic_depth": 0.0}))) == 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 20, 32, 64])
def test_features_then_logits_at_any_size(channels, size):
    network = model(SMALL | {"size": size}, classes=5, channels=channels).eval()
    images = pixels(2, channels, 16, 16)
    features = network.features(images)
    assert features.shape == (2, 96) and network(images).shape == (2, 5)
    assert len(network.head) == 1 and network.head[0].in_features == 96


def test_initial_weights_follow_from_the_seed():
    first, same, other = (state_of(model(SMALL, seed=seed)) for seed in (0, 0, 1))
    assert not changed(first, same) and changed(first, other)


def test_training_reaches_every_weight():
    network = model(SMALL | {"stochastic_depth": 0.0}, classes=5).train()
    network(pixels(4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("change", "told"), [
    ({"width": 25}, "width is 25; valid: a multiple of 3"),
    ({"weights": "imagenet"}, "width 96, depth 6, window 7 and 3 channels, not 12, 1, 2 and 3"),
])  # fmt: skip
def test_a_network_that_cannot_be(change, told):
    with pytest.raises(DepoisonError, match=told):
        model(SMALL | change)


# Resizing


@pytest.mark.parametrize("size", [32, 50, 224])
def test_enlarging_is_bilinear_interpolation(size):
    x = pixels(2, height=32, width=20).double()
    expected = interpolate(x, (size, size), mode="bilinear", align_corners=False)
    assert torch.allclose(Resize(size)(x), expected, atol=1e-9)


@pytest.mark.parametrize("size", [16, 224])
def test_resizing_is_pillows(size):
    image = pixels(1, height=32, width=32)
    pillow = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1).float()
    assert (Resize(size)(image.float())[0] - expected).abs().max() <= 1  # Pillow rounds after each axis


def test_images_of_that_size_stay_as_they_are_and_gradients_pass():
    x = pixels(2, height=16, width=16).float().requires_grad_()
    assert torch.equal(Resize(16)(x), x)
    (found,) = torch.autograd.grad(Resize(33)(x).sum(), x)
    (expected,) = torch.autograd.grad(interpolate(x, (33, 33), mode="bilinear").sum(), x)
    assert torch.allclose(found, expected, rtol=1e-5)


def test_resizing_keeps_full_precision_under_autocast():
    x = pixels(1, height=16, width=16).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = Resize(32)(x)
    assert torch.equal(found, Resize(32)(x))


# The ImageNet weights


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """PyTorch's cache, empty, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(swin_t, "URL", f"http://127.0.0.1:9/{NAME}")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tmp_path / "torch/hub/checkpoints"


def write_weights(path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch | None) -> None:
    """Write a weights file; with `monkeypatch`, it is the one that is expected."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, path)
    if monkeypatch is not None:
        monkeypatch.setattr(swin_t, "CHECKSUM", "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_file_is_torchvisions():
    published = torchvision.models.Swin_T_Weights.IMAGENET1K_V1
    assert published.url == swin_t.URL and swin_t.CHECKSUM.startswith(f"sha256:{NAME[7:15]}")
    data = Plan(ROOT).configuration.method("model", "swin-t").content.normalization
    assert (data["mean"], data["std"]) == (published.transforms().mean, published.transforms().std)


@pytest.mark.parametrize("where", ["downloads", "hub"])
def test_training_starts_from_the_weights_and_a_head_of_its_own(where, theirs, tmp_path, hub, monkeypatch):
    weights = theirs.float().state_dict()
    write_weights((tmp_path / "data" if where == "downloads" else hub) / NAME, weights, monkeypatch)
    parameters = FULL | {"weights": "imagenet"}
    network = model(parameters)
    fresh = state_of(network)
    load_pretrained(network, spec(parameters), tmp_path / "data")
    found = network.extractor.state_dict()
    expected = [value for key, value in weights.items() if not key.startswith("head.")]
    assert len(found) == len(expected)
    assert all(torch.equal(ours, value) for ours, value in zip(found.values(), expected, strict=True))
    assert all(torch.equal(fresh[key], value) for key, value in state_of(network).items() if "classifier" in key)


@pytest.mark.parametrize("where", ["downloads", "hub"])
def test_a_file_with_another_checksum_is_refused(where, theirs, tmp_path, hub):
    path = (tmp_path / "data" if where == "downloads" else hub) / NAME
    write_weights(path, theirs.float().state_dict(), None)
    network = model(SMALL)
    before = state_of(network)
    with pytest.raises(DepoisonError, match="wrong or damaged file") as error:
        load_pretrained(network, spec(SMALL | {"weights": "imagenet"}), tmp_path / "data")
    assert str(path) in str(error.value) and "expected sha256:704ceda3" in str(error.value)
    assert not changed(before, state_of(network)) and path.exists()


def test_without_the_file_and_without_network_the_error_says_what_to_do(tmp_path, hub):
    with pytest.raises(DepoisonError) as error:
        load_pretrained(model(SMALL), spec(SMALL | {"weights": "imagenet"}), tmp_path / "data")
    told = str(error.value)
    assert "\n" not in told and told.startswith(swin_t.URL)
    assert f"put it at {tmp_path}/data/{NAME} or {hub}/{NAME}, or train from scratch (swin-t+weights=none)" in told


def test_from_scratch_nothing_is_looked_for(tmp_path, hub):
    network = model(SMALL)
    before = state_of(network)
    load_pretrained(network, spec(SMALL), tmp_path / "data")
    assert not changed(before, state_of(network)) and not (tmp_path / "data").exists()


# In the pipeline


def test_a_trained_model_is_read_without_the_weights_file(theirs, tmp_path, hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_weights(Path("data", NAME), theirs.float().state_dict(), monkeypatch)
    images, labels = pixels(2), classes_of(2)
    dataset = Dataset(images, labels, images, labels, ["a", "b", "c"], IMAGES)
    trained = {"stage": "train", "version": 1, "upstream": {"poison": "results/poison/any-0123456789"}, "seed": 0}
    trained["parameters"] = {"model": spec(FULL | {"weights": "imagenet"})}
    network = new_model(trained["parameters"]["model"], dataset, Rng(0, "train"), Path("data"))
    assert torch.equal(network.extractor.state_dict()["2.weight"], theirs.state_dict()["norm.weight"])
    Path("data", NAME).unlink()
    folder = Path(directory_of(trained))
    write_artifact(
        folder, {"model.safetensors": {k: v.contiguous() for k, v in state_of(network).items()}}, {"spec.json": trained}
    )
    assert not changed(state_of(network), state_of(read_model(folder, dataset)))


def normalization(name: str) -> list[Any]:
    trained = Plan(ROOT).cell(name).evaluation.upstream["backdoored"].spec["parameters"]["model"]
    return [trained[key] for key in ("mean", "std")]


def test_a_pretrained_network_is_normalized_as_it_was(project: Project):
    imagenet, dataset = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ([0.3] * 3, [0.35] * 3)
    assert normalization(cell(track="paper", model="swin-t")) == list(imagenet)
    assert normalization(cell(track="paper", model="resnet18")) == list(dataset)
    assert normalization(cell(track="paper", dataset="digits+mean=0.1,0.1,0.1", model="swin-t")) == [
        [0.1] * 3,
        imagenet[1],
    ]
    told = project.depoison("explain", cell(track="paper", model="swin-t")).stdout
    assert "0.485,0.456,0.406 model swin-t, config/models/swin-t.yaml:" in told


@pytest.mark.parametrize(("file", "value", "told"), [
    ("defenses/fst", {"mean": [0.5]}, "only models have 'normalization'"),
    ("models/swin-t", {"means": [0.5]}, "unknown hyper-parameter 'means'"),
    ("models/swin-t", {"mean": [1.5]}, "valid: numbers in [0, 1]"),
])  # fmt: skip
def test_a_faulty_normalization_is_named(file, value, told, project: Project):
    project.set(f"config/{file}.yaml", "normalization", to=value)
    with pytest.raises(DepoisonError) as error:
        project.plan().cell(cell(track="paper", model="swin-t"))
    assert told in str(error.value) and f"{file}.yaml:" in str(error.value)


def test_a_cell_from_scratch(tiny: Project):
    tiny.set("config/tracks/tiny.yaml", "replace", "models", to={})
    tiny.set("config/tracks/tiny.yaml", "models", "swin-t", to={"size": 16, "width": 12, "depth": 1, "window": 2})
    name = cell(track="tiny", model="swin-t+weights=none")
    done = tiny.depoison("run", name)
    assert done.returncode == 0, done.stderr
    assert (tiny / name).exists() and not (tiny / "data").exists()
