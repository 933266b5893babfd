"""Stage `embedding`: features of clean and backdoored test images, embedded in the plane by t-SNE → embedding.csv."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depoison.artifacts import EMBEDDING
from depoison.errors import DepoisonError
from depoison.files import csv_bytes, write_bytes
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.stages.inputs import read_dataset, read_model
from depoison.stages.measure import Test
from depoison.stages.runner import Job
from depoison.training.loop import autocast


def run(job: Job) -> None:
    """One row a point: its place in the test set, its true label, whether it carries the trigger, and where it lies.

    Backdoored points are those images of the test set that the attack wants to be another class.

    Raises:
        DepoisonError: features that are no numbers, or too few points.
    """
    dataset, parameters, rng = read_dataset(job.upstream("dataset")), job.parameters, Rng(job.seed, "embedding")
    test = Test.of(job.upstream("backdoored"), dataset)
    model = read_model(job.upstream("model"), dataset).to(job.device)
    clean = sample(len(test.labels), round(parameters["fraction"] * len(test.labels)), rng.generator("clean"))
    indices, images, marks = clean, test.images[clean], [0] * len(clean)
    if len(test.kept):
        count = min(round(parameters["backdoored"] * len(clean)), len(test.kept))
        chosen = sample(len(test.kept), count, rng.generator("backdoored"))
        indices = torch.cat([indices, test.kept[chosen]])
        images = torch.cat([images, test.triggered[chosen]])
        marks += [1] * count
    found = features_of(model, images, parameters.get("precision", "fp32")).numpy()
    places = embed(found, parameters["perplexity"], rng.generator("t-sne").initial_seed() % 2**32)
    rows = _rows(indices, test.labels[indices], marks, places)
    write_bytes(job.folder / "embedding.csv", csv_bytes(EMBEDDING, rows))
    job.facts |= {"clean": len(clean), "backdoored": sum(marks)}


def sample(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the numbers below `total`, (count,) int64, sorted."""
    return torch.randperm(total, generator=generator)[:count].sort().values


@torch.no_grad()
def features_of(model: Classifier, images: Tensor, precision: str, batch_size: int = 250) -> Tensor:
    """(N, C, H, W) uint8 images → (N, D) float32 features on the CPU; the model is in evaluation mode."""
    device = model.device
    with autocast(device, precision):
        return torch.cat([model.features(batch.to(device)).float().cpu() for batch in images.split(batch_size)])


def embed(features: NDArray[np.float32], perplexity: float, seed: int) -> NDArray[np.float32]:
    """(N, D) → (N, 2) by t-SNE, from the first two principal components on; one thread, so that equal input stays equal.

    Args:
        perplexity: at most a third of the N - 1 neighbors that a point has.

    Raises:
        DepoisonError: features that are no numbers, or fewer than 5 points.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if not np.isfinite(features).all():
        raise DepoisonError("embedding: the model's features are no numbers; its training or tuning diverged")
    if len(features) < 5:
        raise DepoisonError(f"embedding: {len(features)} points; t-SNE needs 5, so raise `fraction`")
    with threadpool_limits(1):
        bounded = min(perplexity, (len(features) - 1) / 3)
        return TSNE(perplexity=bounded, init="pca", random_state=seed, n_jobs=1).fit_transform(features)


def _rows(indices: Tensor, labels: Tensor, marks: Sequence[int], places: NDArray[np.float32]) -> list[dict[str, float]]:
    columns = (indices.tolist(), labels.tolist(), marks, places[:, 0].tolist(), places[:, 1].tolist())
    return [dict(zip(EMBEDDING, row, strict=True)) for row in zip(*columns, strict=True)]
