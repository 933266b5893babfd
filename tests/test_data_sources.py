"""The dataset sources, on tiny archives and folders in the published layouts."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tomllib
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from depoison import data
from depoison.data import _archive, _cifar, cifar10, cifar100, digits, fashion_mnist, gtsrb, tiny_imagenet
from depoison.data._images import decode, limit
from depoison.data.dataset import Samples, checksum, samples
from depoison.errors import DepoisonError

RNG = np.random.default_rng(0)


def picture(width: int, height: int | None = None) -> np.ndarray:
    return RNG.integers(0, 256, (height or width, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "webp" else {}))
    return buffer.getvalue()


def chw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def write_all(files: dict[str, bytes], root: Path) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def write_zip(files: dict[str, bytes], path: Path) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return md5(path.read_bytes())


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


def tree(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}


def message(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def load(source: str, root: Path | None, size: int, **options) -> Samples:
    cache = Path("/nonexistent/cache")  # a source that has its files must not touch the cache
    return data.load(source, root=root, cache=cache, size=size, **options)


# --- the package -------------------------------------------------------------------------------------------------


def test_the_sources():
    assert set(data.SOURCES) >= {
        "digits",
        "fashion-mnist",
        "imagefolder",
        "cifar10",
        "cifar100",
        "gtsrb",
        "tiny-imagenet",
    }
    assert not {"dataset", "download"} & set(data.SOURCES)


def test_unknown_source_suggests_the_nearest(tmp_path):
    with pytest.raises(DepoisonError, match="unknown dataset source 'cifar-10'; did you mean 'cifar10'?"):
        data.load("cifar-10", root=None, cache=tmp_path, size=32)


def test_unknown_option_suggests_the_nearest(tmp_path):
    with pytest.raises(DepoisonError, match="did you mean 'edition'?"):
        data.load("gtsrb", root=None, cache=tmp_path, size=32, editon="final")


@pytest.mark.parametrize("size", [0, -1, 32.0, "32", True])
def test_a_size_that_is_none(tmp_path, size):
    with pytest.raises(DepoisonError, match="size"):
        data.load("digits", root=None, cache=tmp_path, size=size)


def test_importing_the_package_imports_no_torch_and_cifar10_no_torchvision():
    code = (
        "import sys, depoison.data; assert not {'torch', 'numpy', 'requests', 'sklearn'} & set(sys.modules);"
        "import depoison.data.cifar10; assert not {'torchvision', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path(data.__file__).parents[2])})


def test_a_new_source_is_one_new_file(tmp_path):
    package = Path(data.__file__).parents[1]
    shutil.copytree(package / "data", tmp_path / "depoison/data")
    for name in ("__init__.py", "errors.py"):
        shutil.copy(package / name, tmp_path / "depoison" / name)
    (tmp_path / "depoison/data/my_set.py").write_text(
        "import torch\n"
        "from depoison.data.dataset import samples\n"
        "def load(*, root, cache, size, last=1):\n"
        "    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)\n"
        "    labels = torch.tensor([0, last])\n"
        "    return samples(images, labels, images, labels, classes=['a', 'b'], source='my-set')\n"
    )
    code = """
from depoison.data import load
from depoison.errors import DepoisonError
print(load("my-set", root=None, cache="unused", size=4).train_labels.tolist())
for wrong in ({"last": 2}, {"lats": 2}):
    try:
        load("my-set", root=None, cache="unused", size=4, **wrong)
    except DepoisonError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "[0, 1]",
        "depoison/data/my_set.py: dataset source my-set: train_labels are in 0..2; valid: 0..1, 2 classes",
        "unknown option of dataset source my-set 'lats'; did you mean 'last'? valid: last",
    ], done.stderr


# --- Samples ---------------------------------------------------------------------------------------------------


def small(**changes) -> Samples:
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 1])
    good = samples(images, labels, images, labels, classes=["a", "b"], source="test")
    good.validate()
    return dataclasses.replace(good, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"train_inputs": torch.zeros(3, 3, 4, 4)},
            r"are torch.uint8 \(3, 4, 4\); valid: torch.float32 \(3, 4, 4\), as",
        ),
        ({"test_labels": torch.zeros(3, dtype=torch.int32)}, "test_labels are torch.int32; valid: torch.int64"),
        ({"train_labels": torch.tensor([0, 1])}, r"train_labels have shape \(2,\); valid: \(3,\)"),
        ({"train_labels": torch.tensor([0, 1, 2])}, r"train_labels are in 0..2; valid: 0..1"),
        ({"test_labels": torch.tensor([0, -1, 1])}, r"test_labels are in -1..1; valid: 0..1"),
        ({"test_inputs": torch.zeros(0, 3, 4, 4, dtype=torch.uint8)}, "test_inputs are empty"),
        (
            {"test_inputs": torch.zeros(3, 1, 4, 4, dtype=torch.uint8)},
            r"\(1, 4, 4\); valid: torch.uint8 \(3, 4, 4\), as",
        ),
        ({"test_inputs": torch.zeros(3, 4, 4, 3, dtype=torch.uint8).permute(0, 3, 1, 2)}, "not contiguous"),
        ({"classes": []}, "labels are in 0..1"),
    ],
)
def test_validate(changes, says):
    with pytest.raises(DepoisonError, match=says) as error:
        small(**changes).validate()
    assert message(error).startswith("dataset source test: ")


