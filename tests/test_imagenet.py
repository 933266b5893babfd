"""ImageNet from a folder, and sets that are too large for memory: mapped from files, to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from conftest import ROOT, cell
from depoison import artifacts, data, files
from depoison.artifacts import load_arrays, load_tensors
from depoison.data._images import cropped
from depoison.data._large import empty, taken
from depoison.errors import DepoisonError
from depoison.files import save_tensors, sha256_of, write_json
from depoison.plan.folders import require_root, require_unchanged
from depoison.plan.plan import Plan
from depoison.stages.runner import run_stage
from depoison.tasks.image import ImageBatches
from small import classes_of, pixels, recipe

WNIDS = ("n01440764", "n01443537", "n01484850")
RNG = np.random.default_rng(3)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Three classes of eight training and four validation photographs, which are neither square nor equally large."""
    root = tmp_path / "ilsvrc"
    for part, count in (("train", 8), ("val", 4)):
        for number, wnid in enumerate(WNIDS):
            (root / part / wnid).mkdir(parents=True)
            for n in range(count):
                shape = (24 + 3 * n, 30 + 5 * number, 3)
                shade = (60 * number + RNG.integers(0, 60, shape)).astype(np.uint8)
                Image.fromarray(shade).save(root / part / wnid / f"ILSVRC_{n}.JPEG")
    return root


