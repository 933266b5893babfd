"""Natural Gradient Fine-tuning (NGF). Karim et al., "In Search of Smooth Minima for Purifying Backdoor in Deep Neural
Networks", 2022, as FST (Min et al., NeurIPS 2023, appendix B.3) runs it, namely with the authors' released code.

The classifier's step is the natural gradient F^-1 grad, with F the Fisher information of the layer in Kronecker factors
(K-FAC: Martens and Grosse, ICML 2015): F ~ A (x) G, where A = E[a a^T] over the layer's inputs a, a one appended for the
bias, and G = E[g g^T] over the gradients g of each image's log-likelihood by the layer's outputs. In the factors'
eigenbasis, F's eigenvalues are products of theirs or, corrected, the second moments of the rotated gradients (EKFAC:
George et al., NeurIPS 2018, Algorithm 1). The other weights take plain SGD steps or stay: see `trainable`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.training.loop import classification, prepare, sgd


def ngf(
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    trainable: str,
    layers: str,
    fisher: str,
    eigenvalues: str,
    damping: float,
    kl_clip: float,
    decay: float,
    covariance_every: int,
    inverse_every: int,
    retention: float,
    epoch_batches: int | None,
) -> Classifier:
    """Purify `model` by natural gradient fine-tuning.

    Args:
        trainable: "all": the weights before the classifier take plain SGD steps and BatchNorm follows the data, as in
            the released code; or "head": they stay as they are, statistics included, as the paper's one layer.
        layers: "last": only the classifier's last linear layer takes natural steps, as in the released code; or "all".
        epoch_batches: batches in an epoch, drawn with replacement, as in the released code; None: an epoch is a pass over
            the data.
        retention: weight of the pull towards the original classifier; 0 (released code) switches it off.
        fisher, eigenvalues, damping, kl_clip, decay, covariance_every, inverse_every: see `NaturalGradient`.
    """
    recipe, tuned = tune.recipe, copy.deepcopy(model)
    assert recipe is not None
    optimizer = sgd(prepare(tuned, trainable, frozen_statistics=trainable == "head"), recipe)
    natural = NaturalGradient(
        tuned.head if layers == "all" else tuned.head[-1:],
        tune.rng,
        fisher=fisher,
        eigenvalues=eigenvalues,
        damping=damping,
        kl_clip=kl_clip,
        decay=decay,
        covariance_every=covariance_every,
        inverse_every=inverse_every,
    )
    pull = clean_accuracy_retainer(model, clean, retention) if retention else None
    data = tune.batches(tuned, clean, epoch_batches)
    with natural.watching(tuned):
        for step in tune.steps(data, model=tuned, optimizer=optimizer, natural=natural):
            loss, logits = classification(tuned, *step.batch, recipe.precision)
            optimizer.zero_grad()
            (loss if pull is None else loss + pull(tuned)).backward()
            natural.replace_gradients(step.lr)
            optimizer.step()
            step.count(loss, logits)
    return tuned.requires_grad_(True).eval()


class NaturalGradient:
    """Turns the gradients of a classifier's linear layers into natural gradients.

    Args:
        fisher: whose labels the Fisher's gradients are of: "empirical", the data's, or "true", drawn from the model.
        eigenvalues: of F: "corrected", "kronecker", or "transposed", corrected but with the eigenvectors transposed, as
            the released code does.
        damping: added to each eigenvalue, so that (F + damping I)^-1 is exact for the F at hand and needs no factored
            damping as in Martens and Grosse, section 6.3.
        kl_clip: bound on lr^2 <natural gradient, gradient>, twice the KL divergence of a step; a longer step is scaled.
        decay: of the running averages of A and G, which start as the identity, and of the corrected eigenvalues.
        covariance_every, inverse_every: steps between updates of averages, and between eigendecompositions.
    """

    def __init__(
        self,
        layers: Sequence[nn.Linear],
        rng: Rng,
        *,
        fisher: str,
        eigenvalues: str,
        damping: float,
        kl_clip: float,
        decay: float,
        covariance_every: int,
        inverse_every: int,
    ):
        self.blocks = [_Block(layer) for layer in layers]
        self.rng, self.fisher, self.eigenvalues = rng, fisher, eigenvalues
        self.damping, self.kl_clip, self.decay = damping, kl_clip, decay
        self.covariance_every, self.inverse_every = covariance_every, inverse_every
        self.step = 0

    @contextlib.contextmanager
    def watching(self, model: Classifier) -> Iterator[None]:
        """A context in which forward passes of `model` leave behind what the averages need."""
        handles = [block.layer.register_forward_hook(block.keep) for block in self.blocks]
        if self.fisher == "true":
            handles.append(model.classifier.register_forward_hook(self._draw_labels))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def due(self) -> bool:
        return self.step % self.covariance_every == 0

    def _draw_labels(self, classifier: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        """Gradients for labels drawn from the model: a backward pass of its own, through the classifier alone."""
        if not (torch.is_grad_enabled() and self.due):
            return
        probabilities = logits.detach().float().softmax(1).cpu()
        drawn = torch.multinomial(probabilities, 1, generator=self.rng.generator("fisher", self.step))[:, 0]
        loss = cross_entropy(logits, drawn.to(logits.device), reduction="sum")
        found = torch.autograd.grad(loss, [block.outputs for block in self.blocks], retain_graph=True)
        for block, slopes in zip(self.blocks, found, strict=True):
            block.slopes = slopes

    @torch.no_grad()
    def replace_gradients(self, lr: float) -> None:
        """Turn the gradients of a backpropagated loss into natural ones, for a step at this learning rate."""
        if self.due:
            for block in self.blocks:
                if self.fisher == "empirical":  # of the mean loss, hence the factor
                    block.slopes = block.outputs.grad * len(block.outputs)
                block.average(self.decay)
        if self.step % self.inverse_every == 0:
            for block in self.blocks:
                block.decompose()
        if self.due and self.step and self.eigenvalues != "kronecker":
            for block in self.blocks:
                block.correct(self.decay, transposed=self.eigenvalues == "transposed")
        gradients = [block.gradient() for block in self.blocks]
        natural = [block.precondition(g, self.damping) for block, g in zip(self.blocks, gradients, strict=True)]
        length = lr**2 * sum((v * g).sum() for v, g in zip(natural, gradients, strict=True))
        scale = (self.kl_clip / length).sqrt().clamp(max=1)
        for block, v in zip(self.blocks, natural, strict=True):
            block.layer.weight.grad.copy_(v[:, :-1] * scale)
            block.layer.bias.grad.copy_(v[:, -1] * scale)
        self.step += 1

    def state(self) -> dict[str, Tensor]:
        kept = {f"{i}.{name}": getattr(b, name) for i, b in enumerate(self.blocks) for name in _Block.KEPT}
        return kept | {"step": torch.tensor(self.step)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.step = int(state["step"])
        for i, block in enumerate(self.blocks):
            for name in _Block.KEPT:
                getattr(block, name).copy_(state[f"{i}.{name}"])


class _Block:
    """One linear layer's block of the Fisher; matrices have the rows of the weight's, and a last column for the bias.

    Attributes:
        a, g: (I + 1, I + 1) and (O, O) running averages of the factors.
        basis_a, basis_g: their eigenvectors, in columns.
        spectrum: (O, I + 1) eigenvalues of the block.
        inputs, outputs, slopes: (B, I) inputs, (B, O) outputs and log-likelihood's gradients of the latest batch.
    """

    KEPT = ("a", "g", "basis_a", "basis_g", "spectrum")
    inputs: Tensor
    outputs: Tensor
    slopes: Tensor

    def __init__(self, layer: nn.Linear):
        self.layer = layer
        columns, rows = layer.in_features + 1, layer.out_features
        self.a, self.g, self.basis_a, self.basis_g = (
            torch.eye(size, dtype=layer.weight.dtype, device=layer.weight.device)
            for size in (columns, rows, columns, rows)
        )
        self.spectrum = layer.weight.new_ones(rows, columns).detach()

    def keep(self, layer: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
        if torch.is_grad_enabled():
            outputs.retain_grad()
            self.inputs, self.outputs = inputs[0].detach(), outputs

    def samples(self) -> tuple[Tensor, Tensor]:
        """(B, I + 1) inputs with a one appended and (B, O) slopes, in the weight's precision."""
        inputs = self.inputs.to(self.layer.weight.dtype)
        return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1), self.slopes.to(self.layer.weight.dtype)

    def average(self, decay: float) -> None:
        a, g = self.samples()
        self.a.mul_(decay).add_(a.T @ a / len(a), alpha=1 - decay)
        self.g.mul_(decay).add_(g.T @ g / len(g), alpha=1 - decay)

    def decompose(self) -> None:
        """A = Q_A diag(d_A) Q_A^T, and G likewise; the block's eigenvalues are d_G d_A^T."""
        d_a, basis_a = torch.linalg.eigh(self.a)
        d_g, basis_g = torch.linalg.eigh(self.g)
        # eigh gives columns in memory order, a resumed run has rows: products round as the order does, so keep one.
        self.basis_a.copy_(basis_a)
        self.basis_g.copy_(basis_g)
        self.spectrum.copy_(torch.outer(d_g.clamp(min=0), d_a.clamp(min=0)))

    def correct(self, decay: float, transposed: bool) -> None:
        """Average with E[(Q_G^T g a^T Q_A)^2], elementwise: of all eigenvalues in this basis, the closest to F."""
        a, g = self.samples()
        a, g = (a @ self.basis_a.T, g @ self.basis_g.T) if transposed else (a @ self.basis_a, g @ self.basis_g)
        self.spectrum.mul_(decay).add_(g.square().T @ a.square() / len(a), alpha=1 - decay)

    def gradient(self) -> Tensor:
        return torch.cat([self.layer.weight.grad, self.layer.bias.grad[:, None]], 1)

    def precondition(self, gradient: Tensor, damping: float) -> Tensor:
        """(F + damping I)^-1 gradient."""
        rotated = self.basis_g.T @ gradient @ self.basis_a
        return self.basis_g @ (rotated / (self.spectrum + damping)) @ self.basis_a.T


