"""Seconds of one purification by every defense at a paper's budget for CIFAR-10, from a model and data in memory.

Where a whole purification would take long, as on a CPU, it is timed with a few epochs, once more with twice as many of each
kind that it has (of its loop, of NAD's teacher, of NC's search), and the budget is worked out from what those added. One that
trains on the poisoned set is given a part of one, and its seconds are multiplied by how much larger the whole is.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from common import PROJECT, cores, machine, parser, report, spread, table
from depoison.defenses.tuning import Labeled, Tuner
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.tasks import task_of
from depoison.training.loop import Monitor
from depoison.training.recipe import Recipe
from loops import Work, pictures

CELL = "results/cells/paper/{paper}/cifar10/{model}/badnet+rate=0.1/{defense}/s0.json"
IMAGES = 50_000
"""That CIFAR-10 has to train with."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--epochs", type=int, default=1, help="epochs of each kind to time; 0: the whole budget")
    arguments.add_argument("--paper", default="fst", help="whose budget")
    arguments.add_argument("--model", default="resnet18", help="of that paper's CIFAR-10 tables")
    arguments.add_argument("--width", type=int, help="of the model; None: the paper's")
    arguments.add_argument("--suspect", type=int, default=512, help="images of the part of a poisoned set")
    arguments.add_argument("--defenses", nargs="+", help="those to time; all by default")
    arguments.add_argument("--threads", type=int, default=cores(), help="of torch")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(
        torch.device("cpu"), options.repeats, options.epochs, options.width, options.paper, options.model,
        options.suspect, options.defenses,
    )  # fmt: skip
    rows = [
        [name, " + ".join(map(str, found["epochs"].values())) or "–"]
        + [f"{found['seconds'][key]:.1f}" for key in ("median", "min", "max")]
        for name, found in result.items()
    ]
    report(options, machine(options.threads), table(["defense", "epochs", "seconds", "min", "max"], rows), result)


@dataclass(frozen=True)
class Purification:
    """What is timed.

    Attributes:
        seen: what it is called with, in order; None: its loop.
        own: its hyper-parameters.
    """

    purify: Callable[..., Any]
    seen: list[Any]
    own: dict[str, Any]
    recipe: Recipe | None

    def seconds(self, budget: dict[str, int], work: Work) -> float:
        """Of one purification, with so many epochs of each kind."""
        own = self.own | budget
        short = self.recipe and replace(self.recipe, epochs=own.pop("epochs"), evaluate_every=0)
        loop = Tuner(short, Rng(0, "purify"), Monitor(), task_of("image"))
        torch.use_deterministic_algorithms(True)
        started = time.perf_counter()
        self.purify(*(loop if seen is None else seen for seen in self.seen), **own)
        work.wait()
        torch.use_deterministic_algorithms(False)
        return time.perf_counter() - started


def measure(
    device: torch.device,
    repeats: int,
    epochs: int,
    width: int | None,
    paper: str = "fst",
    model: str = "resnet18",
    suspect: int = 512,
    defenses: list[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """{defense: {epochs of the budget by kind, seconds of a whole purification}}.

    Args:
        epochs: how many of each kind are timed; 0 for all.
        paper: whose values the defenses have.
        suspect: images of the part of a poisoned set.
        defenses: those to time; None: all.
    """
    plan, result = Plan(PROJECT), {}
    torch.manual_seed(0)
    work = Work(model, width, 0, 0, device)
    network, part = work.network(), Labeled(*pictures(suspect))
    for defense in defenses or plan.configuration.names("defense"):
        if not (sight := plan.configuration.sight(defense)):
            continue
        cell = plan.cell(CELL.format(paper=paper, model=model, defense=defense))
        artifact = cell.evaluation.upstream["model"]
        parameters = artifact.spec["parameters"]
        recipe = Recipe.of(parameters["recipe"]) if parameters["recipe"] else None
        own = parameters["defense"].get("parameters", {})
        name = defense.replace("-", "_")
        purify = getattr(importlib.import_module(f"depoison.defenses.{name}"), name)
        seen: dict[str, Any] = {"model": network, "suspect": part, "new_model": work.network}
        if "clean" in sight:
            seen["clean"] = Labeled(*pictures(round(parameters["tuning_ratio"] * IMAGES)))
        pool = IMAGES * (1 - artifact.upstream["split"].spec["parameters"]["reserve"])
        scale = pool / suspect if "suspect" in sight else 1.0
        kinds = {key: value for key, value in own.items() if key.endswith("_epochs")}
        if recipe:
            kinds = {"epochs": recipe.epochs} | kinds

        one = Purification(purify, [seen.get(key) for key in sight], own, recipe)
        few = {key: min(epochs or value, value) for key, value in kinds.items()}
        one.seconds(few, work)  # pays for what is loaded and allocated once
        seconds = []
        for _ in range(repeats):
            found = first = one.seconds(few, work)
            for key, value in kinds.items():
                if value > few[key]:
                    more = min(2 * few[key], value)
                    added = one.seconds(few | {key: more}, work) - first
                    found += max(added, 0) / (more - few[key]) * (value - few[key])
            seconds.append(found * scale)
        result[defense] = {"epochs": kinds, "seconds": spread(seconds)}
        print(f"{defense}: {result[defense]['seconds']['median']:.1f} s", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    main()
