"""Figures: what they plan, the numbers that they draw against hand-computed ones, and pictures that are the same again."""

from __future__ import annotations

import copy
import csv
import io
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from matplotlib.container import ErrorbarContainer
from PIL import Image
from safetensors.numpy import load_file, save

import small
from conftest import ROOT, Project, job_counts, lean, printed_lines, put_recorded, seldom, with_tiny
from depoison.errors import DepoisonError
from depoison.papers.figures import Figure, all_figures, read_figure, read_page
from depoison.papers.kinds.epochs import history_of
from depoison.plan.plan import Plan
from depoison.reports.figures import bars, epochs, examples, sweep, tsne
from depoison.reports.figures.examples import amplification
from depoison.reports.figures.style import footnotes
from depoison.reports.figures.write import kind_of, render_csv, render_figure
from depoison.reports.kinds import artifacts, report_of
from depoison.stages.embedding import embed, features_of, sample
from depoison.stages.runner import run_stage

FOLDER = "config/papers/fst/figures"
NAMES = [f"figure{n}" for n in range(2, 17)]


# --- what is planned ---------------------------------------------------------------------------------------------


def test_every_figure_has_a_file():
    assert sorted(path.stem for path in (ROOT / FOLDER).glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("track", ["", "digits/"])
@pytest.mark.parametrize("name", NAMES)
def test_a_papers_figure_is_planned(name, track):
    plan = Plan(ROOT)
    figure = read_figure(plan, f"reports/{track}{name}.png")
    assert figure.target == f"reports/{track}{name}"
    assert figure.name == name and figure.track == (track.rstrip("/") or "paper")
    assert {point.dataset for point in figure.places} == ({"digits"} if track else {p.dataset for p in figure.places})
    for point in figure.places:
        assert bool(point.gap) != bool(point.cells)
        missing = [n for kind, n in (("attack", point.attack.name), ("defense", point.defense.name), ("model", point.model))
                   if n not in plan.configuration.names(kind)]  # fmt: skip
        assert all(one in point.gap for one in missing) and bool(missing) == bool(point.gap)
    assert {artifact.directory for artifact in figure.artifacts()} <= plan.artifacts.keys()


def values_of(figure: Figure, line: str, column: str) -> list[Any]:
    return [point.x for point in figure.places if (point.label("line"), point.label("column")) == (line, column)]


def test_figure_2_sweeps_the_poisoning_rate():
    figure = read_figure(Plan(ROOT), "reports/figure2")
    assert len(figure.places) == (3 * 5 + 4) * 7
    assert values_of(figure, "LP, lr 0.5", "Blended") == [0.005, 0.01, 0.05, 0.1, 0.2]
    assert values_of(figure, "LP, lr 0.5", "LC") == [0.005, 0.01, 0.05, 0.1]
    (point,) = (
        p for p in figure.places if (p.label("line"), p.label("column"), p.x) == ("LP, lr 0.5", "Blended", 0.05)
    )
    (cell,) = point.cells
    assert cell.name.path == "results/cells/paper/cifar10/resnet18/blended+rate=0.05/lp+lr=0.5/s0.json"


def test_figure_6_asks_for_histories_at_every_epoch():
    for point in read_figure(Plan(ROOT), "reports/digits/figure6").places:
        for cell in point.cells:
            assert cell.settings["defense"]["evaluate_every"][-1].value == 1
            budget = 16 if point.defense.name == "fst" else 25  # the track's
            assert cell.settings["defense"]["epochs"][-1].value == budget


def test_what_is_measured_and_what_is_swept_win_over_a_track(tiny):
    """Else there would be no history, and one point in place of all; of everything else the track's budget wins."""
    tiny.set("config/tracks/tiny.yaml", "tuning", to={"evaluate_every": 0, "lr": 0.5, "epochs": 3})
    put(tiny, "figure6", lines=[{"label": "LP", "defense": "lp+lr=0.7+epochs=9"}])
    (point, *_) = read_figure(tiny.plan(), "reports/tiny/figure6").places
    assert str(point.defense) == "lp+evaluate_every=1"
    swept = {"defense": "lr", "label": "x", "values": [0.1, 0.2]}
    put(tiny, "figure2", columns=[{"attack": "badnet"}], lines=[{"defense": "lp+lr=0.7+epochs=9"}], x=swept)
    assert [str(p.defense) for p in read_figure(tiny.plan(), "reports/tiny/figure2").places] == [
        "lp+lr=0.1",
        "lp+lr=0.2",
    ]


def test_what_a_track_makes_the_same_is_drawn_once():
    assert [part.label for part in read_figure(Plan(ROOT), "reports/figure8").columns] == [
        "VGG19-BN", "ResNet-50", "DenseNet-161",
    ]  # fmt: skip
    assert [part.label for part in read_figure(Plan(ROOT), "reports/digits/figure8").columns] == ["ResNet-18"]
    assert len(read_figure(Plan(ROOT), "reports/digits/figure10").rows) == 1


def test_a_part_may_be_without_an_attack():
    shown = {(p.dataset, p.attack.name) for p in read_figure(Plan(ROOT), "reports/figure10").places}
    assert ("cifar10", "label-consistent") in shown and ("gtsrb", "badnet") in shown
    assert ("gtsrb", "label-consistent") not in shown


def test_a_missing_method_is_a_gap(project):
    (project / "config/attacks/blended.yaml").unlink()
    with pytest.raises(DepoisonError, match=r"figure7.yaml:\d+: unknown attack 'blended'"):
        read_figure(project.plan(), "reports/digits/figure7")
    put(project, "figure7", unimplemented=["blended"])
    figure = read_figure(project.plan(), "reports/digits/figure7")
    gaps = {point.label("line"): point.gap for point in figure.places}
    assert gaps == dict.fromkeys(["BadNet, 5%", "BadNet, 1%"], "") | dict.fromkeys(
        ["Blended, 5%", "Blended, 1%"], "the attack blended"
    )
    assert figure.gaps() == ["the attack blended"]


def put(project: Project, name: str, **changes: Any) -> None:
    """Change a figure's file, its axes, too; None removes a key."""

    def change(data: dict[str, Any]) -> None:
        for axis in ("rows", "columns", "lines", "groups", "x"):
            if axis in changes:
                data["axes"] = data.get("axes", {}) | {axis: changes.pop(axis)}
        data |= {key: value for key, value in changes.items() if value is not None}
        for key in [key for key, value in changes.items() if value is None]:
            data.pop(key, None)

    project.edit(f"{FOLDER}/{name}.yaml", change)


SWEEP, TSNE = f"{FOLDER}/figure7.yaml", f"{FOLDER}/figure3.yaml"
FAULTS: dict[str, tuple[Any, ...]] = {
    "kind": ("figure7", "kind: sweep", "kind: sweeep", f"{SWEEP}:3", "unknown kind 'sweeep'; did you mean 'sweep'?", "tsne"),
    "key": ("figure7", "title:", "titel: x\ntitle:", f"{SWEEP}:1", "unknown key 'titel'; did you mean 'title'?"),
    "key of a kind": ("figure7", "title:", "perplexity: 5\ntitle:", f"{SWEEP}:1", "'perplexity'"),
    "key of a part": ("figure7", "attack: badnet+rate=0.05}", "atack: badnet+rate=0.05}", f"{SWEEP}:13", "'atack'"),
    "key of an axis": ("figure7", "values: [0,", "valuse: [0,", f"{SWEEP}:9", "x"),
    "number": ("figure3", "per_row: 3", "per_row: 0", f"{TSNE}:7", "per_row", "greater than or equal to 1"),
    "hyper-parameter": ("figure7", "defense: fst", "defense: fst+alfa=1", f"{SWEEP}:6", "'alfa'; did you mean 'alpha'?"),
    "value": ("figure7", "badnet+rate=0.05", "badnet+rate=5", f"{SWEEP}:13: badnet+rate: '5' is not valid", "(0, 1)"),
    "swept": ("figure7", "{defense: alpha,", "{defense: alfa,", f"{SWEEP}:9", "'alfa'; did you mean 'alpha'?"),
    "swept value": ("figure7", "values: [0,", "values: [-1,", f"{SWEEP}:9", "'-1' is not valid"),
    "above the reserve": ("figure7", "0.02]", "0.2]", SWEEP, "tuning_ratio 0.2", "the maximum is 0.1"),
    "two axes": ("figure7", "{defense: alpha,", "{defense: alpha, attack: rate,", f"{SWEEP}:9", "one hyper-parameter"),
    "form": ("figure7", "attack: badnet+rate=0.05", "attack: badnet+rate", f"{SWEEP}:13", "name+key=value"),
    "no attack": ("figure7", "attack: badnet+rate=0.05", "attack: +rate=0.05", f"{SWEEP}:13", "no part names the attack"),
    "no axis": ("figure2", "x: {attack: rate, label: Poisoning", "#", f"{FOLDER}/figure2.yaml:9", "no x axis"),
    "dataset": ("figure7", "cifar10", "cifar11", f"{SWEEP}:4", "unknown dataset 'cifar11'; did you mean 'cifar10'?"),
    "seed twice": ("figure7", "title:", "seeds: [1, 1]\ntitle:", f"{SWEEP}:1", "a seed stands twice"),
    "seed": ("figure7", "title:", "seeds: [-1]\ntitle:", f"{SWEEP}:1", "seeds.0", "greater than or equal to 0"),
    "metric twice": ("figure7", "metrics: [", "metrics: [asr, ", f"{SWEEP}:17: metrics: asr stands twice"),
    "label twice": ("figure7", '"BadNet, 1%"', '"BadNet, 5%"', f"{SWEEP}:14", "'BadNet, 5%' stands twice"),
    "no epochs": ("figure6", "defense: fst}", "defense: none}", f"{FOLDER}/figure6.yaml:18", "'evaluate_every'"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "old", "new", *["words"]), [(*r[:3], r[3:]) for r in FAULTS.values()], ids=list(FAULTS)
)
def test_a_file_with_a_fault(name, old, new, words, project):
    path = project / FOLDER / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DepoisonError) as error:
        read_figure(project.plan(), f"reports/digits/{name}")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("reports/figure99.png", "unknown figure of fst 'figure99'"),
        ("reports/digit/figure2", "did you mean 'digits'?"),
        ("reports/elsewhere/figure2", "unknown track or paper 'elsewhere'"),
    ],
)
def test_a_figure_that_is_none(target, words):
    with pytest.raises(DepoisonError, match=words.replace("?", r"\?")):
        read_figure(Plan(ROOT), target)


