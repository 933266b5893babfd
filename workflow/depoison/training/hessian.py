"""The Hessian of a loss by a network's weights, known by its products with vectors: its largest eigenvalue, its trace, and
how its eigenvalues are spread.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from depoison.models.classifier import Classifier
from depoison.tasks import Task


class Hessian:
    """Of the mean loss of one batch, by all n parameters of a model, which is put into evaluation mode.

    The graph of the gradient is kept, so memory grows with the batch; a product takes about as long as two gradients.

    Args:
        inputs: (B, …), as they are stored, on the model's device.
        labels: (B,) int64, there, too.

    Attributes:
        loss: of the batch.
        size: n.
    """

    def __init__(self, task: Task, model: Classifier, inputs: Tensor, labels: Tensor):
        self._parameters, self.device = list(model.eval().requires_grad_(True).parameters()), model.device
        self.size = sum(parameter.numel() for parameter in self._parameters)
        with sdpa_kernel(SDPBackend.MATH):  # a fused attention has no second derivative
            loss, _ = task.loss(model, inputs, labels, "fp32")
        self.loss = loss.item()
        self._gradient = torch.autograd.grad(loss, self._parameters, create_graph=True, materialize_grads=True)

    def times(self, vector: Tensor) -> Tensor:
        """H v, (n,) on the model's device and of its type, of v (n,); exact, by a second backward pass (Pearlmutter 1994)."""
        parts = vector.to(self._gradient[0]).split([parameter.numel() for parameter in self._parameters])
        along = sum((one * part.view_as(one)).sum() for one, part in zip(self._gradient, parts, strict=True))
        found = torch.autograd.grad(along, self._parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([one.reshape(-1) for one in found])


def largest_eigenvalue(hessian: Hessian, generator: torch.Generator, *, tolerance: float) -> float:
    """The algebraically largest eigenvalue, by ARPACK's Lanczos iteration with restarts.

    Args:
        tolerance: of the eigenvalue, relative.
    """

    def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        return hessian.times(torch.from_numpy(vector.reshape(-1))).double().cpu().numpy()

    start = torch.randn(hessian.size, generator=generator, dtype=torch.float64).numpy()
    if not product(start).any():  # ARPACK does not take a matrix of zeros
        return 0.0
    operator = LinearOperator((hessian.size, hessian.size), matvec=product, dtype=np.float64)
    with threadpool_limits(1, "blas"):  # equal input, equal output
        found = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)
    return float(found[0])


def trace(hessian: Hessian, generator: torch.Generator, *, vectors: int, tolerance: float) -> tuple[float, float, int]:
    """The mean of v'Hv over random vectors of signs (Hutchinson, 1990), its standard error, and of how many it is.

    Args:
        vectors: at most.
        tolerance: the standard error, in units of the mean, below which it ends.
    """
    found: list[float] = []
    while True:
        vector = signs(hessian, generator)
        found.append((vector.double() @ hessian.times(vector).double()).item())
        mean = math.fsum(found) / len(found)
        deviation = float(np.std(found, ddof=1)) if len(found) > 1 else math.inf
        error = deviation / math.sqrt(len(found))
        if len(found) == vectors or error <= tolerance * abs(mean):
            return mean, error if math.isfinite(error) else 0.0, len(found)


def quadrature(
    hessian: Hessian, generator: torch.Generator, *, iterations: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues and the share of all n that lies there, (m,) and (m,): stochastic Lanczos quadrature (Ghorbani et al., ICML
    2019) from one random vector of signs. Shares add up to 1; m is at most `iterations`, and at most n.

    Each new vector is made orthogonal to all before it, twice, since rounding would bring eigenvalues back that were found.
    """
    count = min(iterations, hessian.size)
    basis = torch.zeros(count, hessian.size, device=hessian.device)
    basis[0] = signs(hessian, generator) / math.sqrt(hessian.size)
    diagonal: list[float] = []
    beside: list[float] = []
    for i in range(count):
        image = hessian.times(basis[i])
        diagonal.append((basis[i].double() @ image.double()).item())
        known = basis[: i + 1]
        for _ in range(2):
            image = image - known.T @ (known @ image)
        length = image.double().norm().item()
        if i + 1 == count or length <= 1e-6 * max(map(abs, [*diagonal, *beside]), default=0):
            break  # what the vectors span, the Hessian maps into itself
        beside.append(length)
        basis[i + 1] = image / length
    eigenvalues, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside))
    return eigenvalues, vectors[0] ** 2


def signs(hessian: Hessian, generator: torch.Generator) -> Tensor:
    """(n,) float32 of 1 and -1, on the Hessian's device; drawn on the CPU, whatever that is."""
    return (torch.randint(0, 2, (hessian.size,), generator=generator, dtype=torch.int8).float() * 2 - 1).to(
        hessian.device
    )
