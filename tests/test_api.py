"""depoison in Python: networks of one's own, taken apart and put together, poisoned, purified and measured."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import depoison
from conftest import ROOT, seldom
from depoison.api import IMAGES
from depoison.artifacts import load_tensors
from depoison.errors import DepoisonError
from depoison.own import split


class Small(nn.Module):
    """A network as people write them: its classifier is one of several attributes, and not the last."""

    def __init__(self, classes: int = 10, channels: int = 3):
        super().__init__()
        self.fc = nn.Linear(32, classes)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).amax((2, 3)))


class Softmax(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class TwoHeads(Small):
    """As networks that were distilled have."""

    def __init__(self):
        super().__init__()
        self.distilled = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        return (self.fc(features.amax((2, 3))) + self.distilled(features.mean((2, 3)))) / 2


class NoLogits(Small):
    def forward(self, x: Tensor) -> Tensor:
        return {"logits": super().forward(x)}


def digits(part: slice) -> tuple[Tensor, Tensor]:
    """(N, 3, 16, 16) uint8 images of handwritten digits and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images[part] * 255 / 16).byte()[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)
    return images.expand(-1, 3, -1, -1).contiguous(), torch.tensor(found.target[part]).long()


TRAIN, CLEAN, TEST = slice(0, 1200), slice(1200, 1400), slice(1400, None)