def test_figures_are_listed_for_gc(project):
    for path in (project / "config/tracks").glob("*.yaml"):
        if path.stem not in ("paper", "digits"):
            path.unlink()
    plan = project.plan()
    listed = all_figures(plan)
    files = list(project.path.glob("config/papers/*/figures/*.yaml"))
    assert len(listed) == len(files) * len(plan.configuration.names("track"))
    stages = {artifact.stage for artifact in artifacts(plan, listed)}
    # purify: histories that are not there
    assert stages == {"evaluate", "purify", "embedding", "examples", "gradcam", "neurons", "hessian", "course", "masks"}


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tiny.path)
    return tiny


def metrics_of(cell: Any) -> dict[str, float]:
    """Numbers that tell cells apart, the C-Acc of the seeds 0, 1, 2 being 1 apart."""
    base = sum(map(ord, cell.name.path.rpartition("/")[0])) % 50
    return {"c_acc": 40.0 + base + cell.name.seed, "asr": base / 3}


def fake(figure: Figure) -> None:
    """Artifacts in place of computed ones."""
    for point in figure.places:
        for cell in point.cells:
            for artifact in cell.evaluation.chain().values():
                if artifact is cell.evaluation:
                    put_recorded(artifact.product, {"metrics": metrics_of(cell)})
                elif artifact.stage == "evaluate" and not Path(artifact.product).exists():
                    put_recorded(artifact.product, {"metrics": {"c_acc": 90.0, "asr": 99.5}})
            if figure.file.kind == "epochs":
                put_recorded(history_of(cell), HISTORY.format(cell.name.seed))
        for i, artifact in enumerate(point.artifacts):
            rng = np.random.default_rng(i)
            if artifact.stage == "embedding":
                rows = [
                    f"{j},{j % 4},{int(j >= 20)},{x!r},{y!r}"
                    for j, (x, y) in enumerate(rng.normal(size=(25, 2)).tolist())
                ]
                put_recorded(artifact.product, "\n".join(["index,label,backdoored,x,y", *rows]) + "\n")
            if artifact.stage == "examples":
                clean = rng.integers(0, 200, (8, 3, 8, 8), dtype=np.uint8)
                pictures = {"clean": clean, "backdoored": clean + np.uint8(7), "indices": np.arange(8) + 5}
                put_recorded(artifact.product, save(pictures))
            if artifact.stage == "gradcam":
                pictures = {
                    "images": rng.integers(0, 256, (4, 3, 8, 8), dtype=np.uint8), "heat": rng.random((4, 8, 8), np.float32),
                    **{key: np.arange(4) + j for j, key in enumerate(("labels", "predicted", "indices"))},
                }  # fmt: skip
                put_recorded(artifact.product, save(pictures))
            if artifact.stage == "neurons":
                rows = [f"{epoch},{j},{(7 * j) % 5},{j / epoch},{90.5 / epoch}" for epoch in (1, 2) for j in range(5)]
                put_recorded(artifact.product, "\n".join(["epoch,neuron,tac,gradient,asr", *rows]) + "\n")
            if artifact.stage == "hessian":
                put_recorded(artifact.product, CURVATURE)
            if artifact.stage == "masks":
                rows = [f"{j / 100},{3 if j < 0 else 97 if j == 100 else 1}" for j in range(-1, 101)]
                put_recorded(artifact.product, "\n".join(["factor,weights", *rows]) + "\n")
            if artifact.stage == "course":
                rows = [f"{epoch},{9 / (1 + epoch)},{99 - epoch},1,{80 + epoch},{90 / (1 + epoch)}" for epoch in (0, 1)]
                put_recorded(
                    artifact.product, "\n".join(["epoch,lambda_max,trace,trace_error,c_acc,asr", *rows]) + "\n"
                )


