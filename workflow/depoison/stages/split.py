"""Stage `split`: the defender's clean data is set aside first; the rest is the attacker's training pool."""

from __future__ import annotations

import torch
from torch import Tensor

from depoison.errors import DepoisonError
from depoison.files import save_tensors
from depoison.rng import Rng
from depoison.stages.inputs import read_dataset
from depoison.stages.runner import Job


def run(job: Job) -> None:
    """Write `defender` and `attacker`, disjoint int64 indices into the training set.

    The defender's indices are in random order, so that the first n of them are a sample: smaller tuning sets are nested in
    larger ones. The attacker's are sorted.
    """
    labels = read_dataset(job.upstream("dataset")).train_labels
    parameters = job.parameters
    defender = reserve(labels, parameters["reserve"], parameters.get("stratified", False), Rng(job.seed, "split"))
    attacker = torch.ones(len(labels), dtype=torch.bool)
    attacker[defender] = False
    save_tensors(job.folder / "split.safetensors", {"defender": defender, "attacker": attacker.nonzero()[:, 0]})


def reserve(labels: Tensor, fraction: float, stratified: bool, rng: Rng) -> Tensor:
    """Indices of the defender's data, (n,) int64, n = round(fraction * N), in random order.

    Stratified: each class in proportion, by largest remainder, and about so in every prefix.

    Raises:
        DepoisonError: fewer than two images on a side.
    """
    total = len(labels)
    count = round(fraction * total)
    if not 2 <= count <= total - 2:
        raise DepoisonError(
            f"reserve {fraction:g} of {total} images leaves {count} and {total - count}; each side needs 2"
        )
    order = torch.randperm(total, generator=rng.generator("order"))
    if not stratified:
        return order[:count]
    shuffled = labels[order]
    classes, sizes = shuffled.unique(return_counts=True)
    # Evenly spread numbers, one a class, decide what the proportions leave open: whose remainder counts, and who comes first.
    spread = (torch.randperm(len(classes), generator=rng.generator("classes")).double() + 0.5) / len(classes)
    quotas = sizes.double() * count / total
    counts = quotas.floor().long()
    largest = torch.argsort(quotas - counts - spread * 1e-9, descending=True, stable=True)
    counts[largest[: count - int(counts.sum())]] += 1
    chosen, ranks = [], []
    for label, size, kept, offset in zip(classes, sizes, counts, spread, strict=True):
        chosen.append((shuffled == label).nonzero()[:kept, 0])
        ranks.append((torch.arange(int(kept), dtype=torch.float64) + offset) / size)
    return order[torch.cat(chosen)[torch.argsort(torch.cat(ranks), stable=True)]]
