"""Sources of point clouds."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from depoison import data
from depoison.data import modelnet40, solids
from depoison.data._clouds import normalized, turned
from depoison.errors import DepoisonError


def test_a_cloud_is_centered_and_reaches_distance_one():
    clouds = normalized(5 + 3 * torch.rand(4, 50, 3))
    assert torch.allclose(clouds.mean(1), torch.zeros(4, 3), atol=1e-5)
    assert torch.allclose(clouds.norm(dim=2).amax(1), torch.ones(4))


def test_clouds_are_turned_each_by_its_angle_about_an_axis():
    clouds = torch.tensor([[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]])
    quarter = torch.tensor([torch.pi / 2, 0.0])
    for axis, there in enumerate(([1.0, -3.0, 2.0], [3.0, 2.0, -1.0], [-2.0, 1.0, 3.0])):
        assert torch.allclose(turned(clouds, quarter, axis), torch.tensor([[there], [[1.0, 2.0, 3.0]]]), atol=1e-6)
    assert torch.equal(turned(clouds, quarter), turned(clouds, quarter, 1))


# --- solids --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fewer(monkeypatch) -> None:
    monkeypatch.setattr(solids, "TRAIN", 3)
    monkeypatch.setattr(solids, "TEST", 2)


def test_solids_are_made_from_a_seed_and_no_test_cloud_is_a_training_cloud(fewer):
    first, again = (data.load("solids", root=None, cache="unused", size=100) for _ in range(2))
    assert first.checksum == again.checksum
    kinds = len(first.classes)
    assert kinds >= 10
    assert first.train_inputs.shape == (3 * kinds, 100, 3) and first.test_inputs.shape == (2 * kinds, 100, 3)
    assert first.train_inputs.dtype == torch.float32
    assert first.train_labels.bincount().tolist() == [3] * kinds
    everything = torch.cat([first.train_inputs, first.test_inputs])
    assert len(everything.view(len(everything), -1).unique(dim=0)) == len(everything)
    assert torch.allclose(everything.norm(dim=2).amax(1), torch.ones(len(everything)))


def test_solids_are_made_and_not_read(tmp_path):
    with pytest.raises(DepoisonError, match=r"^dataset source solids: root is .*; valid: none"):
        data.load("solids", root=tmp_path, cache="unused", size=100)


def middle(low: float, high: float) -> float:
    return (low + high) / 2


EQUATIONS = {
    "ball": lambda x, y, z: (x**2 + y**2 + z**2).sqrt() - 1,
    "box": lambda x, y, z: torch.maximum(torch.maximum(x.abs(), y.abs()), z.abs()) - 1,
    "capsule": lambda x, y, z: (x**2 + z**2 + (y.abs() - 0.9).clamp(min=0) ** 2).sqrt() - 0.6,
    "cone": lambda x, y, z: torch.minimum((1 + y).abs(), ((x**2 + z**2).sqrt() - (1 - y) / 2).abs()),
    "cylinder": lambda x, y, z: torch.maximum((x**2 + z**2).sqrt(), y.abs()) - 1,
    "dome": lambda x, y, z: torch.minimum(y.abs(), ((x**2 + y**2 + z**2).sqrt() - 1).abs()),
    "hourglass": lambda x, y, z: torch.minimum(1 - y.abs(), ((x**2 + z**2).sqrt() - (0.2 + 0.8 * y.abs())).abs()),
    "pyramid": lambda x, y, z: torch.minimum((1 + y).abs(), (torch.maximum(x.abs(), z.abs()) - (1 - y) / 2).abs()),
    "torus": lambda x, y, z: (((x**2 + z**2).sqrt() - 1) ** 2 + y**2).sqrt() - 0.3,
}  # fmt: skip


@pytest.mark.parametrize("name", EQUATIONS)
def test_points_lie_on_the_surface_that_an_equation_tells(name):
    """Up to what the corners of a polygon cut from a circle."""
    corners, triangles = solids.SOLIDS[name](middle)
    points = solids.sampled(corners, triangles, 2000, torch.Generator().manual_seed(0))
    assert EQUATIONS[name](*points.unbind(1)).abs().max() < 0.012


def test_every_place_of_a_surface_is_as_likely():
    """Of a prism with a lid half as wide, and of a cone, in shares of the area."""
    corners, triangles = solids.extruded(solids.line((-1, -1), (1, -1), (1, 1), (-1, 1)), 1.0)
    points = solids.sampled(corners, triangles, 60_000, torch.Generator().manual_seed(0))
    for axis in range(3):
        for end in (-1, 1):
            assert abs((points[:, axis] - end).abs().lt(1e-6).float().mean() - 1 / 6) < 0.01
    low = points[points[:, 1] == -1]
    assert abs(((low[:, 0] < 0) & (low[:, 2] < 0)).float().mean() - 1 / 4) < 0.02
    corners, triangles = solids.SOLIDS["cone"](middle)
    points = solids.sampled(corners, triangles, 60_000, torch.Generator().manual_seed(0))
    assert abs((points[:, 1] == -1).float().mean() - 1 / (1 + 5**0.5)) < 0.01


# --- ModelNet40 ----------------------------------------------------------------------------------------------------

KINDS = ["night_stand", "chair"]
FOLDER = "modelnet40_normal_resampled"


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A copy of two classes, three training and two test clouds, of six lines each."""
    monkeypatch.setattr(modelnet40, "CLASSES", 2)
    monkeypatch.setattr(modelnet40, "CLOUDS", {"train": 3, "test": 2})
    lists = {"train": ["night_stand_0001", "chair_0001", "chair_0002"], "test": ["chair_0003", "night_stand_0002"]}
    top = tmp_path / FOLDER
    top.mkdir()
    (top / "modelnet40_shape_names.txt").write_text("".join(f"{kind}\n" for kind in KINDS))
    for split, names in lists.items():
        (top / f"modelnet40_{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            folder = top / name.rpartition("_")[0]
            folder.mkdir(exist_ok=True)
            number = int(name[-1])
            (folder / f"{name}.txt").write_text("".join(f"{k},{number * k % 5},{k * k},0,0,1\n" for k in range(6)))
    return tmp_path


def test_modelnet40_is_read_in_its_official_split(small):
    found = data.load("modelnet40", root=small, cache="unused", size=4)
    assert found.classes == KINDS
    assert found.train_labels.tolist() == [0, 1, 1] and found.test_labels.tolist() == [1, 0]
    first = torch.tensor([[k, k % 5, k * k] for k in range(4)], dtype=torch.float32)  # the first four points of six
    first = first - first.mean(0)
    assert torch.allclose(found.train_inputs[0], first / first.norm(dim=1).max())


def test_an_archive_reads_as_its_folder(small):
    folder = data.load("modelnet40", root=small, cache="unused", size=6)
    with zipfile.ZipFile(small / f"{FOLDER}.zip", "w") as archive:
        for path in sorted((small / FOLDER).rglob("*.txt")):
            archive.write(path, path.relative_to(small))
    shutil.rmtree(small / FOLDER)
    assert data.load("modelnet40", root=small, cache="unused", size=6).checksum == folder.checksum


def test_modelnet40_is_not_downloaded():
    with pytest.raises(DepoisonError, match=r"modelnet40: no root given; download https://.*\.zip, .* set root to it$"):
        data.load("modelnet40", root=None, cache="unused", size=4)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda top: (top / "modelnet40_train.txt").write_text("chair_0001\n"), "1 clouds of 1 classes; valid: 3"),
        (lambda top: (top / "modelnet40_shape_names.txt").write_text("chair\n"), "1 classes; valid: 2"),
        (lambda top: (top / "chair/chair_0002.txt").unlink(), "chair_0002.txt is missing"),
        (lambda top: (top / "chair/chair_0002.txt").write_text("0,0,0\n1,2,x\n"), "chair_0002.txt: no cloud of lines"),
        (lambda top: (top / "chair/chair_0002.txt").write_text("0,0,0\n1,2,3\n"), "(2 points; valid: at least 4"),
        (lambda top: (top / "chair/chair_0002.txt").write_text("0,0,nan\n" * 6), "each of finite numbers"),
        (lambda top: shutil.rmtree(top), "holds neither modelnet40_normal_resampled.zip nor"),
    ],
)
def test_a_damaged_copy_is_refused_in_one_line(damage, says, small):
    damage(small / FOLDER)
    with pytest.raises(DepoisonError, match=re.escape(says)) as error:
        data.load("modelnet40", root=small, cache="unused", size=4)
    assert "\n" not in str(error.value)
