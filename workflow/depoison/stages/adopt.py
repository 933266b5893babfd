"""Stage `adopt`: the weights of a model that was trained elsewhere → what training leaves of ours."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from depoison.attacks.base import Attack, State, trigger_of
from depoison.attacks.combined import attack_of
from depoison.errors import DepoisonError
from depoison.files import save_tensors, sha256_of, write_json
from depoison.models.classifier import Classifier
from depoison.models.layouts import Misfit, by_name, matched, read_states, renamed
from depoison.rng import Rng
from depoison.stages.inputs import Dataset, built, poisoning_of, read_dataset, save_trigger, setup_of
from depoison.stages.measure import Test
from depoison.stages.runner import Job

log = logging.getLogger("depoison")


def run(job: Job) -> None:
    """Write the model, its trigger, the triggered test set, and in names.json what its file calls each tensor.

    Raises:
        DepoisonError: the file is not what it was when the run was planned, holds no weights of this network, or the attack's
            trigger is not known before training.
    """
    weights, dataset = job.parameters["weights"], read_dataset(job.upstream("dataset"))
    assert job.root is not None
    path = Path(job.root)
    if not path.is_file() or sha256_of(path) != weights["sha256"]:
        raise DepoisonError(f"{path}: not there, or changed since the run was planned; start the run again")
    model, states = built(job.parameters["model"], dataset), read_states(path)
    try:
        state, known = adopted(model, states, weights["key"], dict(weights["rename"]))
    except DepoisonError as error:
        as_ = ""
        if isinstance(error, Misfit):
            as_ = f" as {job.parameters['model']['name']}"
            for line in error.lines:
                log.warning("%s", line)
        raise DepoisonError(f"{path}{as_}: {error}") from None
    model.load_state_dict(state)
    if weights["labels"] is not None:
        reorder(model, order_of(weights["labels"], dataset.classes))
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        job.warn(f"{path}: {broken[0]} has values that are no finite numbers")

    attack, poisoning = attack_of(job.parameters["attack"]), poisoning_of(job.parameters)
    trigger = _trigger(job, attack, dataset)
    test = Test.make(dataset, attack, poisoning, trigger)
    write_json(job.folder / "names.json", known | {"pickled": path.suffix != ".safetensors"})
    save_trigger(job.folder, trigger)
    test.save(job.folder)
    save_tensors(job.folder / "model.safetensors", model.state_dict())


class SeveralFit(DepoisonError):
    """More than one state dict of a file is of a network; `keys` say where they lie."""

    def __init__(self, keys: list[str]):
        super().__init__(f"more than one state dict fits: {', '.join(keys)}; say which by `key`")
        self.keys = keys


def at_key(states: dict[str, dict[str, Tensor]], key: str) -> dict[str, dict[str, Tensor]]:
    """The state dict that is meant; all where none is ("").

    Raises:
        DepoisonError: no such key.
    """
    if key and key not in states:
        raise DepoisonError(f"no state dict at key {key!r}; valid: {', '.join(filter(None, states)) or 'no key'}")
    return {key: states[key]} if key else states


def adopted(
    model: Classifier, states: dict[str, dict[str, Tensor]], key: str, rename: dict[str, str | None]
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """A network's state of the tensors that a file holds.

    Args:
        states: as `read_states` finds them.
        key: of the one that is meant; "": the one that fits.

    Returns:
        Its whole state, and where each tensor stands in the file: {"key", "names": {own: given}, "types": {own: dtype}}.

    Raises:
        DepoisonError: no such key, none that fits (`Misfit`), or several (`SeveralFit`); a tensor is sparse or quantized,
            or of integers where the network's is not.
    """
    own = model.state_dict()
    layers = {name: tensor for name, tensor in own.items() if name.partition(".")[0] in ("extractor", "classifier")}
    states = at_key(states, key)
    found: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {}
    misfits = []
    for at, given in states.items():
        tensors, old = renamed(given, rename)
        if by_name(given):  # so the new names say what comes first
            tensors = dict(sorted(tensors.items()))
        try:
            # A file of ours has the normalization, too.
            names = matched(own if own.keys() == tensors.keys() else layers, tensors)
        except Misfit as misfit:
            misfits.append(misfit)
            continue
        found[at] = (
            {mine: tensors[hers] for mine, hers in names.items()},
            {mine: old[hers] for mine, hers in names.items()},
        )
    if not found:
        raise min(misfits, key=lambda misfit: len(misfit.faults))
    if len(found) > 1:
        raise SeveralFit([*found])
    ((at, (tensors, names)),) = found.items()
    for name, tensor in tensors.items():
        if why := _no_numbers(tensor, own[name]):
            raise DepoisonError(f"{names[name]} is {why}; valid: dense tensors of floating-point numbers")
    state = own | {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    return state, {"key": at, "names": names, "types": types}


def _no_numbers(tensor: Tensor, own: Tensor) -> str:
    """What keeps a tensor from being one of a network's; "": nothing."""
    if tensor.layout != torch.strided:
        return "sparse"
    plain = not tensor.is_quantized and (tensor.is_floating_point() or not own.is_floating_point())
    return "" if plain else str(tensor.dtype).removeprefix("torch.")


def order_of(labels: list[str], classes: list[str]) -> list[int]:
    """For each of a dataset's classes, the output that is for it.

    Raises:
        DepoisonError: they are not the same classes.
    """
    if sorted(labels) != sorted(classes):
        odd = sorted({*labels} ^ {*classes}) or [f"{len(labels)} labels"]
        raise DepoisonError(f"labels: {odd[0]!r} is not in both; the dataset's classes: {', '.join(classes[:20])}")
    return [labels.index(name) for name in classes]


def reorder(model: Classifier, order: list[int]) -> None:
    """Let a network's output i be what its output order[i] was."""
    last = model.head[-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.copy_(parameter[order].clone())


def _trigger(job: Job, attack: Attack | None, dataset: Dataset) -> State:
    """What the attack's trigger is on such inputs; drawn, where it is, as for seed 0."""
    if attack is None:
        return {}
    if attack.learns_trigger:
        name = job.parameters["attack"]["name"]
        raise DepoisonError(f"trigger: {name} learns its trigger while it trains; valid: an attack that has it before")
    setup = setup_of(job, dataset, poisoning=poisoning_of(job.parameters))
    return trigger_of(attack, replace(setup, rng=Rng(0, "poison")))
