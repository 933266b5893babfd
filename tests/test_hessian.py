"""The Hessian of a loss against the dense one, its stage and metrics, and figures of kinds density and course."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import pretend_gpu
import small
from conftest import Project, put_recorded, seldom
from depoison.artifacts import COURSE, percent, read_evaluation, read_hessian, read_rows
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.models.layers import GlobalAverage
from depoison.papers.figures import Figure
from depoison.papers.grid import Place
from depoison.papers.tables import read_table
from depoison.plan.config import Runtime
from depoison.reports.figures import course, density
from depoison.reports.figures.write import render_figure
from depoison.reports.numbers import Reader
from depoison.stages.hessian import Meter
from depoison.stages.history import Progress
from depoison.stages.inputs import read_dataset
from depoison.stages.runner import run_stage
from depoison.training.hessian import Hessian, largest_eigenvalue, quadrature, signs, trace
from families import ResNet18
from test_figures import CURVATURE, fake, own_figure, rows_of
from test_gradcam import wrapped

DENSITY: dict[str, Any] = {
    "title": "Spectrum", "caption": "Spectrum", "kind": "density", "dataset": "cifar10", "model": "resnet18",
    "attack": "badnet+rate=0.1", "metrics": ["lambda-max", "hessian-trace", "c-acc", "asr"],
    "axes": {"rows": [{"label": "Before", "defense": "none"}, {"label": "After", "defense": "lp"}]},
}  # fmt: skip
BUDGET = {"images": 8, "vectors": 2, "iterations": 2}
COURSE_FIGURE = DENSITY | {
    "kind": "course", "of": "tuning", "curvature": BUDGET, "axes": {"lines": [{"label": "LP", "defense": "lp"}]},
}  # fmt: skip
COLUMNS = COURSE | {"c_acc": percent, "asr": percent}

IMAGES, LABELS = small.pixels(30), small.classes_of(30)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(model: Classifier) -> Tensor:
    """(n, n) float64, by forward over reverse differentiation."""
    model = model.double().eval()
    names, values = zip(*model.named_parameters(), strict=True)
    shapes = [value.shape for value in values]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        state = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            return cross_entropy(torch.func.functional_call(model, state, (IMAGES,)), LABELS)

    return torch.func.hessian(loss)(torch.cat([value.detach().reshape(-1) for value in values]))


def hessian_of(model: Classifier) -> Hessian:
    return Hessian(small.IMAGES, model, IMAGES, LABELS)


NETWORKS = {"one layer": {}, "three": {"layers": 3}, "no BatchNorm": {"batchnorm": False}, "other": {"seed": 4}}


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=list(NETWORKS))
def pair(request: pytest.FixtureRequest) -> tuple[Hessian, Tensor]:
    return hessian_of(small.network(**request.param)), dense(small.network(**request.param))


def test_products_are_those_of_the_dense_hessian(pair):
    hessian, matrix = pair
    assert hessian.size == len(matrix) and torch.allclose(matrix, matrix.T, atol=1e-12)
    for vector in torch.randn(5, len(matrix), generator=generator()):
        expected = matrix @ vector.double()
        assert torch.allclose(hessian.times(vector).double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_largest_eigenvalue(pair):
    hessian, matrix = pair
    expected = torch.linalg.eigvalsh(matrix)[-1].item()
    for seed in range(3):
        assert largest_eigenvalue(hessian, generator(seed), tolerance=1e-3) == pytest.approx(expected, rel=1e-3)


def test_the_trace():
    hessian, expected = hessian_of(small.network()), dense(small.network()).trace().item()
    mean, whole, count = trace(hessian, generator(), vectors=1000, tolerance=1e-3)
    assert mean == pytest.approx(expected, rel=0.05) and abs(mean - expected) < 4 * whole and count == 1000
    mean, error, count = trace(hessian, generator(), vectors=1000, tolerance=0.2)
    assert 2 <= count < 1000 and whole < error <= 0.2 * mean
    assert trace(hessian, generator(), vectors=1, tolerance=1e-3)[1:] == (0.0, 1)


@pytest.mark.parametrize("iterations", [3, 20])
def test_the_quadrature_is_exact_for_moments(iterations, pair):
    """Gauss's: from the vector v, polynomials of degree 2 m - 1 have the integral v'p(H)v / v'v."""
    hessian, matrix = pair
    eigenvalues, shares = quadrature(hessian, generator(3), iterations=iterations)
    assert len(eigenvalues) == iterations and shares.sum() == pytest.approx(1) and (shares >= 0).all()
    scale = np.abs(eigenvalues).max()
    start = signs(hessian, generator(3)).double()
    moved = start
    for degree in range(1, 2 * 3):
        moved = matrix @ moved / scale
        expected = (start @ moved).item() / hessian.size
        assert (shares * (eigenvalues / scale) ** degree).sum() == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_all_of_a_spectrum(pair):
    """With as many iterations as there are weights, each eigenvalue is found that its vector can reach."""
    hessian, matrix = pair
    eigenvalues, shares = quadrature(hessian, generator(), iterations=10**6)
    exact, vectors = torch.linalg.eigh(matrix)
    parts = (vectors.T @ signs(hessian, generator()).double()) ** 2 / hessian.size
    scale = exact.abs().max().item()
    for at in np.linspace(-0.1 * scale, 1.1 * scale, 13):  # the distribution, away from where many eigenvalues lie
        if (exact - at).abs().min() > 1e-3 * scale:
            assert shares[eigenvalues < at].sum() == pytest.approx(parts[exact < at].sum().item(), abs=1e-4)


