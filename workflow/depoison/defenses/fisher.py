"""The Fisher information, and tuning towards little of it: what SFT and f-SFT share.

Karim et al., "Fisher Information Guided Backdoor Purification via Naive Exploitation of Smoothness", section 5: weights theta
minimize cross-entropy + eta_F Tr(F) + eta_r / 2 L_r (Eq. 6). F is the Fisher information of Eq. 4, the mean of g g^T over the
clean samples, where g is the gradient of the log-likelihood of one sample's own label, and

    L_r = sum over i of diag(F_0)_i (theta_i - theta_0,i)^2

ties each weight to the backdoored theta_0 by what it matters to clean data there. Tr(F) is the mean of |g|^2: its gradient
takes a backward pass through a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import grad
from torch.func import functional_call, vmap
from torch.func import grad as gradient_of
from torch.nn.functional import cross_entropy, log_softmax

from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.training.loop import classification, descend, sgd, unchanged_statistics

Weights = dict[str, Tensor]
"""The parameters of a model that learn, by name."""

AT_ONCE = 2**27
"""Most numbers that gradients of samples may be which are in memory together: half a GiB."""


def smooth(
    tuned: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    eta_f: float,
    eta_r: float,
    fisher: str,
    trace_every: int,
    trace_images: int | None,
) -> None:
    """Minimize Eq. 6, in place, over those parameters of a model that require a gradient; F is of these alone.

    Args:
        tuned: in training mode, at the backdoored weights.
        eta_f, eta_r: weights of Tr(F) and of L_r / 2; 0 leaves the term out.
        fisher: how Tr(F) is found on a batch, "signs" or "exact" (`signed_trace`, `exact_trace`), while diag(F_0) is exact;
            or "released": what the released code has for both. Signs and released are of the pass that the loss is of,
            BatchNorm in training mode; exact is of a pass of its own in fp32, by running statistics, which do not mix images.
        trace_every: steps from one that minimizes Tr(F), too, to the next.
        trace_images: how many images of a batch Tr(F) is of; None: all.
    """
    recipe = tune.recipe
    assert recipe is not None
    weights = {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    optimizer = sgd(weights.values(), recipe)
    retainer = None
    if eta_r:
        diagonal = released_diagonal if fisher == "released" else exact_diagonal
        retainer = retainer_of(weights, diagonal(tuned, weights, clean))
    for step in tune.steps(tune.batches(tuned, clean), model=tuned, optimizer=optimizer):
        images, labels = step.batch
        loss, logits = classification(tuned, images, labels, recipe.precision)
        objective = loss if retainer is None else loss + eta_r / 2 * retainer()
        if eta_f and step.number % trace_every == 0:
            generator = tune.rng.generator("trace", step.number)
            if fisher == "exact":
                trace = exact_trace(tuned, weights, images[:trace_images], labels[:trace_images])
            elif fisher == "signs":
                likelihoods = -cross_entropy(logits, labels, reduction="none")[:trace_images]
                signs = torch.randint(2, likelihoods.shape, generator=generator) * 2 - 1
                trace = signed_trace(weights, likelihoods, signs.to(tuned.device))
            else:
                trace = released_trace(weights, logits, labels, generator)
            objective = objective + eta_f * trace
        descend(optimizer, objective)
        step.count(loss, logits)


# The Fisher information


def gradients(model: Classifier, weights: Weights, images: Tensor, labels: Tensor) -> Weights:
    """(B, …) the gradient of each image's log-likelihood by each weight, by running statistics."""

    def of_one(weights: Weights, image: Tensor, label: Tensor) -> Tensor:
        return -cross_entropy(functional_call(model, weights, (image[None],))[0], label)

    model.eval()
    found = vmap(gradient_of(of_one), (None, 0, 0))(weights, images, labels)
    model.train()
    return found


def exact_trace(model: Classifier, weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
    """Tr(F) of these images: the mean of their squared gradients' sums."""
    found = gradients(model, weights, images, labels)
    return torch.stack([each.square().sum() for each in found.values()]).sum() / len(labels)


def signed_trace(weights: Weights, likelihoods: Tensor, signs: Tensor) -> Tensor:
    """An estimate of Tr(F) of some images that is right on average, in one backward pass.

    It is |sum of s_n g_n|^2 / B, where s_n is the random sign of an image and g_n its gradient: E[s_n s_m] = 0 leaves the
    |g_n|^2. So Hutchinson's estimator finds a trace, here that of the images' Gram matrix, which is Tr(F) B.

    Args:
        likelihoods: (B,) the log-likelihood of each image, which depends on the weights.
        signs: (B,) of 1 and -1.
    """
    found = grad((signs * likelihoods).sum(), list(weights.values()), create_graph=True, materialize_grads=True)
    return torch.stack([each.square().sum() for each in found]).sum() / len(signs)


def exact_diagonal(model: Classifier, weights: Weights, clean: Labeled) -> Weights:
    """diag(F) of all clean images, as they are stored: the mean of their squared gradients."""
    size = max(1, AT_ONCE // sum(weight.numel() for weight in weights.values()))
    fixed = {name: weight.detach() for name, weight in weights.items()}
    diagonal = {name: torch.zeros_like(weight) for name, weight in fixed.items()}
    for images, labels in zip(clean.inputs.split(size), clean.labels.split(size), strict=True):
        found = gradients(model, fixed, images.to(model.device), labels.to(model.device))
        for name, each in found.items():
            diagonal[name] += each.square().sum(0) / len(clean.labels)
    return diagonal


def retainer_of(weights: Weights, diagonal: Weights) -> Callable[[], Tensor]:
    """L_r as a function of the weights as they become; theta_0 is what they are now."""
    start = {name: weight.detach().clone() for name, weight in weights.items()}

    def retainer() -> Tensor:
        return torch.stack([(diagonal[n] * (weight - start[n]).square()).sum() for n, weight in weights.items()]).sum()

    return retainer


# What the released code has for it (nazmul-karim170/FIP, Regularizer.py)


def all_pairs(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean log-likelihood of each image (B, K) under the label of each image (B,), its own or another's."""
    return log_softmax(logits, 1)[:, labels].mean()


def released_trace(weights: Weights, logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient of `all_pairs` times noise, which is 0 on average: linear in the gradient, where a trace is quadratic.

    The noise of a tensor is the mean of 20 draws of N(0, I). The products are summed up tensor by tensor, and all partial
    sums are summed up: so the first of P tensors counts P times, the last once.
    """
    found = grad(all_pairs(logits, labels), list(weights.values()), create_graph=True, materialize_grads=True)
    noise = [torch.randn(each.shape, generator=generator).to(each) / 20**0.5 for each in found]
    products = [(each * drawn).sum() for each, drawn in zip(found, noise, strict=True)]
    return torch.stack([(len(found) - place) * product for place, product in enumerate(products)]).sum()


def released_diagonal(model: Classifier, weights: Weights, clean: Labeled) -> Weights:
    """The square of the gradient of `all_pairs`, over batches of 100 of all clean images, BatchNorm in training mode."""
    blocks = list(zip(clean.inputs.split(100), clean.labels.split(100), strict=True))
    pairs = sum(len(labels) ** 2 for _, labels in blocks)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with unchanged_statistics(model):
        for images, labels in blocks:
            labels = labels.to(model.device)
            mean = all_pairs(model(images.to(model.device)).float(), labels)
            found = grad(mean, list(weights.values()), materialize_grads=True)
            for name, each in zip(weights, found, strict=True):
                total[name] += each * (len(labels) ** 2 / pairs)
    return {name: each.square() for name, each in total.items()}
