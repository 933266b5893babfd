"""Poisoning rates on a track that poisons as many images as the paper does."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from conftest import ROOT, SMALL, TINY, Project
from depoison import data
from depoison.attacks.base import make
from depoison.errors import DepoisonError
from depoison.papers.figures import read_figure
from depoison.papers.rates import scaled
from depoison.papers.tables import locate, read_table
from depoison.plan.cells import Choice
from depoison.plan.config import KINDS
from depoison.plan.plan import Plan
from depoison.plan.signatures import declared
from depoison.reports.tables import rates, rates_here, render

PLAN = Plan(ROOT)
DIGITS_POOL, CIFAR_POOL, GTSRB_POOL = 1438 - 144, 49_000, 39_209 - 784
"""Training images less the defender's reserve: a tenth of 1,438, 2% of 50,000 and of 39,209."""


def scaling(project: Project, **values: object) -> Plan:
    project.edit("config/tracks/tiny.yaml", lambda data: data.update(TINY | {"poisoning": values}))
    return project.plan()


def rate_of(plan: Plan, attack: str, rate: str | None, paper: str = "cifar10") -> float:
    choice = Choice(attack, (("rate", rate),) if rate else ())
    found = scaled(plan, "tiny", choice, paper="", printed=paper, dataset="digits", model="resnet18")
    return float(dict(found.overrides)["rate"])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    project = Project(tmp_path_factory.mktemp("rates") / "project")
    return scaling(project, scale="images", cap=0.4, clean_label_cap=0.07)


@pytest.mark.parametrize(
    ("paper", "rate", "count"), [("cifar10", 0.005, 245), ("cifar10", 0.01, 490), ("gtsrb", 0.01, 384)]
)
def test_as_many_images_are_poisoned_as_in_the_paper(paper, rate, count, images):
    pool = {"cifar10": CIFAR_POOL, "gtsrb": GTSRB_POOL}[paper]
    assert round(rate * pool) == count
    here = rate_of(images, "badnet", str(rate), paper)
    assert round(here * DIGITS_POOL) == count


def test_a_rate_is_capped_and_a_clean_label_one_lower(images):
    assert rate_of(images, "badnet", "0.05") == pytest.approx(int(0.4 * DIGITS_POOL) / DIGITS_POOL, abs=1e-6)
    for attack in ("sig", "label-consistent"):
        assert rate_of(images, attack, "0.01") == pytest.approx(int(0.07 * DIGITS_POOL) / DIGITS_POOL, abs=1e-6)


def test_an_attack_without_a_rate_has_its_default_scaled(images):
    assert round(rate_of(images, "adaptive-blend", None) * DIGITS_POOL) == round(0.003 * CIFAR_POOL)


@pytest.mark.parametrize("name", [name for name in PLAN.configuration.names("attack") if name != "none"])
def test_planning_knows_clean_label_attacks_as_the_code_does(name):
    parameters = {key: p.default for key, p in PLAN.configuration.method("attack", name).content.parameters.items()}
    code = ROOT / "workflow/depoison" / KINDS["attack"] / f"{name.replace('-', '_')}.py"
    assert declared(code, "clean_label = True") == make({"name": name, "parameters": parameters}).clean_label


def test_nothing_is_scaled_elsewhere(images):
    badnet = Choice("badnet", (("rate", "0.01"),))
    where = {"dataset": "digits", "model": "resnet18"}
    assert (
        scaled(images, "digits", badnet, paper="", printed="cifar10", **where) == badnet
    )  # a track that scales nothing
    assert scaled(images, "tiny", badnet, paper="", printed="digits", **where) == badnet  # the paper's own dataset
    assert scaled(images, "tiny", Choice("none"), paper="", printed="cifar10", **where) == Choice("none")


def test_the_users_own_rate_stays(tiny):
    (tiny / "mine.yaml").write_text("attacks: {adaptive-blend: {rate: 0.02}}", encoding="utf-8")
    scaling(tiny, scale="images")
    of = {"paper": "", "printed": "cifar10", "dataset": "digits", "model": "resnet18"}
    plan = tiny.plan("mine.yaml")
    assert scaled(plan, "tiny", Choice("adaptive-blend"), **of) == Choice("adaptive-blend")
    named = scaled(plan, "tiny", Choice("adaptive-blend", (("rate", "0.003"),)), **of)
    assert round(float(dict(named.overrides)["rate"]) * DIGITS_POOL) == 147


def test_a_dataset_of_unknown_size_cannot_be_scaled_to(tiny):
    plan = scaling(tiny, scale="images")
    tiny.edit("config/datasets/digits.yaml", lambda data: data.pop("train_samples"))
    with pytest.raises(DepoisonError, match=r"config/datasets/digits\.yaml: track tiny .* 'train_samples'"):
        rate_of(plan, "badnet", "0.01")