def test_equal_seeds_make_equal_numbers():
    def found(seed: int) -> Any:
        hessian = hessian_of(small.network())
        eigenvalues, shares = quadrature(hessian, generator(seed), iterations=20)
        largest = largest_eigenvalue(hessian, generator(seed), tolerance=1e-3)
        return eigenvalues.tolist(), shares.tolist(), largest, trace(hessian, generator(seed), vectors=5, tolerance=0)

    assert found(0) == found(0) and found(0) != found(1)


def test_a_model_stays_as_it_is_whatever_mode_it_was_in():
    model = small.network().train().requires_grad_(False)
    before = small.state_of(model)
    assert torch.equal(hessian_of(model).times(torch.ones(171)), hessian_of(small.network()).times(torch.ones(171)))
    assert not small.changed(before, small.state_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())


class Attention(nn.Module):
    """Over the rows of an image, with weights that nothing uses beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.projection, self.unused = nn.Linear(8, 24), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.projection(x).chunk(3, -1)
        return scaled_dot_product_attention(query, key, value)


def test_attention_and_weights_that_nothing_uses():
    model = wrapped(Attention(), nn.Flatten(2), nn.AvgPool1d(64), nn.Flatten(), features=3)
    hessian, matrix = (of(copy.deepcopy(model)) for of in (hessian_of, dense))
    vector = torch.randn(len(matrix), generator=generator())
    assert torch.allclose(hessian.times(vector).double(), matrix @ vector.double(), atol=1e-5)


def test_a_loss_that_is_flat():
    """One class: the loss is 0 whatever the weights are."""
    hessian = Hessian(small.IMAGES, small.network(classes=1), IMAGES, torch.zeros_like(LABELS))
    assert largest_eigenvalue(hessian, generator(), tolerance=1e-3) == 0
    assert trace(hessian, generator(), vectors=100, tolerance=1e-3) == (0, 0, 2)
    eigenvalues, shares = quadrature(hessian, generator(), iterations=100)
    assert (eigenvalues.tolist(), shares.tolist()) == ([0], [1])


def test_it_is_computed_on_the_gpu():
    with pretend_gpu.pretend_gpu() as device:
        hessian = Hessian(small.IMAGES, small.network().to(device), IMAGES.to(device), LABELS.to(device))
        found = largest_eigenvalue(hessian, generator(), tolerance=1e-3)
        mean, *_ = trace(hessian, generator(), vectors=3, tolerance=0)
        _, shares = quadrature(hessian, generator(), iterations=5)
    here = hessian_of(small.network())
    assert found == pytest.approx(largest_eigenvalue(here, generator(), tolerance=1e-3), rel=1e-4)
    assert mean == pytest.approx(trace(here, generator(), vectors=3, tolerance=0)[0], rel=1e-4)
    assert shares == pytest.approx(quadrature(here, generator(), iterations=5)[1], rel=1e-3)


# --- the stage ---------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tiny.path)
    return tiny


def figure_of(project: Project, **changes: Any) -> Figure:
    return own_figure(project, "figure92", DENSITY, **changes)


def test_the_stage_and_what_reads_it(made, monkeypatch):
    monkeypatch.chdir(made.path)
    figure, runtime = (
        figure_of(made, curvature={"images": 8, "vectors": 5, "iterations": 30}),
        made.plan().configuration.config.runtime,
    )
    before, after = (place.artifacts[0] for place in figure.places)
    for artifact in (before, after):
        run_stage(artifact.spec, artifact.directory, runtime)
    first, second = (read_hessian(artifact.product) for artifact in (before, after))
    content = Path(before.product).read_bytes()
    Path(before.product).unlink()
    run_stage(before.spec, before.directory, runtime)
    assert Path(before.product).read_bytes() == content

    assert first["lambda_max"] == pytest.approx(max(first["eigenvalues"]), rel=2e-3)  # two ways to it
    assert first["trace_error"] > 0 and first["vectors"] == 5 and len(first["shares"]) == 30
    # The quadrature's mean is the one vector's v'Hv / n, which is as far from the trace as one vector is.
    of_one = np.dot(first["eigenvalues"], first["shares"]) * first["size"]
    assert abs(of_one - first["trace"]) < 8 * first["trace_error"] * 5**0.5
    assert first["lambda_max"] != second["lambda_max"] and first["size"] == second["size"]

    rows = rows_of(render_figure(figure))
    assert len(rows) == 2 * density.POINTS
    for part, found, place in ((rows[:1001], first, 0), (rows[1001:], second, 1)):
        assert {(float(row["lambda_max"]), float(row["hessian_trace"])) for row in part} == {
            (found["lambda_max"], found["trace"])
        }
        accuracy = Reader().values(figure.places[place], made.plan().metrics["c-acc"])[0][0]
        assert {float(row["c_acc"]) for row in part} == {accuracy}


def meter_of(project: Project, attack: str, **changes: Any) -> tuple[Meter, Any]:
    """The batch on which an attack's models are measured, and the dataset."""
    figure = figure_of(project, attack=attack, **changes)
    artifact = figure.places[0].artifacts[0]
    backdoored = artifact.upstream["backdoored"]
    small.make(backdoored, project.plan().configuration.config.runtime)
    dataset = read_dataset(Path(artifact.upstream["dataset"].directory))
    return Meter(dataset, Path(backdoored.directory), artifact.spec["parameters"], 0, small.CPU), dataset


