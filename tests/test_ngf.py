"""NGF: the Fisher information and its natural gradient against NumPy, and the purification as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from conftest import ROOT, cell
from depoison.defenses.ft import ft
from depoison.defenses.ngf import NaturalGradient, clean_accuracy_retainer, ngf
from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.tasks.image import ImageClassifier
from depoison.training.loop import Monitor
from small import IMAGES, MEAN, STD, changed, classes_of, interrupted, network, pixels, recipe, state_of

RNG = Rng(0, "purify")
DATA = Labeled(pixels(40), classes_of(40))
PLAIN = {
    "fisher": "empirical", "eigenvalues": "kronecker", "damping": 1e-3, "kl_clip": 1e9, "decay": 0.0,
    "covariance_every": 1, "inverse_every": 1,
}  # fmt: skip
RELEASED = {
    "trainable": "all", "layers": "last", "fisher": "empirical", "eigenvalues": "corrected", "damping": 1e-3, "kl_clip": 1e-2,
    "decay": 0.95, "covariance_every": 2, "inverse_every": 5, "retention": 0.0,
    "epoch_batches": None,
}  # fmt: skip
HEAD = {"classifier.weight", "classifier.bias"}


def double(layers: int = 1) -> Classifier:
    return network(batchnorm=False, layers=layers).double()


def matrices(model: Classifier) -> list[np.ndarray]:
    """(O, I + 1) gradients of each linear layer, the bias's in the last column."""
    return [np.hstack([layer.weight.grad, layer.bias.grad[:, None]]) for layer in model.head]


