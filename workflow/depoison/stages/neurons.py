"""Stage `neurons`: a tuning defense, played again up to the first step of one of its first epochs → neurons.csv."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from depoison.artifacts import NEURONS
from depoison.errors import DepoisonError
from depoison.files import csv_bytes, write_bytes
from depoison.models.activations import last_convolution, outputs_of
from depoison.models.classifier import Classifier
from depoison.stages.history import Progress
from depoison.stages.inputs import read_dataset, read_model
from depoison.stages.measure import Test, followed
from depoison.stages.purify import purification
from depoison.stages.runner import Job
from depoison.training.loop import Evaluate, Monitor, convolutions
from depoison.training.recipe import Recipe


def run(job: Job) -> None:
    """One row for each epoch and neuron: the neuron's TAC in the backdoored model, the norm of its gradient in the epoch's
    first step, and what is measured of the model before that step (percent).

    A neuron is an output channel of the last convolution. All but the number of epochs is the purification's spec, so that
    its steps are taken again as they were, whatever the defense.

    Raises:
        DepoisonError: a clean model, one without convolutions, or a defense that does not tune the last of them.
    """
    dataset, recipe = read_dataset(job.upstream("dataset")), Recipe.of(job.parameters["recipe"])
    test = Test.of(job.upstream("model"), dataset)
    if not len(test.kept):
        raise DepoisonError("neurons: the attack none has no trigger; valid: any other attack")
    backdoored, defense = read_model(job.upstream("model"), dataset).to(job.device), job.parameters["defense"]
    layer = last_convolution(backdoored, test.images[:1])
    changes = tac(backdoored, layer, test.images[test.kept], test.triggered).tolist()

    watch = FirstSteps(
        defense["name"], layer, lambda model: test.measure(model, recipe.precision), job.parameters["first_epochs"]
    )
    progress = Progress("neurons")
    # It is over soon, and keeps no resumable state: that has not what was seen before it.
    monitor = Monitor(report=progress, within=progress.within, begins=watch.begins)
    purify, seen = purification(job, dataset, recipe, monitor)
    with contextlib.suppress(Seen), convolutions(recipe.precision):
        purify(**seen, **defense["parameters"])
    rows = (
        {"epoch": epoch, "neuron": neuron, "tac": change, "gradient": norm} | measured
        for epoch, (measured, norms) in enumerate(watch.found, 1)
        for neuron, (change, norm) in enumerate(zip(changes, norms, strict=True))
    )
    write_bytes(job.folder / "neurons.csv", csv_bytes((*NEURONS, *followed()), rows))


class Seen(Exception):
    """All that was to be seen of a run is; the rest of it is not needed."""


class FirstSteps:
    """Sees the first step of each epoch of a run, and ends the run before it takes the last that is wanted.

    Args:
        defense: whose run it is, for messages.
        layer: the name of a convolution.
        measure: what is measured of the model when an epoch begins.
        epochs: of how many; those of a run of several loops count on.

    Attributes:
        found: of each epoch what was measured, and the norm of each neuron's gradient.
    """

    def __init__(self, defense: str, layer: str, measure: Evaluate, epochs: int):
        self.defense, self.layer, self.measure, self.epochs = defense, layer, measure, epochs
        self.found: list[tuple[dict[str, float], list[float]]] = []
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def begins(self, model: Classifier, optimizer: torch.optim.Optimizer) -> None:
        """See `Monitor`."""
        if self._hook is not None:
            self._hook.remove()
        measured, before = self.measure(model), len(self.found)

        def steps(*_: object) -> None:
            if len(self.found) == before:
                self.found.append((measured, self._norms(model)))
            if len(self.found) == self.epochs:
                raise Seen

        # What the step goes by stands there when the optimizer is asked for it, whatever made it; the weights are still w.
        self._hook = optimizer.register_step_pre_hook(steps)

    def _norms(self, model: Classifier) -> list[float]:
        """Raises: DepoisonError: there is no gradient, or it is no number."""
        found = neuron_gradients(model.get_submodule(self.layer))
        if found is None:
            raise DepoisonError(
                f"neurons: {self.defense} does not tune the last convolution, {self.layer}; valid: a defense that does"
            )
        if not found.isfinite().all():
            raise DepoisonError(f"neurons: the gradients of {self.defense} are no numbers; its tuning diverged")
        return found.tolist()


def neuron_gradients(layer: nn.Module) -> Tensor | None:
    """(C,) the norm of the gradient of each output channel's weights, and of its bias where it has one, together.

    None where a step gives the weights none.
    """
    gradients = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
    if not gradients:
        return None
    return torch.cat([gradient.reshape(len(gradient), -1) for gradient in gradients], 1).norm(dim=1)


@torch.no_grad()
def tac(model: Classifier, layer: str, clean: Tensor, triggered: Tensor, batch_size: int = 250) -> Tensor:
    """Trigger-activated change of each channel of a convolution's output, (C,) float64, on the CPU. Zheng et al., "Data-free
    backdoor removal based on channel Lipschitzness", ECCV 2022: the mean over images of ||F_k(x) - F_k(triggered x)||.

    Args:
        clean, triggered: (M, …) inputs, as they are stored, without and with the trigger.
    """
    total = torch.zeros(())
    with outputs_of(model.get_submodule(layer)) as found:
        for pair in zip(clean.split(batch_size), triggered.split(batch_size), strict=True):
            outputs = []
            for inputs in pair:
                model(inputs.to(model.device))
                outputs.append(found[-1])
                found.clear()
            total = total + (outputs[1] - outputs[0]).flatten(2).norm(dim=2).double().sum(0).cpu()
    return total / len(clean)
