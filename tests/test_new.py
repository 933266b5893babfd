"""`depoison new`: what it writes is what the images are, and passes as it is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import save_file

from conftest import Project, cell, lean
from depoison.cli import main
from depoison.data import arrays, imagefolder
from depoison.errors import DepoisonError
from depoison.new import new_dataset
from depoison.papers.check import check

RNG = np.random.default_rng(0)


def photographs(root: Path, parts: dict[str, int], size: tuple[int, int] = (20, 24)) -> Path:
    """Images of three classes, each of a gray value of its own, with noise."""
    for part, count in parts.items():
        for value, name in ((40, "ape"), (120, "bee"), (200, "cat")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(value + RNG.integers(-30, 30, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i:03}.png")
    return root


@pytest.mark.parametrize(
    ("parts", "train", "test"),
    [({"train": 20, "test": 10}, 60, 30), ({"train": 20}, 48, 12), ({"": 20}, 48, 12)],
)
def test_a_folder(parts, train, test, project: Project, tmp_path, capsys, monkeypatch):
    folder = photographs(tmp_path / "photos", parts)
    monkeypatch.chdir(project.path)
    assert main(["new", "dataset", str(folder), "--name", "my-photos"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(
        f"{train} training and {test} test images in 3 classes, {train // 3} to {train // 3} of one in"
    )
    assert ("20% of each class is set aside" in told) == ("test" not in parts) and "at 20 x 20 pixels" in told
    content = yaml.safe_load((project / "config/datasets/my-photos.yaml").read_text(encoding="utf-8"))
    assert (content["train_samples"], content["classes"]) == (train, 3)
    assert content["values"]["root"] == str(folder) and content["values"]["mean"] == pytest.approx([0.47] * 3, abs=0.02)
    for name in re.findall(r"results/\S+", told):
        assert project.plan().cell(name).evaluation.stage == "evaluate"
    assert "11 datasets" in check(lean(project).plan())
    assert main(["new", "dataset", str(folder), "--name", "my-photos"]) == 1
    assert "config/datasets/my-photos.yaml is there; choose another name" in capsys.readouterr().err


@pytest.mark.pipeline
def test_a_cell_of_it(tiny: Project, tmp_path):
    folder = photographs(tmp_path / "photos", {"": 40})
    new_dataset(tiny.plan(), folder, "mine", 8)
    name = cell(track="tiny", dataset="mine", attack="badnet+rate=0.1", defense="fst")
    done = tiny.depoison("run", name)
    assert done.returncode == 0, done.stderr
    (folder / "bee/000.png").unlink()
    told = tiny.depoison("run", cell(track="tiny", dataset="mine", attack="badnet+rate=0.1", defense="lp")).stderr
    assert f"depoison: error: {folder}/bee: changed since results/dataset/mine-" in told


def test_what_is_set_aside_is_the_same_each_time_and_disjoint(tmp_path):
    folder = photographs(tmp_path, {"": 10})
    whole = imagefolder.load(root=folder, cache=tmp_path, size=8, test=0.3)
    again = imagefolder.load(root=folder, cache=tmp_path, size=8, test=0.3)
    assert whole.checksum == again.checksum and (len(whole.train_labels), len(whole.test_labels)) == (21, 9)
    images = torch.cat([whole.train_inputs, whole.test_inputs]).flatten(1)
    assert len(images.unique(dim=0)) == 30
    assert whole.test_labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 and whole.classes == ["ape", "bee", "cat"]


def stacked(count: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % 4


@pytest.mark.parametrize("shape", [(12, 12), (12, 12, 1), (12, 12, 3), (3, 12, 12), (1, 12, 12)])
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_arrays(shape, suffix, project: Project, tmp_path):
    images, labels = stacked(80, shape)
    (np.savez if suffix == "npz" else lambda path, **held: save_file(held, path))(
        tmp_path / f"a.{suffix}", images=images, labels=labels
    )
    told = new_dataset(project.plan(), tmp_path / f"a.{suffix}", "stack")
    assert told.startswith(
        "64 training and 16 test images in 4 classes, 16 to 16 of one in training, at 12 x 12 pixels\n"
    )
    found = arrays.load(root=tmp_path / f"a.{suffix}", cache=tmp_path, size=12, test=0.2)
    first = images[:, None] if len(shape) == 2 else images if shape[0] in (1, 3) else images.transpose(0, 3, 1, 2)
    expected = {tuple(image.ravel()) for image in np.broadcast_to(first, (80, 3, 12, 12))}
    assert {tuple(image.flatten().tolist()) for image in torch.cat([found.train_inputs, found.test_inputs])} == expected


def test_arrays_with_a_test_set(project: Project, tmp_path):
    images, labels = stacked(40, (3, 12, 12))
    whole = {
        "train_images": images[:30],
        "train_labels": labels[:30],
        "test_images": images[30:],
        "test_labels": labels[30:],
    }
    np.savez(tmp_path / "whole.npz", **whole)
    assert new_dataset(project.plan(), tmp_path / "whole.npz", "whole").startswith("30 training and 10 test images")
    found = arrays.load(root=tmp_path / "whole.npz", cache=tmp_path, size=12)
    assert np.array_equal(found.test_inputs.numpy(), images[30:]) and found.classes == ["0", "1", "2", "3"]
    with pytest.raises(
        DepoisonError, match=r"whole.npz: has a test set, so no part can be set aside for one; valid: test"
    ):
        arrays.load(root=tmp_path / "whole.npz", cache=tmp_path, size=12, test=0.2)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"x": np.zeros(3)}, r"a.npz: no images, but x; valid: train_images, train_labels, test_images, test_labels, or im"),
        ({"images": np.zeros((4, 8, 8)), "labels": np.arange(4)}, r"images is float64 \(4, 8, 8\); valid: uint8, \(N, H"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.ones(4)}, r"labels is float64 \(4,\); valid: \(N,\) int"),
        ({"images": np.zeros((4, 2, 8, 8), np.uint8), "labels": np.arange(4)}, r"images is uint8 \(4, .*with 1 or 3 ch"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.array([{}] * 4)}, r"a.npz: no .npz or .safetensors"),
    ],
)  # fmt: skip
def test_arrays_that_are_none(held, told, project, tmp_path):
    np.savez(tmp_path / "a.npz", **held)
    with pytest.raises(DepoisonError, match=told) as refused:
        new_dataset(project.plan(), tmp_path / "a.npz", "mine")
    assert "\n" not in str(refused.value) and not (project / "config/datasets/mine.yaml").exists()


def test_names_and_paths_that_are_none(project, tmp_path):
    folder = photographs(tmp_path / "photos", {"train": 2, "test": 2})
    for name in ("My-Photos", "a/b", "a--b", "../x", ""):
        with pytest.raises(DepoisonError, match="is no name; valid: lower-case letters, digits and single hyphens"):
            new_dataset(project.plan(), folder, name)
    with pytest.raises(DepoisonError, match="gone: no folder of images, and no .npz or .safetensors file$"):
        new_dataset(project.plan(), tmp_path / "gone", "mine")
    with pytest.raises(DepoisonError, match=r"has a folder test/, so no part can be set aside"):
        imagefolder.load(root=folder, cache=tmp_path, size=8, test=0.2)
    (tmp_path / "one/ape").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "one/ape/0.png")
    with pytest.raises(DepoisonError, match="ape: 1 image; valid: at least 2, one of them to test on$"):
        new_dataset(project.plan(), tmp_path / "one", "mine")


@pytest.mark.parametrize("name", ["photos #1", "a: b", "'x", "null"])
def test_a_path_is_read_as_it_is(name, project: Project, tmp_path):
    """After ` #` YAML has a comment: without quotes another folder were meant, which may be there."""
    folder = photographs(tmp_path / name, {"train": 2, "test": 2})
    new_dataset(project.plan(), folder, "2024", 8)
    content = yaml.safe_load((project / "config/datasets/2024.yaml").read_text(encoding="utf-8"))
    assert content["values"]["root"] == content["source"] == str(folder) and content["label"] == "2024"
    assert content["summary"] == f"6 images in 3 classes, from {folder}"
    target = cell(track="demo", dataset="2024", attack="badnet", defense="fst")
    assert project.plan().cell(target).settings["dataset"]["root"][-1].value == str(folder)


def test_what_needs_no_quotes_has_none(project: Project, tmp_path):
    new_dataset(project.plan(), photographs(tmp_path / "x", {"train": 2, "test": 2}), "mine", 8)
    assert f"\n  root: {tmp_path}/x      # only read" in (project / "config/datasets/mine.yaml").read_text(
        encoding="utf-8"
    )
