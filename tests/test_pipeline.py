"""The real Snakefile on the track `tiny`: what runs, what does not, and that the bytes are always the same."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, Project, cell, job_counts, put_recorded, seldom, with_tiny
from depoison.cli import main
from depoison.reports.kinds import report_of

pytestmark = pytest.mark.pipeline

TARGET = "reports/tiny/small"
TABLE = f"{TARGET}.md"
FILES = [f"{TARGET}{suffix}" for suffix in (".md", ".tex", ".csv", ".json")]
NOTHING: dict[str, int] = {}


def lp(attack: str = "badnet", overrides: str = "") -> str:
    return cell(track="tiny", attack=f"{attack}+rate=0.1", defense=f"lp{overrides}")


def asked(project: Project, *arguments: str) -> dict[str, int]:
    """Run Snakemake; returns how many jobs of each rule it ran, or with -n would run."""
    done = project.snakemake("--cores", "2", *arguments)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    return job_counts(text)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The table, made by Snakemake; only to be copied."""
    project = with_tiny(Project(tmp_path_factory.mktemp("first") / "project"))
    jobs = {"dataset": 1, "split": 1, "poison": 2, "train": 2, "purify": 2, "evaluate": 4, "table": 1}
    assert asked(project, TABLE) == jobs
    assert asked(project, TABLE) == NOTHING
    assert asked(project, "-n", *FILES) == NOTHING
    return project


@pytest.fixture
def ready(first: Project, tmp_path: Path) -> Project:
    """A copy of all that Snakemake left."""
    return first.copy(tmp_path / "ready", "results", "reports", ".snakemake")


def test_a_table_is_made_once(first):
    text = (first / TABLE).read_text(encoding="utf-8")
    assert "| BadNet<sup>¶</sup> | 10% |" in text and "| Blended<sup>¶</sup> | 10% |" in text  # no attack takes there
    assert len(first.checksums("results/*/*/*.json")) == 2 * 12 + 4 + 1  # spec and run; metrics; classes
    assert not list(first.path.glob("results/*/.*"))
    for path in first.path.glob("results/*/*"):
        assert json.loads((path / "spec.json").read_text())["stage"] == path.parent.name
    assert all(
        list(first.path.glob(f"logs/{stage}/*.{kind}")) for stage in ("train", "purify") for kind in ("log", "tsv")
    )


def test_one_changed_value_makes_one_purified_model(ready):
    target = lp(overrides="+lr=0.5")
    assert asked(ready, target) == {"purify": 1, "evaluate": 1, "cell": 1}
    result = json.loads((ready / target).read_text())
    assert result["cell"] == target and 0 <= result["metrics"]["c_acc"] <= 100
    (recipe,) = (spec["parameters"]["recipe"] for spec in result["specs"].values() if spec["stage"] == "purify")
    assert recipe["lr"] == 0.5
    assert asked(ready, "-n", target, TABLE) == NOTHING


@pytest.mark.drill
def test_two_configurations_write_one_cell_in_turn_and_it_says_whose_it_is(ready):
    target, told = lp(), []
    (ready / "mine.yaml").write_text("defenses: {lp: {lr: 0.5}}")
    (ready / "other.yaml").write_text("defenses: {lp: {lr: 0.25}}\nseeds: [0, 1]\n")
    for overlay, lr in (("mine.yaml", 0.5), ("other.yaml", 0.25), ("mine.yaml", 0.5), (None, None)):
        options = ["--configfile", overlay, "--"] if overlay else ["--"]
        done = ready.snakemake("--cores", "1", *options, target)
        assert done.returncode == 0, done.stderr
        told.append([line for line in done.stderr.splitlines() if line.startswith("depoison: ")])
        held = json.loads((ready / target).read_text())["configuration"]
        assert held == ({overlay: {"defense lr": lr}} if overlay else {})
        assert asked(ready, "-n", *options, target) == NOTHING
    assert told == [
        [],
        [f"depoison: {target}: held defense lr=0.5 of mine.yaml; it is made anew with defense lr=0.25 of other.yaml"],
        [f"depoison: {target}: held defense lr=0.25 of other.yaml; it is made anew with defense lr=0.5 of mine.yaml"],
        [f"depoison: {target}: held defense lr=0.5 of mine.yaml; it is made anew with nothing of your own"],
    ]
    assert len(list((ready / ".snakemake/depoison/stamps").iterdir())) == 3, "planning at once, each looks at its own"


