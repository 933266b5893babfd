"""Gradients of neurons and their TAC by hand, the purification that is played again for them, and figures of kind neurons."""

from __future__ import annotations

import csv
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import conv2d

import small
from conftest import Project, cell
from depoison.artifacts import read_evaluation
from depoison.defenses.ft import ft
from depoison.defenses.ft_sam import ft_sam
from depoison.defenses.lp import lp
from depoison.defenses.tuning import Labeled, Tuner
from depoison.errors import DepoisonError
from depoison.papers.figures import Figure, read_figure
from depoison.reports.figures import neurons
from depoison.reports.figures.write import render_figure
from depoison.rng import Rng
from depoison.stages.neurons import FirstSteps, Seen, neuron_gradients, tac
from depoison.training.loop import Monitor
from small import IMAGES, recipe
from test_figures import fake, own_figure, rows_of

NEURONS: dict[str, Any] = {
    "title": "Neurons", "caption": "Neurons", "kind": "neurons", "dataset": "cifar10", "model": "resnet18",
    "attack": "badnet+rate=0.1", "defense": "ft", "epochs": 2,
}  # fmt: skip
DATA = Labeled(small.pixels(20), small.classes_of(20))


# --- by hand -----------------------------------------------------------------------------------------------------


def test_tac_by_hand():
    """Mean over images of the norm, over positions, of what the trigger changes of a channel, before BatchNorm and ReLU."""
    model, clean, triggered = small.network(), small.pixels(7), small.pixels(7, seed=1)
    weight, _ = (tensor.detach().double() for tensor in model.extractor[0].parameters())
    # The normalization's mean and the bias are in both.
    change = (triggered.double() - clean.double()) / 255 / torch.tensor(small.STD).double().view(1, 3, 1, 1)
    expected = (conv2d(change, weight, padding=1) ** 2).sum((2, 3)).sqrt().mean(0)
    for batch_size in (3, 250):
        found = tac(model, "extractor.0", clean, triggered, batch_size)
        assert found.shape == (4,) and torch.allclose(found, expected, rtol=1e-5)
    assert tac(model, "extractor.0", clean, clean).tolist() == [0.0] * 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_neuron_is_that_of_its_weights_and_bias(layout):
    layer = nn.Conv2d(2, 3, 2)
    assert neuron_gradients(layer) is None
    layer.weight.grad = torch.zeros(3, 2, 2, 2).to(memory_format=layout)
    layer.weight.grad[0, 0, 0, 0], layer.weight.grad[0, 1, 1, 0], layer.weight.grad[2, 1, 0, 1] = 2.0, -3.0, 5.0
    assert neuron_gradients(layer).tolist() == pytest.approx([13**0.5, 0, 5])
    layer.bias.grad = torch.tensor([6.0, 0.0, 12.0])
    assert neuron_gradients(layer).tolist() == [7, 0, 13]


def watched(defense: Any, epochs: int, **changes: Any) -> tuple[FirstSteps, list[dict[str, Tensor]]]:
    """What is seen of a tuning, and the weights that were measured."""
    measured: list[dict[str, Tensor]] = []

    def measure(model: Any) -> dict[str, float]:
        measured.append(small.state_of(model))
        return {"asr": 10.0 * len(measured)}

    watch = FirstSteps("this", "extractor.0", measure, epochs)
    run = recipe(lr=0.25, epochs=3, **changes)
    tune = Tuner(run, Rng(0, "purify"), Monitor(begins=watch.begins), IMAGES)
    with pytest.raises(Seen):
        defense(small.network(), DATA, tune)
    return watch, measured


@pytest.mark.parametrize(
    ("defense", "by_hand"),
    [
        (functools.partial(ft, projection="none"), {}),
        (functools.partial(ft_sam, rho=0.5, constraint="none"), {"rho": 0.5}),
        (functools.partial(ft_sam, rho=0.5, constraint="adaptive"), {"rho": 0.5, "adaptive": True}),
    ],
    ids=["ft", "sam", "ft-sam"],
)
def test_the_gradient_is_the_one_that_the_step_goes_by(defense, by_hand):
    """SAM's at w + eps; and the weights that are measured are the w that the step starts from."""
    watch, measured = watched(defense, 2, momentum=0.9, weight_decay=0.1)
    model, batch = small.network(), (DATA.inputs, DATA.labels)
    before = small.state_of(model)
    assert not small.changed(before, measured[0]) and [told for told, _ in watch.found] == [
        {"asr": 10.0},
        {"asr": 20.0},
    ]
    for (_, norms), state in zip(watch.found, measured, strict=True):
        model.load_state_dict(state)
        after = small.tune_by_hand(model, [(*batch, 1.0)], **by_hand)  # a step of the gradient itself
        taken = [
            (after[f"extractor.0.{name}"] - state[f"extractor.0.{name}"]).reshape(4, -1) for name in ("weight", "bias")
        ]
        assert norms == pytest.approx(torch.cat(taken, 1).norm(dim=1).tolist(), rel=1e-3)
    stepped = small.tune_by_hand(small.network(), [(*batch, 0.25)], weight_decay=0.1, **by_hand)
    assert small.close(measured[1], stepped)