def test_half_of_the_batch_carries_the_trigger_and_all_of_it_its_own_labels(made, monkeypatch):
    monkeypatch.chdir(made.path)
    found, dataset = meter_of(made, "badnet+rate=0.1", curvature={"images": 50})
    clean, _ = meter_of(made, "none", curvature={"images": 50})
    images, labels = clean.batch
    where = [int((dataset.train_inputs == image).flatten(1).all(1).nonzero()[0]) for image in images]
    assert len(where) == 50 and len(set(where)) > 40 and torch.equal(dataset.train_labels[where], labels)
    assert len(set(labels.tolist())) > 3
    differs = (found.batch[0] != images).any(1)  # (50, H, W)
    assert torch.equal(found.batch[1], labels) and not differs[25:].any()
    assert differs[:25, -3:, -3:].flatten(1).any(1).all() and not differs[:, :-3].any() and not differs[:, :, :-3].any()
    fewer, _ = meter_of(made, "badnet+rate=0.1", curvature={"images": 50, "triggered": 0.1})
    assert (fewer.batch[0] != images).flatten(1).any(1).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_of_combined_attacks_each_has_its_share_of_the_batch(made, monkeypatch):
    monkeypatch.chdir(made.path)
    images, _ = meter_of(made, "none", curvature={"images": 20})[0].batch
    found, _ = meter_of(made, "badnet&blended+rate=0.1", curvature={"images": 20})[0].batch
    differing = (found != images).flatten(1).double().mean(1)
    assert (differing[:5] > 0).all() and (differing[:5] < 0.2).all()  # a patch
    assert (differing[5:10] > 0.3).all() and not differing[10:].any()  # all of the image