CURVATURE = {
    "lambda_max": 573.8,
    "trace": 6625.8,
    "size": 1000,
    "eigenvalues": [-1.0, 0.0, 99.0],
    "shares": [0.25, 0.5, 0.25],
}
HISTORY = """epoch,loss,train_acc,c_acc,asr,lcr,images_per_second
1,0.5,90,8{}.125,50.5,1,1000
2,0.4,91,88.75,3.0625,1,1000
"""


def own_figure(project: Project, name: str, content: dict[str, Any], track: str = "tiny", **changes: Any) -> Figure:
    """One that a test writes beside FST's, with these changes."""
    project.edit(f"config/papers/fst/figures/{name}.yaml", lambda data: data.update(copy.deepcopy(content) | changes))
    return read_figure(project.plan(), f"reports/{track}/fst/{name}")


def rows_of(files: dict[str, bytes]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(files[".csv"].decode())))


def numbers_of(figure: Figure) -> list[dict[str, str]]:
    """The lines of its CSV, without drawing a picture."""
    return rows_of({".csv": render_csv(figure, kind_of(figure).numbers(figure))})


def made(project: Project, name: str) -> tuple[Figure, list[dict[str, str]]]:
    figure = read_figure(project.plan(), f"reports/tiny/{name}")
    fake(figure)
    return figure, numbers_of(figure)


@pytest.mark.parametrize("name", ["figure2", "figure7", "figure8"])
def test_numbers_from_evaluations(name, drawn):
    figure, rows = made(drawn, name)
    assert len(rows) == 2 * len(figure.places)
    for row in rows:
        (point,) = (
            p
            for p in figure.places
            if [p.label("row"), p.label("column"), p.label("line"), str(p.x)]
            == [row[k] for k in ("row", "column", "line", "x")]
        )
        if point.gap:
            assert row["mean"] == "" and row["gap"] == point.gap
        else:
            (cell,) = point.cells
            assert row["mean"] == str(metrics_of(cell)[row["metric"]])
            assert (row["attack"], row["defense"]) == (str(point.attack), str(point.defense))
            assert row["seeds"] == "0" and row["interval95"] == "" and row["gap"] == ""


