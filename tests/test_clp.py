"""CLP: the bound against singular values and true gains, what is pruned, and which BatchNorm belongs to which convolution."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import ROOT, cell
from depoison.defenses.clp import clp, in_graph, in_order, lipschitz_bounds
from depoison.errors import DepoisonError
from depoison.models.layers import GlobalAverage
from depoison.plan.plan import Plan
from depoison.tasks.image import ImageClassifier
from small import changed, network, state_of
from test_models import SMALL, model

MODELS: dict[str, dict[str, Any]] = SMALL | {"resnet18": {"width": 8}, "wrn-16-1": {"width": 8}}


def layer(inputs: int, outputs: int, size: int, seed: int = 0, **kinds: Any) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    generator = torch.Generator().manual_seed(seed)
    convolution, norm = nn.Conv2d(inputs, outputs, size, padding=size // 2, **kinds), nn.BatchNorm2d(outputs)
    with torch.no_grad():
        for tensor in (convolution.weight, norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        norm.running_var.copy_(torch.rand(outputs, generator=generator) + 0.1)
    return convolution.eval(), norm.eval()


@pytest.mark.parametrize(("groups", "size"), [(1, 3), (1, 1), (2, 3), (4, 3), (1, 7)])
def test_the_bound_is_the_largest_singular_value_of_the_kernel_times_batchnorms_scale(groups, size):
    convolution, norm = layer(4, 8, size, groups=groups)
    found = lipschitz_bounds(convolution, norm).tolist()
    for channel in range(8):
        kernel = convolution.weight[channel].detach().double().numpy().reshape(4 // groups, size * size)
        largest = np.sqrt(np.linalg.eigvalsh(kernel @ kernel.T).max())
        scale = abs(norm.weight[channel].item()) / (norm.running_var[channel].item() + 1e-5) ** 0.5
        assert found[channel] == pytest.approx(largest * scale, rel=1e-5)


@settings(deadline=None, max_examples=20)
@given(
    inputs=st.integers(1, 3),
    size=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_no_channels_gain_is_above_the_bound_times_the_root_of_its_kernels_positions(inputs, size, stride, seed):
    """The gain is the largest singular value of the whole map from an image to the channel."""
    convolution, norm = layer(inputs, 3, size, seed, stride=stride)
    bounds = lipschitz_bounds(convolution, norm) * size
    whole = torch.autograd.functional.jacobian(lambda x: norm(convolution(x)), torch.zeros(1, inputs, 5, 5))
    gains = [
        torch.linalg.matrix_norm(whole[0, channel].flatten(2).flatten(0, 1).flatten(1), ord=2) for channel in range(3)
    ]
    assert (torch.stack(gains) <= bounds * (1 + 1e-5)).all()
    if size == 1:  # a kernel of one position is a vector, whose gain is its length
        assert torch.allclose(torch.stack(gains), bounds, rtol=1e-4)


def planted(channel: int, factor: float) -> ImageClassifier:
    """Two layers of 16 channels, of which one has its kernel, or its BatchNorm's weight, multiplied."""
    first, second = layer(3, 16, 3, 1), layer(16, 16, 3, 2)
    with torch.no_grad():
        for convolution, norm in (first, second):
            norm.weight.copy_(norm.weight.sign() + 0.1)
            norm.running_var.fill_(1)
            convolution.weight.div_(torch.linalg.matrix_norm(convolution.weight.flatten(2), ord=2)[:, None, None, None])
        second[1].weight[channel] *= factor
    extractor = nn.Sequential(*first, nn.ReLU(), *second, nn.ReLU(), GlobalAverage())
    return ImageClassifier(extractor, nn.Linear(16, 3), (0.5,) * 3, (0.25,) * 3).eval()


@pytest.mark.parametrize("pairing", ["graph", "order"])
@pytest.mark.parametrize("channel", [0, 7, 15])
def test_the_planted_channel_and_no_other_is_pruned(channel, pairing):
    model = planted(channel, -20.0)
    before = state_of(model)
    found = clp(model, u=3.0, pairing=pairing)
    assert not changed(before, state_of(model))
    assert changed(before, state_of(found)) == {"extractor.4.weight", "extractor.4.bias"}
    for kind in ("weight", "bias"):
        was, now = before[f"extractor.4.{kind}"], state_of(found)[f"extractor.4.{kind}"]
        assert (now == 0).nonzero().flatten().tolist() == [channel]
        assert torch.equal(now[now != 0], was[torch.arange(16) != channel])
    images = torch.randint(0, 256, (2, 3, 8, 8))
    assert not found.extractor[:6](found.prepared(images))[:, channel].any()  # and nothing of it is left
    even = planted(channel, 1.0)
    assert not changed(state_of(even), state_of(clp(even, u=3.0, pairing=pairing)))


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_pruned_are_those_above_the_mean_plus_u_deviations_of_a_sample(u):
    model = model_of("resnet18", seed=3)
    found = clp(model, u=u, pairing="graph")
    layers, after = dict(model.extractor.named_modules()), dict(found.extractor.named_modules())
    for norm, convolution in in_graph(model.extractor).items():
        bounds = lipschitz_bounds(layers[convolution], layers[norm]).double().numpy()
        limit = bounds.mean() + u * np.sqrt(((bounds - bounds.mean()) ** 2).sum() / (len(bounds) - 1))
        assert ((after[norm].weight == 0) & (after[norm].bias == 0)).tolist() == (bounds > limit).tolist()