def test_a_model_that_diverged(made, monkeypatch):
    monkeypatch.chdir(made.path)
    meter, _ = meter_of(made, "badnet+rate=0.1", curvature={"images": 4})
    model = wrapped(nn.Conv2d(3, 4, 3), GlobalAverage(), classes=10)
    model.classifier.weight.data[0] = float("nan")
    with pytest.raises(
        DepoisonError, match="hessian: the model's outputs are no numbers; its training or tuning diverged"
    ):
        meter.hessian(model)


def test_two_metrics_of_a_table_are_of_one_computation(tiny):
    def change(data: dict[str, Any]) -> None:
        data["metrics"] = {"show": ["c-acc", "asr", "lambda-max", "hessian-trace"]}

    tiny.edit("config/papers/fst/small.yaml", change)
    table = read_table(tiny.plan(), "reports/tiny/small")
    found = [artifact for artifact in table.artifacts() if artifact.stage == "hessian"]
    assert len(found) == len(table.cells()) == len({artifact.directory for artifact in found})
    assert found[0].spec["parameters"] == {
        "images": 200, "triggered": 0.5, "vectors": 100, "tolerance": 0.001, "iterations": 100,
    }  # fmt: skip
    figure = figure_of(tiny)  # and the same as a figure's
    assert {place.artifacts[0].directory for place in figure.places} <= {artifact.directory for artifact in found}


def test_a_track_sets_the_budget_over_a_figure_and_that_over_the_default(tiny):
    tiny.set("config/tracks/tiny.yaml", "curvature", to={"images": 7, "vectors": 3})
    figure = figure_of(tiny, curvature={"images": 50, "triggered": 0.1})
    found = figure.places[0].artifacts[0].spec["parameters"]
    assert found == {"images": 7, "triggered": 0.1, "vectors": 3, "tolerance": 0.001, "iterations": 100}


# --- figures -----------------------------------------------------------------------------------------------------


def test_a_density_has_the_integral_1_and_the_mean_of_the_eigenvalues():
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 1e4):
        eigenvalues, shares = scale * rng.normal(size=100), rng.dirichlet(np.ones(100))
        points, heights, deviation = density.density(eigenvalues, shares)
        step = points[1] - points[0]
        assert heights.sum() * step == pytest.approx(1, rel=1e-5) and deviation > 2 * step
        assert (heights * points).sum() * step == pytest.approx(eigenvalues @ shares, rel=1e-4, abs=1e-6 * scale)
    for alone in (0.0, -3.0):
        points, heights, _ = density.density([alone], [1.0])
        assert points[heights.argmax()] == pytest.approx(alone, abs=1e-3)