def test_checksum_depends_on_bytes_shapes_and_order_only():
    a, b = torch.arange(12, dtype=torch.uint8), torch.arange(3)
    assert checksum(a, b) == checksum(a.clone(), b.clone())
    assert checksum(a.reshape(3, 4).t().contiguous().t(), b) == checksum(
        a.reshape(3, 4), b
    )  # memory format is not data
    different = [(a, b), (b, a), (a.reshape(3, 4), b), (a.reshape(4, 3), b), (a + 1, b), (a, b + 1), (a, b.int())]
    assert len({checksum(*tensors) for tensors in different}) == len(different)


# --- digits ------------------------------------------------------------------------------------------------------


def test_digits():
    loaded = load("digits", None, 32)
    assert loaded.train_inputs.shape == (1438, 3, 32, 32) and loaded.test_inputs.shape == (359, 3, 32, 32)
    assert loaded.classes == list("0123456789")
    counts = np.bincount(load_digits().target)
    assert loaded.test_labels.bincount().tolist() == [round(count / 5) for count in counts]
    assert (loaded.train_labels.bincount() + loaded.test_labels.bincount()).tolist() == counts.tolist()
    for images in (loaded.train_inputs, loaded.test_inputs):
        assert images.min() == 0 and images.max() == 255
        assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    assert (
        load("digits", None, 32).checksum
        == loaded.checksum
        == checksum(loaded.train_inputs, loaded.train_labels, loaded.test_inputs, loaded.test_labels)
    )


def test_digits_split_uses_each_image_once_and_never_changes():
    labels = torch.from_numpy(load_digits().target)
    train, test = digits._split(labels)
    assert sorted(train.tolist() + test.tolist()) == list(range(1797))
    assert test[:8].tolist() == [0, 1, 9, 13, 20, 40, 41, 44]  # other numbers are another dataset


def test_digits_at_their_own_size_are_the_scans():
    scans, target = load_digits(return_X_y=True)
    loaded = load("digits", None, 8)
    train, test = digits._split(torch.from_numpy(target))
    for index, images, labels in (
        (train, loaded.train_inputs, loaded.train_labels),
        (test, loaded.test_inputs, loaded.test_labels),
    ):
        exact = scans[index] * 255 / 16
        assert np.abs(images[:, 0].reshape(-1, 64).numpy() - exact).max() <= 0.5
        assert labels.tolist() == target[index].tolist()


def test_digits_are_enlarged_bilinearly():
    own, large = load("digits", None, 8).test_inputs, load("digits", None, 32).test_inputs
    reference = torch.nn.functional.interpolate(own.double(), size=32, mode="bilinear", align_corners=False)
    assert (large.double() - reference).abs().max() <= 1.0  # two roundings


def test_digits_have_no_root(tmp_path):
    with pytest.raises(DepoisonError, match="scikit-learn"):
        load("digits", tmp_path, 32)


# --- Fashion-MNIST -----------------------------------------------------------------------------------------------


def test_fashion_mnist():
    loaded = load("fashion-mnist", None, 28)
    assert loaded.train_inputs.shape == (9000, 3, 28, 28) and loaded.test_inputs.shape == (2000, 3, 28, 28)
    assert (
        loaded.train_labels.bincount().tolist() == [900] * 10 and loaded.test_labels.bincount().tolist() == [200] * 10
    )
    assert len(set(loaded.classes)) == 10
    for images in (loaded.train_inputs, loaded.test_inputs):
        assert images.min() == 0 and images.max() == 255
        assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])


def test_no_photograph_stands_twice():
    """Neither in one part nor in both: what is tested was not trained on."""
    loaded = load("fashion-mnist", None, 28)
    photographs = torch.cat([loaded.train_inputs, loaded.test_inputs])[:, 0]
    assert len({photograph.numpy().tobytes() for photograph in photographs}) == 11_000


