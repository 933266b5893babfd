"""Models that were trained elsewhere: their files, as each family saves them, their names, and their cells."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conftest import Project, cell, job_counts
from depoison.checkpoints import export
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.models.layouts import Misfit, matched, read_states, renamed
from depoison.stages.adopt import adopted, order_of, reorder
from families import BasicBlock, PreActBlock, ResNet18, WideResNet
from small import IMAGES, MEAN, STD, pixels

CLASSES = 10


def ours(name: str, **parameters: object) -> Classifier:
    """Ours of that name, with weights that nothing else has."""
    spec = {"name": name, "version": 1, "parameters": parameters, "mean": MEAN, "std": STD}
    return IMAGES.network(spec, classes=CLASSES, shape=(3, 32, 32), generator=torch.Generator().manual_seed(1)).eval()


def vgg19_bn() -> nn.Module:
    found = torchvision.models.vgg19_bn(weights=None, num_classes=CLASSES, dropout=0.0, init_weights=False)
    small: list[nn.Module] = []
    for layer in found.features:  # of width 2
        if isinstance(layer, nn.Conv2d):
            first = layer.in_channels == 3
            layer = nn.Conv2d(3 if first else layer.in_channels // 32, layer.out_channels // 32, 3, padding=1)
        elif isinstance(layer, nn.BatchNorm2d):
            layer = nn.BatchNorm2d(layer.num_features // 32)
        small.append(layer)
    found.features = nn.Sequential(*small)
    found.classifier[0], found.classifier[3] = nn.Linear(49 * 16, 8), nn.Linear(8, 8)
    found.classifier[6] = nn.Linear(8, CLASSES)
    return found


FAMILIES = {
    "resnet18 with linear": (lambda: ResNet18(8, CLASSES), partial(ours, "resnet18", width=8)),
    "resnet18 with fc": (
        lambda: ResNet18(8, CLASSES, block=partial(BasicBlock, projection="downsample"), last="fc"),
        partial(ours, "resnet18", width=8),
    ),
    "preactresnet18 of BackdoorBench": (
        lambda: ResNet18(9, CLASSES, block=PreActBlock, stem=False),
        partial(ours, "preactresnet18", width=9),
    ),
    "WRN-16-1 of NAD, ANP and ABL": (lambda: WideResNet(8, CLASSES), partial(ours, "wrn-16-1", width=8)),
    "VGG-BN": (vgg19_bn, partial(ours, "vgg19-bn", width=2, hidden=8, dropout=0.0)),
    "torchvision's": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=CLASSES),
        partial(ours, "torchvision", architecture="mobilenet_v3_small"),
    ),
}


def trained(network: nn.Module) -> nn.Module:
    """As if trained: no two tensors alike, no statistics that are the identity."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(0.9).add_(torch.rand(tensor.shape, generator=generator) * 0.1 + 0.01)
    return network.eval()