def test_a_picture(drawn):
    rows = [*DENSITY["axes"]["rows"], {"label": "?", "defense": "anything"}]
    figure = figure_of(drawn, axes={"rows": rows}, unimplemented=["anything"])
    fake(figure)
    numbers = density.numbers(figure)
    assert len(numbers) == 2 * density.POINTS + 1 and numbers[-1]["gap"] == "the defense anything"
    canvas = density.draw(figure, numbers)
    assert [axes.get_ylabel() for axes in canvas.axes] == ["Before\nDensity", "After\nDensity", "?\nDensity"]
    for axes in canvas.axes[:2]:
        told = axes.texts[0].get_text().split("\n")
        assert told[:2] == ["λmax 573.80", "Tr(H) 6625.80"] and [line.split()[0] for line in told[2:]] == [
            "C-Acc",
            "ASR",
        ]
        heights = axes.lines[0].get_ydata()
        one = 1 / (1000 * 0.3 * (2 * np.pi) ** 0.5)  # of 1000 eigenvalues
        assert axes.get_yscale() == "log" and heights.min() == pytest.approx(one / 10) == axes.get_ylim()[0]
        assert heights.max() == pytest.approx(500 * one, rel=0.02)
    with Image.open(io.BytesIO(render_figure(figure)[".png"])) as picture:
        assert picture.width == pytest.approx(6.9 * 200, abs=2) and picture.height < 9.5 * 200


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shares": [1.0]}, "not a share of each eigenvalue"),
        ({"trace": None}, "trace: "),
        ({"eigenvalues": [], "shares": []}, "eigenvalues: "),
        ({"size": 0}, "size: "),
    ],
    ids=["shares", "trace", "none", "size"],
)
def test_a_file_that_is_none(changes, words, drawn):
    figure = figure_of(drawn)
    fake(figure)
    for place in figure.places:
        put_recorded(place.artifacts[0].product, CURVATURE | changes)
    with pytest.raises(DepoisonError, match=f"hessian.json: corrupted.*{words}") as caught:
        render_figure(figure)
    assert "\n" not in str(caught.value)


# --- courses -----------------------------------------------------------------------------------------------------


def course_of(project: Project, **changes: Any) -> Figure:
    return own_figure(project, "figure93", COURSE_FIGURE, **changes)


def make(artifact: Any, save_seconds: float = 30) -> None:
    small.make(artifact, Runtime(save_seconds=save_seconds))


def is_as_measured(row: dict[str, Any], place: Place) -> None:
    """A row of a course has what a model's own artifacts say."""
    make(place.cells[0].evaluation)
    make(place.artifacts[0])
    whole, read = read_hessian(place.artifacts[0].product), read_evaluation(place.cells[0].evaluation.product)
    assert (row["lambda_max"], row["trace"]) == (whole["lambda_max"], whole["trace"])
    assert {key: row[key] for key in ("c_acc", "asr")} == {key: read.metrics[key] for key in ("c_acc", "asr")}


@pytest.mark.parametrize("defense", [*seldom("f-sft+lr=0.001"), "nft"])
def test_a_tuning_of_what_stands_for_layers_that_is_played_again(defense, made, monkeypatch):
    """Singular values and masks learn in place of weights; what is measured is the network that they make."""
    monkeypatch.chdir(made.path)
    made.set("config/tracks/tiny.yaml", "tuning", "epochs", to=2)
    (artifact,) = course_of(made, axes={"lines": [{"defense": defense}]}).artifacts()
    make(artifact)
    rows = read_rows(Path(artifact.product), COLUMNS)
    assert [row["epoch"] for row in rows] == [0, 1, 2] and len({row["lambda_max"] for row in rows}) == 3
    columns = [{"label": "None", "defense": "none"}, {"label": "Tuned", "defense": defense}]
    ends = figure_of(made, curvature=BUDGET, axes={"columns": columns})
    is_as_measured(rows[0], ends.places[0])
    is_as_measured(rows[-1], ends.places[1])