@pytest.mark.drill
def test_another_order_in_another_place_makes_the_same_bytes(first, tmp_path):
    project = first.copy(tmp_path / "a folder with spaces" / "and ünïcode")
    assert asked(project, "--cores", "1", lp("blended"))["train"] == 1
    ours = project.checksums()
    assert len(ours) == 8 and ours.items() <= first.checksums().items()


def test_without_snakemake_the_bytes_are_the_same(first, finished):
    assert finished.checksums() == first.checksums()
    assert (finished / f"{TARGET}.csv").read_bytes() == (first / f"{TARGET}.csv").read_bytes()


def test_snakemake_takes_what_was_made_without_it(finished, tmp_path):
    project = finished.copy(tmp_path / "made", "results", "reports")
    assert asked(project, "-n", TABLE) == NOTHING
    some = project.snakemake("-n", "--cores", "1", "--", TABLE, lp(overrides="+lr=0.5"))
    assert "total           3" in some.stdout + some.stderr and "provenance" not in some.stdout + some.stderr


def change_yaml(project: Project) -> None:
    project.set("config/defenses/lp.yaml", "values", "lr", to=0.2)


def overlay(project: Project) -> None:
    (project / "mine.yaml").write_text("defenses: {lp: {lr: 0.2}}")


@pytest.mark.parametrize(
    ("change", "arguments"),
    [
        (change_yaml, ()),
        (overlay, ("--configfile", "mine.yaml", "--")),
        (lambda project: None, ("--config", "defenses={lp: {lr: 0.2}}", "--")),
    ],
    ids=["file", "overlay", "command line"],
)
def test_a_changed_defense_moves_its_part_only(change, arguments, ready):
    change(ready)
    assert asked(ready, "-n", *arguments, TABLE) == {"purify": 2, "evaluate": 2, "table": 1}


@pytest.mark.parametrize("how", ["--configfile", *seldom("--config")])
def test_a_users_value_that_equals_a_default_wins_over_the_track_in_jobs_too(how, ready):
    """The merged configuration that Snakemake knows does not show such a value."""
    default = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))["tuning"]["batch_size"]
    assert (
        default
        != yaml.safe_load((ready / "config/tracks/tiny.yaml").read_text(encoding="utf-8"))["tuning"]["batch_size"]
    )
    (ready / "mine.yaml").write_text(f"tuning: {{batch_size: {default}}}")
    value = "mine.yaml" if how == "--configfile" else f"tuning={{batch_size: {default}}}"
    assert asked(ready, how, value, "--", lp()) == {"purify": 1, "evaluate": 1, "cell": 1}
    specs = json.loads((ready / lp()).read_text(encoding="utf-8"))["specs"]
    (purify,) = (spec for spec in specs.values() if spec["stage"] == "purify")
    assert purify["parameters"]["recipe"]["batch_size"] == default