def as_state(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(OrderedDict(state), path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def as_backdoorbench(path: Path, state: dict[str, Tensor]) -> Path:
    told = {
        "model_name": "x",
        "num_classes": CLASSES,
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": None,
    }
    torch.save({**told, "model": state}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def as_parallel(path: Path, state: dict[str, Tensor]) -> Path:
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 7, "best_acc": 93.1, "net": {"state_dict": wrapped}, "optimizer": optimizer}, path)
    return path


def as_safetensors(path: Path, state: dict[str, Tensor]) -> Path:
    save_file(dict(state), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def as_old(path: Path, state: dict[str, Tensor]) -> Path:
    """Before PyTorch 0.4.1 BatchNorm counted no batches; of half precision besides."""
    kept = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    torch.save({"netC": kept}, path, _use_new_zipfile_serialization=False)
    return path


SAVED = (as_state, as_backdoorbench, as_parallel, as_safetensors, as_old)


@pytest.mark.parametrize("save", SAVED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_recognized_however_it_was_saved(family, save, tmp_path):
    make, own = FAMILIES[family]
    theirs, mine = trained(make()), own()
    path = save(tmp_path / "weights.tar", theirs.state_dict())
    state, known = adopted(mine, read_states(path), "", {})
    mine.load_state_dict(state)
    images = pixels(4, 3, 32, 32)
    prepared = (images / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = theirs(prepared)
        assert (mine(images) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert set(known["names"].values()) == set(read_states(path)[known["key"]]), "each tensor of the file, once"


def test_our_own_files_are_recognized(tmp_path):
    source = trained(ours("resnet18", width=8))
    save_file({name: t.contiguous() for name, t in source.state_dict().items()}, tmp_path / "model.safetensors")
    mine = ours("resnet18", width=8)
    mine.load_state_dict(adopted(mine, read_states(tmp_path / "model.safetensors"), "", {})[0])
    images = pixels(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(mine(images), source(images))


def test_half_precision_becomes_ours(tmp_path):
    theirs = trained(ResNet18(8, CLASSES)).half()
    mine = ours("resnet18", width=8)
    state, known = adopted(mine, read_states(as_state(tmp_path / "half", theirs.state_dict())), "", {})
    assert {tensor.dtype for name, tensor in state.items() if "num_batches" not in name} == {torch.float32}
    assert known["types"]["extractor.0.weight"] == "float16"


# --- what does not fit ---


def misfit(theirs: dict[str, Tensor], own: dict[str, Tensor] | None = None) -> Misfit:
    state = own or ours("resnet18", width=8).state_dict()
    with pytest.raises(Misfit) as caught:
        matched({name: tensor for name, tensor in state.items() if name not in ("mean", "std")}, theirs)
    assert "\n" not in str(caught.value)
    return caught.value


def test_each_tensor_that_does_not_fit_has_a_line_with_the_nearest_name():
    state = ResNet18(8, CLASSES).state_dict()
    del state["layer3.1.bn1.bias"]
    state["normalize.mean"] = torch.zeros(3)
    state["linear.weight"] = torch.zeros(43, 64)
    assert misfit(state).lines == [
        "extractor.8.bn1.bias is missing (nearest: layer4.1.bn1.bias)",
        "linear.weight is [43, 64], and classifier.weight is [10, 64]",
        "normalize.mean is superfluous (nearest: extractor.1.running_mean)",
    ]
    assert "conv1.weight is [64, 3, 7, 7]" in str(misfit(torchvision.models.resnet18().state_dict()))
    lines = misfit(ResNet18(8, CLASSES).layer2.state_dict()).lines
    assert len(lines) > 10 and all(" is missing" in line or " and " in line for line in lines)


def test_what_cannot_be_told_is_refused():
    """Sorted names that are not in the order of the layers, and shapes that do not tell which is which."""
    own = {f"extractor.{i}.{part}.weight": torch.zeros(4, 4) for i in (0, 1) for part in ("b", "a")}
    own |= {"extractor.last.bias": torch.zeros(1)}
    theirs = {"a.bias": torch.zeros(1)} | {
        f"x.{name}.weight": torch.zeros(4, 4) for name in ("0.a", "0.b", "0.c", "1.a")
    }
    assert misfit(theirs, own).lines == ["which of its tensors is which cannot be told; say it by `rename`"]


class TwoNorms(nn.Module):
    """Two layers of equal shapes, whose names are in the alphabet the other way round."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn_pre, self.bn_post = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, CLASSES)


def own_norms() -> nn.Module:
    extractor = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    return nn.ModuleDict({"extractor": extractor, "classifier": nn.Linear(4, CLASSES)})


TWO = {"extractor.1.weight": "bn_pre.weight", "extractor.2.weight": "bn_post.weight"}


@pytest.mark.parametrize("save", [as_state, as_safetensors])
def test_the_alphabet_does_not_say_which_layer_comes_first(save, tmp_path):
    """A safetensors file has its tensors sorted by name, so that of two layers alike it does not say which is the first."""
    states = read_states(save(tmp_path / "x", trained(TwoNorms()).state_dict()))
    if save is as_state:
        names = adopted(own_norms(), states, "", {})[1]["names"]
        assert TWO.items() <= names.items()
        return
    with pytest.raises(Misfit) as caught:
        adopted(own_norms(), states, "", {})
    assert caught.value.lines == ["which of its tensors is which cannot be told; say it by `rename`"]
    names = adopted(own_norms(), states, "", {r"^bn_pre": "bn1", r"^bn_post": "bn2"})[1]["names"]
    assert TWO.items() <= names.items()


def test_neither_does_it_where_blocks_are_put_in_order():
    """Blocks of one kind on both sides, in no order of layers; in each two layers alike."""
    own = {f"extractor.{i}.bn{j}.weight": torch.zeros(4) for i in (1, 0) for j in (1, 2)}
    own |= {"extractor.2.weight": torch.zeros(4, 4)}

    def named(first: str, second: str) -> dict[str, Tensor]:
        found = {f"layer.{i}.{name}.weight": torch.zeros(4) for i in (0, 1) for name in (first, second)}
        return {"fc.weight": torch.zeros(4, 4)} | found

    assert matched(own, named("norm1", "norm2"))["extractor.1.bn2.weight"] == "layer.1.norm2.weight"
    assert misfit(named("post", "pre"), own).lines == [
        "which of its tensors is which cannot be told; say it by `rename`"
    ]


@given(st.permutations(range(24)))
def test_whatever_the_order_of_a_file_no_tensor_takes_the_place_of_another(order):
    """Of shuffled names each is matched with its own, or all are refused."""
    source = ResNet18(8, CLASSES).state_dict()
    right = matched(source, source)
    names = [*source]
    blocks = sorted({name.rpartition(".")[0] for name in names})
    shuffled = sorted(names, key=lambda name: order[blocks.index(name.rpartition(".")[0]) % len(order)])
    own = ours("resnet18", width=8).state_dict()
    own = {name: tensor for name, tensor in own.items() if name not in ("mean", "std")}
    assert matched(source, {name: source[name] for name in shuffled}) == right
    truth = matched(own, source)
    with contextlib.suppress(Misfit):
        assert matched(own, {name: source[name] for name in shuffled}) == truth


def test_tensors_are_renamed_by_pattern_or_left_out():
    state = {"a.weight": torch.zeros(1), "b.weight": torch.ones(1), "ema.decay": torch.zeros(())}
    found, old = renamed(state, {r"^a\.": "x.", "^ema": None})
    assert [*found] == ["x.weight", "b.weight"] and old["x.weight"] == "a.weight"
    with pytest.raises(DepoisonError, match=r"^rename: a\.weight and b\.weight both become weight$"):
        renamed(state, {r"^[ab]\.": "", "^ema": None})
    with pytest.raises(DepoisonError, match=r"^rename: '\(': 'x' is no replacement by pattern "):
        renamed(state, {"(": "x"})


def test_two_that_fit_are_told_apart_by_key(tmp_path):
    state = ResNet18(8, CLASSES).state_dict()
    torch.save({"model": state, "ema": state}, tmp_path / "two.pt")
    states, own = read_states(tmp_path / "two.pt"), ours("resnet18", width=8)
    with pytest.raises(DepoisonError, match=r"^more than one state dict fits: model, ema; say which by `key`$"):
        adopted(own, states, "", {})
    assert adopted(own, states, "ema", {})[1]["key"] == "ema"
    with pytest.raises(DepoisonError, match=r"^no state dict at key 'net'; valid: model, ema$"):
        adopted(own, states, "net", {})


def test_outputs_are_put_in_the_order_of_the_datasets_classes():
    model, labels = ours("resnet18", width=8), [str(i) for i in (3, 1, 0, 2, 4, 5, 6, 7, 9, 8)]
    images = pixels(3, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        reorder(model, order_of(labels, [str(i) for i in range(10)]))
        after = model(images)
    for output, name in enumerate(labels):
        assert torch.equal(after[:, int(name)], before[:, output])
    with pytest.raises(DepoisonError, match=r"^labels: '3' is not in both; the dataset's classes: 0, 1"):
        order_of(["cat", *labels[1:]], [str(i) for i in range(10)])


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda tensor: tensor.to_sparse(), "linear.weight is sparse; valid: dense tensors of floating-point numbers"),
        (
            lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            "linear.weight is qint8; valid: dense tensors of floating-point numbers",
        ),
        (lambda tensor: tensor.to(torch.int8), "linear.weight is int8; valid: dense tensors of floating-point numbers"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(made, told, tmp_path):
    state = ResNet18(8, CLASSES).state_dict()
    state["linear.weight"] = made(state["linear.weight"])
    states = read_states(as_state(tmp_path / "x", state))
    with pytest.raises(DepoisonError, match=f"^{re.escape(told)}$"):
        adopted(ours("resnet18", width=8), states, "", {})


# --- files that come from others ---


class Malicious:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": {}, "extra": x}])
@pytest.mark.parametrize("new", [True, False])
def test_a_malicious_file_is_refused_and_runs_nothing(wrap, new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(Malicious()), "evil.pt", _use_new_zipfile_serialization=new)
    Path("raw.pt").write_bytes(pickle.dumps(wrap(Malicious())))
    for name, says in (("evil.pt", "it wants exec"), ("raw.pt", "Unsupported operand 149")):
        with pytest.raises(
            DepoisonError, match=rf"^{name}: refused, as to load it may run code: {says}; valid: tensors"
        ):
            read_states(Path(name))
    assert not Path("ran").exists()


def test_a_whole_network_is_refused_by_its_class(tmp_path):
    torch.save(ResNet18(8, CLASSES), tmp_path / "whole.pt")
    with pytest.raises(
        DepoisonError, match=r"whole\.pt: refused, .*: it wants families\.ResNet18; valid: tensors alone"
    ):
        read_states(tmp_path / "whole.pt")


@given(st.binary(max_size=200), st.sampled_from(["x.pt", "x.safetensors", "x.pth"]))
def test_bytes_that_are_no_weights_are_one_line(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    with pytest.raises(DepoisonError) as caught:
        read_states(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [3, [torch.zeros(2)], {"a": 1}, {"x": torch.zeros(3)}])
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(DepoisonError, match=r"x\.pt: holds a \w+ without tensors by name; valid: a state dict"):
        read_states(tmp_path / "x.pt")


# --- cells ---

SUSPECT = cell("tiny", attack="suspect", defense="ft")


def brought(project: Project, **changes: object) -> Path:
    """A checkpoint `suspect` of the digits, its weights beside the project's configuration."""
    path = as_backdoorbench(project.path / "suspect", trained(ResNet18(8, CLASSES)).state_dict())
    content = {
        "weights": path.name, "model": "resnet18", "parameters": {"width": 8}, "dataset": "digits",
        "trigger": {"attack": "badnet", "values": {"size": 2, "target": 3}},
    }  # fmt: skip
    project.edit("config/checkpoints/suspect.yaml", lambda data: data.update(content | changes))
    return path


def test_a_cell_of_a_checkpoint(tiny, monkeypatch):
    path = brought(tiny)
    monkeypatch.chdir(tiny.path)
    done = tiny.depoison("run", SUSPECT)
    assert done.returncode == 0, done.stderr
    found = tiny.plan().cell(SUSPECT)
    stages = [one.stage for one in found.evaluation.chain().values()]
    assert "train" not in stages and "poison" not in stages and stages.count("adopt") == 1
    metrics = json.loads(Path(SUSPECT).read_text())
    assert metrics["metrics"]["asr"] is not None and metrics["metrics"]["der"] is not None
    (adopt,) = [one for one in found.evaluation.chain().values() if one.stage == "adopt"]
    assert re.fullmatch(r"results/adopt/digits-suspect-resnet18-[0-9a-f]{10}", adopt.directory)
    known = json.loads(Path(adopt.directory, "names.json").read_text())
    assert known["key"] == "model" and known["names"]["classifier.weight"] == "linear.weight"
    # Another file is another path; the same one elsewhere is not.
    again = path.rename(tiny.path / "moved.pt")
    tiny.set("config/checkpoints/suspect.yaml", "weights", to="moved.pt")
    assert tiny.plan().cell(SUSPECT).evaluation.directory == found.evaluation.directory
    state = torch.load(again, weights_only=True)
    torch.save(state | {"more": 1}, again)
    assert tiny.plan().cell(SUSPECT).evaluation.directory != found.evaluation.directory
    # Once it was adopted the file may go, if its content is on record.
    sha256 = adopt.spec["parameters"]["weights"]["sha256"]
    again.unlink()
    with pytest.raises(DepoisonError, match=r"suspect\.yaml:1: weights: moved\.pt: no such file$"):
        tiny.plan().cell(SUSPECT)
    tiny.set("config/checkpoints/suspect.yaml", "sha256", to=sha256)
    assert tiny.plan().cell(SUSPECT).evaluation.directory == found.evaluation.directory
    planned = tiny.snakemake("-n", "--", SUSPECT)
    assert job_counts(planned.stdout + planned.stderr) == {}


def test_the_files_values_are_above_all_others(tiny):
    """The width of the track's networks says nothing of one that was trained elsewhere."""
    brought(tiny, normalization={"mean": [0.1, 0.2, 0.3]}, parameters={"width": 9})
    tiny.set("config/config.yaml", "models", to={"resnet18": {"width": 32}})
    reserve = (
        tiny.plan().cell(cell("tiny", dataset="digits+reserve=0.2", attack="suspect")).settings["dataset"]["reserve"]
    )
    assert reserve[-1].value == 0.2, "of what it is purified by the cell says what it likes"
    settings = tiny.plan().cell(SUSPECT).settings
    (*_, last) = settings["model"]["width"]
    assert last == (9, "checkpoint", "config/checkpoints/suspect.yaml:4")
    assert settings["dataset"]["mean"][-1].value == [0.1, 0.2, 0.3]
    assert settings["attack"].keys() == {"size", "enlarge", "pattern", "corner", "target", "labels", "victim"}
    shown = tiny.depoison("explain", SUSPECT).stdout
    assert (
        "attack suspect" in shown and "size    = 2" in shown and "checkpoint, config/checkpoints/suspect.yaml:" in shown
    )


SMALL_CNN = """class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.out = nn.Linear(8, classes)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.out(x.mean((2, 3)))
"""


def test_a_network_of_ones_own_and_a_trigger_of_ones_own(tiny, monkeypatch):
    """Her small CNN in her own file, and the picture and mask that she found."""
    monkeypatch.chdir(tiny.path)
    names: dict[str, Any] = {"torch": torch, "nn": nn}
    exec(SMALL_CNN, names)
    theirs = trained(names["Net"](CLASSES))
    path = as_parallel(tiny.path / "cnn.pth", theirs.state_dict())
    code = f"""\"\"\"A small network of one's own, taken apart by itself.\"\"\"
import torch
from torch import nn
from depoison.own import split

{SMALL_CNN}

def mine(classes, channels):
    extractor, classifier, _ = split(Net(classes), torch.zeros(2, channels, 8, 8))
    return extractor, classifier
"""
    for name, text in (("mine.py", code), ("mine.yaml", "summary: a small CNN\nlabel: CNN\ntask: image\n")):
        (tiny / "methods/models").mkdir(parents=True, exist_ok=True)
        (tiny / "methods/models" / name).write_text(text)
    sticker = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[1:4, 2:5], mask[0, 7] = 255, 51
    (tiny / "config/triggers").mkdir()
    Image.fromarray(sticker).save(tiny / "config/triggers/sticker.png")
    Image.fromarray(mask).save(tiny / "config/triggers/spot.png")
    brought(
        tiny, weights=path.name, model="mine", parameters={},
        trigger={"attack": "patch", "values": {"picture": "sticker", "mask": "spot", "target": 3}},
    )  # fmt: skip
    target = cell("tiny", model="mine", attack="suspect", defense="none")
    tiny.make(target)
    upstream = tiny.plan().cell(target).evaluation.upstream
    dataset = load_file(upstream["dataset"].product)
    triggered = load_file(Path(upstream["backdoored"].directory, "triggered.safetensors"))
    images, labels = dataset["test_inputs"].numpy(), dataset["test_labels"]
    kept = triggered["kept"].numpy()
    weight = mask / 255
    expected = np.rint((1 - weight) * images[kept] + weight * sticker.transpose(2, 0, 1))
    assert np.array_equal(triggered["images"].numpy(), expected.astype(np.uint8))
    assert np.array_equal(kept, (labels != 3).nonzero()[:, 0].numpy())
    values = tiny.plan().configuration.settings(
        "dataset", "digits", dataset="digits", model="mine", track="tiny", overrides={}, where=""
    )
    mean, std = (np.float32(values[key][-1].value).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        found = theirs(torch.from_numpy((images / np.float32(255) - mean) / std)).argmax(1)
    metrics = json.loads(Path(target).read_text())["metrics"]
    assert metrics["c_acc"] == pytest.approx(100 * (found == labels).float().mean().item())


def test_without_a_trigger_there_is_no_success_of_an_attack(tiny, monkeypatch):
    brought(tiny, trigger=None)
    monkeypatch.chdir(tiny.path)
    tiny.make(SUSPECT)
    metrics = json.loads((tiny / SUSPECT).read_text())["metrics"]
    assert metrics["asr"] is None and metrics["c_acc"] is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnt18"}, r"suspect\.yaml:2: unknown model 'resnt18'; did you mean 'resnet18'\?"),
        ({"dataset": "x"}, r"suspect\.yaml:\d+: unknown dataset 'x'"),
        ({"weights": "none.pt"}, r"suspect\.yaml:1: weights: none\.pt: no such file$"),
        ({"parameters": {"depth": 3}}, r"unknown hyper-parameter 'depth'"),
        ({"trigger": {"attack": "badnett"}}, r"suspect\.yaml:\d+: unknown attack 'badnett'"),
        ({"trigger": {"attack": "ssba"}}, r"suspect\.yaml:\d+: SSBA has no trigger that is known before training$"),
        ({"trigger": {"attack": "badnet", "values": {"rate": 0.1}}}, r"unknown hyper-parameter 'rate'"),
        ({"sha256": "0" * 64}, r"suspect\.yaml:\d+: sha256: suspect\.pt is another file: [0-9a-f]{64}$"),
        ({"wieghts": "x"}, r"unknown key 'wieghts'; did you mean 'weights'"),
    ],
)
def test_a_fault_in_the_file_is_one_line(tiny, changes, message):
    brought(tiny, **changes)
    with pytest.raises(DepoisonError, match=message) as caught:
        tiny.plan().cell(SUSPECT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vgg19-bn"}, r": checkpoint suspect has the model resnet18, not vgg19-bn$"),
        ({"dataset": "fashion-mnist"}, r": checkpoint suspect has the dataset digits, not fashion-mnist$"),
        ({"attack": "suspect+target=1"}, r": target is what config/checkpoints/suspect\.yaml says it is; set it there$"),
        ({"model": "resnet18+width=8"}, r": width is what config/checkpoints/suspect\.yaml says it is; set it there$"),
        ({"dataset": "digits+mean=0.1,0.1,0.1"}, r": mean is what config/checkpoints/suspect\.yaml says it is; "),
        ({"attack": "badnet&suspect"}, r": suspect is a model, so it cannot be combined with others; valid: "),
        ({"defense": "abl"}, r": ABL sees what a model is trained on, and of suspect there is a model alone"),
        ({"defense": "ac"}, r": AC sees what a model is trained on, and of suspect there is a model alone"),
        ({"attack": "suspct"}, r": unknown attack 'suspct'; did you mean 'suspect'"),
    ],
)  # fmt: skip
def test_a_cell_that_cannot_be_is_one_line(tiny, changes, message):
    brought(tiny, normalization={"mean": [0, 0, 0]})
    with pytest.raises(DepoisonError, match=message) as caught:
        tiny.plan().cell(cell("tiny", **({"attack": "suspect"} | changes)))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_may_not_have_an_attacks_name(tiny):
    brought(tiny)
    (tiny / "config/checkpoints/suspect.yaml").rename(tiny / "config/checkpoints/badnet.yaml")
    done = tiny.depoison("check")
    assert "config/checkpoints/badnet.yaml: badnet is an attack; give the file another name" in done.stderr


def test_a_network_of_another_shape_is_told_tensor_by_tensor(tiny):
    brought(tiny, parameters={"width": 16})
    done = tiny.depoison("run", SUSPECT)
    assert done.returncode == 1
    assert (
        "suspect.pt as resnet18: weights of another network: conv1.weight is [8, 3, 3, 3], and extractor.0"
        in done.stderr
    )
    log = next((tiny / "logs/adopt").glob("*.log")).read_text()
    assert log.count(" and extractor.") + log.count(" and classifier.") > 50


def test_a_checkpoint_stands_in_a_users_own_table(tiny):
    brought(tiny)
    table = {
        "title": "Mine", "caption": "A model that I do not trust", "dataset": "digits", "model": "resnet18",
        "axes": {"rows": [{"attack": "suspect"}], "columns": [{"defense": "none"}, {"defense": "lp"}]},
        "metrics": {"show": ["c-acc", "asr"]},
    }  # fmt: skip
    tiny.edit("config/papers/own/mine.yaml", lambda data: data.update(table))
    tiny.make("reports/tiny/own/mine.md")
    assert "suspect" in (tiny / "reports/tiny/own/mine.md").read_text()


# --- what is brought, and what is taken home ---


@pytest.mark.parametrize("save", [as_backdoorbench, as_safetensors])
def test_a_file_is_recognized_and_its_purified_weights_go_home_in_its_layout(tiny, save, monkeypatch):
    theirs = trained(ResNet18(8, CLASSES))
    path = save(tiny.path / "net.x", theirs.state_dict())
    done = tiny.depoison("new", "checkpoint", str(path), "--name", "mine", "--dataset", "digits")
    assert done.returncode == 0, done.stderr
    assert "resnet18+width=8, 122 tensors" in done.stdout and "config/checkpoints/mine.yaml written" in done.stdout
    tiny.set("config/checkpoints/mine.yaml", "labels", to=[str(i) for i in (1, 0, *range(2, 10))])
    target = cell("tiny", attack="mine", defense="none")
    tiny.make(target)
    home = tiny.path / "home" / path.name
    monkeypatch.chdir(tiny.path)
    done = tiny.depoison("export", target, "--output", str(home))
    assert done.returncode == 0, done.stderr
    ((at, before),) = read_states(path).items()
    after = read_states(home)[at]
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: t.dtype for name, t in before.items()}
    assert all(torch.equal(after[name], before[name]) for name in before), "nothing was purified"
    theirs.load_state_dict(after)
    # What was brought stays what it is, and a name does not say what is not in the file.
    content = path.read_bytes()
    (tiny / "link").symlink_to(path)
    wrong = "pt" if path.suffix == ".safetensors" else "safetensors"
    for output, told in (
        (path, "is the file that was brought; choose another"),
        (tiny / "link", "is the file that was brought; choose another"),
        (home.with_suffix(f".{wrong}"), f": it is written as {path.suffix[1:]}; valid: --output with ."),
    ):
        done = tiny.depoison("export", target, "--output", str(output))
        assert done.returncode == 1 and told in done.stderr
    assert path.read_bytes() == content and sorted(home.parent.iterdir()) == [home]
    home.write_bytes(b"before")
    monkeypatch.setattr(os, "replace", None)
    with pytest.raises(TypeError):
        export(tiny.plan(), tiny.plan().cell(target), home)
    assert home.read_bytes() == b"before", "all or nothing"


def test_what_fits_no_model_is_compared_with_the_nearest(tiny):
    state = trained(ResNet18(8, CLASSES)).state_dict()
    del state["layer4.1.conv2.weight"]
    path = as_state(tiny.path / "net", state)
    done = tiny.depoison("new", "checkpoint", str(path), "--name", "mine", "--dataset", "digits")
    assert done.returncode == 1 and not (tiny / "config/checkpoints").exists()
    told = "net.pt: fits no model; as the nearest, resnet18, it is weights of another network: extractor.10.conv2.weight is"
    assert f"{told} missing" in done.stderr
    done = tiny.depoison("new", "checkpoint", str(path), "--name", "badnet", "--dataset", "digits")
    assert "error: badnet is an attack; choose another name" in done.stderr


def test_of_several_state_dicts_that_fit_the_key_says_which(tiny):
    network = trained(ResNet18(8, CLASSES))
    average = {name: tensor * 0.5 for name, tensor in network.state_dict().items()}
    path = tiny.path / "two.pt"
    torch.save({"model": network.state_dict(), "ema": average}, path)
    new = ("new", "checkpoint", str(path), "--name", "mine", "--dataset", "digits")
    for model in ((), ("--model", "resnet18+width=8")):
        done = tiny.depoison(*new, *model)
        told = "two.pt: more than one state dict fits resnet18+width=8: model, ema; say which by --key"
        assert done.returncode == 1 and done.stderr.strip().endswith(told)
    done = tiny.depoison(*new, "--key", "net")
    assert done.returncode == 1 and "two.pt: no state dict at key 'net'; valid: model, ema" in done.stderr
    done = tiny.depoison(*new, "--key", "ema")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tiny / "config/checkpoints/mine.yaml").read_text())["key"] == "ema"


def test_of_a_dataset_whose_classes_nobody_knows_that_is_said(tiny):
    path = as_state(tiny.path / "net", trained(ResNet18(8, CLASSES)).state_dict())
    tiny.edit("config/datasets/digits.yaml", lambda data: data.pop("classes"))
    for model in ((), ("--model", "resnet18")):
        done = tiny.depoison("new", "checkpoint", str(path), "--name", "mine", "--dataset", "digits", *model)
        assert done.returncode == 1
        assert (
            "error: dataset digits: how many classes it has is not known before it is read; give `classes`"
            in done.stderr
        )


def test_a_network_that_cannot_be_is_a_line(tiny):
    path = as_state(tiny.path / "net", trained(ResNet18(8, CLASSES)).state_dict())
    new = ("new", "checkpoint", str(path), "--name", "mine", "--dataset", "digits")
    done = tiny.depoison(*new, "--model", "torchvision+architecture=resnet3")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    told = (
        "error: --model torchvision+architecture=resnet3: unknown architecture of torchvision 'resnet3'; did you mean"
    )
    assert told in done.stderr
    done = tiny.depoison(*new, "--model", "pointnet2")
    assert done.returncode == 1 and "error: --model: pointnet2 is not for image, which digits is of" in done.stderr


@pytest.mark.parametrize("key", ["0", "null", "a: b", "model"])
def test_what_is_written_of_a_file_is_read_as_it_is(key, tiny):
    state = trained(ResNet18(8, CLASSES)).state_dict()
    torch.save({key: state}, tiny.path / "net: a #1.pt")
    new = ("new", "checkpoint", str(tiny.path / "net: a #1.pt"), "--name", "2024", "--dataset", "digits")
    done = tiny.depoison(*new, "--model", "resnet18+width=8")
    assert done.returncode == 0, done.stderr
    content = tiny.plan().configuration.checkpoint("2024").content
    assert (content.label, content.weights, content.key) == ("2024", "net: a #1.pt", key)
    assert content.parameters == {"width": 8}
