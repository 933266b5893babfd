"""Figures of kind tradeoff: the numbers from hand-made evaluations, and what is drawn of them."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from conftest import SMALL, Project, put_recorded
from depoison.errors import DepoisonError
from depoison.papers.figures import Figure, read_figure
from depoison.reports.figures.tradeoff import FILLS, draw, drawn, numbers
from depoison.reports.figures.write import render_figure
from depoison.reports.kinds import report_of

FILE = "config/papers/fst/figures/figure99.yaml"
CONTENT = {
    "title": "Costs", "caption": "Costs", "kind": "tradeoff", "table": "small",
    "metrics": {"falls": "c-acc", "remains": "asr"},
}  # fmt: skip
COLUMNS = [{"defense": name, "label": name.upper()} for name in ("none", "lp", "ft", "fst")]
ROWS = [
    {"attack": "badnet", "label": "BadNet", "rates": [0.1, 0.05]},
    {"attack": "blended", "label": "Blended", "rates": [0.1]},
]
MEASURED = {
    # (row, defense): (C-Acc, ASR); the attack of the second row does not take.
    ("BadNet 10%", "NONE"): (91.0, 99.0),
    ("BadNet 10%", "LP"): (90.5, 98.0),
    ("BadNet 10%", "FT"): (91.25, 60.0),
    ("BadNet 10%", "FST"): (87.0, 0.5),
    ("BadNet 5%", "NONE"): (92.0, 12.0),
    ("BadNet 5%", "LP"): (91.0, 11.0),
    ("BadNet 5%", "FT"): (91.0, 10.0),
    ("BadNet 5%", "FST"): (89.0, 0.0),
    ("Blended 10%", "NONE"): (90.0, 95.0),
    ("Blended 10%", "LP"): (89.0, 94.0),
    ("Blended 10%", "FT"): (88.0, 93.0),
    ("Blended 10%", "FST"): (60.0, 1.0),
}


def metrics_of(label: str, defense: str, seed: int) -> dict[str, float]:
    c_acc, asr = MEASURED[label, defense]
    # What a seed adds without a defense and with one differ, so that pairing shows.
    return {"c_acc": c_acc + (seed if defense == "NONE" else 3 * seed), "asr": asr}


def evaluated(project: Project, seeds: tuple[int, ...] = (0,)) -> Figure:
    """The figure of the table `small`, its evaluations written by hand."""
    values = {"axes": {"rows": ROWS, "columns": COLUMNS}, "seeds": list(seeds)}
    project.edit("config/papers/fst/small.yaml", lambda data: data.update(SMALL | values))
    project.edit(FILE, lambda data: data.update(CONTENT))
    figure = read_figure(project.plan(), "reports/tiny/figure99")
    for point in figure.places:
        for cell in point.cells:
            metrics = metrics_of(point.x, point.label("line"), cell.name.seed)
            put_recorded(project / cell.evaluation.product, {"metrics": metrics})
    return figure


@pytest.fixture
def here(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tiny.path)
    return tiny


def by_place(rows: list[dict[str, Any]], metric: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["x"], row["line"]): row for row in rows if row["metric"] == metric}


def test_a_point_is_a_fall_below_its_own_row_and_what_remains(here):
    rows = numbers(evaluated(here))
    assert len(rows) == 2 * len(MEASURED)
    fall, asr = by_place(rows, "fall"), by_place(rows, "asr")
    for (label, defense), (c_acc, left) in MEASURED.items():
        undefended = MEASURED[label, "NONE"]
        assert fall[label, defense]["mean"] == pytest.approx(undefended[0] - c_acc)
        assert asr[label, defense]["mean"] == left
        assert fall[label, defense]["undefended"] == asr[label, defense]["undefended"] == undefended[1]
    assert fall["BadNet 10%", "FT"]["mean"] == -0.25  # a gain


def test_with_several_seeds_a_fall_is_the_mean_of_each_seeds_own(here):
    rows = numbers(evaluated(here, (0, 1, 2)))
    fall = by_place(rows, "fall")["BadNet 10%", "FST"]
    assert fall["mean"] == pytest.approx(4.0 - 2.0)  # 4, 2 and 0
    assert fall["interval95"] == pytest.approx(4.302653 * 2 / 3**0.5, rel=1e-5)  # Student's t, 2 degrees of freedom
    assert by_place(rows, "asr")["BadNet 10%", "FST"]["interval95"] == 0


def test_a_row_whose_attack_did_not_take_is_not_drawn(here):
    figure = evaluated(here)
    shown = list(drawn(figure, numbers(figure)))
    assert {fall["x"] for fall, _ in shown} == {"BadNet 10%", "Blended 10%"}
    assert all((fall["x"], fall["line"]) == (asr["x"], asr["line"]) for fall, asr in shown)


def lines_at(figure: Figure) -> dict[tuple[float, float], Any]:
    (axes,) = draw(figure, numbers(figure)).axes
    return {(float(line.get_xdata()[0]), float(line.get_ydata()[0])): line for line in axes.lines}


def test_color_and_filling_tell_defenses_apart_and_the_marker_attacks(here):
    found = lines_at(evaluated(here))
    assert found.keys() == {
        (99, 0), (98, 0.5), (60, -0.25), (0.5, 4), (95, 0), (94, 1), (93, 2), (1, 30),
    }  # fmt: skip
    pairs = [((98, 0.5), (94, 1)), ((60, -0.25), (93, 2)), ((0.5, 4), (1, 30))]  # a defense against both attacks
    for badnet, blended in pairs:
        one, other = found[badnet], found[blended]
        assert (one.get_color(), one.get_fillstyle()) == (other.get_color(), other.get_fillstyle())
        assert one.get_marker() != other.get_marker()
    assert len({found[one].get_color() for one, _ in pairs}) == 3
    assert [found[one].get_fillstyle() for one, _ in pairs] == list(FILLS[:3])
    assert len({found[one].get_marker() for one, _ in pairs}) == 1


def test_the_seventh_defense_has_the_first_filling_and_a_black_edge(here):
    """What is filled alike must differ in grayscale."""
    labels = ("none", "lp", "ft", "fe-tuning", "ft-init", "ft-sam", "anp", "fst")
    columns = [{"defense": name, "label": name} for name in labels]
    here.set("config/papers/fst/small.yaml", "axes", "columns", to=columns)
    here.edit(FILE, lambda data: data.update(CONTENT))
    figure = read_figure(here.plan(), "reports/tiny/figure99")
    rows = [
        {
            "x": figure.groups[0].label,
            "line": name,
            "metric": metric,
            "mean": float(i),
            "interval95": None,
            "undefended": 99.0,
        }
        for i, name in enumerate(labels)
        for metric in ("fall", "asr")
    ]
    lines = [line for line in draw(figure, rows).axes[0].lines if len(line.get_xdata())]
    seen = [(line.get_fillstyle(), line.get_markeredgecolor() == "black") for line in lines]
    assert len(set(seen[1:])) == 7 and seen[1] == ("full", False) and seen[-1] == ("full", True)


def test_a_lost_network_leaves_the_others_room(here, monkeypatch):
    figure = evaluated(here)
    assert draw(figure, numbers(figure)).axes[0].get_yscale() == "symlog"
    monkeypatch.setitem(MEASURED, ("Blended 10%", "FST"), (85.0, 1.0))
    figure = evaluated(here)
    assert draw(figure, numbers(figure)).axes[0].get_yscale() == "linear"


def test_files_are_written_and_equal_numbers_make_equal_bytes(here):
    figure = evaluated(here)
    files = render_figure(figure)
    assert files == render_figure(figure)
    rows = list(csv.DictReader(io.StringIO(files[".csv"].decode())))
    assert rows[0].keys() >= {
        "paper",
        "figure",
        "track",
        "line",
        "attack",
        "defense",
        "x",
        "metric",
        "mean",
        "undefended",
    }
    report_of(here.plan(), figure.target).write()
    assert report_of(here.plan(), figure.target).is_current()
    put_recorded(figure.places[1].cells[0].evaluation.product, {"metrics": {"c_acc": 80.0, "asr": 50.0}})
    assert not report_of(here.plan(), figure.target).is_current()


def test_it_asks_for_what_the_table_asks_for(here):
    figure = evaluated(here)
    products = {artifact.product for artifact in figure.artifacts()}
    assert products == {cell.evaluation.product for point in figure.places for cell in point.cells}


def test_a_table_that_is_not_there_is_named(here):
    evaluated(here)
    here.set(FILE, "table", to="smal")
    with pytest.raises(DepoisonError, match=r"figure99\.yaml:\d+: unknown table of fst 'smal'; did you mean 'small'\?"):
        read_figure(here.plan(), "reports/tiny/figure99")


def test_nothing_taken_is_an_empty_picture(here, monkeypatch):
    for key, (c_acc, asr) in MEASURED.items():
        monkeypatch.setitem(MEASURED, key, (c_acc, asr / 10))
    figure = evaluated(here)
    assert not list(drawn(figure, numbers(figure)))
    assert "none of the attacks took" in [text.get_text() for text in draw(figure, numbers(figure)).axes[0].texts]
