"""The architectures beside ResNet-18, against torchvision's and by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, batch_norm, conv2d, cross_entropy

from conftest import ROOT, cell, seldom
from depoison.errors import DepoisonError
from depoison.models._vgg import _AdaptiveAverage
from depoison.models.classifier import Classifier
from depoison.models.layouts import matched
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.stages.inputs import Dataset, new_model
from small import IMAGES, state_of

PARAMETERS: dict[str, dict[str, Any]] = {
    "resnet50": {"width": 64},
    "preactresnet18": {"width": 64},
    "vgg19-bn": {"width": 64, "hidden": 4096, "dropout": 0.5},
    "densenet161": {"growth": 48},
}
SMALL: dict[str, dict[str, Any]] = {
    "resnet34": {"width": 8, "stem": "small"},
    "resnet50": {"width": 8},
    "preactresnet18": {"width": 9},
    "vgg16-bn": {"width": 2, "hidden": 8, "dropout": 0.5},
    "vgg19-bn": {"width": 2, "hidden": 8, "dropout": 0.5},
    "densenet121": {"growth": 2, "stem": "small"},
    "densenet161": {"growth": 2},
    "mobilenetv2": {"width": 0.1, "dropout": 0.2, "stem": "small"},
    "efficientnet-b0": {"width": 0.1, "depth": 0.1, "dropout": 0.2, "stochastic_depth": 0.2, "stem": "small"},
    "googlenet": {"width": 8, "dropout": 0.2, "stem": "small"},
    "inception-v3": {"width": 2, "dropout": 0.5, "stem": "small"},
    "vit-s": {"size": 16, "patch": 4, "width": 12, "depth": 2, "heads": 3},
}
"""Each narrow, for small images."""


def vgg16_bn(num_classes: int) -> nn.Module:
    """torchvision's, whose classifier has 8 hidden units, since most of its time goes into 4096."""
    with torch.device("meta"):
        found = torchvision.models.vgg16_bn(num_classes=num_classes)
    found.features.to_empty(device="cpu")
    for layer in found.features:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    for place, layer in ((0, nn.Linear(49 * 512, 8)), (3, nn.Linear(8, 8)), (6, nn.Linear(8, num_classes))):
        found.classifier[place] = layer
    return found


THEIRS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any], int]] = {
    "resnet34": (torchvision.models.resnet34, {}, 21_797_672),
    "resnet50": (torchvision.models.resnet50, {}, 25_557_032),
    "vgg16-bn": (vgg16_bn, {}, 138_365_992),
    "densenet121": (torchvision.models.densenet121, {}, 7_978_856),
    "mobilenetv2": (torchvision.models.mobilenet_v2, {}, 3_504_872),
    "efficientnet-b0": (torchvision.models.efficientnet_b0, {}, 5_288_548),
    "googlenet": (torchvision.models.googlenet, {"aux_logits": False, "init_weights": False}, 6_624_904),
    "inception-v3": (torchvision.models.inception_v3, {"aux_logits": False, "init_weights": False}, 23_834_568),
    "vit-s": (
        torchvision.models.VisionTransformer,
        {"patch_size": 16, "num_layers": 12, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536},
        22_050_664,
    ),
}
"""torchvision's networks of 224 px, without heads that only help to train, and their parameters with 1,000 classes."""
KINDS = Plan(ROOT).configuration


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


@pytest.mark.parametrize("name", ["resnet50", *seldom("vgg19-bn", "densenet161")])
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


def of_224_px(name: str, **values: Any) -> dict[str, Any]:
    """The defaults of a network, but as for images of ImageNet."""
    of_network = KINDS.method("model", name).content.parameters
    large = {"stem": "large", "size": 224, "patch": 16}
    return {key: large.get(key, parameter.default) for key, parameter in of_network.items()} | values


@pytest.mark.parametrize("size", [96, pytest.param(224, marks=pytest.mark.drill)])
@pytest.mark.parametrize("name", THEIRS)
def test_the_network_for_224_px_is_torchvisions(name, size):
    make, how, parameters = THEIRS[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in model(name, of_224_px(name), classes=1000).parameters()) == parameters
    torch.manual_seed(7)
    changed = {"vgg16-bn": {"hidden": 8}, "vit-s": {"size": size}}.get(name, {})
    how = how | ({"image_size": size} if name == "vit-s" else {})
    ours, other = model(name, of_224_px(name, **changed), classes=5).eval(), shaken(make(num_classes=5, **how))
    for layer in other.modules():
        if isinstance(layer, nn.Linear):  # torchvision's ViT starts with a head of zeros
            nn.init.normal_(layer.weight, std=0.02)
    values = dict(other.state_dict())
    if name == "vit-s":  # whose place of the patches is a parameter of the encoder there, and comes before them here
        place = values.pop("encoder.pos_embedding")
        values = {"class_token": values.pop("class_token"), "place": place, **values}
    weights = [*ours.extractor.state_dict().values(), *ours.classifier.state_dict().values()]
    for weight, value in zip(weights, values.values(), strict=True):
        weight.copy_(value)
    images = pixels(1, 3, size, size).double()  # rounding grows on its way through residual blocks
    with torch.no_grad():
        found, expected = ours.double()(images), other.double()((images / 255 - 0.5) / 0.25)
    assert expected.std() > 0 and torch.allclose(found, expected, rtol=0, atol=1e-9 * expected.abs().max())


