"""The architectures beside ResNet-18, against torchvision's and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, batch_norm, conv2d

from conftest import ROOT
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.models.vgg19_bn import _AdaptiveAverage
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.stages.inputs import Dataset, new_model
from small import IMAGES

PARAMETERS: dict[str, dict[str, Any]] = {
    "resnet50": {"width": 64},
    "preactresnet18": {"width": 64},
    "vgg19-bn": {"width": 64, "hidden": 4096, "dropout": 0.5},
    "densenet161": {"growth": 48},
}
SMALL: dict[str, dict[str, Any]] = {
    "resnet50": {"width": 8},
    "preactresnet18": {"width": 9},
    "vgg19-bn": {"width": 2, "hidden": 8, "dropout": 0.5},
    "densenet161": {"growth": 2},
}


def model(name: str, parameters: dict[str, Any], classes: int = 10, channels: int = 3, seed: int = 0) -> Classifier:
    spec = {"name": name, "version": 1, "parameters": parameters, "mean": [0.5] * channels, "std": [0.25] * channels}
    return IMAGES.network(
        spec, classes=classes, shape=(channels, 32, 32), generator=torch.Generator().manual_seed(seed)
    )


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(3)).float()


def shaken(network: nn.Module) -> nn.Module:
    """In evaluation mode, with running statistics and affine parameters that are not the identity."""
    generator = torch.Generator().manual_seed(5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


def theirs(name: str) -> nn.Module:
    """torchvision's network of ten classes, changed as that for small images is."""
    if name == "resnet50":
        network = torchvision.models.resnet50(num_classes=10)
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
        return network
    return {"vgg19-bn": torchvision.models.vgg19_bn, "densenet161": torchvision.models.densenet161}[name](
        num_classes=10
    )


@pytest.mark.parametrize("name", ["resnet50", "vgg19-bn", "densenet161"])
def test_the_network_is_torchvisions(name):
    torch.manual_seed(7)
    ours, other = model(name, PARAMETERS[name]).double(), theirs(name).double()
    weights = list(ours.extractor.state_dict().values()) + list(ours.classifier.state_dict().values())
    reference = other.state_dict()
    if name == "resnet50":  # torchvision names the shortcut after the block's layers, as we do
        reference = {key.replace("downsample", "shortcut"): value for key, value in reference.items()}
    assert [tuple(w.shape) for w in weights] == [tuple(w.shape) for w in reference.values()]
    shaken(other)
    for weight, value in zip(weights, other.state_dict().values(), strict=True):
        weight.copy_(value)
    images = pixels(2, 3, 32, 32).double()
    with torch.no_grad():
        assert torch.allclose(ours.eval()(images), other((images / 255 - 0.5) / 0.25), atol=1e-9, rtol=1e-9)


def test_preactresnet18_has_the_11171146_parameters_of_the_cifar_network():
    assert sum(p.numel() for p in model("preactresnet18", PARAMETERS["preactresnet18"]).parameters()) == 11_171_146


def test_preactresnet18_activates_before_each_convolution():
    network, images = shaken(model("preactresnet18", SMALL["preactresnet18"], classes=4)), pixels(2, 3, 16, 16)
    layers = iter([layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)])

    def activated(x):
        norm = next(layers)
        return batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()

    with torch.no_grad():
        x = conv2d((images / 255 - 0.5) / 0.25, next(layers).weight, padding=1)
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage and not block else 1
                first = activated(x)
                y = conv2d(first, next(layers).weight, stride=stride, padding=1)
                y = conv2d(activated(y), next(layers).weight, padding=1)
                x = y + (conv2d(first, next(layers).weight, stride=2) if stride == 2 else x)
        assert next(layers, None) is None
        logits = network.classifier(x.mean((2, 3)))
        assert torch.allclose(network(images), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10])
def test_vggs_pooling_is_adaptive_average_pooling(size):
    x = pixels(2, 3, size, size + (size > 3)).requires_grad_()
    ours, reference = _AdaptiveAverage(7)(x), adaptive_avg_pool2d(x, 7)
    assert torch.allclose(ours, reference, atol=1e-4)
    weights = pixels(*ours.shape)
    (mine,), (other,) = (torch.autograd.grad((y * weights).sum(), x) for y in (ours, reference))
    assert torch.allclose(mine, other, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_features_then_logits_for_any_width_and_number_of_channels(name, channels):
    network = model(name, SMALL[name], classes=5, channels=channels).eval()
    images = pixels(2, channels, 32, 32)
    features = network.features(images)
    assert features.dim() == 2 and network(images).shape == (2, 5)
    assert torch.equal(network.classifier(features), network(images))
    assert len(network.head) == (3 if name == "vgg19-bn" else 1)
    assert network.head[0].in_features == features.shape[1] and network.head[-1].out_features == 5


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights_follow_from_the_seed(name):
    first, same, other = (model(name, SMALL[name], seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_vgg_starts_as_torchvisions_does():
    network = model("vgg19-bn", {"width": 32, "hidden": 256, "dropout": 0.5})
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 16 and all(layer.bias.abs().max() == 0 for layer in [*convolutions, *network.head])
    last = convolutions[-1].weight.detach()
    assert last.std() == pytest.approx((2 / (9 * last.shape[0])) ** 0.5, rel=0.02)
    assert network.head[0].weight.detach().std() == pytest.approx(0.01, rel=0.02)


def test_images_too_small_for_a_network():
    images, labels = pixels(2, 3, 16, 16).to(torch.uint8), torch.zeros(2, dtype=torch.int64)
    dataset = Dataset(images, labels, images, labels, ["a", "b"], IMAGES)
    spec = {"name": "densenet161", "parameters": SMALL["densenet161"], "mean": [0.5] * 3, "std": [0.25] * 3}
    with pytest.raises(DepoisonError, match="densenet161 cannot take images of 3 x 16 x 16: .*too small"):
        new_model(spec, dataset, Rng(0, "train"), Path())
    assert new_model(
        spec | {"name": "resnet50", "parameters": SMALL["resnet50"]}, dataset, Rng(0, "train"), Path()
    ).training


def test_a_model_says_that_it_has_batchnorm_where_it_has():
    swin = {"weights": "none", "size": 32, "width": 6, "depth": 1, "window": 2, "stochastic_depth": 0.0}
    configuration, small = Plan(ROOT).configuration, SMALL | {"resnet18": {"width": 8}, "swin-t": swin}
    kinds = {name: configuration.method("model", name).content for name in configuration.names("model")}
    for name in (name for name, kind in kinds.items() if kind.task == "image"):
        defaults = {key: parameter.default for key, parameter in kinds[name].parameters.items()}
        layers = model(name, small.get(name, defaults)).modules()
        assert any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers) == (
            "batchnorm" in kinds[name].has
        ), name
