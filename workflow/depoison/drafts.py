"""`depoison new track|table|defense|attack`: short files of a user's own that hold as they are, written for her to edit."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from depoison.errors import DepoisonError
from depoison.files import write_bytes
from depoison.papers.tables import ALL, PAPERS, papers_of
from depoison.plan.documents import written
from depoison.plan.methods import DEFAULT, KINDS, stem_of
from depoison.plan.plan import Plan
from depoison.reports.kinds import kind_of, kinds

OWN_TABLES = "mine"
"""Below config/papers/, the folder of a user's own tables."""

TRACK = """# A track: on which data, with which networks and for how long tables are made. What papers say of methods stays.
# Every key: docs/reference/files.md. Tracks that are there: depoison list tracks
summary: handwritten digits and a narrow ResNet-18; minutes on a CPU
replace:                          # "*": whatever else a table is of
  datasets: {"*": digits}
  models: {"*": resnet18}
models:
  resnet18: {width: 16}
training: {epochs: 12, batch_size: 32, precision: fp32, schedule: onecycle}
tuning: {epochs: 12, batch_size: 32, precision: fp32}
# A budget of one method:
# defenses: {fst: {epochs: 16}}
# As many poisoned images as in the paper, in place of the same rate:
# poisoning: {scale: images, cap: 0.2}
"""

TABLE = """# A table of your own: any rows and columns, of methods as cells' names have them (docs/tables.md).
title: LABEL
caption: A first table
dataset: cifar10                  # a track replaces it, such as demo by fashion-mnist
model: resnet18
axes:
  rows:
    - {label: BadNet, attack: badnet, rates: [0.01]}
    - {label: Blended, attack: blended+ratio=0.3, rates: [0.01]}
  columns:
    - {label: No defense, defense: none}
    - {label: FT, defense: ft}
    - {label: FST, defense: fst, each: {defense: alpha, values: [0.1, 0.2], label: α}}
metrics: {in: columns, show: [c-acc, asr]}    # depoison list metrics
summary: [average]
# seeds: [0, 1, 2]
"""

DEFENSE = '''"""NAME: fine-tuning with a penalty on the classifier's weights; a draft."""

from __future__ import annotations

from copy import deepcopy

from torch import Tensor

from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier


# The names of the parameters say what it is given: model, clean, tune, or suspect, new_model, fit (docs/adding-a-defense.md).
def STEM(model: Classifier, clean: Labeled, tune: Tuner, *, decay: float) -> Classifier:
    """Purify `model`, which stays as it is.

    Args:
        decay: weight of the penalty.
    """
    tuned = deepcopy(model)

    def penalty(network: Classifier) -> Tensor:
        return decay * sum(layer.weight.square().sum() for layer in network.head)

    return tune(tuned, clean, extra_loss=penalty)
'''

DEFENSE_YAML = """summary: "NAME: fine-tuning with a penalty on the classifier's weights; a draft"
label: LABEL                      # in tables
source: a draft                   # where it stands in its paper
parameters:                       # keyword-only in the code, each with its type, default and range
  decay: {type: float, default: 0.01, range: "[0, inf)", help: weight of the penalty}
values: {lr: 0.01}                # of shared hyper-parameters: docs/reference/shared.md
"""

ATTACK = '''"""NAME: a square in the upper left corner; a draft."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depoison.attacks.base import Attack, Setup, State


# More that a class may say, such as clean_label = True: docs/adding-an-attack.md.
@dataclass(frozen=True, kw_only=True)
class CLASS(Attack):
    """Attributes: size: side of the square in pixels."""

    size: int

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """pattern: (C, size, size), pixels in [0, 255]; random numbers are of the seed."""
        shape = (setup.shape[0], self.size, self.size)
        return {"pattern": torch.randint(256, shape, generator=setup.rng.generator("pattern")).float()}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        """(N, C, H, W) float, pixels in [0, 255], to the same with the trigger."""
        images = images.clone()
        images[:, :, : self.size, : self.size] = trigger["pattern"]
        return images
'''

