"""`depoison compare`: its statistics against closed forms and SciPy; tracks, folders and git revisions; bad input."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from conftest import Project, put_recorded, seldom, with_tiny
from depoison.errors import DepoisonError
from depoison.files import read_json, write_json
from depoison.papers.tables import read_table
from depoison.reports.changes import Comparison, as_json, as_text, compare_sides
from depoison.reports.kinds import report_of
from depoison.reports.noise import holm, newcombe, welch, wilson
from depoison.reports.runs import read_side
from depoison.reports.tables import render

SMALL = "config/papers/fst/small.yaml"
IMAGES = {"c_acc": 1000, "asr": 900}

# --- statistics --------------------------------------------------------------------------------------------------

SAMPLE = st.lists(st.floats(0, 100), min_size=2, max_size=6)


@given(SAMPLE, SAMPLE)
def test_welch_is_scipys(first, second):
    assume(np.std(first) + np.std(second) > 1e-3)
    found, expected = welch(first, second), scipy.stats.ttest_ind(second, first, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-6)
    assert found.difference == pytest.approx(np.mean(second) - np.mean(first), abs=1e-9)


def test_samples_that_do_not_vary_say_nothing_of_noise():
    assert welch([5.0, 5.0], [7.0, 7.0]) is None


@given(st.integers(1, 10_000), st.data())
def test_wilsons_interval_is_scipys(total, data):
    hits = data.draw(st.integers(0, total))
    expected = scipy.stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert wilson(hits, total, scipy.stats.norm.ppf(0.975)) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((48, 80), (56, 70), 0.0524, 0.3339),  # Newcombe (1998), Table II, method 10
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((0, 10), (10, 10), 0.6075, 1.0000),
        ((0, 10), (0, 10), -0.2775, 0.2775),
    ],
)
def test_newcombes_published_examples(first, second, low, high):
    assert newcombe(first, second)[1:3] == pytest.approx((low, high), abs=5e-5)


COUNTS = st.integers(1, 2000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(COUNTS, COUNTS)
def test_p_is_that_of_the_interval(first, second):
    """At level 1 - p an end of the interval is 0; a change the other way round has the same p and the mirrored interval."""
    found, mirrored = newcombe(first, second), newcombe(second, first)
    assert found.p == pytest.approx(mirrored.p, rel=1e-6)
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)
    assert found.low <= found.difference <= found.high
    assert (found.low <= 0 <= found.high) == (found.p >= 0.05) or abs(found.p - 0.05) < 1e-6
    if found.difference == 0:
        assert found.p == 1
    elif found.p > 1e-12:
        z = scipy.stats.norm.isf(found.p / 2)
        p, q = first[0] / first[1], second[0] / second[1]
        (l1, u1), (l2, u2) = wilson(*first, z), wilson(*second, z)
        ends = q - p - math.hypot(q - l2, u1 - p), q - p + math.hypot(u2 - q, p - l1)
        assert min(map(abs, ends)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6, 0.001], [1.0, 1.0, 0.003]),
    ],
)
def test_holm_by_hand(p, adjusted):
    assert holm(p) == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_step_by_step(p):
    """Reject the smallest while it is at most 0.05 over how many are left; that is an adjusted p of at most 0.05."""
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] * (len(p) - rank) > 0.05:
            break
        rejected.add(i)
    assert {i for i, value in enumerate(holm(p)) if value <= 0.05} == rejected
    assert all(a >= b for a, b in zip(holm(p), p, strict=True))


# --- runs --------------------------------------------------------------------------------------------------------

Numbers = Callable[[str, str, int], dict[str, int | None]]
"""Hits by metric, from attack, defense and seed."""


def usual(attack: str, defense: str, seed: int) -> dict[str, int | None]:
    return {"c_acc": 900 + seed, "asr": (800 if defense == "none" else 90) + 3 * seed}


def measure(project: Project, numbers: Numbers = usual, track: str = "tiny", counts: bool = True, **model: Any) -> None:
    """Evaluations of the table `small`, in the project's folder."""
    for cell in read_table(project.plan(), f"reports/{track}/small").cells():
        hits = numbers(cell.name.attack.name, cell.name.defense.name, cell.name.seed)
        metrics = {metric: None if hits[metric] is None else 100 * hits[metric] / IMAGES[metric] for metric in IMAGES}
        made = {"device": "x86_64", "sha256": {"model.safetensors": "a" * 64}} | model
        content = {"metrics": metrics, "model": made} | ({"denominators": IMAGES} if counts else {})
        put_recorded(project / cell.evaluation.product, content)