def test_watching_changes_nothing():
    """As many epochs are wanted as there are not: the run goes to its end."""
    found = []
    for begins in (None, FirstSteps("ft", "extractor.0", lambda model: {}, 9).begins):
        tune = Tuner(recipe(epochs=3, batch_size=8, momentum=0.9), Rng(0, "purify"), Monitor(begins=begins), IMAGES)
        found.append(small.state_of(ft(small.network(), DATA, tune, projection="none")))
    assert not small.changed(*found)
    assert len(begins.__self__.found) == 3  # of two steps each the first


def test_epochs_of_several_loops_count_on():
    watch = FirstSteps("ft", "extractor.0", lambda model: {}, 5)
    tune = Tuner(recipe(epochs=2), Rng(0, "purify"), Monitor(begins=watch.begins), IMAGES)
    for name in ("first", "second"):
        tune.part(name)(small.network(), DATA)
    assert len(watch.found) == 4


def test_a_defense_that_leaves_the_convolution():
    watch = FirstSteps("lp", "extractor.0", lambda model: {}, 2)
    tune = Tuner(recipe(epochs=2), Rng(0, "purify"), Monitor(begins=watch.begins), IMAGES)
    told = "neurons: lp does not tune the last convolution, extractor.0; valid: a defense that does"
    with pytest.raises(DepoisonError, match=f"^{told}$"):
        lp(small.network(), DATA, tune, projection="none", batchnorm="frozen")


def test_a_gradient_that_is_no_number():
    watch = FirstSteps("ft", "extractor.0", lambda model: {}, 2)
    tune = Tuner(recipe(epochs=2), Rng(0, "purify"), Monitor(begins=watch.begins), IMAGES)
    model = small.network()
    model.classifier.weight.data[0] = float("inf")
    with pytest.raises(DepoisonError, match="^neurons: the gradients of ft are no numbers; its tuning diverged$"):
        ft(model, DATA, tune, projection="none")


# --- the stage ---------------------------------------------------------------------------------------------------


@pytest.fixture
def there(made: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    made.set("config/tracks/tiny.yaml", "tuning", to={"epochs": 3, "batch_size": 4, "lr": 0.1, "precision": "fp32"})
    monkeypatch.chdir(made.path)
    return made


def figure_of(project: Project, **changes: Any) -> Figure:
    return own_figure(project, "figure91", NEURONS, **changes)


def make(project: Project, artifact: Any) -> None:
    small.make(artifact, project.plan().configuration.config.runtime)


def test_the_stage_plays_the_purification_again(there):
    """What is measured when its epochs begin is what the purification's own history has after those before."""
    figure = figure_of(there, epochs=3)
    (artifact,) = figure.artifacts()
    make(there, artifact)
    text = Path(artifact.product).read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["epoch"], row["neuron"]) for row in rows] == [(str(e), str(i)) for e in (1, 2, 3) for i in range(64)]
    tacs = [row["tac"] for row in rows]
    assert tacs[:64] == tacs[64:128] == tacs[128:] and min(map(float, tacs)) > 0
    gradients = np.array([float(row["gradient"]) for row in rows]).reshape(3, 64)
    assert (gradients > 0).any(1).all() and not np.array_equal(gradients[0], gradients[1])

    name = cell("tiny", attack="badnet+rate=0.1", defense="ft+evaluate_every=1")
    followed = there.plan().cell(name).evaluation
    purified, before = followed.upstream["model"], read_evaluation(followed.upstream["undefended"].product).metrics
    make(there, purified)
    with open(f"{purified.directory}/history.csv") as lines:
        history = list(csv.DictReader(lines))
    for key in ("asr", "c_acc"):
        expected = [before[key], *(float(row[key]) for row in history[:2])]
        assert [float(rows[64 * e][key]) for e in range(3)] == expected
    assert len({row["c_acc"] for row in rows}) > 1

    Path(artifact.product).unlink()
    make(there, artifact)
    assert Path(artifact.product).read_text() == text
    assert {row["seed"] for row in rows_of(render_figure(figure))} == {"0"}