def model_of(name: str, seed: int = 0) -> Any:
    """With running statistics and affine parameters as after some training."""
    made = model(name, MODELS[name]).eval()
    generator = torch.Generator().manual_seed(seed)
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return made


def after_each(extractor: nn.Module) -> dict[str, str]:
    """Where BatchNorm follows each convolution, names say which: bn2 and conv2, shortcut.1 and shortcut.0, 4 and 3."""
    pairs = {}
    for name, module in extractor.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            place, _, last = name.rpartition(".")
            other = f"conv{last[2:]}" if last.startswith("bn") else str(int(last) - 1)
            pairs[name] = f"{place}.{other}".lstrip(".")
    return pairs


def within_blocks(extractor: nn.Module) -> dict[str, str]:
    blocks = [name for name, module in extractor.named_children() if hasattr(module, "conv2")]
    return {"1.bn1": "0"} | {f"{block}.bn2": f"{block}.conv1" for block in blocks}


def of_dense_layers(extractor: nn.Module) -> dict[str, str]:
    layers = [name for name, _ in extractor.named_modules() if "denselayer" in name.rpartition(".")[2]]
    return {"0.norm0": "0.conv0"} | {f"{name}.norm2": f"{name}.conv1" for name in layers}


@pytest.mark.parametrize(
    ("name", "expected", "count"),
    [
        ("resnet18", after_each, 20), ("resnet50", after_each, 53), ("vgg19-bn", after_each, 16),
        ("preactresnet18", within_blocks, 1 + 8), ("wrn-16-1", within_blocks, 1 + 6),
        ("densenet161", of_dense_layers, 1 + 78),
    ],
)  # fmt: skip
def test_a_batchnorm_belongs_to_the_convolution_whose_output_alone_it_normalizes(name, expected, count):
    pairs = in_graph(model(name, MODELS[name]).eval().extractor)
    assert pairs == expected(model(name, MODELS[name]).extractor) and len(pairs) == count


@pytest.mark.parametrize(("architecture", "count"), [("resnet18", 20), ("mobilenet_v2", 52)])
def test_torchvisions_networks_have_a_batchnorm_after_each_convolution(architecture, count):
    extractor = model("torchvision", {"architecture": architecture}).eval().extractor
    assert in_graph(extractor) == in_order(extractor) and len(in_graph(extractor)) == count


def test_in_order_of_modules_preactresnets_sums_belong_to_the_convolution_before_them():
    """As BackdoorBench pairs them: the first BatchNorm of a block, with the last convolution of the block before it."""
    extractor = model("preactresnet18", MODELS["preactresnet18"]).eval().extractor
    last = {block: f"{block}.shortcut" if block in (3, 5, 7) else f"{block}.conv2" for block in range(1, 9)}
    expected = within_blocks(extractor) | {f"{block}.bn1": last[block - 1] for block in range(2, 9)}
    assert in_order(extractor) == expected
    sizes = dict(extractor.named_modules())
    assert all(sizes[conv].out_channels == sizes[norm].num_features for norm, conv in expected.items())


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(DepoisonError, match=r"^clp: no BatchNorm normalizes the output of a convolution, .* prunes$"):
        clp(network(batchnorm=False), u=3.0, pairing="graph")
    with pytest.raises(
        DepoisonError, match=r"norm1 has 6 channels, .*conv2 before it 2; valid for this network: pairing=graph$"
    ):
        clp(model("densenet161", MODELS["densenet161"]).eval(), u=3.0, pairing="order")

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x) if x.mean() > 0 else x

    branching = copy.deepcopy(network())
    branching.extractor.insert(0, Branching())
    with pytest.raises(
        DepoisonError, match=r"^clp: the network cannot be traced \(.*\); valid: one without branches on values$"
    ):
        clp(branching, u=3.0, pairing="graph")


def test_clp_is_given_no_data():
    plan = Plan(ROOT)
    assert plan.configuration.sight("clp") == ["model"]
    purification = plan.cell(cell(defense="clp")).evaluation.upstream["model"]
    assert not purification.spec["parameters"]["recipe"]
    assert "tuning_ratio" not in purification.spec["parameters"]
