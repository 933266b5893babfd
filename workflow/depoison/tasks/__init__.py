"""Tasks: what is peculiar to a kind of data. One file and one YAML each; a dataset's YAML names its task.

Nothing else knows more than one: data, attacks, defenses and training get a `Task` and ask it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from depoison.models.classifier import Classifier
from depoison.training.batches import PlainBatches
from depoison.training.recipe import Recipe

NO_LABEL = -1
"""A prediction that is neither any input's label nor any attack's goal."""


class Task(Protocol):
    """A kind of data, and what is predicted of it.

    Attributes:
        inputs: what the inputs are, in the plural, for messages.
        dtype: of stored inputs.
        axes: of one input, by name, such as "C H W".
    """

    inputs: str
    dtype: torch.dtype
    axes: str

    def shape(self, size: int) -> tuple[int, ...]:
        """Of the inputs that a source makes of a dataset's `size`."""
        ...

    def network(
        self, model: Mapping[str, Any], *, classes: int, shape: tuple[int, ...], generator: torch.Generator
    ) -> Classifier:
        """A freshly initialized model, which takes inputs as they are stored, or as float.

        Args:
            model: {name, version, parameters, …} of a spec.
            shape: of one input.
            generator: its seed decides every initial weight.
        """
        ...

    def batches(
        self,
        inputs: Tensor,
        labels: Tensor,
        recipe: Recipe,
        device: torch.device,
        *told: Tensor,
        epoch_batches: int | None = None,
    ) -> PlainBatches:
        """Batches of (N, …) stored inputs, augmented as the recipe says.

        Args:
            labels, told, epoch_batches: see `PlainBatches` and `BatchSource`.
        """
        ...

    def loss(self, model: Classifier, inputs: Tensor, targets: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch, in fp32, and the outputs."""
        ...

    def predict(self, model: Classifier, inputs: Tensor, precision: str) -> Tensor:
        """(N, …) stored inputs → (N,) predictions on the CPU, which metrics compare with labels."""
        ...


def task_of(name: str) -> Task:
    """The task of this name: `TASK` in its file."""
    return importlib.import_module(f"depoison.tasks.{name.replace('-', '_')}").TASK


def misfit(task: Task, inputs: Tensor, size: int) -> str | None:
    """How (N, …) inputs differ from what the task stores of a dataset's `size`; None: they do not."""
    found, valid = (inputs.dtype, tuple(inputs.shape[1:])), (task.dtype, task.shape(size))
    if found == valid:
        return None
    return f"{task.inputs} are {found[0]} of ({task.axes}) = {found[1]}; valid: {valid[0]} of {valid[1]}"