def test_fewer_epochs_are_its_beginning(there):
    whole, part = (figure_of(there, epochs=epochs).artifacts()[0] for epochs in (9, 2))
    for artifact in (whole, part):
        make(there, artifact)
    rows = Path(whole.product).read_text().splitlines()
    assert len(rows) == 1 + 3 * 64  # all that the tuning has
    assert Path(part.product).read_text().splitlines() == rows[: 1 + 2 * 64]


@pytest.mark.parametrize("defense", ["none", "abl"])
def test_what_tunes_no_backdoored_model_is_refused_while_planning(defense, tiny):
    told = rf"tiny/.*/{defense}/s0.json: neurons: {defense} does not tune a backdoored model; valid: .* such as ft"
    with pytest.raises(DepoisonError, match=told):
        figure_of(tiny, defense=defense)


def test_a_clean_model_has_no_tac(there):
    with pytest.raises(DepoisonError, match="neurons: the attack none has no trigger; valid: any other attack"):
        make(there, figure_of(there, attack="none").artifacts()[0])


# --- figures -----------------------------------------------------------------------------------------------------


def test_a_figure_needs_no_purification(tiny):
    (artifact,) = figure_of(tiny).artifacts()
    assert artifact.stage == "neurons" and set(artifact.upstream) == {"dataset", "split", "model"}
    purified = read_figure(tiny.plan(), "reports/tiny/figure91").cells()[0].evaluation.upstream["model"]
    assert artifact.spec["parameters"] == purified.spec["parameters"] | {"first_epochs": 2}


def test_its_numbers(tiny, monkeypatch):
    monkeypatch.chdir(tiny.path)
    figure = figure_of(tiny)
    fake(figure)  # TAC of neuron j: 7 j mod 5
    rows = rows_of(render_figure(figure))
    assert [(row["epoch"], row["neuron"], row["rank"]) for row in rows] == [
        (epoch, neuron, str(rank)) for epoch in "12" for rank, neuron in enumerate("03142")
    ]
    assert [float(row["gradient"]) for row in rows[5:]] == [0, 1.5, 0.5, 2, 1]
    assert {row["success"] for row in rows[:5]} == {"90.5"} and {row["success"] for row in rows[5:]} == {"45.25"}
    assert float(rows[0]["correlation"]) == pytest.approx(spearmanr(range(5), [0, 2, 4, 1, 3]).statistic)


def test_a_rank_correlation():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, (2, 12))  # with ties
        assert neurons.correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert neurons.correlation([1, 2, 3], [4, 5, 9]) == pytest.approx(1) and neurons.correlation([1, 1], [1, 2]) is None


def test_a_picture(tiny, monkeypatch):
    monkeypatch.chdir(tiny.path)
    rows = [{"label": "BadNet"}, {"label": "?", "defense": "anything"}]
    figure = figure_of(tiny, epochs=3, per_row=2, axes={"rows": rows}, unimplemented=["anything"])
    fake(figure)  # two epochs of the three
    canvas = neurons.draw(figure, neurons.numbers(figure))
    panels = np.array(canvas.axes[:8]).reshape(4, 2)
    titles = [[axes.get_title() for axes in line] for line in panels]
    assert titles[:2] == [["Epoch 1: ASR 90.50%", "Epoch 2: ASR 45.25%"], ["Epoch 3", ""]]
    assert [[bool(axes.collections) for axes in line] for line in panels] == [[True, True], *[[False, False]] * 3]
    assert panels[0, 0].get_ylim() == panels[0, 1].get_ylim()  # epochs are compared
    assert not panels[1, 1].get_visible() and panels[1, 0].texts[0].get_text() == "not available"
    assert panels[0, 0].get_ylabel().startswith("BadNet\n") and panels[2, 0].get_ylabel().startswith("?\n")
    with Image.open(io.BytesIO(render_figure(figure)[".png"])) as picture:
        assert picture.width == pytest.approx(6.9 * 200, abs=2) and picture.height < 9.5 * 200
