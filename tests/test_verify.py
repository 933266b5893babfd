"""`depoison verify`: every change of what is here is told in a line, and a number that does not come out again is found."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load, save

from conftest import Project, cell, put_recorded
from depoison.cli import main
from depoison.errors import DepoisonError
from depoison.files import sha256_of
from depoison.papers.index import read_index
from depoison.reports.html.page import render_index
from depoison.reports.kinds import report_of
from depoison.reports.tables import command
from depoison.reports.verification import Recomputed, path_of, read_verification
from depoison.running.verify import check, recompute
from pages import parsed
from test_artifacts import only, product_of
from test_errors import refused

TABLE, PAGE = "reports/tiny/small.md", "reports/tiny/index.html"
LP, NONE = (cell("tiny", attack="badnet+rate=0.1", defense=defense) for defense in ("lp", "none"))


@pytest.fixture(scope="module")
def reported(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The table `small` with a cell's file and the page of its track; only to be copied."""
    made = finished.copy(tmp_path_factory.mktemp("reported") / "made", "results", "reports")
    only(made)
    with contextlib.chdir(made.path):
        assert main(["report", LP, PAGE]) == 0
    return made


@pytest.fixture
def here(reported: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of `reported`."""
    here = reported.copy(tmp_path / "made", "results", "reports")
    monkeypatch.chdir(here.path)
    return here


def told(project: Project, *targets: str) -> tuple[list[str], str]:
    """The faults that are told, and the last line."""
    lines: list[str] = []
    sound = check(project.plan(), targets, lines.append)
    *faults, last = lines
    assert sound == (not faults) and last.endswith(f"{len(faults) or 'no'} faults")
    return faults, last


def tree(folder: Path, but: str = "") -> dict[str, str]:
    """The checksum of every file in a folder."""
    return {str(path): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file() and str(path) != but}


# --- against the records -----------------------------------------------------------------------------------------


def test_what_is_as_it_was_made_has_no_faults(here):
    assert told(here)[1].startswith("12 artifacts, 23 of their 23 files here (")
    assert "; 3 cells and reports: no faults" in told(here)[1]
    faults, last = told(here, LP)
    assert not faults and last.startswith("7 artifacts, 13 of their 13 files here (") and "; 1 cells and" in last
    for target in (TABLE, PAGE, "reports/tiny/small"):
        assert told(here, target) == ([], told(here, TABLE)[1])


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert re.search(old, text), text
    path.write_text(re.sub(old, new, text, count=1))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def unlike_its_record(project: Project) -> None:
    """Number and record are changed together, and no count of images gives the number."""
    path = product_of(project)
    content = json.loads(path.read_text())
    put_recorded(path, content | {"metrics": content["metrics"] | {"asr": 3.14}})


def another_model(project: Project) -> None:
    (path,) = Path("results/purify").glob("*badnet*-lp-*/model.safetensors")
    tensors = load(path.read_bytes())
    put_recorded(path, save(tensors | {"classifier.bias": tensors["classifier.bias"] + 1}))


def only_file(pattern: str) -> Path:
    (found,) = Path("results").glob(pattern)
    return found


FAULTS: dict[str, tuple[Callable[[Project], object], str]] = {
    "a number": (lambda p: edited(product_of(p), r'"asr": [\d.]+', '"asr": 3.14'), r"metrics\.json: corrupted \(its sha256"),
    "a number and its record": (unlike_its_record, r"metrics\.asr: 3\.14% of 323 images is no number of images"),
    "a model": (lambda p: flipped(only_file("train/*badnet*/model.safetensors")), r"train/.*model\.safetensors: corrupted"),
    "a dataset": (lambda p: flipped(only_file("dataset/*/data.safetensors")), r"data\.safetensors: corrupted"),
    "a truncated file": (
        lambda p: only_file("split/*/split.safetensors").write_bytes(b""), r"split\.safetensors: corrupted",
    ),
    "a course": (lambda p: flipped(only_file("purify/*badnet*/history.csv")), r"history\.csv: corrupted"),
    "a model and its record": (another_model, r"metrics\.json: evaluates another model than the one in results/purify/"),
    "a spec": (
        lambda p: edited(only_file("purify/*badnet*/spec.json"), '"seed": 0', '"seed": 1'),
        r"spec\.json: corrupted \(it is the spec of results/purify/",
    ),
    "a folder's name": (
        lambda p: only_file("purify/*badnet*").rename("results/purify/digits-badnet-0.1-s0-resnet18-lp-0123456789"),
        r"lp-0123456789/spec\.json: corrupted \(it is the spec of",
    ),
    "no spec": (lambda p: only_file("purify/*badnet*/spec.json").unlink(), r"spec\.json: missing"),
    "a record": (lambda p: only_file("train/*badnet*/run.json").write_text("[]"), r"run\.json: corrupted"),
    "no record": (lambda p: only_file("train/*badnet*/run.json").unlink(), r"run\.json: missing"),
    "a record of less": (
        lambda p: edited(only_file("train/*badnet*/run.json"), r'"history\.csv"', '"other.csv"'), r"history\.csv: corrupted",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), FAULTS.values(), ids=list(FAULTS))
def test_a_change_is_told_in_a_line_that_names_the_file(change, words, here):
    """So are reports that show another number than is recorded now; what cannot be read is told once."""
    change(here)
    fault, *others = told(here)[0]
    assert re.search(words, fault) and "\n" not in fault
    assert all(" not what would be written now; `snakemake -- re" in other for other in others), others
    if "0123456789" not in fault:  # which no target has
        assert told(here, LP)[0][0] == fault


REPORTS: dict[str, tuple[Callable[[Project], object], str]] = {
    "a cell's number": (lambda p: edited(p / LP, r'"c_acc": 1', '"c_acc": 2'), LP),
    "a cell that is none": (lambda p: (p / LP).write_text("[]"), LP),
    "a table's number": (lambda p: edited(p / TABLE, r"10\.03", "93.03"), TABLE),
    "a page's number": (lambda p: edited(p / PAGE, r"10\.03", "93.03"), PAGE),
}


@pytest.mark.parametrize(("change", "name"), REPORTS.values(), ids=list(REPORTS))
def test_an_edited_report_is_told_with_what_writes_it_anew(change, name, here):
    change(here)
    faults, _ = told(here)
    assert faults == [f"{name}: not what would be written now; `{command(here.plan(), name)}` writes it anew"]
    assert told(here, name)[0] == faults


def test_what_is_not_here_is_counted(here):
    """A clone has evaluations and records, and of heavy files their pointers."""
    for path in Path("results").rglob("*.safetensors"):
        path.unlink()
    faults, last = told(here, TABLE)
    assert not faults and last.startswith("12 artifacts, 9 of their 23 files here (")
    shutil.rmtree("results/evaluate")
    (here / LP).unlink()
    faults, last = told(here, LP, TABLE, PAGE)
    assert last.startswith("12 artifacts, 5 of their 23 files here (") and "; 2 cells and reports" in last
    assert {fault.split(":")[0] for fault in faults} == {TABLE, PAGE}  # which show what nobody can check
    shutil.rmtree("results")
    shutil.rmtree("reports")
    assert told(here, TABLE)[1].startswith("12 artifacts, 0 of their 23 files here (0.0 MiB); 0 cells")
    assert told(here)[1].startswith("0 artifacts, 0 of their 0 files here")


def test_a_partial_table_is_what_it_says(here):
    product_of(here).unlink()
    assert main(["report", TABLE, "--partial"]) == 0
    assert told(here, TABLE)[0] == []


def test_a_cell_of_another_configuration_is_checked_as_it_is(here):
    (here / "mine.yaml").write_text("attacks: {badnet: {size: 2}}\n")
    assert main(["run", "--configfile", "mine.yaml", NONE]) == 0
    assert told(here, NONE)[0] == []
    edited(here / NONE, r'"c_acc": \d', '"c_acc": 9')
    assert len(told(here, NONE)[0]) == 1


def test_reports_of_nothing_that_is_configured_are_not_comparable(here):
    shutil.copy(here / TABLE, here / "reports/tiny/older.md")
    assert "; 4 cells and reports, 1 of them not comparable: no faults" in told(here)[1]
    with pytest.raises(DepoisonError, match="unknown table"):
        told(here, "reports/tiny/older.md")


@pytest.mark.pipeline
def test_the_command_line(made):
    only(made)
    done = made.depoison("verify")
    assert done.returncode == 0 and done.stdout.endswith("1 cells and reports: no faults\n") and not done.stderr
    product = product_of(made)
    edited(made / product, r'"asr": [\d.]+', '"asr": 3.14')
    done = made.depoison("verify", TABLE)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    fault, last = done.stdout.splitlines()
    assert fault.startswith(f"{product}: corrupted (its sha256") and last.endswith("1 faults")
    refused(made.depoison("verify", "reports/tiny/nothing.md"), "unknown table of fst 'nothing'")
    for wrong in (["--recompute", "0"], ["--recompute", "many"], ["--tolerance", "-1"], ["--tolerance", "nan"]):
        done = made.depoison("verify", TABLE, *wrong)
        assert (
            done.returncode == 2 and f"argument {wrong[0]}: invalid" in done.stderr and "Traceback" not in done.stderr
        )


# --- against numbers made anew -----------------------------------------------------------------------------------


def test_evaluations_made_anew_are_the_same_and_nothing_else_is_touched(here, capsys):
    before = tree(Path())
    assert main(["verify", TABLE, "--recompute", "3", "--seed", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "3 of 4 evaluations, drawn with --seed 7" and lines[-1].startswith(
        "3 of 3 agree within 1 percentage"
    )
    assert [line.split("]")[0] for line in lines[2:5]] == ["[1/3", "[2/3", "[3/3"]
    assert all(line.endswith(": agrees") and "→" in line for line in lines[2:5])
    assert tree(Path(), but="reports/tiny/verified.json") == before
    found = read_verification("tiny")
    assert found.targets == [TABLE] and found.seed == 7 and found.largest == 0 and not found.changed()
    assert len({one.evaluation for one in found.cells}) == 3 and len(found.evaluations) == 4
    assert all(one.was == one.now and one.was["c_acc"] is not None for one in found.cells)


def test_the_draw_follows_from_its_seed(here):
    def drawn(seed: int) -> list[str]:
        lines: list[str] = []
        return [one.evaluation for one in recompute(here.plan(), [TABLE], 1, seed, 1.0, lines.append).cells]

    assert drawn(3) == drawn(3) and len({*drawn(0), *drawn(1), *drawn(2), *drawn(3)}) > 1


def test_a_false_number_with_a_record_that_agrees_is_found(here, capsys):
    """Checksums cannot show it. 3 of 323 images, so that the number is one that could be."""
    product = product_of(here)
    content = json.loads(product.read_text())
    put_recorded(product, content | {"metrics": content["metrics"] | {"asr": 100 * 33 / 323}})
    assert main(["report", TABLE, LP, PAGE]) == 0
    assert told(here)[0] == []
    capsys.readouterr()
    assert main(["verify", TABLE, "--recompute", "9", "--tolerance", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (differing,) = [line for line in lines if line.endswith(": DIFFERS")]
    assert str(product.parent) in differing and "ASR 10.22 → 0.00" in differing
    assert lines[-1].startswith("3 of 4 agree within 2 percentage points")
    page = parsed(render_index(here.plan(), read_index(here.plan(), PAGE)))
    assert "3 of 4 evaluations that were made anew agree within 2 percentage points" in page.one("header").words
    rows = [row.words for row in page.one("section", id="verification").one("tbody").all("tr")]
    assert [row.endswith("differs") for row in rows].count(True) == 1
    assert main(["verify", TABLE, "--recompute", "9", "--tolerance", "11"]) == 0


def test_a_metric_on_one_side_only_is_no_agreement():
    pair = {"evaluation": "results/evaluate/x"}
    assert Recomputed(**pair, was={"asr": 1.0}, now={"asr": 2.5}).difference == 1.5
    assert Recomputed(**pair, was={"asr": None}, now={"asr": None}).agrees(0)
    assert not Recomputed(**pair, was={"asr": None}, now={"asr": 0.0}).agrees(100)
    assert not Recomputed(**pair, was={"asr": 1.0}, now={}).agrees(100)
    assert not Recomputed(**pair, was={}, now={}, error="no").agrees(100)


def test_what_cannot_be_made_anew_is_told(here, capsys):
    flipped(only_file("train/*badnet*/model.safetensors"))
    only_file("train/*blended*/triggered.safetensors").unlink()
    assert main(["verify", TABLE, "--recompute", "4", "--seed", "0"]) == 1
    out = capsys.readouterr().out
    assert "2 of 4 evaluations, drawn with --seed 0 from the 2 whose models are here" in out
    assert out.count("could not be made anew: results/train/") == 2 and "0 of 2 agree" in out
    assert all(one.error for one in read_verification("tiny").cells)
    for path in Path("results/train").glob("*/model.safetensors"):
        path.unlink()
    refused_to(here, [TABLE], "none of 4 evaluations can be made anew: results/train/", "depoison share pull --models")
    shutil.rmtree("results/evaluate")
    refused_to(here, [TABLE], "none of 0 evaluations can be made anew")
    refused_to(here, [], "--recompute takes cells and reports of one track; there is none")
    refused_to(here, [TABLE, cell("digits")], "these are on digits, tiny")


def refused_to(project: Project, targets: list[str], *words: str) -> None:
    with pytest.raises(DepoisonError) as error:
        recompute(project.plan(), targets, 1, 0, 1.0, lambda line: None)
    assert all(word in str(error.value) for word in words), error.value


# --- on the page -------------------------------------------------------------------------------------------------


def test_the_page_says_when_and_on_what_and_whether_cells_changed_since(here, capsys):
    def page() -> tuple[str, str]:
        shown = parsed(render_index(here.plan(), read_index(here.plan(), PAGE), draw=False))
        return shown.one("header").words, shown.one("section", id="verification").words

    header, section = page()
    assert "Verified" not in header and "No evaluation on this page was made anew" in section
    assert main(["verify", TABLE, "--recompute", "2", "--seed", "5"]) == 0
    assert not report_of(here.plan(), PAGE).is_current()
    found = read_verification("tiny")
    header, section = page()
    when = f"{found.when[:10]}, {found.when[11:16]} UTC"
    assert f"Verified {when}: 2 of 2 evaluations that were made anew agree within 1 percentage points (" in header
    assert f"2 of 4 evaluations behind {TABLE}, drawn at random (seed 5)" in section and "x86_64" in section
    assert "drawn from 4 of the 4 evaluations on this page" in section and "ut of date" not in header + section
    assert f"depoison verify {TABLE} --recompute 2 --seed 5 --tolerance 1" in section
    for one in found.cells:
        assert one.evaluation in section
    report_of(here.plan(), PAGE).write()
    assert report_of(here.plan(), PAGE).is_current()

    product = product_of(here)
    put_recorded(product, json.loads(product.read_text()) | {"diverged": True})
    header, section = page()
    assert "out of date, as 1 of the 4 that they were drawn from changed since" in header
    assert "changed or gone since is 1 of the 4" in section and str(product.parent) in section
    product.unlink()
    assert "out of date, as 1 of the 4" in page()[0]


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"targets": 3}', "[" * 100_000])
def test_a_verification_that_is_none_is_named(text, here):
    path_of("tiny").write_text(text)
    with pytest.raises(DepoisonError, match=r"reports/tiny/verified\.json: "):
        render_index(here.plan(), read_index(here.plan(), PAGE), draw=False)


def test_a_hostile_verification_is_text(here):
    main(["verify", TABLE, "--recompute", "1", "--seed", "5"])
    content = json.loads(path_of("tiny").read_text())
    script = "<script>alert(1)</script>"
    content |= {"device": script, "targets": [script], "commit": script}
    content["cells"][0] |= {"evaluation": script, "error": script}
    path_of("tiny").write_text(json.dumps(content))
    page = parsed(render_index(here.plan(), read_index(here.plan(), PAGE), draw=False))
    assert len(page.all("script")) == 2 and page.one("section", id="verification").words.count(script) >= 4
