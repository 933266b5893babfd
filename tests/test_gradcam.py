"""Where a model looks: Grad-CAM against closed forms and finite differences, its stage, and figures of kind gradcam."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from safetensors.numpy import load_file, save
from torch import nn
from torch.nn.functional import conv2d

import small
from conftest import Project, put_recorded
from depoison.errors import DepoisonError
from depoison.models.activations import last_convolution, outputs_of
from depoison.models.classifier import Classifier
from depoison.models.layers import GlobalAverage, PreActBlock, residual_stages
from depoison.papers.figures import Figure
from depoison.reports.figures import gradcam
from depoison.reports.figures.write import render_figure
from depoison.stages.gradcam import grad_cam
from depoison.stages.runner import run_stage
from depoison.tasks.image import ImageClassifier
from test_figures import fake, own_figure, rows_of

GRADCAM: dict[str, Any] = {
    "title": "Heat", "caption": "Heat", "kind": "gradcam", "dataset": "cifar10", "model": "resnet18",
    "attack": "badnet+rate=0.1",
    "axes": {"rows": [{"label": "Before", "defense": "none"}, {"label": "After", "defense": "lp"}]},
}  # fmt: skip


def wrapped(*layers: nn.Module, features: int = 4, classes: int = 3) -> Classifier:
    """A network of color images with these layers before its linear one."""
    torch.manual_seed(0)
    return ImageClassifier(nn.Sequential(*layers), nn.Linear(features, classes), small.MEAN, small.STD).eval()


# --- the last convolution ----------------------------------------------------------------------------------------


def of_this(name: str, **parameters: Any) -> Classifier:
    model = {"name": name, "parameters": parameters, "mean": small.MEAN, "std": small.STD}
    made = small.IMAGES.network(model, classes=3, shape=(3, 32, 32), generator=torch.Generator().manual_seed(0))
    return made.eval()


@pytest.mark.parametrize(
    ("name", "parameters", "layer", "channels"),
    [
        ("preactresnet18", {"width": 4}, "extractor.8.conv2", 32),
        ("resnet18", {"width": 4}, "extractor.10.conv2", 32),
        ("resnet50", {"width": 2}, "extractor.18.conv3", 64),
        ("wrn-16-1", {"width": 4}, "extractor.6.conv2", 16),
        ("vgg19-bn", {"width": 4, "hidden": 8, "dropout": 0.5}, "extractor.49", 32),
        ("densenet161", {"growth": 4}, "extractor.0.denseblock4.denselayer24.conv2", 4),
    ],
)
def test_the_last_convolution_of_each_network(name, parameters, layer, channels):
    model = of_this(name, **parameters)
    assert last_convolution(model, small.pixels(1, height=32, width=32)) == layer
    assert model.get_submodule(layer).out_channels == channels


def test_the_last_convolution_is_the_last_that_is_called():
    """The projection of a block stands last among its parts, and is called first."""
    blocks, features = residual_stages(4, (1, 1), PreActBlock)
    model = wrapped(nn.Conv2d(3, 4, 3), *blocks, GlobalAverage(), features=features)
    assert [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)][-1] == "extractor.2.shortcut"
    assert last_convolution(model, small.pixels(1)) == "extractor.2.conv2"


def test_a_network_without_convolutions():
    with pytest.raises(DepoisonError, match="no convolution; valid: one that has, such as resnet18"):
        last_convolution(wrapped(nn.Flatten(), features=192), small.pixels(1))


def test_what_changes_an_output_in_place_does_not_change_what_was_seen():
    model = wrapped(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), GlobalAverage())
    with outputs_of(model.extractor[0]) as found:
        logits = model(small.pixels(2))
    assert (found[0] < 0).any() and len(found) == 1
    assert torch.equal(logits, model(small.pixels(2))) and len(found) == 1  # afterwards nothing is kept


# --- Grad-CAM ----------------------------------------------------------------------------------------------------


def test_it_is_cam_where_only_an_average_and_a_linear_layer_follow():
    """Zhou et al.'s class activation map, sum over k of w_ck A_k, over the number of positions."""
    model, images = wrapped(nn.Conv2d(3, 4, 3, padding=1), GlobalAverage()), small.pixels(5)
    maps, predicted = grad_cam(model, "extractor.0", images)
    assert torch.equal(predicted, small.IMAGES.predict(model, images, "fp32"))
    weight, bias = (tensor.detach().double() for tensor in model.extractor[0].parameters())
    x = (images.double() / 255 - torch.tensor(small.MEAN).double().view(1, 3, 1, 1)) / torch.tensor(
        small.STD
    ).double().view(1, 3, 1, 1)
    activations = conv2d(x, weight, bias, padding=1)
    cam = torch.einsum("nk,nkij->nij", model.classifier.weight.detach().double()[predicted], activations)
    assert maps.dtype == torch.float32 and maps.shape == (5, 8, 8)
    assert torch.allclose(maps.double(), cam.clamp(min=0) / 64, atol=1e-6)
    assert 0 < (maps == 0).double().mean() < 1


