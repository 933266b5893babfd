"""Resumable state: all that the next epoch of a run depends on, saved beside an artifact until it is complete.

Read is only what is known to be what was saved, and fits the run; anything else is as if nothing had been saved.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from depoison.errors import DepoisonError
from depoison.files import tensor_bytes, write_bytes

log = logging.getLogger("depoison")

STATE = "state.json"


class Stateful(Protocol):
    """What else a method carries from step to step; it is saved and restored with the model and its optimizer."""

    def state(self) -> dict[str, Tensor]:
        """Its tensors. Before the first step others of the same names, shapes and types may stand for them."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave; the tensors are on the CPU."""
        ...


Part = nn.Module | torch.optim.Optimizer | Stateful
Parts = Mapping[str, Part]
"""All that the next epoch depends on, by name; random numbers follow from the spec."""


class _Saved(BaseModel):
    """What state.json says.

    Attributes:
        epoch: how many are done; the tensors lie in the file of this epoch.
        history: of these epochs. A number that JSON does not have, such as NaN, stands as text.
        sha256: of all of this and of the tensors.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    epoch: PositiveInt
    history: list[dict[str, int | float]]
    sha256: str = ""

    @property
    def tensors(self) -> str:
        return f"state-{self.epoch}.safetensors"

    def digest(self, tensors: bytes) -> str:
        digest = hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode())
        digest.update(tensors)
        return digest.hexdigest()


def save_state(folder: Path, epoch: int, history: list[dict[str, Any]], parts: Parts) -> None:
    """Save, in place of what is saved there already, what `load_state` gives back.

    Args:
        epoch: how many are done, at least 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors, saved = tensor_bytes(_tensors_of(parts)), _Saved(epoch=epoch, history=history)
    saved.sha256 = saved.digest(tensors)
    # Tensors and history must be of one epoch: the file names carry it, and the JSON, written last, says which counts.
    write_bytes(folder / saved.tensors, tensors)
    write_bytes(folder / STATE, saved.model_dump_json(indent=1).encode())
    for stale in (*folder.glob("state-*.safetensors"), *folder.glob(".*.partial")):
        if stale.name != saved.tensors:
            stale.unlink()


def load_state(folder: Path, parts: Parts) -> tuple[int, list[dict[str, Any]]] | None:
    """Give each part what was saved of it last: all parts or, where anything does not fit, none, which a line then says.

    Returns:
        How many epochs were done, and their history; None: the run starts anew.
    """
    if not (folder / STATE).exists():
        return None
    expected = _tensors_of(parts)
    try:
        saved, tensors = _read(folder)
        _require_same_form(folder / saved.tensors, tensors, expected)
    except DepoisonError as error:
        log.warning("starting anew, the saved state cannot be used: %s", error)
        return None
    for name, part in parts.items():
        own = {key: tensors[f"{name}.{key}"] for key in _own(part)}
        if isinstance(part, nn.Module):
            part.load_state_dict(own)
        elif isinstance(part, torch.optim.Optimizer):
            _load_optimizer(part, own)
        else:
            part.load(own)
    return saved.epoch, saved.history


def _read(folder: Path) -> tuple[_Saved, dict[str, Tensor]]:
    """Raises DepoisonError: files that cannot be read, or are not what was saved."""
    path = folder / STATE
    try:
        saved = _Saved.model_validate_json(path.read_bytes())
        path = folder / saved.tensors
        content = path.read_bytes()
        if saved.digest(content) != saved.sha256:
            raise DepoisonError(f"{path}: it and {STATE} do not have the sha256 that was saved")
        return saved, load(content)
    except OSError as error:
        raise DepoisonError(f"{path}: {error.strerror}") from None
    except (ValueError, SafetensorError):
        raise DepoisonError(f"{path}: is not what a run saves") from None


def _require_same_form(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises DepoisonError: names, shapes or types that are not this run's."""
    for name in sorted(tensors.keys() | expected.keys()):
        found, wanted = (
            f"{str(one[name].dtype).removeprefix('torch.')} {list(one[name].shape)}" if name in one else "not there"
            for one in (tensors, expected)
        )
        if found != wanted:
            raise DepoisonError(f"{path}: {name} is {found}; in this run it is {wanted}")


def _tensors_of(parts: Parts) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in _own(part).items()}


def _own(part: Part) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return part.state_dict()
    if isinstance(part, torch.optim.Optimizer):
        return {f"{i}.{name}": tensor for i, (_, own) in enumerate(_carried(part)) for name, tensor in own.items()}
    return part.state()


def _carried(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Each parameter, and by name what the optimizer carries of it from step to step.

    torch makes that in a parameter's first step. Before, it is zeros, whose names and shapes a trial tells.
    """
    for group in optimizer.param_groups:
        trial = _first_step(optimizer, group)
        for parameter in group["params"]:
            zeros = {name: torch.zeros_like(parameter if one.dim() else one) for name, one in trial.items()}
            yield parameter, optimizer.state.get(parameter) or zeros


def _first_step(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Tensor]:
    """What such an optimizer carries of a parameter of two numbers after its first step."""
    trial, parameter = copy.copy(optimizer), nn.Parameter(group["params"][0].new_zeros(2))
    parameter.grad = torch.zeros_like(parameter)
    trial.state, trial.param_groups = defaultdict(dict), [group | {"params": [parameter]}]
    trial.step()
    return trial.state[parameter]


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """As load_state_dict, but each tensor gets its parameter's memory format, which torch's fused kernels count on."""
    for i, (parameter, own) in enumerate(_carried(optimizer)):
        for name, tensor in own.items():
            tensor.copy_(saved[f"{i}.{name}"])
        optimizer.state[parameter] = own
