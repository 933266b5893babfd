"""Resumable state: what is not what was saved, or does not fit the run, is as if nothing had been saved."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.tasks.image import ImageBatches
from depoison.training.loop import Monitor, fit
from depoison.training.state import Part, load_state, save_state
from small import CPU, Interrupted, changed, classes_of, network, pixels, recipe, state_of

HISTORY = [{"epoch": 1, "loss": 0.1, "c_acc": 1 / 3}, {"epoch": 2, "loss": 1e-30, "c_acc": 2.0}]


MOMENTUM = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)
OPTIMIZERS = {
    "SGD": MOMENTUM,
    "SGD without momentum": functools.partial(torch.optim.SGD, lr=0.1, fused=True),
    "SGD not fused": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "Adam": functools.partial(torch.optim.Adam, fused=True),
    "Adam not fused": torch.optim.Adam,
    "AdamW": functools.partial(torch.optim.AdamW, fused=True, amsgrad=True),
    "RMSprop": functools.partial(torch.optim.RMSprop, momentum=0.9, centered=True),
}


def parts_of(optimizer: Callable[[Any], torch.optim.Optimizer] = MOMENTUM) -> dict[str, Part]:
    model = network()
    return {"model": model, "optimizer": optimizer(model.parameters())}


def tensors_of(parts: dict[str, Any]) -> dict[str, Tensor]:
    """A copy of what a model and its optimizer hold."""
    kept = parts["optimizer"].state_dict()["state"]
    return state_of(parts["model"]) | {
        f"optimizer.{i}.{name}": tensor.clone() for i, own in kept.items() for name, tensor in own.items()
    }


def step(parts: dict[str, Any], slope: float = 0.5) -> None:
    for number, parameter in enumerate(parts["model"].parameters()):
        parameter.grad = torch.linspace(-slope, slope + number, parameter.numel()).view_as(parameter)
        parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
    parts["optimizer"].step()


def stepped(optimizer: Callable[[Any], torch.optim.Optimizer] = MOMENTUM) -> dict[str, Part]:
    parts = parts_of(optimizer)
    step(parts)
    return parts


@functools.cache
def files() -> dict[str, bytes]:
    """The files of a saved state."""
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), 2, HISTORY, stepped())
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def put(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


class Lines(logging.Handler):
    """The lines that are said inside."""

    def __enter__(self) -> list[str]:
        self.lines: list[str] = []
        logging.getLogger("depoison").addHandler(self)
        return self.lines

    def __exit__(self, *_: object) -> None:
        logging.getLogger("depoison").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def unusable(folder: Path, parts: dict[str, Any] | None = None) -> str:
    """The one line that is said of the state there, from which nothing is taken over, and near which nothing changes."""
    parts = parts or parts_of()
    before = tensors_of(parts)
    there = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    with Lines() as lines:
        assert load_state(folder, parts) is None
    after = tensors_of(parts)
    assert before.keys() == after.keys() and not changed(before, after)
    assert {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()} == there
    (line,) = lines
    assert line.startswith("starting anew, the saved state cannot be used: ") and "\n" not in line and len(line) < 400
    return line


def test_what_was_saved_comes_back(tmp_path):
    parts = parts_of()
    with Lines() as lines:
        assert load_state(put(tmp_path, files()), parts) == (2, HISTORY)
    expected, found = tensors_of(stepped()), tensors_of(parts)
    assert lines == [] and found.keys() == expected.keys() and not changed(expected, found)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_every_optimizer_of_torchs_goes_on_as_if_it_had_not_been_interrupted(kind, before, tmp_path):
    """Also where it has not taken a step yet, and where weights are in the memory format of images."""
    first, again = parts_of(OPTIMIZERS[kind]), parts_of(OPTIMIZERS[kind])
    for number in range(before):
        step(first, number)
    save_state(tmp_path, 1, [], first)
    assert load_state(tmp_path, again) == (1, [])
    for number in (5, 1, 2):
        step(first, number)
        step(again, number)
    assert not changed(tensors_of(first), tensors_of(again))


def test_where_nothing_was_saved_nothing_is_said(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with Lines() as lines:
            assert load_state(folder, parts_of()) is None
        assert lines == []


NUMBERS = st.dictionaries(st.text(max_size=5), st.integers() | st.floats())


@given(st.integers(1, 10**6), st.lists(NUMBERS, max_size=4))
def test_any_history_comes_back_as_it_was(epoch, history):
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), epoch, history, stepped())
        json.loads((Path(folder) / "state.json").read_text(), parse_constant=pytest.fail)
        found = load_state(Path(folder), parts_of())
    assert found is not None and repr(found) == repr((epoch, history))


@given(st.data())
def test_a_flipped_bit_is_noticed(data):
    """Also in the history, which an artifact shows. What is as good as before, such as 1E-30 for 1e-30, may be taken."""
    name = data.draw(st.sampled_from(sorted(files())))
    content = bytearray(files()[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory() as folder:
        damaged = put(Path(folder) / "scratch", files() | {name: bytes(content)})
        if name == "state.json" and _same(bytes(content), files()[name]):
            assert load_state(damaged, parts_of()) == (2, HISTORY)
        else:
            assert str(folder) in unusable(damaged)


def _same(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@given(st.sampled_from(["state.json", "state-2.safetensors"]), st.data())
def test_a_truncated_file_is_noticed(name, data):
    kept = data.draw(st.integers(0, len(files()[name]) - 1))
    with tempfile.TemporaryDirectory() as folder:
        unusable(put(Path(folder) / "scratch", files() | {name: files()[name][:kept]}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
ELSEWHERE = st.sampled_from(
    ["../../elsewhere", "/etc/passwd", "2/../../elsewhere", "-1", "2\0", 10**400, -1, 0, True, 2.5]
)
SHAPED = st.fixed_dictionaries(
    {"epoch": ELSEWHERE | JSON, "history": JSON | st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3))},
    optional={"sha256": JSON, "more": JSON},
)


@given(
    st.binary(max_size=200)
    | (JSON | SHAPED).map(lambda value: json.dumps(value).encode())
    | st.sampled_from([b"[" * 10**5, b'{"a":' * 10**5, b'{"epoch": ' + b"9" * 10**5 + b"}"])
)
def test_any_bytes_for_state_json_start_anew(content):
    with tempfile.TemporaryDirectory() as folder:
        unusable(put(Path(folder) / "a" / "scratch", files() | {"state.json": content}))


def signed(tensors: bytes, history: Any = ()) -> dict[str, bytes]:
    """A state whose checksum is right, whatever it holds."""
    body = json.dumps({"epoch": 2, "history": list(history)}, separators=(",", ":")).encode()
    digest = hashlib.sha256(body + tensors).hexdigest()
    return {
        "state.json": json.dumps({"epoch": 2, "history": list(history), "sha256": digest}).encode(),
        "state-2.safetensors": tensors,
    }


HEADERS = st.dictionaries(
    st.text(max_size=5) | st.just("__metadata__"),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F4", "I64", "C64", "BOOL", "X"]) | JSON,
            "shape": st.lists(st.integers(), max_size=3),
            "data_offsets": st.lists(st.integers(0, 40), max_size=2),
        }
    )
    | JSON,
    max_size=3,
)


def headed(header: Any, body: bytes) -> bytes:
    """Laid out as safetensors."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@given(st.binary(max_size=100) | st.builds(headed, HEADERS, st.binary(max_size=40)))
