"""Seconds of one purification by every defense that purifies a model, at FST's budget, from a model and data in memory.

Where a whole purification would take long, as on a CPU, it is timed with a few epochs and with twice as many, and the budget
is worked out from what the second half of them took: a part that has epochs of its own, such as NAD's teacher, counts once.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import replace
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

CELL = "results/cells/paper/cifar10/resnet18/badnet/{}/s0.json"
IMAGES = 1000
"""2% of CIFAR-10."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--epochs", type=int, default=2, help="epochs to time; 0: the whole budget")
    arguments.add_argument("--width", type=int, help="of ResNet-18; None: the paper's")
    arguments.add_argument("--threads", type=int, default=cores(), help="of torch")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(torch.device("cpu"), options.repeats, options.epochs, options.width)
    rows = [
        [name, found["epochs"], *(f"{found['seconds'][key]:.1f}" for key in ("median", "min", "max"))]
        for name, found in result.items()
    ]
    report(options, machine(options.threads), table(["defense", "epochs", "seconds", "min", "max"], rows), result)


def measure(device: torch.device, repeats: int, epochs: int, width: int | None) -> dict[str, dict[str, Any]]:
    """{defense: {epochs of the budget, seconds of a whole purification}}.

    Args:
        epochs: how many are timed; 0 for all.
    """
    plan, result = Plan(PROJECT), {}
    torch.manual_seed(0)
    work = Work("resnet18", width, 0, 0, device)
    clean, model = Labeled(*pictures(IMAGES)), work.network()
    for defense in plan.configuration.names("defense"):
        sight = plan.configuration.sight(defense)
        if not {"model"} <= set(sight) <= {"model", "clean", "tune"}:
            continue
        parameters = plan.cell(CELL.format(defense)).evaluation.upstream["model"].spec["parameters"]
        recipe = Recipe.of(parameters["recipe"]) if parameters["recipe"] else None
        name = defense.replace("-", "_")
        purify = getattr(importlib.import_module(f"depoison.defenses.{name}"), name)

        def timed(
            of: int, purify: Any = purify, sight: Any = sight, recipe: Any = recipe, own: Any = parameters
        ) -> float:
            short = replace(recipe, epochs=of, evaluate_every=0) if recipe else None
            tuner = Tuner(short, Rng(0, "purify"), Monitor(), task_of("image"))
            seen = {"model": model, "clean": clean, "tune": tuner}
            torch.use_deterministic_algorithms(True)
            started = time.perf_counter()
            purify(*(seen[key] for key in sight), **own["defense"]["parameters"])
            work.wait()
            torch.use_deterministic_algorithms(False)
            return time.perf_counter() - started

        budget = recipe.epochs if recipe else 0
        few = min(epochs or budget, budget)
        seconds = []
        for repeat in range(repeats + 1):
            first = timed(few)
            if 2 * few < budget:
                first += (timed(2 * few) - first) / few * (budget - few)
            elif few < budget:
                first = timed(budget)
            if repeat:
                seconds.append(first)
        result[defense] = {"epochs": budget, "seconds": spread(seconds)}
    return result


if __name__ == "__main__":
    main()