def test_several_seeds_have_a_mean_and_an_interval(drawn):
    drawn.set("config/config.yaml", "seeds", to=[0, 1, 2])
    figure, rows = made(drawn, "figure8")
    row, *_ = (row for row in rows if row["metric"] == "c_acc")
    (point, *_) = (point for point in figure.places if point.label("line") == row["line"] and point.x == row["x"])
    assert [cell.name.seed for cell in point.cells] == [0, 1, 2] and row["seeds"] == "0 1 2"
    assert float(row["mean"]) == pytest.approx(metrics_of(point.cells[1])["c_acc"])
    assert float(row["interval95"]) == pytest.approx(4.302653 / 3**0.5, rel=1e-5)  # Student's t, 2 degrees of freedom
    drawn_bars = [bar for axes in bars.draw(figure, bars.numbers(figure)).axes for bar in axes.containers]
    assert any(isinstance(bar, ErrorbarContainer) for bar in drawn_bars)


def test_curves_over_epochs_begin_at_the_undefended_model(drawn):
    drawn.set("config/config.yaml", "seeds", to=[1, 3])
    figure, rows = made(drawn, "figure5")
    assert len(rows) == len(figure.places) * 2 * 3  # metrics, epochs
    curve = [row for row in rows if (row["column"], row["line"]) == ("Blended, 1%", "w/o C")]
    found = {
        metric: [(row["x"], float(row["mean"])) for row in curve if row["metric"] == metric]
        for metric in ("c_acc", "asr")
    }
    assert found["c_acc"] == [("0", 90.0), ("1", (81.125 + 83.125) / 2), ("2", 88.75)]
    assert found["asr"] == [("0", 99.5), ("1", 50.5), ("2", 3.0625)]
    assert float(next(row["interval95"] for row in curve if row["x"] == "1")) == pytest.approx(12.7062, rel=1e-5)
    (bands, *_) = (axes.collections for axes in epochs.draw(figure, epochs.numbers(figure)).axes)
    assert len(bands) == len(figure.lines)


def test_a_broken_history_is_named(drawn):
    figure, _ = made(drawn, "figure5")
    path = Path(history_of(figure.places[0].cells[0]))
    path.write_text("epoch,loss\n1,x\n")
    with pytest.raises(DepoisonError, match=f"{path}: corrupted"):
        render_figure(figure)
    path.unlink()
    with pytest.raises(DepoisonError, match=f"{path}: missing"):
        render_figure(figure)
    assert path.parent.as_posix() in {artifact.directory for artifact in figure.artifacts()}  # what makes it anew


def test_points_of_an_embedding(drawn):
    figure, rows = made(drawn, "figure3")
    assert [point.cells[0].name.seed for point in figure.places] == [0] * 6
    for point in figure.places:
        shown = [row for row in rows if row["column"] == point.label("column")]
        with open(point.artifacts[0].product) as lines:
            expected = list(csv.DictReader(lines))
        assert [{key: row[key] for key in expected[0]} for row in shown] == expected
        assert {row["success"] for row in shown} == {str(metrics_of(point.cells[0])["asr"])}
        assert {row["target"] for row in shown} == {"0"}


def test_numbers_of_example_images(drawn):
    figure, rows = made(drawn, "figure9")
    assert [row["column"] for row in rows] == ["BadNet", "Blended", "WaNet", "SIG", "SSBA", "LC"]
    for row, point in zip(rows, figure.places, strict=True):
        if not point.gap:
            assert (row["index"], row["largest"], row["mean"], row["amplified"]) == ("5", "7", "7.0", "18")
            assert row["pixels"] == point.artifacts[0].product


# --- what the paper prints beside ours ---------------------------------------------------------------------------

TABLE_OF = {"vgg19-bn": "table9", "resnet50": "table10", "densenet161": "table11"}
GROUPS = [(attack, rate) for attack in ("BadNet", "Blended") for rate in ("5%", "1%", "0.5%")]


def printed_bars(model: str) -> dict[tuple[str, str, str], str]:
    """By line, group and metric, read without the package."""
    names = {"badnet": "BadNet", "blended": "Blended", "none": "No defense", "fst": "FST"}
    return {
        (names[line["defense"]], f"{names[line['attack']]} {100 * float(line['rate']):g}%", metric): line[metric]
        for line in printed_lines(TABLE_OF[model])
        for metric in ("c_acc", "asr")
        if line["attack"] in names and line["defense"] in names
    }


@pytest.mark.parametrize("model", TABLE_OF)
def test_figure_8_has_the_printed_numbers_of_its_tables(model):
    points = [p for p in read_figure(Plan(ROOT), "reports/figure8").places if p.model == model]
    found = {(p.label("line"), p.x, m.replace("-", "_")): texts for p in points for m, texts in p.published.items()}
    assert found == {place: (text,) for place, text in printed_bars(model).items()} and len(found) == 24