def test_its_weights_by_finite_differences():
    """The gradient's mean over positions is the change of the logit, per position, where a whole channel is raised."""
    model, images = small.network().double(), small.pixels(3)
    maps, predicted = grad_cam(model, "extractor.0", images)
    raised = torch.zeros(4).double()
    layer = model.extractor[0]
    layer.register_forward_hook(lambda _, __, output: output + raised.view(1, 4, 1, 1))
    activations: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _, __, output: activations.append(output))

    def logits() -> torch.Tensor:
        return model(images).detach().gather(1, predicted[:, None])[:, 0]

    logits()
    weights, step = torch.zeros(3, 4).double(), 1e-6
    for k in range(4):
        raised[k] = step
        up = logits()
        raised[k] = -step
        weights[:, k] = (up - logits()) / (2 * step) / 64
        raised[k] = 0.0
    expected = torch.einsum("nk,nkij->nij", weights, activations[0].detach()).clamp(min=0)
    assert expected.max() > 0 and torch.allclose(maps, expected, atol=1e-8)


def test_a_map_is_enlarged_to_where_it_is_of():
    """A network that sees brightness alone, at a quarter of the resolution: the heat is where the image is bright."""
    model = wrapped(nn.Conv2d(3, 4, 4, stride=4), GlobalAverage())
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (1.0, 0.0, 1.0, 0.0), strict=True):
            parameter.fill_(value)
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[0, :, :4, 12:] = 255
    ((heat,), _) = grad_cam(model, "extractor.0", images)
    assert heat.shape == (16, 16) and heat[:2, 14:].min() == heat.max() > 0
    assert (heat[:2].diff(dim=1) >= 0).all() and (heat[:, 14:].diff(dim=0) <= 0).all()


def test_a_model_that_diverged():
    model = small.network()
    model.classifier.weight.data[0] = float("nan")
    with pytest.raises(
        DepoisonError, match="gradcam: the model's outputs are no numbers; its training or tuning diverged"
    ):
        grad_cam(model, "extractor.0", small.pixels(2))


# --- the stage ---------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tiny.path)
    return tiny


def figure_of(project: Project, track: str = "tiny", **changes: Any) -> Figure:
    return own_figure(project, "figure90", GRADCAM, track, **changes)


def test_the_stage(made, monkeypatch):
    monkeypatch.chdir(made.path)
    figure, runtime = figure_of(made, images=6), made.plan().configuration.config.runtime
    assert [artifact.stage for artifact in figure.artifacts()] == ["gradcam", "gradcam"]
    before, after = (place.artifacts[0] for place in figure.places)
    for artifact in (before, after):
        run_stage(artifact.spec, artifact.directory, runtime)
    first, second = (load_file(artifact.product) for artifact in (before, after))
    test = load_file(f"{before.upstream['backdoored'].directory}/triggered.safetensors")
    labels = load_file(f"{before.upstream['dataset'].directory}/data.safetensors")["test_labels"]
    assert len(set(first["indices"].tolist())) == 6 == len(first["heat"]) and 0 not in first["labels"]
    for found in (first, second):  # the same triggered images for every model
        where = [test["kept"].tolist().index(i) for i in first["indices"].tolist()]
        assert (found["images"] == test["images"][where]).all() and (found["indices"] == first["indices"]).all()
        assert (found["labels"] == labels[found["indices"]]).all()
    assert first["heat"].shape == first["images"].shape[:1] + first["images"].shape[2:] and (first["heat"] >= 0).all()
    # LP leaves the convolutions and moves the logits, so the maps differ.
    assert first["heat"].max() > 0 and not np.array_equal(first["heat"], second["heat"])
    content = Path(before.product).read_bytes()
    Path(before.product).unlink()
    run_stage(before.spec, before.directory, runtime)
    assert Path(before.product).read_bytes() == content

    rows = rows_of(render_figure(figure))
    assert [row["row"] for row in rows] == ["Before"] * 6 + ["After"] * 6
    assert [int(row["predicted"]) for row in rows[6:]] == second["predicted"].tolist()
    assert [float(row["largest"]) for row in rows[:6]] == [float(heat.max()) for heat in first["heat"]]