def other_lp(asr: int, attack: str = "badnet") -> Numbers:
    """As usual, but for LP's ASR against one attack."""

    def numbers(attack_: str, defense: str, seed: int) -> dict[str, int | None]:
        return usual(attack_, defense, seed) | ({"asr": asr + seed} if (attack_, defense) == (attack, "lp") else {})

    return numbers


def lean(path: Path) -> Project:
    """The project with no table but `small`: all tables and figures are searched for cells, which takes seconds."""
    project = with_tiny(Project(path))
    for file in [*(project / "config/papers").glob("*/**/*.yaml")]:
        if file.name not in ("small.yaml", "paper.yaml"):
            file.unlink()
    project.set("config/config.yaml", "seeds", to=[0])
    return project


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Project, Project]:
    """Two checkouts with the table `small` and one seed; commands run in the first."""
    first, second = (lean(tmp_path / name) for name in ("first", "second"))
    monkeypatch.chdir(first.path)
    return first, second


def compared(project: Project, first: str, second: str) -> Comparison:
    plan = project.plan()
    return compare_sides(plan, read_side(plan, first), read_side(plan, second))


def another_code(project: Project) -> None:
    """Have other specs, as another version of the defense makes them."""
    project.set("config/defenses/lp.yaml", "version", to=99)


def test_nothing_changed(two):
    for project in two:
        measure(project)
    found = compared(two[0], ".", str(two[1].path))
    assert not found.rows and not found.same and not found.changed and found.unchanged == 8
    done = two[0].depoison("compare", ".", str(two[1].path))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "0 of 0 tested changes are beyond noise" in done.stdout and "8 numbers are the same" in done.stdout