def test_photographs_are_where_the_sheet_shows_them():
    """The last training and the first test image of the last class: tiles 900 and 901 of its 1,100, 110 in a row."""
    with Image.open(fashion_mnist.SHEET) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (100 * 28, 110 * 28)
    loaded = load("fashion-mnist", None, 28)
    for tile, found in ((899, loaded.train_inputs[-1]), (900, loaded.test_inputs[-200])):
        top, left = (90 + tile // 110) * 28, tile % 110 * 28
        assert np.array_equal(sheet[top : top + 28, left : left + 28], found[0])


def test_fashion_mnist_is_enlarged_bilinearly():
    own, large = load("fashion-mnist", None, 28).test_inputs[:50], load("fashion-mnist", None, 32).test_inputs[:50]
    reference = torch.nn.functional.interpolate(own.double(), size=32, mode="bilinear", align_corners=False)
    assert (large.double() - reference).abs().max() <= 1.0  # two roundings


def test_fashion_mnist_has_no_root(tmp_path):
    with pytest.raises(DepoisonError, match="the images come with the package"):
        load("fashion-mnist", tmp_path, 28)


def test_a_broken_sheet_is_named(tmp_path, monkeypatch):
    sheet = tmp_path / "sheet.png"
    monkeypatch.setattr(fashion_mnist, "SHEET", sheet)
    for content in (None, b"", b"no image"):
        if content is not None:
            sheet.write_bytes(content)
        with pytest.raises(DepoisonError, match=r"sheet\.png: not readable as an image"):
            load("fashion-mnist", None, 28)


def test_the_sheet_and_its_license_are_part_of_the_package():
    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    folder = fashion_mnist.SHEET.parents[1]
    shipped = {path for pattern in declared["depoison"] for path in folder.glob(pattern)}
    assert {fashion_mnist.SHEET, fashion_mnist.SHEET.with_suffix(".LICENSE")} <= shipped
    assert fashion_mnist.SHEET.stat().st_size < 6_000_000


# --- imagefolder -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, two training images and one test image each, 8 px."""
    for split, count in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            write_all({f"{split}/{name}/{n}.png": encoded(picture(8), "png") for n in range(count)}, tmp_path)
    return tmp_path


def test_imagefolder_keeps_every_pixel_in_the_order_of_names(tmp_path):
    kinds = {"b.PNG": "png", "a.bmp": "bmp", "c.webp": "webp", "d.ppm": "ppm", "10.png": "png", "9.png": "png"}
    pictures = {}
    for split in ("train", "test"):
        for name in ("zebra", "Ant", "bee"):
            for file, kind in kinds.items():
                pixels = pictures[split, name, file] = picture(8)
                write_all({f"{split}/{name}/{file}": encoded(pixels, kind)}, tmp_path)
    write_all(
        {
            "train/bee/notes.txt": b"x",
            "train/bee/.hidden.png": b"x",
            "train/bee/more/x.png": b"x",
            "train/.cache/x.png": b"x",
            "train/readme.png": b"x",
        },
        tmp_path,
    )
    before = tree(tmp_path)
    loaded = load("imagefolder", tmp_path, 8)
    assert loaded.classes == ["Ant", "bee", "zebra"]
    assert loaded.remarks == (f"{tmp_path}/train/bee: left out, for their names are no images': more, notes.txt",)
    order = ["10.png", "9.png", "a.bmp", "b.PNG", "c.webp", "d.ppm"]
    for split, images, labels in (
        ("train", loaded.train_inputs, loaded.train_labels),
        ("test", loaded.test_inputs, loaded.test_labels),
    ):
        assert torch.equal(images, torch.stack([chw(pictures[split, c, f]) for c in loaded.classes for f in order]))
        assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert tree(tmp_path) == before


def test_imagefolder_gives_the_same_with_one_thread_and_many(folder, monkeypatch):
    monkeypatch.setattr("depoison.data._images.CHUNK", 1)
    sums = []
    for threads in (1, 4):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        sums.append(load("imagefolder", folder, 8).checksum)
    assert sums[0] == sums[1]


def test_imagefolder_reads_jpeg_and_other_sizes_and_modes(folder):
    pixels = np.full((20, 12, 3), (200, 100, 50), np.uint8)
    gray = Image.fromarray(np.full((8, 8), 77, np.uint8))
    transparent = Image.fromarray(np.full((8, 8, 4), (1, 2, 3, 0), np.uint8))
    palette = Image.fromarray(np.full((8, 8, 3), (9, 8, 7), np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE)
    (folder / "train/cat/0.png").unlink()
    (folder / "train/cat/1.png").unlink()
    (folder / "train/cat/0.JPG").write_bytes(encoded(pixels, "jpeg"))
    (folder / "train/cat/1.jpeg").write_bytes(encoded(pixels, "jpeg"))
    gray.save(folder / "train/cat/2.png")
    transparent.save(folder / "train/cat/3.png")
    palette.save(folder / "train/cat/4.png")
    means = load("imagefolder", folder, 8).train_inputs[:5].double().mean((2, 3))
    expected = torch.tensor([[200, 100, 50], [200, 100, 50], [77, 77, 77], [1, 2, 3], [9, 8, 7]])
    assert (means - expected).abs().max() <= 2


def test_imagefolder_keeps_the_upper_8_of_16_bits(folder):
    gray = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(gray).save(folder / "train/cat/0.png")
    (folder / "train/cat/1.ppm").write_bytes(
        b"P5 8 8 65535\n" + gray.astype(">u2").tobytes()
    )  # PIL reads it as 32 bits
    (folder / "train/cat/1.png").unlink()
    for found in load("imagefolder", folder, 8).train_inputs[:2]:
        for channel in found.numpy():
            assert np.abs(channel - gray / 257).max() <= 0.5
        assert (found[0].min(), found[0].max()) == (0, 255)


def test_imagefolder_reads_16_bits_as_8_where_they_say_the_same(folder):
    gray = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4
    Image.fromarray(gray * 257).save(folder / "train/cat/0.png")
    assert torch.equal(load("imagefolder", folder, 8).train_inputs[0, 0], torch.from_numpy(gray.astype(np.uint8)))


def test_a_dataset_of_one_class_is_refused(folder):
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "dog")
    with pytest.raises(DepoisonError, match="dataset source imagefolder: 1 class; valid: at least 2"):
        load("imagefolder", folder, 8)


def test_imagefolder_needs_a_root():
    with pytest.raises(DepoisonError, match="no root given; expected train/<class>/"):
        load("imagefolder", None, 8)


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_imagefolder_names_the_missing_folder(folder, tmp_path_factory, missing):
    (folder / missing).rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    with pytest.raises(DepoisonError, match="no such folder; expected train/<class>/") as error:
        load("imagefolder", folder, 8)
    assert message(error).startswith(f"{folder / missing}:")


def test_imagefolder_without_class_folders(tmp_path):
    write_all({"train/1.png": encoded(picture(8), "png"), "test/.keep": b""}, tmp_path)
    with pytest.raises(DepoisonError, match="train: no class folders; expected"):
        load("imagefolder", tmp_path, 8)


def test_imagefolder_names_the_empty_class(folder):
    (folder / "test/dog/0.png").rename(folder / "test/dog/0.gif")
    with pytest.raises(DepoisonError, match="test/dog: no images in this class; valid: .bmp, .jpeg"):
        load("imagefolder", folder, 8)


def test_imagefolder_names_the_classes_that_differ(folder):
    (folder / "test/dog").rename(folder / "test/wolf")
    with pytest.raises(DepoisonError, match="only in train: dog; only in test: wolf") as error:
        load("imagefolder", folder, 8)
    message(error)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    "broken", ["truncated.jpg", "truncated.png", "text.jpg", "empty.png", "empty.jpg", "damaged.png"]
)
def test_imagefolder_names_the_broken_image(folder, monkeypatch, broken, threads):
    whole = encoded(picture(64), "jpeg" if broken.endswith("jpg") else "png")
    content = {
        "truncated": whole[: len(whole) // 2],
        "text": b"<html>not found</html>",
        "empty": b"",
        "damaged": whole[:200] + bytes(50) + whole[250:],
    }[broken.partition(".")[0]]
    (folder / "test/cat" / broken).write_bytes(content)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    with pytest.raises(DepoisonError, match="not a readable image") as error:
        load("imagefolder", folder, 8)
    assert message(error).startswith(f"{folder}/test/cat/{broken}:") and "0x" not in message(error)


def test_an_image_that_its_header_calls_huge_is_refused_before_it_is_decoded(folder, monkeypatch):
    whole = encoded(picture(64), "png")
    size = struct.pack(">II", 13_000, 13_000)
    huge = whole[:16] + size + whole[24:29] + struct.pack(">I", zlib.crc32(b"IHDR" + size + whole[24:29])) + whole[33:]
    (folder / "test/cat/huge.png").write_bytes(huge)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setattr("depoison.data._images._largest", 50.0)
    limit(50)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    refused = (
        r"huge.png: not a readable image \(13000 x 13000 px; valid: up to 50 megapixels, which runtime.largest_image"
    )
    with pytest.raises(DepoisonError, match=refused):
        decode([str(folder / "test/cat/huge.png")], lambda name: Path(name).read_bytes(), 8)
    monkeypatch.undo()
    limit(169)
    with pytest.raises(DepoisonError, match="not a readable image") as error:  # it is tried, and is cut off
        decode([str(folder / "test/cat/huge.png")], lambda name: Path(name).read_bytes(), 8)
    assert "megapixels" not in message(error)
    limit(50)


def test_imagefolder_names_the_first_of_several_broken_images(folder, monkeypatch):
    monkeypatch.setattr("depoison.data._images.CHUNK", 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    for name in ("train/cat/1.png", "train/dog/0.png", "train/dog/1.png"):
        (folder / name).write_bytes(b"x")
    for _ in range(5):
        with pytest.raises(DepoisonError, match="train/cat/1.png"):
            load("imagefolder", folder, 8)


# --- CIFAR -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Cifar:
    """A tiny CIFAR in its binary layout, and what loading it must give."""

    name: str
    files: dict[str, bytes]
    train: tuple[np.ndarray, list[int]]
    test: tuple[np.ndarray, list[int]]
    classes: list[str]

    def tar(self, path: Path) -> str:
        with tarfile.open(path, "w:gz") as tar:
            for name in reversed(self.files):  # the published archives are not in order either
                info = tarfile.TarInfo(name)
                info.size = len(self.files[name])
                tar.addfile(info, io.BytesIO(self.files[name]))
        return md5(path.read_bytes())

    def check(self, loaded: Samples) -> None:
        assert np.array_equal(loaded.train_inputs.numpy(), self.train[0])
        assert np.array_equal(loaded.test_inputs.numpy(), self.test[0])
        assert loaded.train_labels.tolist() == self.train[1] and loaded.test_labels.tolist() == self.test[1]
        assert loaded.classes == self.classes and loaded.source == self.name


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, monkeypatch) -> Cifar:
    module, constant, top, train, test, names = {
        "cifar10": (cifar10, "CIFAR10", "cifar-10-batches-bin", [f"data_batch_{n}" for n in (1, 2, 3, 4, 5)],
                    "test_batch", "batches.meta.txt"),
        "cifar100": (cifar100, "CIFAR100", "cifar-100-binary", ["train"], "test", "fine_label_names.txt"),
    }[request.param]  # fmt: skip
    count = int(request.param.removeprefix("cifar"))
    files, parts = {}, {}
    for batch in [*train, test]:
        images = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        labels = RNG.integers(0, count, 4).tolist()
        coarse = [b""] * 4 if count == 10 else [bytes([7])] * 4
        files[f"{top}/{batch}.bin"] = b"".join(
            extra + bytes([label]) + image.tobytes() for extra, label, image in zip(coarse, labels, images, strict=True)
        )
        parts[batch] = images, labels
    classes = [f"class {n}" for n in range(count)]
    files[f"{top}/{names}"] = ("\n".join(classes) + "\n\n").encode()
    files[f"{top}/readme.html"] = b"<html>"
    monkeypatch.setattr(
        module, constant, dataclasses.replace(getattr(module, constant), train_records=4, test_records=4)
    )
    joined = np.concatenate([parts[b][0] for b in train]), [label for b in train for label in parts[b][1]]
    return Cifar(request.param, files, joined, parts[test], classes)


def patch_cifar(monkeypatch, name: str, **changes) -> None:
    module, constant = {"cifar10": (cifar10, "CIFAR10"), "cifar100": (cifar100, "CIFAR100")}[name]
    variant = getattr(module, constant)
    archive = dataclasses.replace(variant.archive, **changes)
    monkeypatch.setattr(module, constant, dataclasses.replace(variant, archive=archive))


def archive_name(name: str) -> str:
    return f"cifar-{name.removeprefix('cifar')}-binary.tar.gz"


@pytest.mark.parametrize("given", ["archive", "folder with archive", "unpacked"])
def test_cifar_from_a_local_copy_that_is_only_read(cifar, given, tmp_path, monkeypatch):
    if given == "unpacked":
        write_all(cifar.files, tmp_path)
    else:
        patch_cifar(monkeypatch, cifar.name, checksum=cifar.tar(tmp_path / archive_name(cifar.name)))
    before = tree(tmp_path)
    cifar.check(load(cifar.name, tmp_path / archive_name(cifar.name) if given == "archive" else tmp_path, 32))
    assert tree(tmp_path) == before


def test_cifar_from_the_cache(cifar, tmp_path, monkeypatch):
    patch_cifar(monkeypatch, cifar.name, checksum=cifar.tar(tmp_path / archive_name(cifar.name)))
    cifar.check(data.load(cifar.name, root=None, cache=tmp_path, size=32))


def test_cifar_is_downloaded_into_the_cache(cifar, tmp_path, monkeypatch):
    asked = []

    def fetch(url, path, *, checksum):
        asked.append((url, path))
        path.parent.mkdir(parents=True)
        assert cifar.tar(path) == md5(path.read_bytes())
        return path

    monkeypatch.setattr(_archive, "download", fetch)  # test_download.py has the real thing
    cifar.check(data.load(cifar.name, root=None, cache=tmp_path / "cache", size=32))
    name = archive_name(cifar.name)
    assert asked == [(f"https://www.cs.toronto.edu/~kriz/{name}", tmp_path / "cache" / name)]


def test_cifar_with_a_wrong_checksum(cifar, tmp_path):
    path = tmp_path / archive_name(cifar.name)
    actual = cifar.tar(path)
    with pytest.raises(DepoisonError) as error:
        load(cifar.name, tmp_path, 32)
    assert str(path) in message(error) and actual in message(error)
    assert path.exists()


def test_cifar_with_a_short_file(cifar, tmp_path):
    name = next(iter(cifar.files))
    write_all(cifar.files | {name: cifar.files[name][:-1]}, tmp_path)
    with pytest.raises(DepoisonError, match=f"{name} has 1[0-9]+ bytes; valid: ") as error:
        load(cifar.name, tmp_path, 32)
    message(error)


def test_cifar_with_a_missing_file(cifar, tmp_path):
    write_all(cifar.files, tmp_path)
    name = next(iter(cifar.files))
    (tmp_path / name).unlink()
    with pytest.raises(DepoisonError, match=f"{name} is missing"):
        load(cifar.name, tmp_path, 32)


def test_cifar_with_an_empty_root(cifar, tmp_path):
    with pytest.raises(DepoisonError, match="holds none of cifar-10+-binary.tar.gz, cifar-10+-b.*-py.*downloaded"):
        load(cifar.name, tmp_path, 32)
    with pytest.raises(DepoisonError, match="no such file or folder"):
        load(cifar.name, tmp_path / "nowhere", 32)


def test_cifar_at_another_size_is_resized_by_pil(cifar, tmp_path):
    write_all(cifar.files, tmp_path)
    for size in (16, 64):
        loaded = load(cifar.name, tmp_path, size)
        first = Image.fromarray(cifar.train[0][0].transpose(1, 2, 0)).resize((size, size), Image.Resampling.BILINEAR)
        assert torch.equal(loaded.train_inputs[0], chw(np.asarray(first)))
        assert loaded.test_inputs.shape == (4, 3, size, size)


def write_python_version(cifar: Cifar, root: Path, monkeypatch) -> Path:
    """What torchvision would have unpacked, its md5 sums replaced by those of the tiny files."""
    import torchvision

    kind = getattr(torchvision.datasets, cifar.name.upper())
    key = "labels" if cifar.name == "cifar10" else "fine_labels"
    folder = root / kind.base_folder
    folder.mkdir()

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def write_split(files: list, images: np.ndarray, labels: list[int]) -> list:
        step = len(images) // len(files)
        return [
            [name, write(name, {"data": images[i : i + step].reshape(step, -1), key: labels[i : i + step]})]
            for i, (name, _) in zip(range(0, len(images), step), files, strict=True)
        ]

    monkeypatch.setattr(kind, "train_list", write_split(kind.train_list, *cifar.train))
    monkeypatch.setattr(kind, "test_list", write_split(kind.test_list, *cifar.test))
    meta = write(kind.meta["filename"], {kind.meta["key"]: cifar.classes})
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": meta})
    return folder


def test_cifar_as_torchvision_unpacked_it(cifar, tmp_path, monkeypatch):
    write_python_version(cifar, tmp_path, monkeypatch)
    cifar.check(load(cifar.name, tmp_path, 32))


def test_a_tampered_pickle_is_never_loaded(cifar, tmp_path, monkeypatch):
    folder = write_python_version(cifar, tmp_path, monkeypatch)

    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    next(path for path in folder.iterdir() if "train" in path.name or "data_batch_3" in path.name).write_bytes(
        pickle.dumps(Bomb())
    )
    with pytest.raises(DepoisonError, match="incomplete or damaged") as error:
        load(cifar.name, tmp_path, 32)
    assert str(folder) in message(error)
    assert not (tmp_path / "exploded").exists()


def test_the_published_constants_are_whole():
    for archive in (
        cifar10.CIFAR10.archive, cifar100.CIFAR100.archive, tiny_imagenet.ARCHIVE, gtsrb.TEST, gtsrb.TEST_LABELS,
        *gtsrb.TRAIN.values(),
    ):  # fmt: skip
        assert re.fullmatch("md5:[0-9a-f]{32} sha256:[0-9a-f]{64}", archive.checksum)
        assert archive.url.startswith("https://") and archive.name.endswith((".zip", ".tar.gz"))
    assert _cifar.PIXELS == 3072


# --- GTSRB -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["torchvision", "final"])
def signs(request, monkeypatch):
    """(edition, files of the three archives, pixels by label, test pixels and labels), 2 images a class."""
    edition = request.param
    top = {"torchvision": "GTSRB/Training", "final": "GTSRB/Final_Training/Images"}[edition]
    train, pictures = {"GTSRB/Readme-Images.txt": b"x"}, []
    for label in range(43):
        for n in range(2):
            pixels = picture(15 + label % 7, 18 + n)
            pictures.append(pixels)
            train[f"{top}/{label:05d}/00000_{n:05d}.ppm"] = encoded(pixels, "ppm")
        train[f"{top}/{label:05d}/GT-{label:05d}.csv"] = b"Filename;Width\n"
    test_pictures, test_labels = [picture(30, 25), picture(16), picture(40)], [42, 0, 17]
    test = {f"GTSRB/Final_Test/Images/{n:05d}.ppm": encoded(p, "ppm") for n, p in enumerate(test_pictures)}
    test["GTSRB/Final_Test/Images/GT-final_test.test.csv"] = b"Filename;Width\n"
    rows = [f"{n:05d}.ppm;53;54;6;5;48;49;{label}" for n, label in enumerate(test_labels)]
    truth = "\r\n".join(["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId", *rows, ""])
    monkeypatch.setattr(gtsrb, "TRAIN_IMAGES", {edition: 86})
    monkeypatch.setattr(gtsrb, "TEST_IMAGES", 3)
    return edition, (train, test, {"GT-final_test.csv": truth.encode()}), pictures, test_pictures, test_labels


def write_signs(signs, folder: Path, monkeypatch) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    edition, archives = signs[:2]
    constants = (gtsrb.TRAIN[edition], gtsrb.TEST, gtsrb.TEST_LABELS)
    train, test, truth = (
        dataclasses.replace(archive, checksum=write_zip(files, folder / archive.name))
        for archive, files in zip(constants, archives, strict=True)
    )
    monkeypatch.setitem(gtsrb.TRAIN, edition, train)
    monkeypatch.setattr(gtsrb, "TEST", test)
    monkeypatch.setattr(gtsrb, "TEST_LABELS", truth)


@pytest.mark.parametrize("given", ["cache", "archives", "archives in gtsrb/", "unpacked", "unpacked in gtsrb/"])
def test_gtsrb(signs, given, tmp_path, monkeypatch):
    edition, archives, pictures, test_pictures, test_labels = signs
    folder = tmp_path / "gtsrb" if given.endswith("gtsrb/") else tmp_path
    if given.startswith("unpacked"):
        for files in archives:
            write_all(files, folder)
    else:
        write_signs(signs, folder, monkeypatch)
    before = tree(tmp_path)
    root = None if given == "cache" else tmp_path
    loaded = data.load("gtsrb", root=root, cache=tmp_path, size=32, edition=edition)
    assert tree(tmp_path) == before

    def resized(pixels: np.ndarray) -> torch.Tensor:
        return chw(np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)))

    assert torch.equal(loaded.train_inputs, torch.stack([resized(pixels) for pixels in pictures]))
    assert torch.equal(loaded.test_inputs, torch.stack([resized(pixels) for pixels in test_pictures]))
    assert loaded.train_labels.tolist() == [label for label in range(43) for _ in range(2)]
    assert loaded.test_labels.tolist() == test_labels
    assert loaded.classes[0] == "00000" and len(loaded.classes) == 43