def made_of(figure: Figure, runtime: Any) -> None:
    small.make(figure.artifacts()[0], runtime)


def test_a_clean_model_has_no_triggered_image(made, monkeypatch):
    monkeypatch.chdir(made.path)
    with pytest.raises(DepoisonError, match="gradcam: the attack none has no trigger; valid: any other attack"):
        made_of(figure_of(made, attack="none"), made.plan().configuration.config.runtime)


def test_point_clouds_have_no_pixels(project, monkeypatch):
    monkeypatch.chdir(project.path)
    few = {"width": 4, "centers1": 16, "centers2": 8, "neighbors1": 4, "neighbors2": 4}
    few = {"training": {"epochs": 1, "precision": "fp32"}, "models": {"pointnet2": few}}
    project.edit("config/tracks/solids.yaml", lambda data: data.update(few))
    figure = figure_of(project, "solids", dataset="solids", model="pointnet2", attack="pointba-o")
    with pytest.raises(DepoisonError, match="gradcam: clouds have no pixels to look at; valid: images"):
        made_of(figure, project.plan().configuration.config.runtime)


# --- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("attack", "blended"), ("model", "wrn-16-1"), ("rates", [0.1, 0.2])],
    ids=["attack", "model", "rates"],
)
def test_rows_show_the_same_images(key, value, tiny):
    rows = [{"label": "Before", "defense": "none"}, {"label": "After", "defense": "lp", key: value}]
    with pytest.raises(DepoisonError, match=rf"figure90\.yaml:\d+: axes: .*all show the same images, so `{key}` is"):
        figure_of(tiny, axes={"rows": rows})


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture(channels, drawn):
    figure = figure_of(
        drawn,
        unimplemented=["anything"],
        axes={"rows": [*GRADCAM["axes"]["rows"], {"label": "?", "defense": "anything"}]},
    )
    fake(figure)
    heat = np.zeros((2, 8, 8), np.float32)  # a map may be 0 everywhere, as no channel speaks for the class
    heat[1, 0, 0] = 5
    content = {"images": np.full((2, channels, 8, 8), 200, np.uint8), "heat": heat}
    content |= {key: np.arange(2) for key in ("labels", "predicted", "indices")}
    for place in figure.places[:2]:
        put_recorded(place.artifacts[0].product, save(content))
    rows = gradcam.numbers(figure)
    assert [row["largest"] for row in rows] == [0.0, 5.0, 0.0, 5.0, ""] and rows[-1]["gap"] == "the defense anything"
    canvas = gradcam.draw(figure, rows)
    panels = np.array(canvas.axes[:8]).reshape(4, 2)
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["Poisoned", "Before", "After", "?"]
    assert [[len(axes.images) for axes in line] for line in panels] == [[1, 1], [1, 1], [1, 1], [0, 0]]
    assert [axes.get_xlabel() for axes in panels[:2].ravel()] == ["label 0", "label 1", "predicted 0", "predicted 1"]
    for i in range(2):  # scaled to its own largest value, 0 or 5
        for at, value in (((0, 0), float(i)), ((3, 3), 0.0)):
            blended = 0.45 * 200 / 255 + 0.55 * np.array(colormaps["turbo"](value)[:3])
            assert np.allclose(panels[1, i].images[0].get_array()[at], blended)
    with Image.open(io.BytesIO(render_figure(figure)[".png"])) as picture:
        assert picture.width == pytest.approx(6.9 * 200, abs=2) and picture.height < 9.5 * 200


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("heat", np.full((4, 8, 8), -1, np.float32), "heat: not all of it is at least 0"),
        ("heat", np.full((4, 8, 8), np.nan, np.float32), "heat: not all of it is at least 0"),
        ("images", np.zeros((4, 2, 8, 8), np.uint8), "no images of 1 or 3 channels"),
        ("labels", np.zeros(3, np.int64), r"labels is int64 \[3\], not int64 \[4\]"),
    ],
    ids=["below 0", "no number", "channels", "count"],
)
def test_heat_maps_that_are_none(name, value, words, drawn):
    figure = figure_of(drawn)
    fake(figure)
    path = Path(figure.places[0].artifacts[0].product)
    put_recorded(path, save(load_file(path) | {name: value}))
    with pytest.raises(DepoisonError, match=rf"{path}: corrupted \({words}"):
        render_figure(figure)