def test_one_seed_is_judged_by_the_test_images(two):
    another_code(two[1])
    measure(two[0])
    measure(two[1], other_lp(150))
    found = compared(two[0], ".", str(two[1].path))
    assert found.unchanged == 4 and len(found.rows) == 4  # the two undefended cells have the same spec
    (row,) = found.changed
    assert (row.cell, row.metric, row.test, row.seeds) == (
        "tiny/digits/resnet18/badnet+rate=0.1/lp",
        "asr",
        "images",
        (1, 1),
    )
    expected = newcombe((90, 900), (150, 900))
    assert (row.first, row.second, row.difference) == pytest.approx((10.0, 100 / 6, 100 / 15))
    assert (row.low, row.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert row.p == pytest.approx(expected.p) and row.adjusted == pytest.approx(4 * expected.p)  # of four tests
    assert [other.p for other in found.rows[1:]] == [1.0, 1.0, 1.0]


def test_the_correction_is_over_all_cells(two):
    """A change that alone would be one is none among others."""
    another_code(two[1])
    measure(two[0])
    alone = newcombe((90, 900), (120, 900)).p
    assert 0.05 / 4 < alone < 0.05
    measure(two[1], other_lp(120))
    found = compared(two[0], ".", str(two[1].path))
    assert not found.changed and found.rows[0].p == pytest.approx(alone)
    assert two[0].depoison("compare", ".", str(two[1].path)).returncode == 0


def test_several_seeds_are_judged_by_welch(two):
    for project in two:
        project.set("config/config.yaml", "seeds", to=[0, 1, 2])
    another_code(two[1])
    measure(two[0])
    measure(two[1], other_lp(150))
    (row,) = compared(two[0], ".", str(two[1].path)).changed
    values = [[100 * (hits + 3 * seed) / 900 for seed in range(3)] for hits in (90,)]
    values.append([100 * (150 + seed) / 900 for seed in range(3)])
    expected = scipy.stats.ttest_ind(values[1], values[0], equal_var=False)
    assert (row.test, row.seeds, row.metric) == ("seeds", (3, 3), "asr") and row.p == pytest.approx(expected.pvalue)
    assert (row.low, row.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_seeds_that_agree_are_judged_by_the_test_images(two):
    for project in two:
        project.set("config/config.yaml", "seeds", to=[0, 1])
    another_code(two[1])
    measure(two[0], lambda attack, defense, seed: {"c_acc": 900, "asr": 0})
    measure(two[1], lambda attack, defense, seed: {"c_acc": 900, "asr": 50})
    rows = compared(two[0], ".", str(two[1].path)).changed
    assert {(row.metric, row.test) for row in rows} == {("asr", "images")}
    assert rows[0].p == pytest.approx(newcombe((0, 1800), (100, 1800)).p)


def test_one_seed_beside_several_is_compared_with_the_same_seed(two):
    two[1].set("config/config.yaml", "seeds", to=[0, 1, 2])
    another_code(two[1])
    measure(two[0])
    measure(two[1], lambda attack, defense, seed: usual(attack, defense, seed) if seed == 0 else {"c_acc": 1, "asr": 1})
    found = compared(two[0], ".", str(two[1].path))
    assert not found.changed and {row.seeds for row in found.rows} == {(1, 1)}


def test_without_counts_the_noise_of_one_seed_is_unknown(two):
    another_code(two[1])
    measure(two[0], counts=False)
    measure(two[1], other_lp(900), counts=False)
    found = compared(two[0], ".", str(two[1].path))
    assert {(row.test, row.p, row.adjusted, row.low) for row in found.rows} == {
        ("", None, None, None)
    } and not found.changed
    assert "of 4 numbers the noise is unknown: one seed, and no count of test images" in as_text(found)


def test_a_metric_that_one_side_lacks_is_not_compared(two):
    another_code(two[1])
    measure(two[0])
    measure(two[1], lambda attack, defense, seed: {"c_acc": 900, "asr": None})
    assert {row.metric for row in compared(two[0], ".", str(two[1].path)).rows} == {"c_acc"}


def test_the_same_spec_with_other_numbers_is_pointed_out(two):
    measure(two[0])
    measure(two[1], other_lp(92), device="NVIDIA H100", sha256={"model.safetensors": "b" * 64})
    found = compared(two[0], ".", str(two[1].path))
    lp = "tiny/digits/resnet18/badnet+rate=0.1/lp/s0"
    assert {entry.cell for entry in found.same if entry.numbers} == {lp} and len(found.same) == 4
    assert not found.changed and [row.difference for row in found.rows] == [pytest.approx(200 / 900)]
    text = as_text(found)
    assert f"same spec, other numbers (made on x86_64 and NVIDIA H100): {lp}." in text
    assert (
        "same spec and numbers, other bytes of the model" in text
        and "7 numbers are the same, from the same spec" in text
    )


def test_names_of_one_artifact_count_once(two):
    """In Figure 7 FST has an α of 0.2 by name, in a table by default: one artifact, one test."""
    for project, asr in zip(two, (10, 300), strict=True):
        measure(project, other_lp(asr))
    plan = two[0].plan()
    runs = [read_side(plan, name) for name in (".", str(two[1].path))]
    (lp,) = (name for name in runs[0].runs if (name.attack.name, name.defense.name) == ("badnet", "lp"))
    found = compare_sides(plan, *runs)
    assert sum(row.metric == "asr" for row in found.rows) == 1
    for side in runs:
        twin = replace(lp, defense=type(lp.defense)("lp", (("lr", "0.5"),)))
        side.runs[twin] = side.runs[lp]
    again = compare_sides(plan, *runs)
    assert again.rows == found.rows and again.unchanged == found.unchanged and again.same == found.same


def test_cells_that_one_side_lacks_are_told(two):
    measure(two[0])
    measure(two[1])
    for name in ("results/evaluate", "reports"):
        for path in (two[1] / name).glob("*blended*-lp-*"):
            shutil.rmtree(path)
    found = compared(two[0], ".", str(two[1].path))
    assert found.only_first == ("tiny/digits/resnet18/blended+rate=0.1/lp",) and found.only_second == ()
    assert "only in the first: 1 cells." in as_text(found)


# --- where numbers come from -------------------------------------------------------------------------------------


def write_cells(project: Project) -> None:
    """Every cell's own file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.path)
        for cell in read_table(project.plan(), "reports/tiny/small").cells():
            report_of(project.plan(), cell.name.path).write()


def only(project: Project, *folders: str) -> None:
    """Leave nothing but these folders."""
    for path in project.path.iterdir():
        if path.name not in folders:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_cells_files_are_enough(two):
    measure(two[0])
    measure(two[1], other_lp(300))
    write_cells(two[1])
    shutil.rmtree(two[1] / "results/evaluate")
    only(two[1], "results")
    found = compared(two[0], ".", str(two[1].path))
    assert [row.cell for row in found.changed] == ["tiny/digits/resnet18/badnet+rate=0.1/lp"] and found.unchanged == 7
    assert found.changed[0].test == "images" and len(found.same) == 1


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_a_tables_json_is_enough_for_several_seeds(seeds, two):
    for project in two:
        project.set("config/config.yaml", "seeds", to=seeds)
    measure(two[0])
    measure(two[1], other_lp(300))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(two[1].path)
        report_of(two[1].plan(), "reports/tiny/small").write()
    only(two[1], "reports")
    found = compared(two[0], ".", str(two[1].path))
    (row,) = found.rows
    assert (row.first, row.second) == pytest.approx(
        (10 + 100 * (len(seeds) - 1) / 600, 100 / 3 + 100 * (len(seeds) - 1) / 1800)
    )
    assert bool(found.changed) == (len(seeds) > 1) and row.test == ("seeds" if len(seeds) > 1 else "")


def write_table(project: Project, file: str) -> None:
    """A file of reports/ with what is there now of the table `small`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.path)
        text = render(project.plan(), read_table(project.plan(), "reports/tiny/small"))[".json"]
    (project / "reports" / file).parent.mkdir(parents=True, exist_ok=True)
    (project / "reports" / file).write_text(text, encoding="utf-8")


def forget(project: Project, defense: str, seed: int) -> None:
    """Remove the evaluations of a defense and a seed."""
    for cell in read_table(project.plan(), "reports/tiny/small").cells():
        if (cell.name.defense.name, cell.name.seed) == (defense, seed):
            (project / cell.evaluation.product).unlink()


def test_cells_that_a_tables_json_lists_as_missing_are_not_there(two):
    """Of LP one seed of two is missing, of no defense none."""
    for project in two:
        project.set("config/config.yaml", "seeds", to=[0, 1])
        measure(project)
    forget(two[1], "lp", 0)
    write_table(two[1], "tiny/small.json")
    only(two[1], "reports")
    runs = read_side(two[0].plan(), str(two[1].path)).runs
    assert {(name.defense.name, name.seed) for name in runs} == {("none", 0), ("none", 1), ("lp", 1)}
    expected = usual("badnet", "lp", 1)
    for name, run in runs.items():
        if name.defense.name == "lp":
            assert run.metrics == pytest.approx({metric: 100 * expected[metric] / IMAGES[metric] for metric in IMAGES})
    assert not compared(two[0], ".", str(two[1].path)).same


def test_a_cell_without_its_probe_has_the_numbers_of_its_evaluation(two):
    """The table lists it as missing: a probe is, of two seeds both."""
    for project in two:
        project.set("config/config.yaml", "seeds", to=[0, 1])
        project.set(SMALL, "metrics", "show", to=["c-acc", "asr", "agreement"])
        measure(project)
    write_table(two[1], "tiny/small.json")
    only(two[1], "reports")
    runs = read_side(two[0].plan(), str(two[1].path)).runs
    assert len(runs) == 8 and all(set(run.metrics) == set(IMAGES) for run in runs.values())


def test_a_run_without_numbers_replaces_none_that_has_some(two):
    """Of two tables with the same cells the one that is read last shows a metric that was not measured."""
    measure(two[1])
    write_table(two[1], "tiny/all.json")
    measure(two[1], lambda attack, defense, seed: dict.fromkeys(IMAGES))
    write_table(two[1], "tiny/small.json")
    only(two[1], "reports")
    runs = read_side(two[0].plan(), str(two[1].path)).runs
    assert len(runs) == 4 and all(set(run.metrics) == set(IMAGES) for run in runs.values())


def test_a_configuration_that_cannot_be_planned_is_told(two):
    measure(two[0])
    measure(two[1], other_lp(300))
    write_cells(two[1])
    two[1].set(SMALL, "titel", to="x")
    found = compared(two[0], ".", str(two[1].path))
    assert len(found.changed) == 1 and any("its configuration cannot be planned" in note for note in found.notes)


def test_two_tracks(two):
    first, _ = two
    first.edit("config/tracks/wide.yaml", lambda data: data.update(summary="wider", models={"resnet18": {"width": 16}}))
    measure(first)
    measure(first, other_lp(300), track="wide")
    found = compared(first, "tiny", "wide")
    assert found.first == "track tiny" and found.second == "track wide"
    (row,) = found.changed
    assert row.cell == "tiny→wide/digits→cifar10/resnet18/badnet+rate=0.1/lp"
    assert len(found.rows) == 8 and not found.same  # another setting: everything may have changed
    assert "dataset, model or budget differ (digits → cifar10)" in found.notes[0]
    back = compared(first, "wide", "tiny")
    assert [round(r.difference, 9) for r in back.rows] == [round(-r.difference, 9) for r in found.rows]


@pytest.mark.drill
def test_a_track_beside_a_folder_is_that_track_in_both(two):
    for project in two:
        project.edit("config/tracks/wide.yaml", lambda data: data.update(TINY_WIDE))
        measure(project)
        measure(project, track="wide")
    measure(two[1], other_lp(300), track="wide")
    assert compared(two[0], "tiny", str(two[1].path)).unchanged == 8
    assert len(compared(two[0], "wide", str(two[1].path)).changed) == 1
    assert len(compared(two[0], str(two[1].path), ".").changed) == 1


TINY_WIDE = {
    "summary": "wider", "models": {"resnet18": {"width": 16}},
    "replace": {"datasets": {"*": "digits"}, "models": {"*": "resnet18"}},
}  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    names = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b.c",
    }
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, env=os.environ | names
    )
    return done.stdout.strip()