def timms(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ViT-S's tensors by the names that timm has for them."""
    names = {"extractor.1.": "", "classifier.": "head.", "patch_embed.": "patch_embed.proj."}
    names |= {"mlp.0.": "mlp.fc1.", "mlp.2.": "mlp.fc2."}
    found = {}
    for key, tensor in state.items():
        for part, place in names.items():
            key = key.replace(part, place)
        found[key] = tensor
    return found


@pytest.mark.parametrize("name", [name for name in THEIRS if name != "vgg16-bn"])
def test_a_checkpoint_of_torchvisions_or_timms_is_ours(name):
    make, how, _ = THEIRS[name]
    with torch.device("meta"):
        own = model(name, of_224_px(name)).state_dict()
        own = {key: tensor for key, tensor in own.items() if key not in ("mean", "std")}
        given = timms(own) if name == "vit-s" else make(num_classes=10, **how).state_dict()
    assert list(matched(own, given).items()) == list(zip(own, given, strict=True))


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("densenet161", "preactresnet18")])
@pytest.mark.parametrize("size", [8, 16, 28, 64])
def test_small_images_of_any_size_become_features(name, size):
    network = model(name, SMALL[name], classes=5).eval()
    features = network.features(pixels(2, 3, size, size))
    assert features.shape == (2, network.head[0].in_features) and features.isfinite().all()
    assert not torch.equal(*features)


@pytest.mark.parametrize(("name", "shape"), [
    ("resnet34", (512, 4, 4)), ("vgg16-bn", (512, 2, 2)), ("densenet121", (1024, 4, 4)), ("mobilenetv2", (1280, 4, 4)),
    ("efficientnet-b0", (1280, 2, 2)), ("googlenet", (1024, 8, 8)), ("inception-v3", (2048, 7, 7)),
])  # fmt: skip
def test_the_stem_of_small_images_leaves_the_last_maps_of_32_px_wide(name, shape):
    with torch.device("meta"):
        network = model(name, of_224_px(name, **{"stem": "small"} if name != "vgg16-bn" else {})).eval()
        trunk = network.extractor[:-2] if name == "vgg16-bn" else network.extractor[:-1]
        layers = list(trunk)[:-1] if name == "vgg16-bn" else trunk  # before the last pooling
        assert nn.Sequential(*layers)(torch.zeros(1, 3, 32, 32)).shape[1:] == shape


@pytest.mark.parametrize("name", [name for name in SMALL if name != "densenet161"])
def test_gradients_and_their_gradients_reach_every_weight(name):
    """As SFT takes them: of the squared gradients of a loss."""
    quiet = {key: 0.0 for key in ("dropout", "stochastic_depth") if key in SMALL[name]}
    network = model(name, SMALL[name] | quiet, classes=5).train()
    parameters = dict(network.named_parameters())
    loss = cross_entropy(network(pixels(8, 3, 16, 16)), torch.arange(8) % 5)
    first = torch.autograd.grad(loss, parameters.values(), create_graph=True)
    assert [key for key, found in zip(parameters, first, strict=True) if not found.any()] == []
    second = torch.autograd.grad(torch.stack([found.square().sum() for found in first]).sum(), parameters.values())
    assert all(found.isfinite().all() for found in second) and second[0].any()


@pytest.mark.parametrize(("name", "change", "told"), [
    ("googlenet", {"width": 12}, "model googlenet: width is 12; valid: a multiple of 8"),
    ("inception-v3", {"width": 3}, "model inception-v3: width is 3; valid: a multiple of 2"),
    ("vit-s", {"size": 30}, "model vit-s: size is 30 and patch 4; valid: a multiple of patch"),
    ("vit-s", {"heads": 5}, "model vit-s: width is 12 and heads 5; valid: a multiple of heads"),
])  # fmt: skip
def test_a_network_that_cannot_be(name, change, told):
    with pytest.raises(DepoisonError) as error:
        model(name, SMALL[name] | change)
    assert str(error.value) == told


def test_a_stem_that_came_later_is_that_of_before():
    with torch.device("meta"):
        before, said = (state_of(model("resnet50", {"width": 8} | more)) for more in ({}, {"stem": "small"}))
    assert [tensor.shape for tensor in before.values()] == [tensor.shape for tensor in said.values()]


def test_a_defense_without_what_it_works_on_refuses_a_vision_transformer_while_planning():
    refused, plan = {}, Plan(ROOT)
    for name in KINDS.names("defense"):
        try:
            plan.cell(cell(track="paper", model="vit-s", defense=name))
        except DepoisonError as error:
            refused[name] = str(error).partition("; ")[0].rpartition(": ")[2]
    lacks = dict.fromkeys(("anp", "clp", "rnp"), "batchnorm") | dict.fromkeys(("awm", "fp", "nad"), "convolutions")
    labels = {name: KINDS.method("defense", name).content.label for name in lacks}
    assert refused == {name: f"{labels[name]} needs {what}, which ViT-S lacks" for name, what in lacks.items()}


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
    assert len(network.head) == (3 if name.startswith("vgg") else 1)
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
