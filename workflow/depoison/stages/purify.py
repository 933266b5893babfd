"""Stage `purify`: a backdoored model and the defender's clean data → a purified model."""

from __future__ import annotations

import importlib

from depoison.defenses.tuning import Tuner, TuningSet
from depoison.files import load_tensors, save_tensors
from depoison.rng import Rng
from depoison.stages.history import Progress, write_history
from depoison.stages.inputs import read_dataset, read_model
from depoison.stages.measure import Test
from depoison.stages.runner import Job
from depoison.training.loop import Monitor
from depoison.training.recipe import Recipe


def run(job: Job) -> None:
    """Call the defense with the model and the first `tuning_ratio` of the defender's data, nothing else."""
    dataset = read_dataset(job.upstream("dataset"))
    defender = load_tensors(job.upstream("split") / "split.safetensors")["defender"]
    backdoored = job.upstream("model")
    model = read_model(backdoored, dataset).to(job.device)

    recipe = Recipe(**job.parameters["recipe"]) if job.parameters["recipe"] else None
    monitor = Monitor(report=Progress("purify"), scratch=job.scratch, save_seconds=job.runtime.save_seconds)
    if recipe is not None and recipe.evaluate_every:
        # Only the history looks at the attack and the test set, never the defense.
        test = Test.of(backdoored, dataset)
        monitor.evaluate = lambda model: test.measure(model, recipe.precision)
    if "tuning_ratio" in job.parameters:
        defender = defender[: max(2, round(job.parameters["tuning_ratio"] * len(dataset.train_labels)))]
    tuning_set = TuningSet(dataset.train_images[defender], dataset.train_labels[defender])

    defense = job.parameters["defense"]
    name = defense["name"].replace("-", "_")
    purify = getattr(importlib.import_module(f"depoison.defenses.{name}"), name)
    tune = Tuner(recipe, Rng(job.seed, "purify"), monitor)
    purified = purify(model, tuning_set, tune, **defense["parameters"])
    job.facts |= write_history(job.folder / "history.csv", monitor.history)
    save_tensors(job.folder / "model.safetensors", purified.state_dict())
    job.facts |= {"tuning_images": len(defender)}