@pytest.mark.parametrize("below", ["papers/ours", *seldom("")])
def test_two_commits(below, tmp_path, monkeypatch):
    """Also of a project that is a folder of a larger repository."""
    top = tmp_path / "repository"
    project = lean(top / below)
    git(top, "init", "--quiet")
    measure(project)
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "--message", "first")
    git(top, "tag", "published")
    measure(project, other_lp(300))
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "--message", "second")
    monkeypatch.chdir(project.path)
    before = git(top, "status", "--porcelain")
    found = compared(project, "published", "HEAD")
    assert [row.cell for row in found.changed] == ["tiny/digits/resnet18/badnet+rate=0.1/lp"] and found.unchanged == 7
    assert re.fullmatch(r"git revision published \([0-9a-f]{10}\)", found.first)
    assert git(top, "status", "--porcelain") == before
    assert not compared(project, "HEAD", ".").rows and len(compared(project, "HEAD~1", "tiny").changed) == 1
    measure(project)  # not committed
    assert not compared(project, "published", ".").rows
    done = project.depoison("compare", "published", "HEAD")
    assert done.returncode == 1 and "beyond noise" in done.stdout and done.stderr == "", done.stderr


def test_a_commit_write_table(tmp_path, monkeypatch):
    project = lean(tmp_path / "project")
    git(project.path, "init", "--quiet")
    git(project.path, "add", "config")
    git(project.path, "commit", "--quiet", "--message", "first")
    monkeypatch.chdir(project.path)
    with pytest.raises(DepoisonError, match=r"git revision HEAD \(\w+\): holds no evaluation of a cell"):
        compared(project, "HEAD", ".")