def clean_accuracy_retainer(model: Classifier, data: Labeled, weight: float) -> Callable[[Classifier], Tensor]:
    """weight / 2 * sum_i diag(F)_i (theta_i - original_i)^2 over the classifier's weights and biases.

    F is the Fisher of the original model on the clean data, their labels included, and stays. The formula is that of the
    same authors' later "Fisher Information Guided Backdoor Purification via Naive Exploitation of Smoothness", section 5.
    """
    blocks = [_Block(layer) for layer in model.head]
    handles = [block.layer.register_forward_hook(block.keep) for block in blocks]
    fisher = [torch.zeros_like(block.spectrum) for block in blocks]
    device = model.device
    try:
        for images, labels in zip(data.inputs.split(256), data.labels.split(256), strict=True):
            loss = cross_entropy(model(images.to(device)).float(), labels.to(device), reduction="sum")
            slopes = torch.autograd.grad(loss, [block.outputs for block in blocks])
            for block, diagonal, block.slopes in zip(blocks, fisher, slopes, strict=True):
                a, g = block.samples()
                diagonal.add_(g.square().T @ a.square() / len(data.labels))
    finally:
        for handle in handles:
            handle.remove()
    original = [(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in model.head]

    def pull(tuned: Classifier) -> Tensor:
        return (
            weight
            / 2
            * sum(
                (diagonal[:, :-1] * (layer.weight - w).square()).sum()
                + (diagonal[:, -1] * (layer.bias - b).square()).sum()
                for layer, diagonal, (w, b) in zip(tuned.head, fisher, original, strict=True)
            )
        )

    return pull