def test_a_tuning_that_is_played_again(made, monkeypatch):
    """It begins at the backdoored model and ends at the purified one."""
    monkeypatch.chdir(made.path)
    made.set("config/tracks/tiny.yaml", "tuning", "epochs", to=3)
    figure = course_of(made, every=2)
    (artifact,) = figure.artifacts()
    assert not any(one.stage == "purify" for one in artifact.chain().values())
    make(artifact)
    rows = read_rows(Path(artifact.product), COLUMNS)
    assert [row["epoch"] for row in rows] == [0, 2, 3] and len({row["lambda_max"] for row in rows}) == 3
    ends = figure_of(made, curvature=BUDGET)
    is_as_measured(rows[0], ends.places[0])
    is_as_measured(rows[-1], ends.places[1])
    shown = [row for row in rows_of(render_figure(figure)) if row["metric"] == "hessian_trace"]
    assert [float(row["mean"]) for row in shown] == [row["trace"] for row in rows]
    assert [row["x"] for row in shown] == ["0", "2", "3"]


@pytest.mark.drill
def test_a_training_that_is_played_again_and_killed_on_the_way(made, monkeypatch):
    monkeypatch.chdir(made.path)
    made.set("config/tracks/tiny.yaml", "training", "epochs", to=2)
    (artifact,) = course_of(made, of="training", axes={"lines": [{"defense": "none"}]}).artifacts()
    reported, report = [], Progress.__call__

    def dies(self: Progress, row: dict[str, Any]) -> None:
        report(self, row)
        if self.what == "course":
            reported.append(row)
            if len(reported) == 2:
                raise small.Interrupted

    monkeypatch.setattr(Progress, "__call__", dies)
    with pytest.raises(small.Interrupted):
        make(artifact, save_seconds=0)
    make(artifact, save_seconds=0)
    rows = read_rows(Path(artifact.product), COLUMNS)
    assert [row["epoch"] for row in reported] == [1, 2, 2] and [row["epoch"] for row in rows] == [0, 1, 2]
    for row, before in zip(rows[1:], reported[:2], strict=True):
        assert row == {key: before[key] for key in row}
    is_as_measured(rows[-1], figure_of(made, curvature=BUDGET).places[0])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"axes": {"lines": [{"defense": "none"}]}},
            "course: none does not tune a backdoored model; valid: .* such as ft",
        ),
        ({"metrics": ["seconds"]}, "metrics: seconds is not measured after each epoch"),
        ({"of": "tunning"}, "of: input should be 'training' or 'tuning'"),
    ],
    ids=["defense", "metric", "of"],
)
def test_a_course_that_cannot_be(changes, told, tiny):
    with pytest.raises(DepoisonError, match=told):
        course_of(tiny, **changes)


def test_the_training_of_a_model_that_was_brought_is_not_known(tiny):
    torch.manual_seed(0)
    torch.save(ResNet18(8, 10).state_dict(), tiny / "suspect.pt")
    brought = {"weights": "suspect.pt", "model": "resnet18", "parameters": {"width": 8}, "dataset": "digits"}
    tiny.edit("config/checkpoints/suspect.yaml", lambda data: data.update(brought))
    of = {"dataset": "digits", "attack": "suspect", "axes": {"lines": [{"defense": "none"}]}}
    with pytest.raises(DepoisonError, match="course: suspect was trained elsewhere; valid: of: tuning"):
        course_of(tiny, of="training", **of)


def test_a_picture_of_a_course(drawn):
    lines = [{"label": "LP", "defense": "lp"}, {"label": "?", "defense": "anything"}]
    figure = course_of(drawn, axes={"lines": lines}, unimplemented=["anything"])
    fake(figure)
    numbers = course.numbers(figure)
    assert [row["gap"] for row in numbers[-4:]] == ["the defense anything"] * 4
    canvas = course.draw(figure, numbers)
    assert [axes.get_ylabel() for axes in canvas.axes] == ["λmax", "Tr(H)", "C-Acc (%)", "ASR (%)"]
    assert [axes.get_yscale() for axes in canvas.axes] == ["symlog", "symlog", "linear", "linear"]
    assert canvas.axes[-1].get_xlabel() == "Tuning epoch"
    assert list(canvas.axes[0].lines[0].get_xdata()) == [0, 1]