def test_any_bytes_for_the_tensors_start_anew_also_with_their_checksum(content):
    with tempfile.TemporaryDirectory() as folder:
        unusable(put(Path(folder) / "scratch", signed(content)))


def test_the_checksum_of_these_tests_is_right(tmp_path):
    assert load_state(put(tmp_path, signed(files()["state-2.safetensors"], HISTORY)), parts_of()) == (2, HISTORY)


def reshaped(tensors: dict[str, Tensor]) -> None:
    tensors["model.classifier.weight"] = tensors["model.classifier.weight"].reshape(16, 3)


MOMENTUM_OF_1 = "optimizer.1.momentum_buffer"
MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a tensor of the model is missing": (
        lambda tensors: tensors.pop("model.classifier.bias"),
        "model.classifier.bias is not there; in this run it is float32 [3]",
    ),
    "a tensor of the optimizer is missing": (
        lambda tensors: tensors.pop(MOMENTUM_OF_1),
        f"{MOMENTUM_OF_1} is not there",
    ),
    "one more": (
        lambda tensors: tensors.update({"model.classifier.more": torch.zeros(2)}),
        "model.classifier.more is float32 [2]; in this run it is not there",
    ),
    "of no part": (lambda tensors: tensors.update(other=torch.zeros(2)), "other is float32 [2]"),
    "another shape": (reshaped, "model.classifier.weight is float32 [16, 3]; in this run it is float32 [3, 16]"),
    "another type": (
        lambda tensors: tensors.update({MOMENTUM_OF_1: tensors[MOMENTUM_OF_1].double()}),
        f"{MOMENTUM_OF_1} is float64 [4]; in this run it is float32 [4]",
    ),
    "nothing": (lambda tensors: tensors.clear(), "model.classifier.bias is not there"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_tensors_that_do_not_fit_start_anew_also_with_their_checksum(name, tmp_path):
    """As those of a run before the code of a network or of an optimizer changed."""
    change, words = MISFITS[name]
    put(tmp_path / "before", files())
    tensors = load_file(tmp_path / "before/state-2.safetensors")
    change(tensors)
    assert words in unusable(put(tmp_path / "scratch", signed(save(tensors))))


def test_a_state_with_momentum_is_not_for_a_run_without(tmp_path):
    without = parts_of(OPTIMIZERS["SGD without momentum"])
    assert "optimizer.0.momentum_buffer is" in unusable(put(tmp_path / "scratch", files()), without)


def test_a_folder_in_a_files_place_starts_anew(tmp_path):
    (tmp_path / "scratch/state.json").mkdir(parents=True)
    assert "Is a directory" in unusable(tmp_path / "scratch")


def test_what_killed_saves_left_does_not_pile_up(tmp_path):
    put(
        tmp_path,
        {".state-3.safetensors.77.partial": b"half", ".state.json.78.partial": b"half", "state-1.safetensors": b""},
    )
    save_state(tmp_path, 2, HISTORY, stepped())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-2.safetensors", "state.json"]


# Runs

FULL = recipe(epochs=6, batch_size=8, momentum=0.9, crop=1, flip=0.5)


def run(monitor: Monitor) -> Classifier:
    return fit(network(), ImageBatches(pixels(20), classes_of(20), FULL, CPU), FULL, Rng(0, "train"), monitor)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def retype(path: Path) -> None:
    save_file({name: tensor.double() for name, tensor in load_file(path).items()}, path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "none": lambda folder: None,
    "a weight": lambda folder: flip(folder / "state-4.safetensors", -1),
    "a name": lambda folder: flip(folder / "state-4.safetensors", 12),
    "the history": lambda folder: flip(
        folder / "state.json", (folder / "state.json").read_bytes().index(b'"loss": ') + 11
    ),
    "types": lambda folder: retype(folder / "state-4.safetensors"),
    "no tensors": lambda folder: (folder / "state-4.safetensors").unlink(),
    "no JSON": lambda folder: (folder / "state.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_whose_state_was_damaged_ends_with_the_same_bytes_all_the_same(damage, tmp_path):
    def die(row: dict[str, Any]) -> None:
        if row["epoch"] == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(Monitor(report=die, scratch=tmp_path, save_seconds=0.0))
    DAMAGES[damage](tmp_path)
    again, whole = Monitor(scratch=tmp_path, save_seconds=0.0), Monitor()
    reported: list[int] = []
    again.report = lambda row: reported.append(row["epoch"])
    with Lines() as lines:
        model = run(again)
    assert reported == ([5, 6] if damage == "none" else [1, 2, 3, 4, 5, 6])
    assert sum(line.startswith("starting anew") for line in lines) == (damage != "none")
    assert not changed(state_of(run(whole)), state_of(model))
    assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]