def test_what_a_track_makes_the_same_has_the_printed_numbers_of_all(drawn):
    figure, rows = made(drawn, "figure8")
    expected = [printed_bars(model) for model in TABLE_OF]
    assert len(rows) == 24
    for row in rows:
        assert row["published"].split() == [numbers[row["line"], row["x"], row["metric"]] for numbers in expected]
    note = "black ticks: as the paper prints them, one each of VGG19-BN, ResNet-50, DenseNet-161 on CIFAR-10"
    assert note in footnotes(figure)


def test_printed_numbers_are_drawn_as_ticks_on_their_bars(drawn):
    figure = read_figure(drawn.plan(), "reports/paper/figure8")
    fake(figure)
    rows = bars.numbers(figure)
    canvas = bars.draw(figure, rows)
    panels = [axes for axes in canvas.axes if axes.patches]
    assert len(panels) == 6
    for axes, (metric, column) in zip(panels, product(("c_acc", "asr"), figure.columns), strict=True):
        shown = [row for row in rows if (row["column"], row["metric"]) == (column.label, metric)]
        # Bars and ticks stand in the order of the rows, each tick over the width of its bar.
        for row, bar, tick in zip(shown, axes.patches, axes.lines, strict=True):
            assert bar.get_height() == row["mean"]
            assert set(tick.get_ydata()) == {float(row["published"])} and tick.get_color() == "black"
            assert tick.get_xdata() == pytest.approx([bar.get_x(), bar.get_x() + bar.get_width()])
        for number, row in zip(axes.texts, shown, strict=True):  # no tick strikes a number out
            assert not number.xy[1] < float(row["published"]) < number.xy[1] + bars.ROOM
    (legend,) = canvas.legends
    assert [text.get_text() for text in legend.get_texts()] == ["No defense", "FST", "published"]
    assert footnotes(figure) == ["black ticks: as the paper prints them"]


def test_bars_without_printed_numbers_have_no_ticks(drawn):
    figure, rows = made(drawn, "figure16")
    assert "published" not in rows[0] and not figure.published_of
    assert not any(axes.lines for axes in bars.draw(figure, bars.numbers(figure)).axes)


def test_bars_of_seconds_are_not_cut_off(drawn):
    """What is in percent ends at 100, and what is not at the highest bar, with room for the number above it."""
    drawn.edit(f"{FOLDER}/figure16.yaml", lambda data: data.update(metrics=["c-acc", "seconds"]))
    figure = read_figure(drawn.plan(), "reports/tiny/figure16")
    fake(figure)
    means = {"c_acc": 90.0, "seconds": 500.0}
    rows = [row | {"mean": means[row["metric"]], "interval95": None} for row in bars.numbers(figure)]
    percent, seconds = bars.draw(figure, rows).axes
    assert percent.get_ylim() == (0, 132) and list(percent.get_yticks()) == [0, 25, 50, 75, 100]
    assert seconds.get_ylim() == pytest.approx((0, 500 * (1 + bars.ROOM / 100)))


def test_a_printed_number_is_of_no_hyper_parameter(drawn):
    put(drawn, "figure8", lines=[{"label": "FST", "defense": "fst+alpha=0.1"}])
    assert not any(point.published for point in read_figure(drawn.plan(), "reports/paper/figure8").places)
    put(drawn, "figure8", published=["../published/table99.csv"])
    with pytest.raises(DepoisonError, match=r"published/table99\.csv: not readable"):
        read_figure(drawn.plan(), "reports/paper/figure8")


@pytest.mark.parametrize("name", ["figure8", "figure16"])
def test_groups_of_bars_are_spelled_out(name, drawn):
    """The attack once below its rates, in the lowest panels."""
    figure, _ = made(drawn, name)
    assert [part.label for part in figure.groups] == [" ".join(group) for group in GROUPS]
    axes = bars.draw(figure, bars.numbers(figure)).axes[-1]
    assert [label.get_text() for label in axes.get_xticklabels()] == [rate for _, rate in GROUPS]
    (below,) = axes.child_axes
    assert [label.get_text().strip() for label in below.get_xticklabels()] == ["BadNet", "Blended"]
    assert list(below.get_xticks()) == [1, 4]


def test_groups_that_share_nothing_stand_in_full(drawn):
    put(
        drawn,
        "figure8",
        groups=[
            {"label": "BadNet at 5%", "attack": "badnet+rate=0.05"},
            {"label": "Blended", "attack": "blended+rate=0.05"},
        ],
    )
    figure, _ = made(drawn, "figure8")
    axes = bars.draw(figure, bars.numbers(figure)).axes[-1]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "BadNet\nat\n5%",
        "Blended",
    ] and not axes.child_axes


def test_an_axis_is_labeled_where_nothing_is_drawn_below(drawn):
    """LC is not shown on GTSRB: its panel above has the rates."""
    figure = read_figure(drawn.plan(), "reports/paper/figure10")
    fake(figure)
    canvas = sweep.draw(figure, sweep.numbers(figure))
    panels = np.array(canvas.axes).reshape(6, 4)
    labels = [[axes.get_xlabel() for axes in row] for row in panels]
    assert labels[3] == ["", "", "", "Poisoning rate"] and labels[5] == ["Poisoning rate"] * 3 + [""]
    shown = [[any(label.get_visible() for label in axes.get_xticklabels()) for axes in row] for row in panels]
    assert shown[3] == [False, False, False, True] and shown[5][:3] == [True] * 3