def stepped(
    model: Classifier, natural: NaturalGradient, images: Tensor, labels: Tensor, lr: float = 0.1
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The gradients of one batch before and after they are replaced."""
    model.zero_grad()
    with natural.watching(model):
        cross_entropy(model(images), labels).backward()
    before = matrices(model)
    natural.replace_gradients(lr)
    return before, matrices(model)


def replaced(model: Classifier, images: Tensor, labels: Tensor, steps: int = 1, **changes: Any) -> list[Any]:
    natural = NaturalGradient(model.head, RNG, **(PLAIN | changes))
    return [stepped(model, natural, images, labels) for _ in range(steps)][-1] + (natural,)


def per_image(model: Classifier, images: Tensor, labels: Tensor) -> list[np.ndarray]:
    """(N, O, I + 1) gradients of each image's loss, one backward pass each."""
    found = []
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        cross_entropy(model(image[None]), label[None]).backward()
        found.append(matrices(model))
    model.zero_grad()
    return [np.stack(layer) for layer in zip(*found, strict=True)]


def fisher_of(gradients: np.ndarray) -> np.ndarray:
    flat = gradients.reshape(len(gradients), -1)
    return flat.T @ flat / len(flat)


def solved(fisher: np.ndarray, gradient: np.ndarray, damping: float) -> np.ndarray:
    return np.linalg.solve(fisher + damping * np.eye(len(fisher)), gradient.ravel()).reshape(gradient.shape)


def factors(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and G of per-image gradients g a^T, whose last column is g, as a ends with a one."""
    slopes = gradients[:, :, -1]
    largest = np.abs(slopes).argmax(1)
    rows = np.arange(len(slopes))
    inputs = gradients[rows, largest] / slopes[rows, largest, None]
    return inputs.T @ inputs / len(inputs), slopes.T @ slopes / len(slopes)


# The factors and the gradient


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("damping", [1e-3, 0.5])
def test_kronecker_gradient_is_the_solution_for_the_product_of_factors(layers, damping):
    model = double(layers)
    images, labels = DATA.inputs[:20], DATA.labels[:20]
    gradients = per_image(model, images, labels)
    before, after, natural = replaced(model, images, labels, decay=0.9, damping=damping)
    assert len(after) == layers
    for block, single, g, v in zip(natural.blocks, gradients, before, after, strict=True):
        a, s = factors(single)
        a, s = 0.9 * np.eye(len(a)) + 0.1 * a, 0.9 * np.eye(len(s)) + 0.1 * s
        assert np.allclose(block.a, a, atol=1e-12) and np.allclose(block.g, s, atol=1e-12)
        assert np.allclose(g, single.mean(0), atol=1e-12)
        assert np.allclose(v, solved(np.kron(s, a), g, damping), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("eigenvalues", "steps"), [("kronecker", 1), ("kronecker", 2), ("corrected", 2)])
@pytest.mark.parametrize("layers", [1, 3])
def test_natural_gradient_of_one_image_is_exact(eigenvalues, steps, layers):
    model = double(layers)
    images, labels = DATA.inputs[3:4], DATA.labels[3:4]
    gradients = per_image(model, images, labels)
    before, after, _ = replaced(model, images, labels, steps, eigenvalues=eigenvalues, damping=0.01)
    for single, g, v in zip(gradients, before, after, strict=True):
        assert np.allclose(v, solved(fisher_of(single), g, 0.01), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("eigenvalues", "steps"), [("kronecker", 1), ("corrected", 2)])
def test_natural_gradient_is_exact_where_inputs_and_slopes_are_independent(eigenvalues, steps):
    model = double()
    nn.init.zeros_(model.head[0].weight)  # equal probabilities: slopes depend on the label alone
    images = DATA.inputs[:6].repeat_interleave(4, 0)
    labels = torch.tensor([0, 1, 1, 2]).repeat(6)
    with torch.no_grad():
        model.head[0].bias.zero_()
    (single,) = per_image(model, images, labels)
    (g,), (v,), _ = replaced(model, images, labels, steps, eigenvalues=eigenvalues)
    assert np.abs(g).max() > 1e-3
    assert np.allclose(v, solved(fisher_of(single), g, 1e-3), rtol=1e-7, atol=1e-9)


def test_corrected_eigenvalues_are_the_fishers_own_in_the_factors_basis():
    model, errors = double(), {}
    (single,) = per_image(model, DATA.inputs, DATA.labels)
    fisher = fisher_of(single)
    for eigenvalues in ("kronecker", "corrected", "transposed"):
        *_, natural = replaced(model, DATA.inputs, DATA.labels, 2, eigenvalues=eigenvalues)
        (block,) = natural.blocks
        basis = np.kron(block.basis_g, block.basis_a)
        if eigenvalues == "corrected":
            assert np.allclose(block.spectrum.flatten(), np.diag(basis.T @ fisher @ basis), atol=1e-10)
        if eigenvalues == "transposed":
            assert np.allclose(block.spectrum.flatten(), np.diag(basis @ fisher @ basis.T), atol=1e-10)
        errors[eigenvalues] = np.linalg.norm(fisher - (basis * block.spectrum.flatten().numpy()) @ basis.T)
    assert errors["corrected"] < 0.999 * errors["kronecker"] and errors["corrected"] < 0.9 * errors["transposed"]


def test_natural_gradient_step_does_not_depend_on_how_features_are_written():
    plain, moved = double(), []
    rng = np.random.default_rng(5)
    mixing, shift = torch.from_numpy(rng.normal(size=(16, 16))), torch.from_numpy(rng.normal(size=16))
    mix, head = nn.Linear(16, 16).double(), nn.Linear(16, 3).double()
    with torch.no_grad():
        mix.weight.copy_(mixing)
        mix.bias.copy_(shift)
        head.weight.copy_(plain.classifier.weight @ torch.linalg.inv(mixing))
        head.bias.copy_(plain.classifier.bias - head.weight @ shift)
    written = ImageClassifier(nn.Sequential(plain.extractor, mix), head, MEAN, STD).double().eval()
    assert torch.allclose(written(DATA.inputs), plain(DATA.inputs), atol=1e-9)
    for model in (plain, written):
        before, after, _ = replaced(model, DATA.inputs, DATA.labels, damping=1e-10)
        with torch.no_grad():
            features = model.features(DATA.inputs).numpy()
        features = np.hstack([features, np.ones((len(features), 1))])
        moved.append([features @ step[0].T for step in (before, after)])
    (gradient, natural), (gradient_too, natural_too) = moved
    assert np.abs(natural).max() > 1e-2
    assert np.allclose(natural, natural_too, rtol=0, atol=1e-4 * np.abs(natural).max())
    assert not np.allclose(gradient, gradient_too, rtol=0, atol=0.1 * np.abs(gradient).max())


@pytest.mark.parametrize("kl_clip", [1e-4, 1e-2, 1e9])
@pytest.mark.parametrize("layers", [1, 3])
def test_kl_clip_bounds_the_step_over_all_layers_and_keeps_its_direction(kl_clip, layers):
    lr, free = 0.7, double(layers)
    _, unclipped, _ = replaced(free, DATA.inputs, DATA.labels)
    model = double(layers)
    natural = NaturalGradient(model.head, RNG, **(PLAIN | {"kl_clip": kl_clip}))
    before, after = stepped(model, natural, DATA.inputs, DATA.labels, lr)
    whole = lr**2 * sum((v * g).sum() for v, g in zip(unclipped, before, strict=True))
    nu = min(1.0, (kl_clip / whole) ** 0.5)
    assert (nu < 1) == (kl_clip < 1)
    for v, u in zip(after, unclipped, strict=True):
        assert np.allclose(v, nu * u, rtol=1e-9, atol=1e-12)


def test_averages_and_bases_are_renewed_at_their_intervals_alone():
    model = double()
    natural = NaturalGradient(
        model.head,
        RNG,
        **(PLAIN | {"eigenvalues": "corrected", "decay": 0.5, "covariance_every": 2, "inverse_every": 3}),
    )
    renewed = []
    for step in range(7):
        before = {name: tensor.clone() for name, tensor in natural.state().items()}
        stepped(model, natural, pixels(20, seed=step), classes_of(20, seed=step))
        renewed.append(changed(before, natural.state()) - {"step"})
    averages, bases = {"0.a", "0.g"}, {"0.basis_a", "0.basis_g", "0.spectrum"}
    both, nothing = averages | {"0.spectrum"}, set()
    assert renewed[1:] == [nothing, both, bases, both, nothing, averages | bases]
    assert renewed[0] == averages | bases


# The true Fisher


def test_true_fisher_is_that_of_the_models_probabilities_whatever_the_labels():
    model = double()
    with torch.no_grad():
        model.head[0].weight.mul_(5)
        p = model(DATA.inputs).softmax(1).numpy()
    expected = (np.einsum("ni,ij->nij", p, np.eye(3)) - np.einsum("ni,nj->nij", p, p)).mean(0)
    wrong = torch.from_numpy(p).argmin(1)
    for fisher, close_to_it in (("true", True), ("empirical", False)):
        natural = NaturalGradient(model.head, RNG, **(PLAIN | {"fisher": fisher}))
        found = []
        for _ in range(200):
            stepped(model, natural, DATA.inputs, wrong)
            found.append(natural.blocks[0].g.clone())
        assert (np.abs(torch.stack(found).mean(0).numpy() - expected).max() < 0.01) == close_to_it, fisher


@pytest.mark.parametrize("layers", [1, 3])
def test_labels_drawn_for_the_fisher_leave_the_losss_gradient_alone(layers):
    gradients = []
    for fisher in ("empirical", "true"):
        before, _, natural = replaced(double(layers), DATA.inputs, DATA.labels, fisher=fisher)
        gradients.append(before)
        if fisher == "true":  # and are one draw for all layers: the last one's slopes are p minus one of the labels
            with torch.no_grad():
                p = double(layers)(DATA.inputs).softmax(1)
            drawn = (p - natural.blocks[-1].slopes).round().argmax(1)
            assert torch.allclose(natural.blocks[-1].slopes, p - torch.eye(3).double()[drawn], atol=1e-12)
            for block, single in zip(natural.blocks, per_image(double(layers), DATA.inputs, drawn), strict=True):
                assert np.allclose(block.slopes, single[:, :, -1], atol=1e-12)
    for one, other in zip(*gradients, strict=True):
        assert np.array_equal(one, other)


# The pull towards the original classifier


@pytest.mark.parametrize("layers", [1, 3])
def test_retainer_weighs_squared_distances_by_the_fishers_diagonal(layers):
    model, tuned = double(layers), double(layers)
    pull = clean_accuracy_retainer(model, DATA, 3.0)
    assert pull(tuned).item() == 0
    rng, expected = np.random.default_rng(1), 0.0
    gradients = per_image(model, DATA.inputs, DATA.labels)
    with torch.no_grad():
        for layer, single in zip(tuned.head, gradients, strict=True):
            by = rng.normal(size=single.shape[1:])
            layer.weight.add_(torch.from_numpy(by[:, :-1]))
            layer.bias.add_(torch.from_numpy(by[:, -1]))
            expected += 1.5 * ((single**2).mean(0) * by**2).sum()
    assert expected > 0 and pull(tuned).item() == pytest.approx(expected, rel=1e-6)


def test_retention_keeps_the_classifier_near():
    distances = []
    for retention in (0.0, 100.0):
        tune = Tuner(recipe(epochs=20, lr=0.02), RNG, Monitor(), IMAGES)
        purified = ngf(network(), DATA, tune, **(RELEASED | {"retention": retention, "trainable": "head"}))
        distances.append((purified.classifier.weight - network().classifier.weight).norm().item())
    assert 0 < distances[1] < 0.9 * distances[0]


# Purification


@pytest.mark.parametrize("eigenvalues", ["corrected", "kronecker"])
def test_purified_classifier_is_that_of_numpy(eigenvalues):
    """Seven steps over all images, with every hyper-parameter at work; only the classifier is tuned."""
    model = network().double()
    with torch.no_grad():
        a = model.features(DATA.inputs).numpy()
    a, labels = np.hstack([a, np.ones((len(a), 1))]), np.eye(3)[DATA.labels.numpy()]
    theta = np.hstack([model.classifier.weight.detach(), model.classifier.bias.detach()[:, None]])
    decay, damping, kl_clip, lr, momentum, weight_decay = 0.6, 0.02, 1e-3, 0.3, 0.9, 0.01
    big_a, big_g, velocity, clipped = np.eye(17), np.eye(3), np.zeros_like(theta), 0
    for step in range(7):
        logits = a @ theta.T
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        g = p - labels
        gradient = g.T @ a / len(a)
        if step % 2 == 0:
            big_a = decay * big_a + (1 - decay) * a.T @ a / len(a)
            big_g = decay * big_g + (1 - decay) * g.T @ g / len(g)
        if step % 3 == 0:
            (d_a, q_a), (d_g, q_g) = np.linalg.eigh(big_a), np.linalg.eigh(big_g)
            spectrum = d_g[:, None] * d_a[None]
        if step % 2 == 0 and step and eigenvalues != "kronecker":
            squares = np.mean([(q_g.T @ np.outer(g[i], a[i]) @ q_a) ** 2 for i in range(len(a))], 0)
            spectrum = decay * spectrum + (1 - decay) * squares
        natural = q_g @ ((q_g.T @ gradient @ q_a) / (spectrum + damping)) @ q_a.T
        nu = min(1.0, (kl_clip / (lr**2 * (natural * gradient).sum())) ** 0.5)
        clipped += nu < 1
        velocity = momentum * velocity + nu * natural + weight_decay * theta
        theta = theta - lr * velocity
    assert clipped > 0
    tune = Tuner(
        recipe(epochs=7, lr=lr, momentum=momentum, weight_decay=weight_decay, batch_size=64), RNG, Monitor(), IMAGES
    )
    changes = {"trainable": "head", "eigenvalues": eigenvalues, "decay": decay, "damping": damping, "kl_clip": kl_clip}
    purified = ngf(model, DATA, tune, **(RELEASED | changes | {"covariance_every": 2, "inverse_every": 3}))
    found = np.hstack([purified.classifier.weight.detach(), purified.classifier.bias.detach()[:, None]])
    assert np.allclose(found, theta, atol=1e-5)


def test_only_the_classifier_is_tuned_where_asked_and_else_everything():
    before = state_of(network())
    for trainable, names in (("head", HEAD), ("all", before.keys() - {"mean", "std"})):
        tune = Tuner(recipe(epochs=2), RNG, Monitor(), IMAGES)
        assert changed(before, state_of(ngf(network(), DATA, tune, **(RELEASED | {"trainable": trainable})))) == names


def test_weights_before_the_classifier_take_the_steps_of_fine_tuning():
    """Of one step, that is: then the classifiers differ."""
    found = [
        state_of(defense(network(), DATA, Tuner(recipe(momentum=0.9), RNG, Monitor(), IMAGES), **parameters))
        for defense, parameters in ((ft, {"projection": "none"}), (ngf, RELEASED))
    ]
    assert changed(*found) == HEAD


@pytest.mark.parametrize("changes", [{}, {"fisher": "true"}, {"trainable": "head"}, {"retention": 5.0}])
@pytest.mark.parametrize("layers", [1, 3])
def test_same_seed_same_bytes_and_the_backdoored_model_stays(changes, layers):
    model = network(layers=layers)
    before, found = state_of(model), []
    for noise in (1, 2):
        torch.manual_seed(noise)
        tune = Tuner(recipe(epochs=3, batch_size=16, crop=1, momentum=0.9), RNG, Monitor(), IMAGES)
        purified = ngf(model, DATA, tune, **(RELEASED | changes))
        found.append(state_of(purified))
        assert not any(module._forward_hooks for net in (model, purified) for module in net.modules())
    assert not changed(*found) and not changed(before, state_of(model))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_fisher_of_drawn_labels_depends_on_the_seed_alone():
    found = []
    for seed in (0, 0, 1):
        model = double()
        natural = NaturalGradient(model.head, Rng(seed, "purify"), **(PLAIN | {"fisher": "true"}))
        found.append(stepped(model, natural, DATA.inputs, DATA.labels)[1][0])
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    "changes", [{}, {"fisher": "true"}, {"epoch_batches": 4}, {"fisher": "true", "epoch_batches": 1}]
)
@pytest.mark.parametrize("layers", [1, 3])
def test_interrupted_purification_ends_with_the_bytes_of_an_uninterrupted_one(changes, layers, tmp_path):
    def purified(monitor: Monitor) -> Classifier:
        plan = recipe(epochs=6, batch_size=16, crop=1, momentum=0.9, weight_decay=0.01, schedule="multistep")
        return ngf(network(layers=layers), DATA, Tuner(plan, RNG, monitor, IMAGES), **(RELEASED | changes))

    model, reported = interrupted(purified, tmp_path / "scratch", [2, 5])
    assert reported == [1, 2, 2, 3, 4, 5, 5, 6]
    assert not changed(state_of(purified(Monitor())), state_of(model))


def test_statistics_are_fp32_under_bf16_autocast():
    found = {}
    for precision in ("fp32", "bf16"):
        model = network()
        natural = NaturalGradient(model.head, RNG, **(PLAIN | {"decay": 0.5}))
        with natural.watching(model), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(DATA.inputs)
        cross_entropy(logits.float(), DATA.labels).backward()
        natural.replace_gradients(0.1)
        assert {tensor.dtype for name, tensor in natural.state().items() if name != "step"} == {torch.float32}
        found[precision] = natural.blocks[0].a
    assert torch.allclose(found["fp32"], found["bf16"], atol=0.02 * found["fp32"].abs().max().item())


@pytest.mark.parametrize(
    ("dataset", "steps"), [("cifar10", 10_000), ("gtsrb", 10_000), ("cifar100", 2_000), ("tiny-imagenet", 2_000)]
)
def test_an_epoch_is_100_batches_on_every_dataset(dataset, steps):
    spec = Plan(ROOT).cell(cell("paper", dataset, defense="ngf")).evaluation.upstream["model"].spec["parameters"]
    assert spec["recipe"]["epochs"] * spec["defense"]["parameters"]["epoch_batches"] == steps
    plain = Plan(ROOT).cell(cell("paper", dataset, defense="ngf+epoch_batches=none")).evaluation.upstream["model"].spec
    assert plain["parameters"]["defense"]["parameters"]["epoch_batches"] is None