@pytest.mark.drill
def test_who_changed_code_is_told_what_to_do(ready, monkeypatch, capsys):
    with (ready / "workflow/depoison/defenses/lp.py").open("a", encoding="utf-8") as code:
        code.write("\nCHANGED = 1\n")
    version = ready.plan().configuration.method("defense", "lp").content.version
    line = (
        f"depoison: defense lp: its code changed since version {version} was locked: raise `version` in "
        "config/defenses/lp.yaml to compute anew"
    )
    (ready / TABLE).unlink()
    done = ready.snakemake("--cores", "1", TABLE)
    assert job_counts(done.stdout + done.stderr) == {"table": 1} and done.stderr.count(line) == 1
    assert line not in (ready / "logs" / TARGET).with_suffix(".log").read_text(encoding="utf-8")
    monkeypatch.chdir(ready.path)
    for command in (["run", TABLE], ["report", TABLE], ["report", lp()], ["check"]):
        assert main(command) == 0 and capsys.readouterr().err.count(line) == 1, command
    done = ready.snakemake("-n", TABLE)
    assert "Nothing to be done" in done.stdout + done.stderr and done.stderr.count(line) == 1
    assert main(["report", cell(track="tiny", attack="badnet+rate=0.1", defense="none")]) == 0
    assert line not in capsys.readouterr().err

    assert main(["lock"]) == main(["report", TABLE]) == 0
    assert line not in capsys.readouterr().err
    ready.set("config/defenses/lp.yaml", "version", to=version + 1)
    done = ready.snakemake("-n", TABLE)
    assert job_counts(done.stdout + done.stderr) == {"purify": 2, "evaluate": 2, "table": 1}
    assert (
        "depoison: defense lp: is version 2, and 1 in workflow/depoison.lock.json; run `depoison lock`" in done.stderr
    )


def test_an_attack_moves_only_its_own(ready):
    ready.set("config/attacks/badnet.yaml", "parameters", "size", "default", to=2)
    assert asked(ready, "-n", TABLE) == {"poison": 1, "train": 1, "purify": 1, "evaluate": 2, "table": 1}


def test_runtime_moves_nothing(ready):
    ready.set("config/config.yaml", "runtime", to={"threads": 2, "device": "cpu", "downloads": "elsewhere"})
    assert asked(ready, "-n", TABLE) == NOTHING


# --- times and missing files -------------------------------------------------------------------------------------


def remove(project: Project, pattern: str) -> None:
    found = list(project.path.glob(pattern))
    assert found
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_times_say_nothing(ready):
    rng, now = random.Random(0), time.time()
    for folder in (".snakemake", "results", "reports", "config", "workflow"):
        for path in ready.path.glob(f"{folder}/**/*"):
            moment = now - rng.uniform(0, 1e8)
            os.utime(path, (moment, moment))
    assert asked(ready, "-n", TABLE) == NOTHING
    remove(ready, ".snakemake")
    assert asked(ready, "-n", TABLE) == NOTHING
    remove(ready, "results/evaluate/*badnet*-lp-*/metrics.json")
    assert asked(ready, "-n", TABLE) == {"evaluate": 1, "table": 1}


def test_what_a_finished_result_was_made_from_is_not_made_again(ready):
    for stage in ("dataset", "split", "poison", "train", "purify"):
        remove(ready, f"results/{stage}")
    assert asked(ready, "-n", TABLE) == NOTHING
    remove(ready, "results/evaluate/*blended*-lp-*/metrics.json")
    needed = {"dataset": 1, "split": 1, "poison": 1, "train": 1, "purify": 1, "evaluate": 1, "table": 1}
    assert asked(ready, "-n", TABLE) == needed


def edit_by_hand(project: Project) -> None:
    for suffix in (".md", ".tex", ".csv"):
        with (project / f"{TARGET}{suffix}").open("a") as file:
            file.write("edited by hand\n")


def other_number(project: Project) -> None:
    content = json.loads((project / f"{TARGET}.json").read_text())
    content["lines"][0]["numbers"][1]["ours"] = 12.34
    (project / f"{TARGET}.json").write_text(json.dumps(content))


def other_evaluation(project: Project) -> None:
    path = next(project.path.glob("results/evaluate/*badnet*-lp-*/metrics.json"))
    content = json.loads(path.read_text())
    content["metrics"]["asr"] = 12.34
    put_recorded(path, content)


