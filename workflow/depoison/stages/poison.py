"""Stage `poison`: the trigger, and the attacker's changes to the training pool as a sparse overlay."""

from __future__ import annotations

from dataclasses import replace

import torch

from depoison.artifacts import load_tensors, read_spec
from depoison.attacks.base import Overlay, Poisoning, make
from depoison.errors import DepoisonError
from depoison.files import save_tensors
from depoison.rng import Rng
from depoison.stages.inputs import read_dataset, read_pool, read_split
from depoison.stages.runner import Job


def run(job: Job) -> None:
    """Write the trigger's tensors, and `indices` (n,) into the training set, `images` (n, C, H, W) uint8, `labels` (n,).

    An attack that controls training has an empty overlay; a clean model has neither overlay nor trigger.
    """
    dataset, rng, asset = read_dataset(job.upstream("dataset")), Rng(job.seed, "poison"), {}
    _, where = read_split(job.upstream("split"), dataset)
    attack = make(job.parameters["attack"])
    if "asset" in job.spec["upstream"]:
        asset = load_tensors(job.upstream("asset") / "asset.safetensors")
        pool = read_pool(job, dataset, read_spec(job.upstream("asset"))["parameters"].get("model"))
        pool = replace(pool, asset=asset)
    else:
        pool = read_pool(job, dataset)
    trigger, overlay = {}, Overlay(where[:0], pool.images[:0], pool.labels[:0])
    if attack is not None:
        poisoning = Poisoning(**job.parameters["poisoning"])
        try:
            trigger = attack.make_trigger(dataset.shape, rng, *([asset] if asset else []))
            overlay = attack.poison(pool, poisoning, trigger, rng)
        except DepoisonError as error:
            what = " with ".join(
                job.upstream(role).name for role in ("dataset", "asset") if role in job.spec["upstream"]
            )
            raise DepoisonError(f"{job.parameters['attack']['name']} on {what}: {error}") from None
    # safetensors cannot hold a file without a tensor that tells nothing from a file that lost it: keep a marker.
    save_tensors(job.folder / "trigger.safetensors", trigger or {"none": torch.zeros(0)})
    overlaid = {"indices": where[overlay.indices], "images": overlay.images, "labels": overlay.labels}
    save_tensors(job.folder / "poison.safetensors", overlaid)
    poisoned = len(overlay.indices) - overlay.covers
    job.facts |= {"poisoned": poisoned, "covers": overlay.covers, "pool": len(where)}
    if attack is not None and attack.poisons_data:
        # A clean-label attack may find fewer images than its rate asks for.
        job.facts |= {"requested": poisoning.count(len(where)), "poisoned_rate": poisoned / len(where)}