def test_columns_wrap_with_all_their_rows(drawn):
    rows = [{"label": "Before", "defense": "none"}, {"label": "After", "defense": "lp"}]
    columns = [{"attack": f"{name}+rate=0.1", "label": name} for name in ("badnet", "blended", "sig")]
    put(drawn, "figure3", rows=rows, columns=columns, per_row=2, attack=None, defense=None)
    figure = read_figure(drawn.plan(), "reports/tiny/figure3")
    fake(figure)
    shown = [axes for axes in tsne.draw(figure, tsne.numbers(figure)).axes if axes.get_visible()]
    titles = [(axes.get_ylabel(), axes.get_title().partition("\n")[0]) for axes in shown]
    first, second = (["badnet", "blended"], ["sig"])
    assert titles == [
        (label if not i else "", name)
        for block in (first, second) for label in ("Before", "After") for i, name in enumerate(block)
    ]  # fmt: skip
    assert all(len(axes.collections) == 2 for axes in shown)


def test_white_images_have_an_edge(drawn):
    figure = read_figure(drawn.plan(), "reports/tiny/figure9")
    fake(figure)
    for axes in examples.draw(figure, examples.numbers(figure)).axes:
        assert all(spine.get_visible() for spine in axes.spines.values()) == bool(axes.images)


@pytest.mark.parametrize(
    ("largest", "factor"), [(0, 127), (1, 127), (40, 3), (63, 2), (64, 1), (127, 1), (128, 0.5), (255, 0.5)]
)
def test_a_difference_is_amplified_as_much_as_fits(largest, factor):
    residual = np.array([[[-largest, largest]]], dtype=np.int16)
    assert amplification(residual) == factor
    assert abs(residual * factor).max() <= 127.5


# --- files -------------------------------------------------------------------------------------------------------

ALL_KINDS = ["figure2", "figure5", "figure8", "figure9", "figure3"]


@pytest.mark.parametrize("name", [*ALL_KINDS, *seldom("figure4", "figure6", "figure7", "figure12", "figure16")])
def test_pictures_have_the_size_of_a_page(name, drawn):
    figure = read_figure(drawn.plan(), f"reports/tiny/{name}")
    fake(figure)
    files = render_figure(figure)
    with Image.open(io.BytesIO(files[".png"])) as picture:
        inches = picture.width / 200
        assert inches == pytest.approx({"column": 3.3, "full": 6.9}[figure.file.width], abs=0.01)
        assert picture.height / 200 < 9.5
    assert b"/FontFile2" in files[".pdf"] and b"/Type3" not in files[".pdf"]
    assert b"/CreationDate" not in files[".pdf"]


@pytest.mark.drill
def test_the_same_numbers_make_the_same_bytes_in_another_process(drawn):
    """Hashes of texts differ from process to process, and must not reach a file."""
    figures = [read_figure(drawn.plan(), f"reports/tiny/{name}") for name in ALL_KINDS]
    for figure in figures:
        fake(figure)
    for figure in figures:
        report_of(drawn.plan(), figure.target).write()
    first = {path.name: path.read_bytes() for path in Path("reports/tiny").iterdir()}
    assert len(first) == 3 * len(ALL_KINDS)
    targets = [figure.target for figure in figures]
    done = drawn.depoison("report", *targets, PYTHONHASHSEED="7", TZ="Asia/Tokyo", MPLBACKEND="svg")
    assert done.returncode == 0, done.stderr
    assert {name: Path("reports/tiny", name).read_bytes() for name in first} == first


def other_number(project: Project, figure: Figure) -> None:
    put_recorded(figure.places[0].cells[0].evaluation.product, {"metrics": {"c_acc": 1.0, "asr": 2.0}})


def by_hand(project: Project, figure: Figure) -> None:
    with open(f"{figure.target}.csv", "a") as file:
        file.write("1\n")