# --- output and bad input ----------------------------------------------------------------------------------------


@pytest.mark.drill
def test_outputs(two):
    another_code(two[1])
    measure(two[0])
    measure(two[1], other_lp(300))
    other = str(two[1].path)
    text, markdown, content = (
        two[0].depoison("compare", ".", other, *form) for form in ((), ("--markdown",), ("--json",))
    )
    assert {done.returncode for done in (text, markdown, content)} == {1}
    lines = text.stdout.splitlines()
    assert (
        lines[0]
        == f"First: folder .. Second: folder {other}. In percent; changes in percentage points, second − first."
    )
    assert len(lines) == 8 and lines[3].split()[:2] == ["tiny/digits/resnet18/badnet+rate=0.1/lp", "ASR"]
    assert lines[3].endswith("beyond noise") and "10.00   33.33  +23.33" in lines[3]
    assert lines[5] == "1 of 4 tested changes are beyond noise (Holm over all of them, at 5% together)."
    assert lines[6:] == [
        "4 numbers are the same, from the same spec, and were not tested.", "3 numbers are the same, from another spec."
    ]  # fmt: skip
    rows = [line for line in markdown.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 3 and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {10}
    found = json.loads(content.stdout)
    assert found["beyond_noise"] == 1 and len(found["rows"]) == 4 and found["rows"][0]["beyond_noise"] is True
    assert found == json.loads(as_json(compared(two[0], ".", other)))


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (
            "no-such",
            (
                "'no-such' is neither a track (cifar10-cpu, demo, digits, paper, solids, tiny), nor a folder, nor a revision",
            ),
        ),
        ("--output=x", ("unrecognized arguments",)),
        ("paper", ("track paper: holds no evaluation of a cell, below results/ or in reports/*.json",)),
        ("config", ("folder config: holds no evaluation",)),
    ],
)
def test_bad_input(first, words, two):
    measure(two[0])
    done = two[0].depoison("compare", first, "tiny")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words) or "required" in done.stderr, done.stderr
    if first[0] != "-":
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("depoison: error: ")