def test_gtsrb_that_is_not_whole(signs, tmp_path, monkeypatch):
    edition, (train, test, truth), *_ = signs
    top = next(name for name in train if "00042/" in name).partition("00042")[0]
    for files in (train, test, truth):
        write_all(files, tmp_path)

    def fails(says: str) -> None:
        with pytest.raises(DepoisonError, match=says) as error:
            load("gtsrb", tmp_path, 32, edition=edition)
        assert str(tmp_path) in message(error)

    (tmp_path / "GT-final_test.csv").write_text("Filename;Class\n00000.ppm;1\n")
    fails("GT-final_test.csv: no columns Filename and ClassId")
    (tmp_path / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;1\n")
    fails("1 test images; valid: 3")
    write_all(truth, tmp_path)
    (tmp_path / "GTSRB/Final_Test/Images/00001.ppm").unlink()
    fails("GTSRB/Final_Test/Images/00001.ppm is missing")
    (tmp_path / f"{top}00042/00000_00000.ppm").write_bytes(b"P6 8 8 255 ")
    fails("00042/00000_00000.ppm: not a readable image")
    (tmp_path / f"{top}00042/00000_00000.ppm").unlink()
    fails("85 training images; valid: 86")
    (tmp_path / f"{top}00042/00000_00001.ppm").unlink()
    fails("42 class folders; valid: 00000 to 00042")


def test_gtsrb_arguments(tmp_path):
    with pytest.raises(DepoisonError, match="unknown edition 'finale'; did you mean 'final'?"):
        load("gtsrb", tmp_path, 32, edition="finale")
    with pytest.raises(DepoisonError, match="holds neither GTSRB-Training_fixed.zip nor GTSRB/Training"):
        load("gtsrb", tmp_path, 32)
    with pytest.raises(DepoisonError, match="not a folder"):
        load("gtsrb", tmp_path / "nowhere", 32)


# --- Tiny-ImageNet -----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """(files, training pixels by wnid, test pixels and wnid by file) for 3 classes of 2 images, some gray."""
    wnids = ["n02124075", "n04067472", "n01443537"]  # not sorted, like the published list
    top = "tiny-imagenet-200"
    files = {f"{top}/wnids.txt": "\n".join(wnids).encode(), f"{top}/words.txt": b"n01443537\tgoldfish\n"}
    train = {wnid: [np.full((64, 64, 3), 20 * n + 7 * i, np.uint8) for i in (1, 2)] for n, wnid in enumerate(wnids, 1)}
    for wnid, pictures in train.items():
        files[f"{top}/train/{wnid}/{wnid}_boxes.txt"] = b""
        for i, pixels in enumerate(pictures):
            files[f"{top}/train/{wnid}/images/{wnid}_{i}.JPEG"] = encoded(pixels[..., 0] if i else pixels, "jpeg")
    test = {f"val_{n}.JPEG": (np.full((64, 64, 3), 100 + n, np.uint8), wnids[n % 3]) for n in (0, 1, 2, 10)}
    for name, (pixels, _) in test.items():
        files[f"{top}/val/images/{name}"] = encoded(pixels, "jpeg")
    files[f"{top}/val/val_annotations.txt"] = "".join(f"{n}\t{w}\t0\t0\t9\t9\n" for n, (_, w) in test.items()).encode()
    files[f"{top}/test/images/test_0.JPEG"] = b"not read"
    monkeypatch.setattr(tiny_imagenet, "CLASSES", 3)
    monkeypatch.setattr(tiny_imagenet, "TRAIN_IMAGES", 2)
    monkeypatch.setattr(tiny_imagenet, "TEST_IMAGES", 4)
    return files, train, test


@pytest.mark.parametrize("given", ["cache", "archive", "folder with archive", "unpacked"])
@pytest.mark.parametrize("size", [64, 32])
def test_tiny_imagenet(tiny, given, size, tmp_path, monkeypatch):
    files, train, test = tiny
    path = tmp_path / "tiny-imagenet-200.zip"
    if given == "unpacked":
        write_all(files, tmp_path)
    else:
        archive = dataclasses.replace(tiny_imagenet.ARCHIVE, checksum=write_zip(files, path))
        monkeypatch.setattr(tiny_imagenet, "ARCHIVE", archive)
    before = tree(tmp_path)
    root = {"cache": None, "archive": path}.get(given, tmp_path)
    loaded = data.load("tiny-imagenet", root=root, cache=tmp_path, size=size)
    assert tree(tmp_path) == before
    assert loaded.classes == ["n01443537", "n02124075", "n04067472"]
    assert loaded.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    order = ["val_0.JPEG", "val_1.JPEG", "val_10.JPEG", "val_2.JPEG"]
    assert loaded.test_labels.tolist() == [loaded.classes.index(test[name][1]) for name in order]
    levels = [int(pixels[0, 0, 0]) for wnid in loaded.classes for pixels in train[wnid]]
    for images, expected in ((loaded.train_inputs, levels), (loaded.test_inputs, [100, 101, 110, 102])):
        assert images.shape == (len(expected), 3, size, size)
        assert (images.double().mean((1, 2, 3)) - torch.tensor(expected)).abs().max() < 0.5  # JPEG of a flat image


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("wnids.txt", b"n01443537\n", "wnids.txt: 1 classes; valid: 3"),
        ("wnids.txt", None, "wnids.txt is missing"),
        ("wnids.txt", b"\xff\xfe", "wnids.txt: not a text file"),
        ("train/n02124075/images/n02124075_0.JPEG", None, "train/n02124075: 1 images; valid: 2"),
        ("train/n02124075/images/n02124075_0.JPEG", b"x", "n02124075_0.JPEG: not a readable image"),
        ("val/images/val_2.JPEG", None, "val_2.JPEG is missing"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn02124075\n", "val_annotations.txt: 1 images; valid: 4"),
        ("val/val_annotations.txt", b"val_0.JPEG\n", "val_annotations.txt: 0 images; valid: 4"),
        (
            "val/val_annotations.txt",
            b"".join(b"val_%d.JPEG\tn1\n" % n for n in range(4)),
            "val_annotations.txt: class n1 is not in wnids.txt",
        ),
    ],
)
def test_tiny_imagenet_that_is_not_whole(tiny, tmp_path, name, content, says):
    write_all(tiny[0], tmp_path)
    path = tmp_path / "tiny-imagenet-200" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DepoisonError, match=says) as error:
        load("tiny-imagenet", tmp_path, 64)
    assert str(tmp_path) in message(error)