def anothers_picture(project: Project, figure: Figure) -> None:
    Path(f"{figure.target}.png").write_bytes(b"\x89PNG")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A figure of one bar, written; only to be copied."""
    project = with_tiny(Project(tmp_path_factory.mktemp("written") / "project"))
    part = {"model": "vgg19-bn"}, {"label": "FST", "defense": "fst"}, {"label": "BadNet", "attack": "badnet+rate=0.05"}
    put(project, "figure8", **{axis: [one] for axis, one in zip(("columns", "lines", "groups"), part, strict=True)})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.path)
        figure, _ = made(project, "figure8")
        assert not report_of(project.plan(), figure.target).is_current()
        report_of(project.plan(), figure.target).write()
    return project


@pytest.fixture
def current(written: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Project, Figure]:
    """A copy of `written`, and its figure."""
    project = written.copy(tmp_path / "project", "results", "reports")
    monkeypatch.chdir(project.path)
    return project, read_figure(project.plan(), "reports/tiny/figure8")


@pytest.mark.parametrize(
    "change",
    [
        other_number,
        by_hand,
        anothers_picture,
        lambda project, figure: Path(f"{figure.target}.pdf").unlink(),
        lambda project, figure: Path(figure.places[0].cells[0].evaluation.product).unlink(),
        lambda project, figure: put(project, "figure8", caption="Another"),
        lambda project, figure: project.set("config/models/resnet18.yaml", "label", to="Another"),
        lambda project, figure: put(project, "figure8", metrics=["asr"]),
    ],
    ids=["number", "by hand", "picture", "missing", "evaluation", "caption", "label", "metrics"],
)  # fmt: skip
def test_a_figure_is_current_until_something_changes(change, current):
    project, figure = current
    assert report_of(project.plan(), figure.target).is_current()
    change(project, figure)
    assert not report_of(project.plan(), figure.target).is_current()


def test_the_look_has_a_version(current, monkeypatch):
    project, figure = current
    monkeypatch.setattr("depoison.reports.figures.write.VERSION", 1000)
    assert not report_of(project.plan(), figure.target).is_current()


def test_a_page_lists_all_figures(drawn):
    (drawn / "config/attacks/adaptive-patch.yaml").unlink()
    for path in (drawn / FOLDER).glob("*.yaml"):
        put(drawn, path.stem, unimplemented=["adaptive-patch"])
    page = read_page(drawn.plan(), "reports/tiny/fst/figures.md")
    report_of(drawn.plan(), page.target, partial=True).write()
    text = Path("reports/tiny/fst/figures.md").read_text()
    numbers = [int(name.removeprefix("figure")) for name in NAMES if (drawn / FOLDER / f"{name}.yaml").exists()]
    places = [text.index(f"![Figure {n}](figure{n}.png)") for n in numbers]
    assert places == sorted(places)
    for figure in page.figures:
        assert figure.file.caption.split(",")[0] in text.replace("\\", "")
    assert "the attack adaptive\\-patch" in text or "the attack adaptive-patch" in text
    assert report_of(drawn.plan(), page.target, partial=True).is_current()
    put(drawn, "figure8", caption="Another")
    assert not report_of(drawn.plan(), page.target, partial=True).is_current()


def test_planning_and_the_check_of_files_draw_nothing(current):
    project, _ = current
    code = (
        "import sys; from depoison.plan.plan import Plan; from depoison.reports.kinds import report_of\n"
        "assert report_of(Plan('.'), 'reports/tiny/figure8').is_current()\n"
        "assert not {'torch', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=project.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the stage `embedding` ---------------------------------------------------------------------------------------


def test_features_are_those_before_the_classifier():
    model, images = small.network(), small.pixels(7)
    found = features_of(model, images, "fp32", batch_size=3)
    weight, bias = model.classifier.weight.detach(), model.classifier.bias.detach()
    state = {name: tensor.double() for name, tensor in small.state_of(model).items()}
    logits, _ = small.forward_by_hand(state, images, statistics="running")
    assert torch.allclose((found @ weight.T + bias).double(), logits, atol=1e-5)


def test_a_sample_is_without_repetition():
    found = sample(10, 5, torch.Generator().manual_seed(0))
    assert len(set(found.tolist())) == 5 and found.tolist() == sorted(found.tolist())
    assert sample(3, 3, torch.Generator().manual_seed(1)).tolist() == [0, 1, 2]


def test_an_embedding_keeps_neighbors_and_is_the_same_again():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(c, 0.1, (20, 8)) for c in (-5, 0, 5)]).astype(np.float32)
    found = embed(features, 30, 0)  # 30 is above a third of 59
    assert np.array_equal(found, embed(features, 30, 0))
    distances = np.linalg.norm(found[:, None] - found[None], axis=2) + 1e9 * np.eye(60)
    assert (distances.argmin(1) // 20 == np.arange(60) // 20).all()


@pytest.mark.parametrize(("features", "words"), [(np.ones((4, 3)), "4 points"), (np.full((9, 3), np.nan), "diverged")])
def test_an_embedding_that_cannot_be(features, words):
    with pytest.raises(DepoisonError, match=words):
        embed(features.astype(np.float32), 30, 0)


def stage_of(project: Project, name: str, line: str) -> Any:
    figure = read_figure(project.plan(), f"reports/tiny/{name}")
    return figure, next(point.artifacts[0] for point in figure.places if point.label("column") == line)


@pytest.fixture
def trained(made_: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project with a model of Blended and one tuned by LP, and figures of them."""
    monkeypatch.chdir(made_.path)
    columns = [{"label": "before", "defense": "none"}, {"label": "after", "defense": "lp"}]
    put(made_, "figure3", columns=columns, attack="blended+rate=0.1", backdoored=0.25)
    put(made_, "figure9", columns=[{"label": "Blended", "attack": "blended+rate=0.1"}])
    return made_


@pytest.fixture
def made_(finished: Project, tmp_path: Path) -> Project:
    return finished.copy(tmp_path / "made", "results", "reports")


def test_the_stage_embedding(trained):
    _, artifact = stage_of(trained, "figure3", "after")
    runtime = trained.plan().configuration.config.runtime
    run_stage(artifact.spec, artifact.directory, runtime)
    text = Path(artifact.product).read_bytes()
    rows = list(csv.DictReader(io.StringIO(text.decode())))
    labels = load_file(f"{artifact.upstream['dataset'].directory}/data.safetensors")["test_labels"]
    clean = [row for row in rows if row["backdoored"] == "0"]
    backdoored = [row for row in rows if row["backdoored"] == "1"]
    assert len(clean) == round(len(labels) / 2) and len(backdoored) == round(0.25 * len(clean))
    assert len({row["index"] for row in clean}) == len(clean)
    assert [int(row["label"]) for row in rows] == [labels[int(row["index"])] for row in rows]
    assert "0" in {row["label"] for row in clean} and "0" not in {row["label"] for row in backdoored}
    places = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    assert np.isfinite(places).all() and places.std(0).min() > 1

    Path(artifact.product).unlink()
    run_stage(artifact.spec, artifact.directory, runtime)
    assert Path(artifact.product).read_bytes() == text
    _, before = stage_of(trained, "figure3", "before")
    run_stage(before.spec, before.directory, runtime)
    with open(before.product) as lines:
        others = list(csv.DictReader(lines))
    assert others == rows  # the same images; LP leaves the features, and so the places, as they are