ATTACK_YAML = """summary: "NAME: a square in the upper left corner; a draft"
label: LABEL                      # in tables
task: image                       # the kind of data that it is for
source: a draft                   # where it stands in its paper
parameters:                       # the fields of the class, each with its type, default and range
  size: {type: int, default: 3, range: "[1, 64]", patch: true, help: side of the square in pixels}
# values: {rate: 0.05}            # of shared hyper-parameters: docs/reference/shared.md
"""

CODE = {"defense": (DEFENSE, DEFENSE_YAML), "attack": (ATTACK, ATTACK_YAML)}


def require_name(name: str) -> None:
    """Raises: DepoisonError: what a file of a user's own is to be called is no name."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise DepoisonError(
            f"{name!r} is no name; valid: lower-case letters, digits and single hyphens, such as my-photos"
        )


def require_free(plan: Plan, *files: Path) -> None:
    """Raises: DepoisonError: one of these files is there."""
    for file in files:
        if file.exists():
            raise DepoisonError(f"{plan.configuration.methods.shown(file)} is there; choose another name, or edit it")


def new_track(plan: Plan, name: str) -> str:
    """Write config/tracks/<name>.yaml.

    Returns:
        What was written, and what to type next.

    Raises:
        DepoisonError: a name that is none, or taken.
    """
    require_name(name)
    require_free(plan, file := plan.root / "config/tracks" / f"{name}.yaml", plan.root / PAPERS / name)
    return _written(plan, {file: TRACK}, f"snakemake -- reports/{name}/table1.md")


def new_table(plan: Plan, name: str) -> str:
    """Write a table of the user's own, config/papers/mine/<name>.yaml; as `new_track`."""
    require_name(name)
    target = f"reports/demo/{OWN_TABLES}/{name}.md"
    if name == ALL or kind_of(target.removesuffix(".md")) is not kinds()["table"]:
        raise DepoisonError(f"{name!r} is what another report is called; valid: another name, such as my-table")
    require_free(plan, file := plan.root / PAPERS / OWN_TABLES / f"{name}.yaml")
    if OWN_TABLES not in papers_of(plan.root):
        require_free(plan, plan.root / "config/tracks" / f"{OWN_TABLES}.yaml")
    return _written(plan, {file: TABLE}, f"snakemake -- {target}", name)


def new_method(plan: Plan, kind: str, name: str) -> str:
    """Write code and YAML of a method of the user's own, side by side in the folder of these; as `new_track`.

    Args:
        kind: "defense" or "attack".
    """
    require_name(name)
    stem, folder, methods = stem_of(name), KINDS[kind], plan.configuration.methods
    taken = [base / f"{stem}.py" for base in methods.bases(folder)]
    yaml = methods.folder / folder / f"{name}.yaml"
    others = [plan.root / "config" / of / f"{name}.yaml" for of in (folder, *["checkpoints"] * (kind == "attack"))]
    require_free(plan, *taken, *others, yaml)
    words = "".join(word.capitalize() for word in name.split("-"))
    if not stem.isidentifier() or {stem, words} & {*keyword.kwlist}:
        raise DepoisonError(f"{name!r} is no name of Python's; valid: a letter first, and none of its own words")
    texts = dict(zip((taken[-1], yaml), CODE[kind], strict=True))
    chosen = {"attack": "badnet", "defense": "fst"} | {kind: name}
    cell = f"results/cells/demo/fashion-mnist/resnet18/{chosen['attack']}+rate=0.06/{chosen['defense']}/s0.json"
    elsewhere = f" --config 'runtime={{methods: {methods.shown(methods.folder)}}}'"
    command = f"snakemake{elsewhere * (methods.folder != plan.root / DEFAULT)} -- {cell}"
    return _written(plan, texts, command, name, stem, words)


def _written(plan: Plan, texts: dict[Path, str], command: str, name: str = "", stem: str = "", words: str = "") -> str:
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        for word, value in (("LABEL", written(name)), ("NAME", name), ("STEM", stem), ("CLASS", words)):
            text = text.replace(word, value)
        write_bytes(file, text.encode())
    shown = " and ".join(plan.configuration.methods.shown(file) for file in texts)
    return f"{shown} written; edit, then:\n  depoison check\n  {command}\n"