CHANGES = {
    "by hand": edit_by_hand,
    "evaluation": other_evaluation,
    "label": lambda project: project.set("config/datasets/digits.yaml", "label", to="Another"),
}
"""Of its files, of what it shows, and of how it says so."""
FURTHER = {
    "number": other_number,
    "broken": lambda project: (project / f"{TARGET}.json").write_text("[]"),
    "missing": lambda project: (project / f"{TARGET}.tex").unlink(),
    "title": lambda project: project.set("config/papers/fst/small.yaml", "title", to="Another"),
    "track": lambda project: project.set("config/tracks/tiny.yaml", "summary", to="another"),
}


@pytest.mark.parametrize("name", [*CHANGES, *seldom(*FURTHER)])
def test_a_table_is_what_its_definition_and_evaluations_say(name, ready, monkeypatch):
    """Whatever changed, the four files are, after a run, those that would be written afresh."""
    (CHANGES | FURTHER)[name](ready)
    assert asked(ready, *FILES) == {"table": 1}
    found = [(ready / name).read_bytes() for name in FILES]
    monkeypatch.chdir(ready.path)
    report_of(ready.plan(), TARGET).write()
    assert found == [(ready / name).read_bytes() for name in FILES]


def test_a_cell_is_what_its_evaluation_says(ready):
    assert asked(ready, lp()) == {"cell": 1}
    assert asked(ready, "-n", lp()) == NOTHING
    other_evaluation(ready)
    assert asked(ready, lp()) == {"cell": 1}
    assert json.loads((ready / lp()).read_text())["metrics"]["asr"] == 12.34


# --- a paper's table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "name"), [("reports/table2.md", "table2"), ("reports/digits/fst/table1.tex", "table1")]
)
def test_a_papers_table_plans_one_model_a_row_and_one_purification_a_cell(target, name, project):
    def implemented(kind: str, methods: str) -> bool:
        return (ROOT / "config" / kind / f"{methods}.yaml").exists()

    table = yaml.safe_load((ROOT / f"config/papers/fst/{name}.yaml").read_text(encoding="utf-8"))
    rows = sum(len(row["rates"]) for row in table["axes"]["rows"] if implemented("attacks", row["attack"]))
    columns = [column["defense"] for column in table["axes"]["columns"] if implemented("defenses", column["defense"])]
    defended = len(columns) - columns.count("none")
    files = [ROOT / f"config/attacks/{row['attack']}.yaml" for row in table["axes"]["rows"]]
    assets = sum("asset" in yaml.safe_load(file.read_text(encoding="utf-8")) for file in files)
    jobs = {"dataset": 1, "split": 1, "asset": assets, "poison": rows, "train": rows, "purify": rows * defended}
    assert asked(project, "-n", target) == jobs | {"evaluate": rows * (1 + defended), "table": 1}
    assert asked(project, "-n", "--resources", "gpu=4", "--", target)["train"] == rows


def test_the_default_target_is_a_table_of_embedded_images(project):
    jobs = asked(project, "-n")
    assert jobs["all"] == 1 and jobs["table"] == 1 and jobs["dataset"] == 1


# --- jobs on other machines --------------------------------------------------------------------------------------


def test_a_job_elsewhere_knows_its_artifact_from_the_specs_handed_on(tiny, monkeypatch):
    """A remote job reads the Snakefile anew and is asked for an artifact, without the cell behind it."""
    monkeypatch.chdir(tiny.path)
    chain = tiny.plan().cell(lp()).evaluation.chain().values()
    purified = next(artifact for artifact in chain if artifact.stage == "purify")
    refused = tiny.snakemake("-n", "--cores", "1", purified.product)
    assert refused.returncode != 0
    assert "no cell that was asked for needs this artifact" in refused.stderr

    handed_on = tiny / ".snakemake/depoison/artifacts.jsonl"
    handed_on.parent.mkdir(parents=True, exist_ok=True)
    handed_on.write_text("".join(json.dumps([a.directory, a.spec, None]) + "\n" for a in chain), encoding="utf-8")
    assert asked(tiny, "-n", purified.product) == {"dataset": 1, "split": 1, "poison": 1, "train": 1, "purify": 1}
