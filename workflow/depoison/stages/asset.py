"""Stage `asset`: what an attack makes before it poisons, the same for every poisoning rate, such as a network of its own."""

from __future__ import annotations

from depoison.attacks.base import Workshop, module_of, tensors
from depoison.files import save_tensors
from depoison.stages.history import Progress
from depoison.stages.inputs import read_dataset, read_pool, setup_of
from depoison.stages.runner import Job
from depoison.training.loop import Monitor
from depoison.training.recipe import Recipe


def run(job: Job) -> None:
    """Call the attack's `make_asset` with the attacker's clean pool."""
    dataset, attack = read_dataset(job.upstream("dataset")), job.parameters["attack"]
    pool = read_pool(job, dataset)
    recipe = Recipe.of(job.parameters["recipe"]) if "recipe" in job.parameters else None
    progress = Progress("asset")
    monitor = Monitor(
        report=progress, within=progress.within, scratch=job.scratch, save_seconds=job.runtime.save_seconds
    )
    setup = setup_of(job, dataset, model=job.parameters.get("model"))
    inputs, target = (dataset.train_inputs, dataset.test_inputs, dataset.test_labels), job.parameters.get("target")
    workshop = Workshop(pool, setup, recipe, monitor, *inputs, target)
    make_asset = module_of(attack["name"]).make_asset
    made = make_asset(workshop, **attack["parameters"])
    save_tensors(job.folder / "asset.safetensors", tensors(make_asset, f"attack {attack['name']}: make_asset", made))
    job.facts |= monitor.facts
