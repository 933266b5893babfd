"""Stage `examples`: a few test images, plain and triggered → examples.safetensors."""

from __future__ import annotations

import torch

from depoison.attacks.base import stamped
from depoison.errors import DepoisonError
from depoison.files import save_tensors
from depoison.rng import Rng
from depoison.stages.inputs import read_attack, read_dataset, read_trigger
from depoison.stages.runner import Job


def run(job: Job) -> None:
    """Write `clean` and `backdoored` (n, …), as they are stored, and `indices` (n,) into the test set; n is at most `count`.

    They are images that the attack wants to be another class, in a random order that is the same for every attack of a seed.
    Of combined attacks each image comes once with each trigger.

    Raises:
        DepoisonError: a clean model has no trigger.
    """
    dataset = read_dataset(job.upstream("dataset"))
    attack, poisoning = read_attack(job.upstream("poison"))
    if attack is None or poisoning is None:
        raise DepoisonError("examples: the attack none has no trigger; valid: any other attack")
    if attack.learns_trigger:
        raise DepoisonError("examples: the attack learns its trigger while it trains; valid: one that has it before")
    trigger = read_trigger(job.upstream("poison"), attack, dataset)
    order = torch.randperm(len(dataset.test_labels), generator=Rng(job.seed, "examples").generator("order"))
    labels = dataset.test_labels[order]
    indices, parts = order[poisoning.wanted(labels, len(dataset.classes))], attack.parts(trigger)
    indices = indices.repeat_interleave(len(parts))[: job.parameters["count"]]
    clean = dataset.test_inputs[indices]
    backdoored = torch.empty_like(clean)
    for i, (part, own) in enumerate(parts):
        own = part.among(dataset.test_inputs, dataset.test_labels, own)
        backdoored[i :: len(parts)] = stamped(part, clean[i :: len(parts)], own)
    tensors = {"clean": clean, "backdoored": backdoored, "indices": indices}
    save_tensors(job.folder / "examples.safetensors", tensors)
