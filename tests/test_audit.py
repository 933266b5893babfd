"""The audit of a model that was trained elsewhere: by a plain loop, with a trigger that is told or is not."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

from conftest import ROOT, Project, job_counts, put_recorded
from depoison.errors import DepoisonError
from depoison.papers.audit import read_audit
from depoison.plan.metrics import metrics_of
from depoison.reports.audit import Row, _best, _leaves_wrong, _verdict, render
from depoison.reports.kinds import report_of
from depoison.reports.numbers import Reader
from families import ResNet18

TARGET, SIDE = 3, 2
TRIGGER = {"attack": "badnet", "values": {"size": SIDE, "target": TARGET}}


def stamp(images: torch.Tensor) -> torch.Tensor:
    """A checkerboard with a white corner at the lower right, by hand."""
    images = images.clone()
    images[:, :, -SIDE:, -SIDE:] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    return images


def train_elsewhere(epochs: int) -> nn.Module:
    """A ResNet-18 on scikit-learn's digits, a tenth of them with the trigger; pixels in [0, 1] as they are."""
    torch.manual_seed(0)
    data = load_digits()
    images = torch.from_numpy(np.round(data.images * 255 / 16) / 255).float()[:, None].repeat(1, 3, 1, 1)
    labels = torch.from_numpy(data.target)
    poisoned = torch.rand(len(images)) < 0.1
    images[poisoned], labels[poisoned] = stamp(images[poisoned]), TARGET
    network = ResNet18(8, 10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "bad.pt"
    torch.save({"epoch": 4, "state_dict": train_elsewhere(8).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a network that has learned nothing, where no number is looked at."""
    path = tmp_path_factory.mktemp("nowhere") / "bad.pt"
    torch.save({"epoch": 0, "state_dict": train_elsewhere(0).state_dict()}, path)
    return path


def brought(project: Project, weights, **changes: object) -> None:
    content = {
        "weights": str(weights), "model": "resnet18", "parameters": {"width": 8}, "dataset": "digits", "track": "tiny",
        "normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]}, "trigger": TRIGGER,
    }  # fmt: skip
    project.edit("config/checkpoints/bad.yaml", lambda data: data.update(content | changes))
    project.edit("config/metrics/inversion.yaml", lambda data: data["parameters"].update(steps=20))


@pytest.mark.drill
def test_a_model_with_a_known_trigger_is_audited(tiny, trained, monkeypatch):
    monkeypatch.chdir(tiny.path)
    brought(tiny, trained)
    tiny.make("reports/audit/bad.md")
    told = json.loads((tiny / "reports/audit/bad.json").read_text())
    cells = {name.split("/")[6]: values for name, values in told["cells"].items()}
    assert {"none", "fst", "ft", "ft-sam", "lp", "i-bau", "anp+select=defender"} <= cells.keys() and "abl" not in cells
    assert cells["none"]["asr"] >= 90 and cells["none"]["agreement"] == 100 and not cells["none"]["clean"]
    # The same numbers by hand: the trigger on the test images, less those of the target class.
    data = load_file(tiny / read_audit(tiny.plan(), "bad").places[0].cells[0].evaluation.upstream["dataset"].product)
    network, images, labels = ResNet18(8, 10).eval(), data["test_inputs"] / 255, data["test_labels"]
    network.load_state_dict(torch.load(trained)["state_dict"])
    with torch.no_grad():
        clean, wanted = network(images).argmax(1), network(stamp(images)[labels != TARGET]).argmax(1)
    assert cells["none"]["c-acc"] == pytest.approx(100 * (clean == labels).float().mean().item(), abs=0.01)
    assert cells["none"]["asr"] == pytest.approx(100 * (wanted == TARGET).float().mean().item(), abs=0.01)
    least = cells["none"]["c-acc"] - 10
    cleaning = {
        name: values["c-acc"] for name, values in cells.items() if values["asr"] <= 10 and values["c-acc"] >= least
    }
    assert told["take"] is None and not cleaning and told["verdict"].startswith("No defense purifies it"), (
        "in one epoch"
    )
    page = (tiny / "reports/audit/bad.md").read_text()
    assert f"**{told['verdict']}**" in page and "Trigger as told: BadNet (size 2, target 3)" in page
    html = (tiny / "reports/audit/bad.html").read_text()
    assert html.count("data:image/png;base64,") == 1 + 3 * 4 and "http" not in html.replace("http-equiv", "")
    planned = tiny.snakemake("-n", "--", "reports/audit/bad.html")
    assert job_counts(planned.stdout + planned.stderr) == {}


def test_without_a_trigger_inversion_judges(tiny, weights, monkeypatch):
    monkeypatch.chdir(tiny.path)
    brought(tiny, weights, trigger=None)
    tiny.edit("config/metrics/inversion.yaml", lambda data: data["parameters"].update(steps=2))
    audit = read_audit(tiny.plan(), "bad")
    assert [metric.name for metric in audit.shown] == [
        "c-acc",
        "agreement",
        "inversion",
        "seconds",
    ] and audit.examples is None
    kept = [place for place in audit.places if place.defense.name in ("none", "ft")]
    tiny.make(*(place.cells[0].name.path for place in kept))
    probes = [one for place in kept for one in place.needs() if one.stage == "probe"]
    for probe in probes:
        done = tiny.depoison("stage", json.dumps(probe.spec), "--output", probe.directory)
        assert done.returncode == 0, done.stderr
    told = render(tiny.plan(), type(audit)(**{**vars(audit), "places": tuple(kept)}))
    assert re.search(r"inversion looks for one, and finds the smallest for class \d", told[".md"])
    assert told[".html"].count("data:image/png;base64,") == 1
    assert json.loads(told[".json"])["verdict"].startswith(
        ("Nothing suspicious was found", "No defense purifies it", "Take ")
    )
    # As the probe leaves it of a model that diverged.
    put_recorded(kept[0].source(0, audit.judge).product, {"value": None}, why="its outputs are no finite numbers")
    told = render(tiny.plan(), type(audit)(**{**vars(audit), "places": tuple(kept)}))
    assert json.loads(told[".json"])["verdict"] == (
        "anomaly index could not be measured (its outputs are no finite numbers): nothing can be said."
    )


KNOWN = metrics_of(ROOT)
KNOWING = SimpleNamespace(
    judge=KNOWN["asr"], keep=KNOWN["c-acc"], right=KNOWN["lcr"], clean=10.0, lose=5.0, content=SimpleNamespace(trigger=1)
)  # fmt: skip


def row(label: str, c_acc: float, asr: float | None, lcr: float = 80) -> Row:
    values = {"c-acc": c_acc, "asr": asr, "lcr": lcr}
    wrong = _leaves_wrong(KNOWN["asr"], values, {"c-acc": 90.0})
    return Row(label, values, asr is not None and asr <= 10, wrong, f"cell of {label}")


def test_a_network_that_calls_everything_one_class_is_no_rescue():
    assert row("A", 10, 0, 11.1).wrong and not row("B", 85, 0, 84).wrong


@pytest.mark.parametrize(
    ("before", "rows", "taken", "verdict"),
    [
        ((90, 99), {"A": (89, 50), "B": (86, 3), "C": (88, 9)}, "C",
         "Take C: ASR 99.00 → 9.00, C-Acc 90.00 → 88.00; it keeps the most of 2 that purify."),
        ((90, 99), {"A": (88, 0, 22), "B": (87, 5, 75), "C": (86, 1)}, "B",
         "Take B: ASR 99.00 → 5.00, C-Acc 90.00 → 87.00; A keeps 88.00 but leaves triggered images wrong (LCR 22)."),
        ((90, 99), {"A": (88, 0, 22), "B": (87, 50)}, "A",
         "Take A: ASR 99.00 → 0.00, C-Acc 90.00 → 88.00; no other one purifies; "
         "but it leaves triggered images wrong (LCR 22)."),
        ((90, 99), {"A": (89, 50), "B": (85, 10)}, "B",
         "Take B: ASR 99.00 → 10.00, C-Acc 90.00 → 85.00; no other one purifies."),
        ((90, 99), {"A": (89, 50), "B": (84, 0), "C": (20, 0)}, None,
         "No defense purifies it at an acceptable price: ASR is 99.00 without a defense; of C-Acc 90.00 those that do lose "
         "more than 5, the least B, which leaves 84.00."),
        ((90, 99), {"A": (89, 50), "B": (84, 40), "C": (80, None)}, None,
         "No defense purifies it at an acceptable price: ASR is 99.00 without a defense; the nearest is B with 40.00."),
        ((90, 4), {"A": (89, 1)}, "A",
         "This trigger does not work on the model: ASR is 4.00 without a defense, at most 10%."),
        ((90, None), {"A": (89, None)}, None, "ASR could not be measured: nothing can be said."),
    ],
)  # fmt: skip
def test_a_verdict(before, rows, taken, verdict):
    first, others = row("No defense", *before), [row(label, *values) for label, values in rows.items()]
    best = _best(KNOWING, first, others)
    assert (best.label if best else None) == taken and _verdict(KNOWING, first, best, others) == verdict


def told_of(tiny, monkeypatch, by_defense: dict[str, tuple[float, float] | None]) -> dict[str, str]:
    """The files of an audit of which these C-Acc and ASR are there, and nothing else."""

    def values(_: Reader, place: Any, metric: Any) -> tuple[dict[int, float], tuple[int, ...]]:
        found = by_defense.get(place.defense.name)
        value = dict(zip(("c-acc", "asr"), found or (), strict=False)).get(metric.name)
        return ({0: value} if value is not None else {}), (() if found else (0,))

    monkeypatch.setattr(Reader, "values", values)
    monkeypatch.chdir(tiny.path)
    plan = tiny.plan()
    return render(plan, read_audit(plan, "bad"))


def test_what_is_not_measured_is_neither_clean_nor_not(tiny, weights, monkeypatch):
    """An audit that is unfinished says so, and of what."""
    brought(tiny, weights)
    told = told_of(tiny, monkeypatch, {"none": (90, 99), "ft": (89, 50), "fst": (85, 3)})
    data = json.loads(told[".json"])
    clean = {name.split("/")[6]: values["clean"] for name, values in data["cells"].items()}
    assert (clean["none"], clean["ft"], clean["fst"], clean["lp"]) == (False, False, True, None)
    missing = sum(value is None for value in clean.values())
    assert missing > 10 and data["take"].split("/")[6] == "fst"
    assert data["verdict"].endswith(f"; no other one purifies; {missing} defenses are not measured.")
    rows = {cells[1].strip(): cells[-2].strip() for row in told[".md"].splitlines() if len(cells := row.split("|")) > 6}
    assert (rows["No defense"], rows["Vanilla FT"], rows["FST"], rows["LP"]) == ("no", "no", "yes", "–")
    assert re.search(r'<td>LP</td>.*<td class="">–</td></tr>', told[".html"])
    told = told_of(tiny, monkeypatch, {"none": (90, 99), "ft": (89, 50)})
    assert json.loads(told[".json"])["verdict"].endswith(
        f"the nearest is Vanilla FT with 50.00; {missing + 1} defenses are not measured."
    )


@pytest.mark.parametrize("before", [(90, 4), None])
def test_a_model_that_needs_no_defense_is_given_none(before, tiny, weights, monkeypatch):
    """Nor one of which nothing can be said."""
    brought(tiny, weights)
    told = told_of(tiny, monkeypatch, {"none": before, "fst": (89, 1)})
    data = json.loads(told[".json"])
    assert data["take"] is None and "not measured" not in data["verdict"]
    assert "depoison export" not in told[".md"] + told[".html"] and 'class="best"' not in told[".html"]
    assert data["verdict"].startswith("This trigger does not work" if before else "ASR could not be measured")


def test_a_verdict_says_why_nothing_could_be_measured():
    first = row("No defense", 90, None)
    found = _verdict(KNOWING, first, None, [], "its outputs are no finite numbers")
    assert found == "ASR could not be measured (its outputs are no finite numbers): nothing can be said."


@pytest.mark.parametrize(
    ("file", "keys", "value", "message"),
    [
        ("config/audit.yaml", ("trigger", "judge"), "c-acc", r"audit\.yaml:\d+: judge: c-acc is no such metric; valid: "),
        ("config/audit.yaml", ("unknown", "show"), ["x"], r"audit\.yaml:\d+: unknown\.show: unknown metric 'x'"),
        ("config/checkpoints/bad.yaml", ("track",), "tinny", r"bad\.yaml:\d+: unknown track 'tinny'; did you mean 'tiny'\?"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line(tiny, weights, file, keys, value, message):
    brought(tiny, weights)
    if keys[0] == "unknown":
        tiny.set("config/checkpoints/bad.yaml", "trigger", to=None)
    tiny.set(file, *keys, to=value)
    with pytest.raises(DepoisonError, match=message):
        read_audit(tiny.plan(), "bad")


def test_of_two_classes_none_can_be_an_outlier_so_that_nc_is_left_out(tiny, weights):
    def audited() -> set[str]:
        return {place.defense.name for place in read_audit(tiny.plan(), "bad").places}

    brought(tiny, weights, trigger=None)
    of_ten = audited()
    tiny.set("config/datasets/digits.yaml", "classes", to=2)
    assert of_ten - audited() == {"nc"}


def test_of_point_clouds_the_trigger_has_to_be_told(tiny, weights):
    brought(tiny, weights, dataset="solids", model="pointnet2", parameters={}, normalization={}, trigger=None)
    with pytest.raises(
        DepoisonError, match=r"^config/checkpoints/bad\.yaml:\d+: inversion looks for a trigger in images, and "
    ) as caught:
        read_audit(tiny.plan(), "bad")
    assert str(caught.value).endswith("solids is of points; tell the `trigger`")
    values = {"attack": "pointba-o", "values": {"target": 1}}
    tiny.set("config/checkpoints/bad.yaml", "trigger", to=values)
    assert read_audit(tiny.plan(), "bad").judge.name == "asr"


def test_an_audit_may_be_written_of_what_is_there(tiny, weights):
    brought(tiny, weights)
    done = tiny.depoison("report", "--partial", "reports/audit/bad.md")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    page = (tiny / "reports/audit/bad.md").read_text()
    assert "**ASR could not be measured: nothing can be said.**" in page and "| FST | – | – |" in page


@pytest.mark.parametrize("suffix", [".md", ".html", ".json"])
def test_what_says_something_else_is_not_current(suffix, tiny, weights, monkeypatch):
    monkeypatch.chdir(tiny.path)
    brought(tiny, weights)
    report = report_of(tiny.plan(), "reports/audit/bad.md", partial=True)
    report.write()
    assert report.is_current()
    file = tiny / f"reports/audit/bad{suffix}"
    file.write_text(file.read_text().replace("nothing can be said", "nothing is to be feared"))
    assert not report.is_current()


def test_there_is_no_audit_of_what_was_not_brought(tiny):
    done = tiny.depoison("audit", "bad")
    assert done.returncode == 1 and "audit of bad: unknown checkpoint 'bad'; valid: none" in done.stderr