def test_a_tables_cells_have_the_scaled_rate_and_its_rows_show_both(tiny):
    scaling(tiny, scale="images", cap=0.4)
    tiny.edit("config/papers/fst/small.yaml", lambda data: data.update(SMALL))
    tiny.set(
        "config/papers/fst/small.yaml",
        "axes",
        "rows",
        to=[{"attack": "badnet", "label": "BadNet", "rates": [0.005, 0.1]}],
    )
    plan = tiny.plan()
    table = read_table(plan, "reports/tiny/small")
    here = [245 / DIGITS_POOL, int(0.4 * DIGITS_POOL) / DIGITS_POOL]
    for entry, rate in zip(table.places.values(), [here[0]] * 2 + [here[1]] * 2, strict=True):
        (cell,) = entry.cells
        assert float(dict(cell.name.attack.overrides)["rate"]) == pytest.approx(rate, abs=1e-6)
        assert cell.settings["attack"]["rate"][-1].value == pytest.approx(rate, abs=1e-6)
    # where the printed numbers are
    assert [table.at(row, table.columns[0]).key.attack for row in table.rows] == [
        "badnet+rate=0.005",
        "badnet+rate=0.1",
    ]
    texts = render(plan, table)
    for shown in ("0.5% (here 19%)", "10% (here 40%)"):
        assert shown in texts[".md"] and shown.replace("%", r"\%") in texts[".tex"]
    assert "up to 40% of the attacker's images" in texts[".md"]
    lines = json.loads(texts[".json"])["lines"]
    assert lines[0]["value"] == "0.5% (here 19%)" and lines[0]["rate"] == 0.005
    assert lines[0]["rates_here"] == pytest.approx([here[0]], abs=1e-6)
    first = next(csv.DictReader(texts[".csv"].splitlines()))
    assert (first["rate"], float(first["rate_here"])) == ("0.005", pytest.approx(here[0], abs=1e-6))


def test_a_row_may_have_several_rates_here():
    assert rates(0.05, ()) == "5%"
    assert rates(0.05, (0.2,)) == "5% (here 20%)"
    assert rates(0.01, (0.06125, 0.0612501)) == "1% (here 6.1%)"
    assert rates(0.01, (0.048, 0.06125, 0.11875)) == "1% (here 4.8–12%)"


def test_a_figures_cells_have_the_scaled_rate_and_its_axis_the_papers(images):
    figure = read_figure(images, "reports/tiny/figure2")
    points = [p for p in figure.places if p.label("line") == "No defense" and p.label("column") in ("BadNet", "LC")]
    counts = [
        (p.label("column"), p.x, round(p.cells[0].settings["attack"]["rate"][-1].value * DIGITS_POOL)) for p in points
    ]
    capped, clean = int(0.4 * DIGITS_POOL), int(0.07 * DIGITS_POOL)
    assert counts == [
        ("BadNet", 0.005, 245), ("BadNet", 0.01, 490), ("BadNet", 0.05, capped), ("BadNet", 0.1, capped),
        ("BadNet", 0.2, capped), ("LC", 0.005, clean), ("LC", 0.01, clean), ("LC", 0.05, clean), ("LC", 0.1, clean),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_a_dataset_has_as_many_training_images_as_its_file_says(name):
    method = PLAN.configuration.method("dataset", name).content
    loaded = data.load(name, root=None, cache=Path("/nonexistent"), size=method.values["size"])
    assert len(loaded.train_labels) == method.train_samples
    assert method.values.get("checksum") in (None, loaded.checksum)


def test_a_track_may_have_a_paper_of_its_own(tiny):
    tiny.set("config/tracks/tiny.yaml", "paper", to="purification")
    plan = tiny.plan()
    assert locate(plan, "reports/tiny/overview.md") == ("purification", "tiny", "overview")
    assert locate(plan, "reports/tiny/fst/table2.md") == ("fst", "tiny", "table2")
    assert locate(plan, "reports/table2.md") == ("fst", "paper", "table2")
    tiny.set("config/tracks/tiny.yaml", "paper", to="purifications")
    with pytest.raises(
        DepoisonError, match=r"tiny\.yaml:\d+: unknown paper 'purifications'; did you mean 'purification'\?"
    ):
        locate(tiny.plan(), "reports/tiny/overview.md")


@pytest.mark.parametrize("row", range(4))
def test_the_demos_printed_numbers_are_those_of_tables_1_and_2(row):
    """Each of its lines stands in FST's files, and each of their numbers that it has a place for stands in it."""
    table = read_table(PLAN, "reports/demo/overview")
    printed = read_table(PLAN, "reports/table2").published | read_table(PLAN, "reports/table1").published
    for column in table.columns:
        key = table.at(table.rows[row], column).key
        assert table.published.get(key) == printed.get(key)
    assert set(table.published) <= set(printed)


def test_the_demo_poisons_as_many_photographs_as_the_paper():
    table = read_table(PLAN, "reports/demo/overview")
    for place in table.places.values():
        assert round(rates_here([place])[0] * 8_000) == round(place.rate * CIFAR_POOL)


def test_a_clean_label_attack_finds_its_images_in_the_demo():
    """Its target class has 900 training images, of which the defender's draw leaves about 800."""
    cap = PLAN.configuration.track("demo").content.poisoning.clean_label_cap
    assert cap * 8_000 <= 800 - 3 * (1_000 * 0.1 * 0.9 * 8 / 9) ** 0.5  # three standard deviations of the draw