# --- the stage `examples` ----------------------------------------------------------------------------------------


def test_the_stage_examples(trained):
    figure, artifact = stage_of(trained, "figure9", "Blended")
    run_stage(artifact.spec, artifact.directory, trained.plan().configuration.config.runtime)
    found = load_file(artifact.product)
    data = load_file(f"{artifact.upstream['dataset'].directory}/data.safetensors")
    pattern = load_file(f"{artifact.upstream['poison'].directory}/trigger.safetensors")["pattern"].astype(float)
    assert len(found["indices"]) == 8 == len(set(found["indices"].tolist()))
    assert (data["test_labels"][found["indices"]] != 0).all()
    assert (found["clean"] == data["test_inputs"][found["indices"]]).all()
    blended = np.rint(0.8 * found["clean"].astype(float) + 0.2 * pattern)
    # Up to the rounding of halves in float32.
    assert abs(found["backdoored"].astype(float) - blended).max() <= 1
    (row,) = numbers_of(figure)
    residual = found["backdoored"][0].astype(int) - found["clean"][0].astype(int)
    assert (int(row["largest"]), float(row["mean"])) == (abs(residual).max(), abs(residual).mean())
    assert int(row["index"]) == found["indices"][0]


def test_a_clean_model_has_no_example(trained):
    put(trained, "figure9", columns=[{"label": "None", "attack": "none"}])
    _, artifact = stage_of(trained, "figure9", "None")
    runtime = trained.plan().configuration.config.runtime
    for upstream in artifact.chain().values():
        if upstream is not artifact:
            run_stage(upstream.spec, upstream.directory, runtime)
    with pytest.raises(DepoisonError, match="the attack none has no trigger"):
        run_stage(artifact.spec, artifact.directory, runtime)


# --- the real Snakefile ------------------------------------------------------------------------------------------

SMALL = {
    "figure90": {"kind": "epochs", "metrics": ["c-acc", "asr"], "unimplemented": ["anything"],
                 "axes": {"columns": [{"attack": "badnet+rate=0.1"}, {"attack": "anything"}],
                          "lines": [{"label": "LP", "defense": "lp"}]}},
    "figure91": {"kind": "tsne", "attack": "badnet+rate=0.1",
                 "axes": {"columns": [{"label": "before", "defense": "none"}, {"label": "after", "defense": "lp"}]}},
    "figure92": {"kind": "examples", "axes": {"columns": [{"attack": "badnet+rate=0.1"}]}},
}  # fmt: skip


def asked(project: Project, *arguments: str) -> dict[str, int]:
    done = project.snakemake("--cores", "1", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return job_counts(done.stdout + done.stderr)


@pytest.mark.drill
@pytest.mark.pipeline
def test_figures_through_snakemake(made_):
    for path in (lean(made_) / FOLDER).glob("*.yaml"):
        path.unlink()
    for name, content in SMALL.items():
        text = {"title": "Small", "caption": "A small one", "dataset": "cifar10", "model": "resnet18"} | content
        (made_ / FOLDER / f"{name}.yaml").write_text(yaml.safe_dump(text))
    page = "reports/tiny/fst/figures.md"
    # The models of the table are there; a history with each epoch is a purification of its own.
    jobs = {"purify": 1, "evaluate": 1, "embedding": 2, "examples": 1, "figure": 3, "figure_page": 1}
    assert asked(made_, page) == jobs
    for name in SMALL:
        for suffix in (".png", ".pdf", ".csv"):
            assert (made_ / f"reports/tiny/fst/{name}{suffix}").exists()
    assert "![Figure 91](figure91.png)" in (made_ / page).read_text()
    history, *_ = (made_ / "results/purify").glob("*-lp-*/history.csv")
    assert asked(made_, "-n", page, "reports/tiny/fst/figure91.pdf") == {}

    with (made_ / "reports/tiny/fst/figure90.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["x"] for row in rows if row["metric"] == "asr" and not row["gap"]] == ["0", "1"]
    assert {row["gap"] for row in rows} == {"", "the attack anything"}
    last = [row for row in rows if row["x"] == "1" and row["metric"] == "c_acc"]
    plan = made_.plan()
    (cell,) = read_figure(plan, "reports/tiny/fst/figure90").places[0].cells
    metrics = json.loads((made_ / cell.evaluation.product).read_text())["metrics"]
    assert float(last[0]["mean"]) == metrics["c_acc"]  # the history ends with what the evaluation finds

    (made_ / "reports/tiny/fst/figure90.csv").write_text("by hand\n")
    assert asked(made_, "-n", page) == {"figure": 1}
    put(made_, "figure91", perplexity=5)
    assert asked(made_, "-n", "reports/tiny/fst/figure91.png") == {"embedding": 2, "figure": 1}
    (made_ / history.relative_to(made_.path).parent / "history.csv").exists()
    done = made_.depoison("run", "reports/tiny/fst/figures.md")
    assert done.returncode == 0, done.stderr
    assert asked(made_, "-n", page) == {}
    gone = made_.depoison("gc")
    assert "results/examples" not in gone.stdout, gone.stdout + gone.stderr