def all_from(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take tensors from this many bytes on for too large for memory."""
    for module in (files, artifacts):
        monkeypatch.setattr(module, "LARGE", size)


@pytest.fixture
def everything_is_large(monkeypatch):
    all_from(0, monkeypatch)


# --- the source --------------------------------------------------------------------------------------------------


def test_the_images_are_those_of_torchvisions_usual_preparation(imagenet, tmp_path):
    found = data.load("imagenet", root=imagenet, cache=tmp_path / "cache", size=14)
    assert found.classes == list(WNIDS) and not (tmp_path / "cache").exists()
    assert found.train_labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert found.test_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    usual = Compose([Resize(16), CenterCrop(14)])
    for part, images in (("train", found.train_inputs), ("val", found.test_inputs)):
        paths = [path for wnid in WNIDS for path in sorted((imagenet / part / wnid).iterdir())]
        expected = np.stack([np.asarray(usual(Image.open(path))).transpose(2, 0, 1) for path in paths])
        assert np.array_equal(images.numpy(), expected)


@pytest.mark.parametrize("sides", [(500, 375), (375, 500), (256, 256), (1000, 333), (90, 97), (224, 300)])
def test_the_middle_of_a_photograph_is_torchvisions_at_224_px(sides):
    image = Image.fromarray(RNG.integers(0, 256, (sides[1], sides[0], 3), dtype=np.uint8))
    expected = CenterCrop(224)(Resize(256)(image))
    assert np.array_equal(np.asarray(cropped(image, 224)), np.asarray(expected))


def test_the_first_classes_are_those_by_sorted_wnid(imagenet, tmp_path):
    some = data.load("imagenet", root=imagenet, cache=tmp_path, size=8, classes=2)
    whole = data.load("imagenet", root=imagenet, cache=tmp_path, size=8)
    assert some.classes == list(WNIDS[:2]) and torch.equal(some.train_inputs, whole.train_inputs[:16])
    with pytest.raises(DepoisonError) as error:
        data.load("imagenet", root=imagenet, cache=tmp_path, size=8, classes=12)
    assert str(error.value) == f"{imagenet}/train: 3 classes; valid: at least 12"


def test_what_is_missing_is_named_in_a_line(imagenet, tmp_path):
    layout = "expected train/<class>/* and val/<class>/*"

    def told(root: Path | None) -> str:
        with pytest.raises(DepoisonError) as error:
            data.load("imagenet", root=root, cache=tmp_path, size=8)
        return str(error.value)

    assert told(None) == f"dataset source imagenet: no root given; set `root` of the dataset: {layout} below it"
    assert told(tmp_path / "x") == f"{tmp_path}/x: no such folder; {layout} below {tmp_path}/x"
    (imagenet / "val/n01440764").rename(imagenet / "val/n99999999")
    assert told(imagenet) == (
        f"{imagenet}: train and val must have the same classes; only in train: n01440764; only in val: n99999999"
    )


# --- in a plan ---------------------------------------------------------------------------------------------------


def dataset_of(overlay: dict, tmp_path: Path, name: str = "imagenet"):
    (file := tmp_path / "mine.yaml").write_text(json.dumps({"datasets": {name: overlay}}))
    plan = Plan(ROOT, [file])
    found = plan.cell(cell(track="paper", dataset=name, attack="none", defense="none")).evaluation
    return plan, next(artifact for artifact in found.chain().values() if artifact.stage == "dataset")


@pytest.mark.parametrize(("name", "options"), [("imagenet", {}), ("imagenet-12", {"classes": 12})])
def test_the_datasets_of_the_papers(name, options, tmp_path):
    plan, dataset = dataset_of({"root": "/ilsvrc"}, tmp_path, name)
    parameters = dataset.spec["parameters"]
    assert (parameters["source"], parameters["size"], parameters["root"]) == ("imagenet", 224, "/ilsvrc")
    assert parameters["options"] == options
    for model in ("resnet34", "resnet50", "densenet121", "googlenet"):
        trained = plan.cell(cell(track="paper", dataset=name, model=model, attack="none", defense="none"))
        assert trained.evaluation.upstream["backdoored"].spec["parameters"]["model"]["parameters"]["stem"] == "large"
    vit = plan.cell(cell(track="paper", dataset=name, model="vit-s", attack="none", defense="none")).evaluation
    shape = vit.upstream["backdoored"].spec["parameters"]["model"]["parameters"]
    assert (shape["size"], shape["patch"]) == (224, 16)


def test_a_folder_that_is_not_there_is_refused_before_anything_is_made(imagenet, tmp_path):
    _, dataset = dataset_of({"root": str(imagenet)}, tmp_path)
    require_root(dataset, str(imagenet))
    (imagenet / "val").rename(imagenet / "test")
    with pytest.raises(DepoisonError) as error:
        require_root(dataset, str(imagenet))
    layout = "expected train/<class>/* and val/<class>/* below it"
    told = f"{imagenet}/val: no such folder or file; {imagenet} is the root of dataset imagenet; {layout}"
    assert str(error.value) == told


def made(root: Path, tmp_path: Path, monkeypatch):
    """A cell of the small ImageNet under LP, made here."""
    overlay = tmp_path / "mine.yaml"
    few = {"epochs": 1, "batch_size": 4, "crop": 2, "precision": "fp32", "rotation": 5, "rotation_probability": 0.5}
    own = {"root": str(root), "size": 16, "reserve": 0.2}
    overlay.write_text(json.dumps({"datasets": {"imagenet": own}, "training": few, "tuning": few}))
    plan = Plan(ROOT, [overlay])
    chosen = {"dataset": "imagenet", "model": "resnet18+width=8", "attack": "badnet+rate=0.2", "defense": "lp"}
    chain = plan.cell(cell(track="paper", **chosen)).evaluation.chain().values()
    (here := tmp_path / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    for artifact in chain:
        copy = plan.local_copies.get(artifact.directory)
        run_stage(artifact.spec, artifact.directory, plan.configuration.config.runtime, copy)
    return {artifact.stage: artifact for artifact in chain}


def test_a_cell_of_a_set_too_large_for_memory_is_that_of_one_in_memory(imagenet, tmp_path, monkeypatch):
    def contents() -> dict[str, bytes]:
        found = made(imagenet, tmp_path, monkeypatch)
        return {stage: Path(artifact.product).read_bytes() for stage, artifact in found.items() if stage != "evaluate"}

    expected = contents()
    (tmp_path / "here").rename(tmp_path / "in-memory")
    all_from(0, monkeypatch)
    assert contents() == expected and len(expected) >= 5
    assert not list((tmp_path / "here").rglob(".large-*"))


def test_a_folder_that_changed_is_noticed(imagenet, tmp_path, monkeypatch):
    dataset = made(imagenet, tmp_path, monkeypatch)["dataset"]
    assert require_unchanged(dataset, str(imagenet)) == ""
    (imagenet / "val/n01440764/ILSVRC_0.JPEG").unlink()
    with pytest.raises(DepoisonError, match="val/n01440764: changed since"):
        require_unchanged(dataset, str(imagenet))


# --- tensors in files --------------------------------------------------------------------------------------------


def test_a_large_file_is_the_same_and_is_mapped(tmp_path, monkeypatch):
    tensors = {"b": pixels(6), "a": torch.arange(5), "c": torch.rand(3, 4).t()}
    paths = [tmp_path / name / "x.safetensors" for name in ("small", "large")]
    for path, least in zip(paths, (files.LARGE, 0), strict=True):
        path.parent.mkdir()
        all_from(least, monkeypatch)
        save_tensors(path, tensors)
        write_json(path.with_name("run.json"), {"sha256": {path.name: sha256_of(path)}})
        assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []
        for load in (
            load_tensors,
            lambda path: load_arrays(path, {"a": "int64 n", "b": "uint8 N 3 H W", "c": "float32 4 3"}),
        ):
            found = load(path)
            assert found.keys() == tensors.keys()
            assert all(np.array_equal(np.asarray(found[name]), tensors[name].numpy()) for name in tensors)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    content = bytearray(paths[1].read_bytes())
    content[-1] ^= 1
    paths[1].write_bytes(content)
    with pytest.raises(DepoisonError, match=r"x.safetensors: corrupted \(its sha256 is not the one in run.json\)"):
        load_tensors(paths[1])


def test_a_large_tensor_is_in_a_file_without_a_name(tmp_path, everything_is_large):
    found = empty((5, 3), torch.uint8, tmp_path / "new")
    found.copy_(torch.arange(15).view(5, 3))
    assert list((tmp_path / "new").iterdir()) == []
    assert "(deleted)" in Path("/proc/self/maps").read_text() and str(tmp_path) in Path("/proc/self/maps").read_text()
    assert taken(found, torch.tensor([4, 0]), tmp_path).tolist() == [[12, 13, 14], [0, 1, 2]]


def test_a_large_tensor_that_the_disk_has_no_room_for_is_an_error_at_once(tmp_path, everything_is_large):
    with pytest.raises(OSError, match="(?i)space|large"):
        empty((1 << 55,), torch.uint8, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "augmented",
    [{}, {"crop": 2, "crop_probability": 0.7, "flip": 0.5}, {"rotation": 20.0, "rotation_probability": 0.5}],
)
def test_batches_of_a_large_set_are_those_of_a_small_one(augmented, monkeypatch):
    def batches() -> list[torch.Tensor]:
        settings = recipe(batch_size=7, **augmented)
        source = ImageBatches(pixels(20), classes_of(20), settings, torch.device("cpu"))
        return [part for batch in source.epoch(settings, torch.Generator().manual_seed(1)) for part in batch]

    expected = batches()
    monkeypatch.setattr(files, "LARGE", 0)
    assert all(torch.equal(*both) for both in zip(batches(), expected, strict=True))
