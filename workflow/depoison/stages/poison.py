"""Stage `poison`: the trigger, and the attacker's changes to the training pool as a sparse overlay."""

from __future__ import annotations

from depoison.attacks.base import Overlay, Poisoning, overlay_of, trigger_of
from depoison.attacks.combined import attack_of
from depoison.errors import DepoisonError
from depoison.files import save_tensors
from depoison.plan.specs import asset_of
from depoison.stages.inputs import read_dataset, read_pool, read_split, save_trigger, setup_with_assets
from depoison.stages.runner import Job


def run(job: Job) -> None:
    """Write the trigger's tensors, and `indices` (n,) into the training set, `inputs` (n, …) as stored, `labels` (n,).

    An attack that controls training has an empty overlay; a clean model has neither overlay nor trigger.
    """
    dataset = read_dataset(job.upstream("dataset"))
    _, where = read_split(job.upstream("split"), dataset)
    pool, attack = read_pool(job, dataset), attack_of(job.parameters["attack"])
    trigger, overlay = {}, Overlay(where[:0], pool.inputs[:0], pool.labels[:0])
    if attack is not None:
        poisoning = Poisoning(**job.parameters["poisoning"])
        setup = setup_with_assets(job, dataset, poisoning)
        try:
            trigger = trigger_of(attack, setup)
            overlay = overlay_of(attack, pool, setup, trigger)
        except DepoisonError as error:
            made = sorted(role for role in job.spec["upstream"] if role.startswith(asset_of()))
            what = " with ".join(job.upstream(role).name for role in ("dataset", *made))
            raise DepoisonError(f"{job.parameters['attack']['name']} on {what}: {error}") from None
    save_trigger(job.folder, trigger)
    overlaid = {"indices": where[overlay.indices], "inputs": overlay.inputs, "labels": overlay.labels}
    save_tensors(job.folder / "poison.safetensors", overlaid)
    poisoned = len(overlay.indices) - overlay.covers
    job.facts |= {"poisoned": poisoned, "covers": overlay.covers, "pool": len(where)}
    job.facts |= {"parts": overlay.parts} if overlay.parts else {}
    if attack is not None and attack.poisons_data:
        # A clean-label attack may find fewer images than its rate asks for.
        job.facts |= {"requested": poisoning.count(len(where)), "poisoned_rate": poisoned / len(where)}