def test_nothing_in_common(two):
    measure(two[0])
    two[1].edit("config/tracks/wide.yaml", lambda data: data.update(TINY_WIDE))
    measure(two[1], track="wide")
    done = two[0].depoison("compare", ".", str(two[1].path))
    assert done.returncode == 2 and "no cell stands on both sides: folder . has 4 and folder" in done.stderr


@pytest.mark.parametrize("text", ["{", "[]", '{"metrics": 3}', '{"metrics": {"asr": "many"}}', "{}"])
def test_a_broken_evaluation_is_named(text, two):
    measure(two[0])
    path = next((two[0] / "results/evaluate").glob("*/metrics.json"))
    put_recorded(path, text)
    with pytest.raises(DepoisonError, match=r"metrics\.json: corrupted"):
        compared(two[0], "tiny", "tiny")


def test_a_broken_table_is_named(two):
    measure(two[0])
    report_of(two[0].plan(), "reports/tiny/small").write()
    path = two[0] / "reports/tiny/small.json"
    write_json(path, read_json(path) | {"cells": [{}]})
    with pytest.raises(DepoisonError, match=r"small\.json: is no table of this project"):
        compared(two[0], ".", ".")


def test_comparing_imports_neither_torch_nor_all_of_scipy(two):
    for project in two:
        project.set("config/config.yaml", "seeds", to=[0, 1])
    another_code(two[1])
    measure(two[0])
    measure(two[1], other_lp(300))
    code = (
        "import sys\nfrom depoison.cli import main\n"
        f"assert main(['compare', '.', {str(two[1].path)!r}]) == 1\n"
        "assert not {'torch', 'scipy.stats', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    done = two[0].run("python", "-c", code)
    assert done.returncode == 0, done.stderr
