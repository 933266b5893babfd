"""Models that were trained elsewhere: what they are (`depoison new checkpoint`), and a cell's model as a file of weights."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depoison.artifacts import read_recorded
from depoison.drafts import require_free, require_name
from depoison.errors import DepoisonError, unknown
from depoison.files import parse_json, save_tensors, sha256_of, write_bytes
from depoison.models.layouts import Misfit, read_states
from depoison.plan.cells import Choice
from depoison.plan.documents import written
from depoison.plan.plan import Cell, Plan, values_of
from depoison.results import model_of
from depoison.rng import Rng
from depoison.stages.adopt import SeveralFit, adopted, at_key, order_of, reorder
from depoison.tasks import task_of

TRACK = "paper"
"""By whose values a model and a dataset are described where nothing else says more."""
TEMPLATE = """summary: a model that was trained elsewhere
label: {name}
weights: {weights}
sha256: {sha256}
{key}model: {model}
parameters: {{{parameters}}}
dataset: {dataset}
# normalization: {{mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}   # where it takes other pixels than the dataset's file says
# labels: [cat, dog]                                # the classes of its outputs, where their order is not the dataset's
# trigger: {{attack: badnet, values: {{size: 3, target: 0}}}}   # where it is known; `patch` is one of your own pictures
"""


def new_checkpoint(plan: Plan, path: Path, name: str, dataset: str, model: str = "", key: str = "") -> str:
    """Recognize a network by its weights, and write config/checkpoints/<name>.yaml.

    Args:
        path: of the file of weights.
        dataset: what it classifies.
        model: which of config/models it is, as in a cell's name; "": the one that fits.
        key: where the state dict lies in the file; "": where it fits.

    Returns:
        What was found and written, and what to type next.

    Raises:
        DepoisonError: a name that is none, or taken; a dataset of unknown classes; no model fits (with what differs from the
            one that fits best), or several models or state dicts do.
    """
    file = plan.root / "config/checkpoints" / f"{name}.yaml"
    require_name(name)
    require_free(plan, file)
    configuration = plan.configuration
    if name in configuration.names("attack"):
        raise DepoisonError(f"{name} is an attack; choose another name")
    if dataset not in configuration.names("dataset"):
        raise unknown("dataset", dataset, configuration.names("dataset"))
    states = read_states(path)
    try:
        states = at_key(states, key)
    except DepoisonError as error:
        raise DepoisonError(f"{path}: {error}") from None
    candidates = [*_candidates(plan, dataset, model, states)]
    if not candidates:
        which = f"--model: {model} is not" if model else "no model is"
        raise DepoisonError(f"{which} for {configuration.task_of(dataset)}, which {dataset} is of")
    classes = _classes(plan, dataset, candidates[0].name)
    fits, misfits = [], []
    for choice in candidates:
        try:
            # Shapes are all that is asked for: without memory or weights a network is there at once.
            with torch.device("cpu" if model else "meta"):
                network = _built(plan, dataset, choice, classes)
        except (DepoisonError, RuntimeError) as error:  # such as a width that this one cannot have
            if model:
                raise DepoisonError(f"--model {choice}: {' '.join(str(error).split())}") from error
            continue
        try:
            fits.append((choice, adopted(network, states, "", {})[1]))
        except Misfit as misfit:
            misfits.append((len(misfit.faults), choice.name, misfit))
        except SeveralFit as several:
            keys = ", ".join(several.keys)
            raise DepoisonError(f"{path}: more than one state dict fits {choice}: {keys}; say which by --key") from None
        except DepoisonError as error:
            raise DepoisonError(f"{path}: {error}") from None
    if not fits:
        if not misfits:
            raise DepoisonError(f"{path}: fits no model, none of which can be made for {dataset}")
        _, nearest, misfit = min(misfits, key=lambda each: each[:2])
        raise DepoisonError(f"{path}: fits no model; as the nearest, {nearest}, it is {misfit}")
    if len(fits) > 1:
        raise DepoisonError(f"{path}: fits {' and '.join(str(choice) for choice, _ in fits)}; say which by --model")
    ((choice, known),) = fits
    here = path.resolve()
    shown = here.relative_to(plan.root) if here.is_relative_to(plan.root) else here
    text = TEMPLATE.format(
        name=written(name), weights=written(shown), sha256=sha256_of(path), model=choice.name, dataset=dataset,
        key=f"key: {written(known['key'])}\n" if known["key"] else "",
        parameters=", ".join(f"{key}: {value}" for key, value in choice.overrides),
    )  # fmt: skip
    file.parent.mkdir(exist_ok=True)
    write_bytes(file, text.encode())
    where = f" at {known['key']!r}" if known["key"] else ""
    return (
        f"{path}{where}: {choice}, {len(known['names'])} tensors\n{file.relative_to(plan.root)} written; to try it:\n"
        f"  snakemake -- reports/audit/{name}.html\n"
        f"  snakemake -- results/cells/{TRACK}/{dataset}/{choice.name}/{name}/fst/s0.json\n"
    )


def _candidates(plan: Plan, dataset: str, model: str, states: dict[str, dict[str, Tensor]]) -> Iterator[Choice]:
    """Models that weights may be of, each as wide as it has its default, and as the first convolution of theirs is."""
    configuration = plan.configuration
    task, named = configuration.task_of(dataset), Choice.parse(model, "--model") if model else None
    names = [named.name] if named else configuration.names("model")
    first = (next((t for t in of.values() if t.ndim == 4), None) for of in states.values())
    widths = {len(tensor) for tensor in first if tensor is not None}
    for name in names:
        configuration.require("model", name, "--model")
        method = configuration.method("model", name).content
        if method.task not in (None, task):
            continue
        given = dict(named.overrides) if named else {}
        yield Choice(name, tuple(given.items()))
        for width in sorted(widths) if "width" in method.parameters and "width" not in given else ():
            if width != method.parameters["width"].default:
                yield Choice(name, (*given.items(), ("width", str(width))))


def _values(plan: Plan, kind: str, chosen: Choice, dataset: str, model: str) -> dict[str, Any]:
    return values_of(plan.settings(kind, chosen, dataset=dataset, model=model, track=TRACK, paper="", where="--model"))


def _classes(plan: Plan, dataset: str, model: str) -> int:
    classes = plan.classes(dataset, _values(plan, "dataset", Choice(dataset), dataset, model))
    if classes is None:
        raise DepoisonError(
            f"dataset {dataset}: how many classes it has is not known before it is read; give `classes`"
        )
    return classes


def _built(plan: Plan, dataset: str, choice: Choice, classes: int) -> Any:
    values = {
        kind: _values(plan, kind, chosen, dataset, choice.name)
        for kind, chosen in (("dataset", Choice(dataset)), ("model", choice))
    }
    content, task = (
        plan.configuration.method("model", choice.name).content,
        task_of(plan.configuration.task_of(dataset)),
    )
    spec = {"name": choice.name, "version": content.version, "parameters": values["model"]} | values["dataset"]
    shape, generator = task.shape(values["dataset"]["size"]), Rng(0, "unused").generator("model")
    return task.network(spec, classes=classes, shape=shape, generator=generator)


def export(plan: Plan, cell: Cell, output: Path, form: str = "like-input") -> str:
    """Write a cell's model as a file of weights.

    Args:
        form: one of `depoison.cli.EXPORTED`. "like-input": of a checkpoint's cell with the names, types, order of outputs and
            key of the file that was brought, and in its format; of others as safetensors.

    Raises:
        DepoisonError: the model is not here, or the file is the one that was brought, or called as one of another format.
    """
    backdoored = cell.evaluation.upstream["backdoored"]
    if backdoored.stage == "adopt":
        brought = plan.root / Path(plan.configuration.checkpoint(cell.name.attack.name).content.weights).expanduser()
        if output.resolve() == brought.resolve():
            raise DepoisonError(f"{output}: is the file that was brought; choose another")
    network, dataset = model_of(plan, cell)
    key, state = "", network.state_dict()
    if form == "like-input" and backdoored.stage == "adopt":
        names = Path(backdoored.directory) / "names.json"
        weights, known = backdoored.spec["parameters"]["weights"], parse_json(read_recorded(names), names)
        if weights["labels"] is not None:
            reorder(network, order_of(dataset.classes, weights["labels"]))
        state, key = network.state_dict(), known["key"]
        types = {name: getattr(torch, known["types"][name]) for name in known["names"]}
        state = {theirs: state[own].to(types[own]) for own, theirs in known["names"].items()}
        form = "pt" if known["pickled"] else "safetensors"
    form = "safetensors" if form == "like-input" else form
    if (output.suffix == ".safetensors") != (form == "safetensors"):
        valid = ".safetensors" if form == "safetensors" else ".pt, .pth or the like"
        raise DepoisonError(f"{output}: it is written as {form}; valid: --output with {valid}, or another --format")
    output.parent.mkdir(parents=True, exist_ok=True)
    if form == "pt":
        content: Any = state
        for name in reversed(key.split(".") if key else []):
            content = {name: content}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_bytes(output, buffer.getvalue())
    else:
        save_tensors(output, state)
    return f"{output}: {len(state)} tensors{f' at {key!r}' if key and form == 'pt' else ''}, the model of {cell.name.path}\n"