def trained(images: Tensor, labels: Tensor, make: Callable[[], nn.Module] = Small) -> nn.Module:
    """By a plain loop: nothing of this project."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(8):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(images[rows] / 255), labels[rows]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def backdoored() -> tuple[nn.Module, depoison.Poisoned]:
    poisoned = depoison.poison(*digits(TRAIN), "badnet", rate=0.1)
    return trained(poisoned.images, poisoned.labels), poisoned


# --- networks taken apart ----------------------------------------------------------------------------------------

NETWORKS = {
    "by hand": (Small, 16),
    "a sequence": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 9), nn.Linear(9, 10)), 16),
    "a convolution": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 10, 1), nn.Flatten()), 16),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 32),
    "vgg11_bn": (lambda: torchvision.models.vgg11_bn(num_classes=10), 32),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), 32),
    "vit": (lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=10), 32),
}  # fmt: skip
LINEAR = {"vgg11_bn": 3, "mobilenet_v3_small": 2}
"""How many linear layers the classifier has; 1 elsewhere."""


@pytest.mark.parametrize("name", [*(name for name in NETWORKS if name != "vgg11_bn"), *seldom("vgg11_bn")])
def test_a_network_is_taken_apart_and_put_together(name):
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    classifier = require_parts_make_the_whole(make(), torch.rand(4, 3, size, size))
    assert len([1 for module in classifier.modules() if isinstance(module, nn.Linear)]) == LINEAR.get(name, 1)


def require_parts_make_the_whole(network: nn.Module, inputs: Tensor) -> nn.Module:
    """Returns the classifier."""
    network.train()
    before = copy.deepcopy(network.state_dict())
    extractor, classifier, joined = split(network, inputs)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items()) and network.training
    assert all(module.training for module in classifier.modules())
    again = joined()
    assert type(again) is type(network) and [*again.state_dict()] == [*before]
    for each in (network, extractor, classifier, again):
        each.eval()
    with torch.no_grad():
        assert torch.allclose(classifier(extractor(inputs)), network(inputs), atol=1e-5)
        assert torch.equal(again(inputs), network(inputs))
        for parameter in classifier.parameters():
            parameter.add_(1)
        changed = joined().eval()
        assert torch.allclose(classifier(extractor(inputs)), changed(inputs), rtol=1e-4, atol=1e-4)
        assert (changed(inputs) - network(inputs)).abs().min() > 0.1
    return classifier


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (
            Softmax(),
            r"output is not that of its last linear layer, fc; valid: a classifier that returns its logits, without",
        ),
        (TwoHeads(), r"output is not that of its last linear layer, distilled; valid: .* or a second head$"),
        (NoLogits(), r"^the model returns dict; valid: logits, \(B, K\)$"),
        (nn.Conv2d(3, 10, 3), r"^the model returns shape \(4, 10, 14, 14\); valid: logits, \(B, K\)$"),
        (nn.Sequential(nn.Conv2d(3, 10, 16), nn.Flatten()), r"^the model has no linear layer, which"),
        (
            nn.Sequential(nn.Conv2d(3, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            r"^the model has no linear layer, which",
        ),
    ],
)
def test_a_network_that_is_no_classifier_is_refused(network, told):
    with pytest.raises(DepoisonError, match=told):
        split(network, torch.rand(4, 3, 16, 16))


# --- timm's networks ---------------------------------------------------------------------------------------------

TIMM = {
    "test_resnet": 32, "test_vit": 160, "test_convnext": 32, "test_efficientnet": 32, "test_nfnet": 32,
    "mobilenetv3_small_050": 64, "densenet121": 64, "dla34": 64, "resnetv2_18": 32, "levit_128s": 224,
}  # fmt: skip


@pytest.mark.docs
@pytest.mark.parametrize("name", TIMM)
def test_a_network_of_timms_is_taken_apart_and_put_together(name):
    network, inputs = timm_network(name), torch.rand(2, 3, TIMM[name], TIMM[name])
    if name == "levit_128s":
        with pytest.raises(
            DepoisonError, match="not that of its last linear layer, head_dist.linear; valid: .* second head"
        ):
            split(network, inputs)
        return
    require_parts_make_the_whole(network, inputs)


@pytest.mark.docs
def test_a_network_of_timms_is_purified():
    poisoned = depoison.poison(*digits(TRAIN), "badnet", rate=0.1)
    model = trained(poisoned.images, poisoned.labels, lambda: timm_network("test_resnet"))
    before = depoison.evaluate(model, *digits(TEST), trigger=poisoned.trigger)
    purified = depoison.purify(model, *digits(CLEAN), "fst", like="digits", alpha=0.1, epochs=10, batch_size=32)
    after = depoison.evaluate(purified, *digits(TEST), trigger=poisoned.trigger)
    assert before["asr"] > 80 and after["asr"] < before["asr"] / 2 and after["c_acc"] > before["c_acc"] - 20, (
        before,
        after,
    )


@pytest.mark.docs
def test_of_a_network_that_ends_in_a_convolution_that_is_the_classifier():
    model = timm_network("resnetv2_18", channels=(16, 16, 32, 32), stem_chs=16)
    purified = depoison.purify(model, *digits(CLEAN), "lp", like="digits", epochs=1, lr=0.1)
    before, after = model.state_dict(), purified.state_dict()
    assert type(purified) is type(model) and [*after] == [*before] and after["head.fc.weight"].shape == (10, 32, 1, 1)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"head.fc.weight", "head.fc.bias"}


def timm_network(name: str, **values: Any) -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **values)


# --- poisoned ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uint8", "float", "numpy"])
def test_poisoned_images_are_those_of_the_attack(kind):
    images, labels = digits(slice(0, 100))
    given = {"uint8": images, "float": images / 255, "numpy": images.numpy()}[kind]
    poisoned = depoison.poison(given, labels.numpy() if kind == "numpy" else labels, "badnet", rate=0.2, target=3)
    assert poisoned.changed.sum() == 20 and (poisoned.labels[poisoned.changed] == 3).all()
    assert torch.equal(poisoned.labels[~poisoned.changed], labels[~poisoned.changed])
    found = poisoned.images * 255 if kind == "float" else poisoned.images
    assert found.dtype == (torch.float32 if kind == "float" else torch.uint8)
    board = 255 * (torch.arange(3)[:, None] + torch.arange(3) + 1).remainder(2)
    everywhere = _with(images, board)
    expected = torch.where(poisoned.changed[:, None, None, None], everywhere, images.float())
    assert torch.allclose(found.float(), expected, atol=1e-3)
    stamped = poisoned.trigger(given)
    assert torch.allclose(stamped.float() * (255 if kind == "float" else 1), everywhere, atol=1e-3)
    assert torch.equal(images, digits(slice(0, 100))[0])


def _with(images: Tensor, board: Tensor) -> Tensor:
    found = images.clone()
    found[:, :, -3:, -3:] = board.byte()
    return found.float()


def test_label_maps():
    images, labels = digits(slice(0, 100))
    poisoned = depoison.poison(images, labels, "blended", rate=0.5, labels_map="all-to-all")
    assert torch.equal(poisoned.labels, torch.where(poisoned.changed, (labels + 1) % 10, labels))


def test_of_classes_that_no_label_is_of_their_number_says(backdoored):
    """All-to-all sends the last class to the first: of labels alone nobody knows which is the last."""
    images, labels = digits(slice(0, 100))
    images, labels = images[labels < 8], labels[labels < 8]
    poisoned = depoison.poison(images, labels, "blended", rate=0.5, labels_map="all-to-all", classes=10)
    assert torch.equal(poisoned.labels, torch.where(poisoned.changed, labels + 1, labels))
    assert poisoned.trigger.classes == 10 and (poisoned.labels == 8).any()


def test_a_normalization_may_be_an_array(backdoored):
    model, _ = backdoored
    mean, std = [0.3, 0.4, 0.5], [0.2, 0.25, 0.3]
    told = depoison.evaluate(model, *digits(TEST), mean=mean, std=std)
    arrays = {"mean": np.array(mean), "std": torch.tensor(std, dtype=torch.float64)}
    assert told == depoison.evaluate(model, *digits(TEST), **arrays)


# --- purified and measured ---------------------------------------------------------------------------------------


def test_the_metrics_are_counts(backdoored):
    model, poisoned = backdoored
    images, labels = digits(TEST)
    found = depoison.evaluate(model, images, labels, trigger=poisoned.trigger)
    with torch.no_grad():
        clean = model(images / 255).argmax(1)
        shown = model(poisoned.trigger(images) / 255).argmax(1)[labels != 0]
    truth = labels[labels != 0]
    by_hand = {"asr": shown == 0, "c_acc": clean == labels, "lcr": shown == truth}
    assert found == {key: pytest.approx(100 * hits.double().mean().item()) for key, hits in by_hand.items()}
    assert found["c_acc"] > 85 and found["asr"] > 85
    alone = depoison.evaluate(model, images.numpy(), labels.numpy())
    assert alone == {"c_acc": found["c_acc"]}
    mine = depoison.evaluate(model, images / 255, labels, trigger=lambda x: poisoned.trigger(x), target=0)
    assert mine == pytest.approx(found)


def test_a_model_is_purified_and_the_one_that_was_given_stays(backdoored):
    model, poisoned = backdoored
    before, told = copy.deepcopy(model.state_dict()), []
    options = {"alpha": 0.1, "epochs": 20, "batch_size": 32, "like": "digits"}
    purified = depoison.purify(model, *digits(CLEAN), "fst", report=told.append, **options)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert type(purified) is Small and not purified.training and [row["epoch"] for row in told] == [*range(1, 21)]
    found = depoison.evaluate(purified, *digits(TEST), trigger=poisoned.trigger)
    assert found["c_acc"] > 60 and found["asr"] < 20
    again = depoison.purify(model, *digits(CLEAN), "fst", **options)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in purified.state_dict().items())


def test_normalization_may_be_inside_or_told(backdoored):
    model, _ = backdoored
    mean, std = [0.3, 0.4, 0.5], [0.2, 0.25, 0.3]

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = copy.deepcopy(model)

        def forward(self, x: Tensor) -> Tensor:
            return self.model((x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1))

    images, labels = digits(TEST)
    told = depoison.evaluate(model, images, labels, mean=mean, std=std)
    assert told == depoison.evaluate(Inside(), images, labels) != depoison.evaluate(model, images, labels)
    options = {"epochs": 2, "batch_size": 64}
    first = depoison.purify(model, *digits(CLEAN), "fst", mean=mean, std=std, **options)
    second = depoison.purify(Inside(), *digits(CLEAN), "fst", **options)
    for key, tensor in first.state_dict().items():
        assert torch.allclose(tensor, second.model.state_dict()[key], atol=1e-5), key


def _defenses() -> list[str]:
    from depoison.api import _plan, _purifies

    return [name for name in _plan().configuration.names("defense") if _purifies(name)]


def test_all_defenses_that_purify_do_and_the_page_names_them():
    purifying = "anp awm clp f-sft fe-tuning fp fst ft ft-init ft-sam i-bau l2 lp mcr nad nc nft ngf rnp sft"
    assert _defenses() == purifying.split()
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    named = page.split("`purify` takes each defense that purifies a model by clean images (")[1].split(")")[0]
    assert sorted(re.findall("`(.+?)`", named)) == _defenses()


@pytest.mark.parametrize("defense", _defenses())
def test_each_defense_leaves_a_model_of_the_same_kind(defense, backdoored):
    model, _ = backdoored
    images, labels = digits(CLEAN)
    few = {"nc": {"inversion_epochs": 2}, "nad": {"betas": [1, 1]}}.get(defense, {})
    if defense != "clp":  # which tunes nothing
        few |= {"epochs": 1, "batch_size": 32}
    purified = depoison.purify(model, images[:64], labels[:64], defense, **few)
    assert type(purified) is Small and [*purified.state_dict()] == [*model.state_dict()]
    assert all(parameter.requires_grad for parameter in purified.parameters())
    with torch.no_grad():
        assert purified(images[:2] / 255).isfinite().all()


def test_a_model_of_torchvision_is_purified():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1.requires_grad_(False)
    images, labels = digits(slice(0, 32))
    purified = depoison.purify(model, images, labels, "fst", epochs=1, batch_size=16)
    assert type(purified) is type(model) and not purified.conv1.weight.requires_grad
    assert not torch.equal(purified.fc.weight, model.fc.weight)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m, x, y: depoison.purify(m, x, y, "fstt"), r"unknown defense 'fstt'"),
        (lambda m, x, y: depoison.purify(m, x, y, "fst", alhpa=1), r"alhpa"),
        (lambda m, x, y: depoison.purify(m, x, y, "fst", alpha=-1), r"fst\+alpha: '-1' is not"),
        (lambda m, x, y: depoison.purify(m, x, y, "abl"), r"^abl does not purify a model by .+; valid: anp, awm, clp, "),
        (lambda m, x, y: depoison.purify(m, x, y, "none"), r"^none does not purify"),
        (lambda m, x, y: depoison.purify(m, x, y, "anp", select="oracle"), r"chooses by test data.*select='defender'"),
        (lambda m, x, y: depoison.purify(m, x.permute(0, 2, 3, 1), y), r"valid: \(N, C, H, W\).*permute\(0, 3, 1, 2\)"),
        (lambda m, x, y: depoison.purify(m, x / 255 - 0.5, y), r"^images from -0.5 to 0.5; valid: uint8, or floats"),
        (lambda m, x, y: depoison.purify(m, x.long(), y), r"^images of type torch.int64"),
        (lambda m, x, y: depoison.purify(m, x, y[:-1]), r"^labels: \(199,\) torch.int64; valid: \(200,\) integers"),
        (lambda m, x, y: depoison.purify(m, x, y + 1), r"^200 images; valid: .* labels below the model's 10 classes$"),
        (lambda m, x, y: depoison.purify(m, x, y, mean=[0.5]), r"^mean or std of 1 channels, and the images have 3$"),
        (lambda m, x, y: depoison.evaluate(m, x, y, mean=0.5), r"^mean: 0.5; valid: 3 numbers, one for each channel$"),
        (lambda m, x, y: depoison.evaluate(m, x, y, std=["a"] * 3), r"^std: \['a', 'a', 'a'\]; valid: 3 numbers, one for "),
        (lambda m, x, y: depoison.evaluate(m, x[:0] / 255, y[:0]), r"^no images$"),
        (lambda m, x, y: depoison.purify(m, x[:0], y[:0]), r"^no images$"),
        (lambda m, x, y: depoison.purify(m, x, y, like="solids"), r"^like: solids is of points; valid: a dataset of image"),
        (lambda m, x, y: depoison.purify(m, x, y, like="solid"), r"unknown dataset 'solid'"),
        (lambda m, x, y: depoison.evaluate(m, x, y, trigger=lambda x: x, target=99),
         r"^target 99 is none of the model's 10 classes$"),
        (lambda m, x, y: depoison.poison(x, y, "badnet", classes=9), r"^classes: 9; valid: at least 10, as the labels go"),
        (lambda m, x, y: depoison.poison(x, y, "wanet"), r"^wanet does more than poison images; valid: adaptive-blend, "),
        (lambda m, x, y: depoison.poison(x, y, "ssba"), r"^ssba does more than poison images"),
        (lambda m, x, y: depoison.poison(x, y, "badnet&sig"), r"^badnet&sig does more than poison images; valid: adapt"),
        (lambda m, x, y: depoison.poison(x, y, "badnet", rate=2), r"badnet\+rate: '2' is not"),
        (lambda m, x, y: depoison.poison(x, y, "badnet", target=11), r"^target label 11 is none of the dataset's"),
        (lambda m, x, y: depoison.evaluate(m, x[y == 0], y[y == 0], trigger=lambda x: x), r"^all images have the label"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(call, told, backdoored):
    with pytest.raises(DepoisonError, match=told) as refused:
        call(backdoored[0], *digits(CLEAN))
    assert "\n" not in str(refused.value)


# --- cells and tables that were made -----------------------------------------------------------------------------


def test_a_cell_that_was_made(made, monkeypatch):
    monkeypatch.chdir(made.path)
    cell = depoison.cell("tiny/digits/resnet18/badnet+rate=0.1/lp/s0")
    evaluation = made.plan().cell(cell.path).evaluation
    written = json.loads((made / evaluation.product).read_text(encoding="utf-8"))
    assert cell.made and cell.metrics == written["metrics"] and repr(cell) == f"depoison.cell({cell.path!r})"
    assert cell.record["seconds"] > 0
    frame = cell.to_pandas()
    assert (
        frame.shape[0] == 1 and frame.at[0, "attack"] == "badnet+rate=0.1" and frame.at[0, "asr"] == cell.metrics["asr"]
    )
    model, images = cell.model(), load_tensors(made / evaluation.upstream["dataset"].product)
    hits = model(images["test_inputs"]).argmax(1) == images["test_labels"]
    assert 100 * hits.double().mean().item() == pytest.approx(cell.metrics["c_acc"])
    (made / evaluation.upstream["model"].product).unlink()
    with pytest.raises(
        DepoisonError, match=rf"is not here; `depoison share pull --models {re.escape(cell.path)}` fetches"
    ):
        cell.model()


def test_a_table_that_was_made(made, monkeypatch):
    monkeypatch.chdir(made.path)
    table = depoison.table("reports/tiny/small.md")
    assert [cell.made for cell in table.cells] == [True] * 4
    frame = table.to_pandas()
    ours = {
        (row.row, row.column): row.ours
        for row in frame[frame.metric == "asr"].itertuples()
        if row.row in ("BadNet", "Blended")
    }
    assert sorted(round(value, 9) for value in ours.values()) == sorted(round(c.metrics["asr"], 9) for c in table.cells)
    Path(made.plan().cell(table.cells[0].path).evaluation.product).unlink()
    assert not table.cells[0].made and table.to_pandas().ours.isna().any()
    with pytest.raises(DepoisonError, match=r"s0\.json was not made; `snakemake -- .*s0\.json` makes it$"):
        _ = table.cells[0].metrics


def test_cells_are_of_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DepoisonError, match=r"^config/config.yaml: missing; cells and tables are of the project in the"
    ):
        depoison.cell("tiny/digits/resnet18/badnet/lp/s0")


def test_importing_the_package_imports_no_torch():
    code = "import sys, depoison; assert 'torch' not in sys.modules; depoison.purify; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "workflow")})
    assert np.all([hasattr(depoison, name) for name in depoison.__all__])
    with pytest.raises(AttributeError, match="no attribute 'purifi'"):
        depoison.purifi  # noqa: B018


def test_images_are_a_task():
    assert IMAGES.inputs == "images"
