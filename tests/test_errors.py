"""Bad input and broken artifacts: one line that names the culprit and what is valid, and nothing finished is lost."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import SMALL, Project, cell, lean, seldom
from depoison.attacks.pictures import checkerboard
from depoison.cli import main
from depoison.errors import DepoisonError
from depoison.files import write_json
from depoison.papers.check import check
from depoison.plan.config import Runtime
from depoison.plan.lock import stale
from depoison.plan.plan import Cell, Plan
from depoison.plan.specs import canonical
from depoison.reports.kinds import kind_of
from depoison.stages.purify import tuning_images
from depoison.stages.runner import Job, run_stage
from snakemake_logger_plugin_depoison import refuse_configfiles

Done = subprocess.CompletedProcess[str]
PROGRESS = "depoison: "


def refused(done: Done, *words: str, progress: bool = False) -> None:
    """Assert exit code ≠ 0 and one line on stderr, after lines of progress where a command shows some."""
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Using workflow specific profile")]
    assert [line.startswith("depoison: error: ") for line in lines].count(True) == 1, done.stderr
    assert lines[-1].startswith("depoison: error: "), done.stderr
    assert len(lines) == 1 or (progress and all(line.startswith(PROGRESS) for line in lines)), done.stderr
    for word in words:
        assert word in lines[-1]


def here(project: Project, *arguments: str) -> Done:
    """A command in this process: half a second less than in one of its own."""
    with contextlib.chdir(project.path), redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main([*arguments])
    return Done(arguments, code, out.getvalue(), err.getvalue())


# --- names of cells ----------------------------------------------------------------------------------------------

NAMES = {
    "dataset": (cell(dataset="cifar11"), "unknown dataset 'cifar11'; did you mean 'cifar10'?"),
    "model": (cell(model="resnet-18"), "unknown model 'resnet-18'; did you mean 'resnet18'?"),
    "attack": (cell(attack="badnets"), "unknown attack 'badnets'; did you mean 'badnet'?", "blended"),
    "defense": (cell(defense="ft-san"), "unknown defense 'ft-san'; did you mean 'ft-sam'?", "fst"),
    "track": (cell(track="digit"), "unknown track 'digit'; did you mean 'digits'?", "paper"),
    "hyper-parameter": (cell(defense="fst+alfa=1"), "'alfa'; did you mean 'alpha'?", "tuning_ratio"),
    "of another method": (cell(defense="ft+rho=1"), "unknown hyper-parameter of ft 'rho'"),
    "of a method without any": (cell(defense="none+lr=1"), "unknown hyper-parameter of none 'lr'; valid: none"),
    "type": (cell(defense="fst+alpha=big"), "fst+alpha: 'big' is not valid; valid: a number in [0, 100]"),
    "integer": (cell(attack="badnet+epochs=1.5"), "badnet+epochs: '1.5'", "an integer in [1, 1000000000]"),
    "truth": (cell(dataset="digits+stratified=yes"), "true or false"),
    "range": (cell(defense="fst+alpha=101"), "'101'", "[0, 100]"),
    "open end": (cell(attack="badnet+rate=0"), "badnet+rate: '0'", "(0, 1)"),
    "line break": (cell(attack="badnet+rate=0.05\n"), r"badnet+rate=0.05\n", "no line breaks"),
    "other digits": (cell(attack="badnet+rate=0.0٥"), "badnet+rate: '0.0٥'", "(0, 1)"),
    "absurd integer": (cell(attack="badnet+epochs=1000000001"), "'1000000001'", "an integer in [1, 1000000000]"),
    "endless integer": (cell(attack=f"badnet+epochs={'9' * 150}"), f"'{'9' * 79}…", "an integer in [1, 1000000000]"),
    "choice": (cell(defense="fst+projection=sometimes"), "'sometimes'", "fst or none or all"),
    "none": (cell(attack="badnet+epochs=none"), "'none'", "an integer in [1, 1000000000]"),
    "key twice": (cell(defense="fst+lr=0.1+lr=0.2"), "'fst+lr=0.1+lr=0.2' sets a key twice"),
    "no value": (cell(defense="fst+alpha"), "'fst+alpha'", "name+key=value"),
    "too short": ("results/cells/digits/digits/s0.json", "results/cells/{track}/[{paper}/]{dataset}/{model}"),
    "another place": ("somewhere/s0.json", "somewhere/s0.json", "results/cells/{track}"),
    "seed": (cell(seed="x"), "'sx.json' is no seed", "s0.json"),
    "negative seed": (cell(seed=-1), "'s-1.json' is no seed"),
    "tuning_ratio": (cell(defense="fst+tuning_ratio=0.5"), "tuning_ratio 0.5", "the maximum is 0.1"),
    "tuning_images": (cell(defense="fst+tuning_images=145"), "tuning_images 145", "the maximum is 144"),
    "picture": (cell(attack="blended+pattern=cat"), "no file config/triggers/cat.*"),
}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return lean(Project(tmp_path_factory.mktemp("untouched") / "project"))


@pytest.mark.parametrize(("name", *["words"]), [(row[0], row[1:]) for row in NAMES.values()], ids=list(NAMES))
def test_a_cell_that_cannot_be(name, words, untouched):
    refused(here(untouched, "explain", name), *words)


def test_debug_shows_the_traceback(untouched):
    done = untouched.depoison("--debug", "explain", cell(defense="fts"))
    assert done.returncode != 0 and "Traceback" in done.stderr and "unknown defense 'fts'" in done.stderr


@pytest.mark.parametrize(
    "command",
    [["share", "status", "reports/table1.md"], ["gc"], ["schema"], ["papers", "check"], ["progress"], ["lock"]],
)
def test_outside_the_project_commands_say_where_they_belong(command, untouched, monkeypatch, capsys):
    for folder, where in (
        (untouched / "config" / "tracks", untouched.path),
        (untouched.path.parent, "a clone of the pro"),
    ):
        monkeypatch.chdir(folder)
        assert main(command) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and len(printed.err.splitlines()) == 1
        assert f"{folder}: no config/config.yaml here; run this in {where}" in printed.err
    assert not (untouched.path.parent / "workflow").exists()


@pytest.mark.parametrize("spelling", ["lp+lr=0.3+batchnorm=frozen/s0.json", "lp/s00.json", "lp/s٠.json"])
def test_a_name_that_is_accepted_is_the_file_that_is_written(spelling, made):
    """Snakemake waits for the file that it asked for."""
    asked = f"results/cells/tiny/digits/resnet18/badnet/{spelling}"
    done = made.depoison("report", asked)
    if done.returncode == 0:
        assert (made / asked).exists()
    else:
        refused(done, "lp")


# --- files below config/ -----------------------------------------------------------------------------------------


def put(file: str, *keys: str, to: Any) -> Callable[[Project], None]:
    return lambda project: project.set(file, *keys, to=to)


def drop(file: str, *keys: str) -> Callable[[Project], None]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return lambda project: project.edit(file, change)


def write(file: str, text: str) -> Callable[[Project], None]:
    return lambda project: (project / file).write_text(text, encoding="utf-8")


def replaced(file: str, old: str, new: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        text = (project / file).read_text(encoding="utf-8")
        assert old in text
        (project / file).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


CONFIG, FST, TRACK = "config/config.yaml", "config/defenses/fst.yaml", "config/tracks/digits.yaml"
TABLE, FIGURE = "config/papers/fst/table2.yaml", "config/papers/fst/figures/figure6.yaml"
CODE, DIGITS = "workflow/depoison/defenses/fst.py", "config/datasets/digits.yaml"
DEAD = {"type": "int", "default": 1, "help": "does nothing"}
FILES: dict[str, tuple[Any, ...]] = {
    "dead key": (put(FST, "parameters", "beta", to=DEAD), f"{FST}:", "'beta' is dead", CODE),
    "missing key": (drop(FST, "parameters", "alpha"), FST, "lacks 'alpha'", CODE),
    "shared name": (put(FST, "parameters", "lr", to=DEAD), FST, "'lr' is the name of a shared hyper-parameter"),
    "no code": (lambda p: (p / CODE).unlink(), "fst.py", "missing"),
    "code's syntax": (write(CODE, "def fst(:\n"), "fst.py:1"),
    "unknown dataset": (put(FST, "datasets", "cifar11", to={"lr": 0.1}), FST, "'cifar11'; did you mean 'cifar10'?"),
    "unknown model": (put(FST, "models", "resnet-18", to={"lr": 0.1}), FST, "'resnet18'"),
    "unknown value": (put(FST, "values", "learning_rate", to=0.1), f"{FST}:", "'learning_rate'"),
    "range": (put(FST, "values", "epochs", to=0), f"{FST}:", "values.epochs: 0", "an integer in [1, 1000000000]"),
    "default": (put(FST, "parameters", "alpha", "default", to=-1), f"{FST}:", "-1", "[0, 100]"),
    "interval": (put(FST, "parameters", "alpha", "range", to="0 to 1"), f"{FST}:", "'0 to 1'", "[0, 1)"),
    "key of a parameter": (put(FST, "parameters", "alpha", "rang", to="[0, 1]"), f"{FST}:", "'rang'", "'range'"),
    "key of a method": (put(FST, "sumary", to="x"), f"{FST}:", "'sumary'; did you mean 'summary'?"),
    "no label": (drop(FST, "label"), FST, "label", "required"),
    "training of a defense": (put(FST, "training", to={"lr": 1}), f"{FST}:", "only a dataset has"),
    "smoke of a model": (put("config/models/resnet18.yaml", "smoke", to={}), "attacks and defenses have 'smoke'"),
    "value of smoke": (put(FST, "smoke", "values", to={"alfa": 1}), f"{FST}:", "smoke.values", "did you mean 'alpha'?"),
    "YAML": (write(FST, "label: x\nsummary: [\n"), f"{FST}:3: not valid YAML"),
    "YAML's tabs": (write(FST, "label: x\nvalues:\n\tlr: 1\n"), f"{FST}:3: not valid YAML"),
    "YAML's values": (write(FST, "label: FST\nsummary: 2024-13-45\n"), f"{FST}:2"),
    "no mapping": (write(FST, "- fst\n"), FST, "mapping"),
    "not UTF-8": (lambda p: (p / FST).write_bytes(b"label: \xff\n"), FST, "cannot be read"),
    "YAML key twice": (write(FST, "label: FST\nsummary: a\nlabel: b\n"), f"{FST}:3", "'label' stands twice"),
    "unknown section": (put(CONFIG, "tunning", to={}), CONFIG, "'tunning'; did you mean 'tuning'?"),
    "unknown runtime": (put(CONFIG, "runtime", "thread", to=1), CONFIG, "'thread'; did you mean 'threads'?"),
    "threads": (put(CONFIG, "runtime", "threads", to=0), CONFIG, "runtime.threads", "greater than or equal to 1"),
    "shared default": (put(CONFIG, "tuning", "lr", to="fast"), f"{CONFIG}:", "tuning.lr: 'fast'", "a number in (0, inf)"),
    "no shared default": (drop(CONFIG, "training", "lr"), "no value for 'lr'"),
    "your dataset": (put(CONFIG, "datasets", "cifar", to={}), f"{CONFIG}:", "unknown dataset 'cifar'"),
    "your value": (put(CONFIG, "defenses", "fst", to={"alfa": 1}), f"{CONFIG}:", "did you mean 'alpha'?"),
    "seeds": (put(CONFIG, "seeds", to=[0, -1]), f"{CONFIG}:", "seeds.1", "greater than or equal to 0"),
    "seeds twice": (put(CONFIG, "seeds", to=[0, 0]), f"{CONFIG}:", "seeds"),
    "no budget": (put(TRACK, "training", "crop", to=2), f"{TRACK}:", "unknown hyper-parameter 'crop'", "epochs"),
    "no budget of a method": (put(TRACK, "defenses", "fst", to={"alpha": 2}), f"{TRACK}:", "'alpha'", "epochs"),
    "track's defense": (put(TRACK, "defenses", "fts", to={"lr": 2}), f"{TRACK}:", "unknown defense 'fts'"),
    "track's dataset": (put(TRACK, "replace", "datasets", to={"*": "digit"}), f"{TRACK}:", "'digit'; did you mean 'digits'?"),
    "key of a table": (put(TABLE, "sumary", to=[]), TABLE, "'sumary'; did you mean 'summary'?"),
    "key of a row": (replaced(TABLE, "rates: [0.003]", "rates: [0.003], lable: x"), f"{TABLE}:", "'lable'", "'label'"),
    "key of a column": (replaced(TABLE, "label: FST}", "label: FST, metrc: asr}"), f"{TABLE}:", "'metrc'", "'metric'"),
    "value of a column": (replaced(TABLE, "defense: fst,", "defense: fst+alfa=1,"), f"{TABLE}:23", "'alfa'; did you mean"),
    "grid of a column": (replaced(TABLE, "label: FST}", "label: FST, each: {defense: lr}}"), "unknown grid of fst 'lr'"),
    "rate of a row": (replaced(TABLE, "[0.003]", "[often]"), f"{TABLE}:", "axes.rows.6.rates.0", "number"),
    "summary of a table": (put(TABLE, "summary", to=["median"]), f"{TABLE}:", "average", "standard-deviation"),
    "published numbers": (put(TABLE, "published", to="published/table99.csv"), "table99.csv"),
    "a number that is none": (
        replaced("config/papers/fst/published/table2.csv", "fst,asr,0.00", "fst,asr,zero"),
        "published/table2.csv",
    ),
    "defense of a column": (replaced(TABLE, "defense: ft-sam", "defense: ft-sm"), f"{TABLE}:19", "did you mean 'ft-sam'?"),
    "attack of a row": (replaced(TABLE, "attack: badnet", "attack: badnett"), f"{TABLE}:8", "did you mean 'badnet'?"),
    "model of a table": (put(TABLE, "model", to="resnet81"), f"{TABLE}:", "'resnet81'; did you mean 'resnet18'?"),
    "method of a figure": (replaced(FIGURE, "defense: ft-sam", "defense: ft-sm"), f"{FIGURE}:14", "did you mean 'ft-sam'?"),
    "a source that is none": (put(DIGITS, "values", "source", to="download"), "unknown source 'download'"),
    "a source's name": (put(DIGITS, "values", "source", to="digit"), "'digits'?", "gtsrb, imagefolder"),
    "track and paper": (write("config/tracks/fst.yaml", "summary: x"), "config/papers/fst and config/tracks/fst.yaml"),
    "a name that is taken": (write("config/papers/fst/index.yaml", "title: x"), "fst/index.yaml", "another"),
    **{
        f"name {file!r}": (write(file, "summary: x\nlabel: x\n"), repr(Path(file).stem), "valid: letters, digits")
        for file in (
            "config/defenses/my defense.yaml", "config/attacks/bad+net.yaml", "config/datasets/a=b.yaml",
            "config/models/a\nb.yaml", "config/tracks/_x.yaml", "config/papers/fst/my table.yaml",
            "config/papers/fst/table.1.yaml", "config/papers/fst/figures/figure 1.yaml",
        )
    },
    "name of a paper": (lambda project: (project / "config/papers/my paper").mkdir(), "'my paper' is no name"),
    "table's dataset": (put(TABLE, "dataset", to="cifar11"), "unknown dataset 'cifar11'"),
}  # fmt: skip


@pytest.mark.parametrize(("change", *["words"]), [(row[0], row[1:]) for row in FILES.values()], ids=list(FILES))
def test_a_file_with_a_fault(change, words, project, monkeypatch):
    monkeypatch.chdir(lean(project).path)
    change(project)
    with pytest.raises(DepoisonError) as error:
        check(project.plan())
    assert all(word in " ".join(str(error.value).split()) for word in words), error.value


def test_a_fault_in_a_file_on_the_command_line(project):
    change, *words = FILES["dead key"]
    change(lean(project))
    refused(project.depoison("check"), *words)


def test_an_overlay_that_is_not_there(untouched):
    refused(
        untouched.depoison("explain", cell(), "--configfile", "mine.yaml"), "mine.yaml: cannot be read: No such file"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--configfile", "mine.yaml", "--", "x"], "mine.yaml: cannot be read: No such file"),
        (["-n", "--configfile=mine.yaml"], "mine.yaml: cannot be read: No such file"),
        (["--configfiles", "good.yaml", "bad.yaml", "-n"], "bad.yaml:2: not valid YAML"),
        (["--configfile", "good.yaml", "--", "bad.yaml"], ""),
        (["bad.yaml", "--config", "a=1", "--cores", "1"], ""),
    ],
)
def test_configuration_files_are_read_before_snakemake_reads_them(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text("tuning: {}\n")
    Path("bad.yaml").write_text("tuning:\n  {epochs: [}\n")
    with pytest.raises(SystemExit) if said else contextlib.nullcontext():
        refuse_configfiles("/bin/snakemake", words)
    refuse_configfiles("/bin/pytest", words)
    told = capsys.readouterr().err
    assert told.startswith(f"depoison: error: {said}") if said else told == ""


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("absent.yaml", None, "absent.yaml: cannot be read"),
        ("broken.yaml", "a:\n\tb: 1", "broken.yaml:2: not valid YAML"),
    ],
)
def test_a_configuration_file_that_snakemake_cannot_read_is_one_line(file, text, said, untouched):
    if text is not None:
        (untouched / file).write_text(text)
    refused(untouched.snakemake("-n", "--configfile", file, "--", cell()), said)


@pytest.mark.parametrize(
    ("spec", "runtime", "word"),
    [
        ("{", "{}", "JSON"),
        ("{}", "{}", "spec"),
        ("{}", '{"threads": 0}', "threads"),
        ('{"stage": "dream"}', "{}", "dream"),
    ],
)
def test_a_stage_without_a_valid_spec(spec, runtime, word, untouched):
    refused(untouched.depoison("stage", spec, "--output", "results/x", "--runtime", runtime), word)


# --- while it runs -----------------------------------------------------------------------------------------------


def tiny_cell(**methods: str) -> str:
    return cell(**{"track": "tiny", "attack": "badnet+rate=0.1", "defense": "lp"} | methods)


def run(project: Project, *targets: str, overlay: dict[str, Any] | None = None, **variables: str) -> Done:
    (project / "mine.yaml").write_text(json.dumps(overlay or {}))
    return project.depoison("run", *targets, "--configfile", "mine.yaml", **variables)


@pytest.mark.parametrize(
    ("attack", *["words"]),
    [
        ("badnet+rate=0.0001", ("poisoning rate 0.0001 of 1294 images", "the minimum is 0.00077")),
        ("badnet+target=10", ("target label 10", "valid: 0 to 9")),
        ("badnet+size=9", ("a patch of 9 pixels", "the maximum is 8")),
    ],
    ids=["no image", "target", "patch"],
)
def test_an_attack_that_cannot_be_leaves_what_is_finished(attack, words, made):
    before = made.checksums("results/**/*")
    refused(run(made, tiny_cell(attack=attack)), *words, progress=True)
    assert made.checksums("results/**/*") == before


def test_a_clean_label_rate_above_the_class_size(made):
    """The maximum is named and possible; Snakemake shows the line of a job that fails."""
    before = made.checksums("results/**/*")
    done = made.snakemake("--cores", "1", "--quiet", "all", "--", tiny_cell(attack="sig+rate=0.2", defense="none"))
    assert done.returncode != 0 and "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("depoison: error: "))
    assert "sig on digits-" in line and "poisoning rate 0.2" in line and "the target class 0" in line
    assert made.checksums("results/**/*") == before
    maximum = re.search(r"the maximum rate is (0\.\d+)$", line)
    assert maximum, line
    done = run(made, tiny_cell(attack=f"sig+rate={maximum[1]}", defense="none"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", [("snakemake", "--cores", "1", "--"), *seldom(("depoison", "run"))], ids=["snakemake", "run"]
)
def test_what_does_not_hang_on_a_failed_job_goes_on_and_the_end_says_what_is_missing(command, made):
    code = made / "workflow/depoison/defenses/ft.py"
    code.write_text(
        code.read_text().replace("    return tune(", '    raise ValueError("made to\\nfail")\n    return tune(')
    )
    columns = [{"defense": name, "label": name} for name in ("none", "ft", "lp")]
    rows = [{"attack": name, "label": name, "rates": [0.1]} for name in ("badnet", "sig")]
    rows[1]["rates"] = [0.2]
    made.edit(
        "config/papers/fst/broken.yaml",
        lambda table: table.update(SMALL | {"axes": {"rows": rows, "columns": columns}}),
    )
    whole = [tiny_cell(defense=f"lp+lr={lr}") for lr in (0.5, 0.25, 0.125)]
    done = made.python(*command, "reports/tiny/broken.md", *whole)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert all((made / target).exists() for target in whole)
    assert not (made / "reports/tiny/broken.md").exists()
    left, table, *errors = done.stderr.splitlines()[-4:]
    assert left == "depoison: 10 of 19 jobs are not done: 2 failed, 8 need what those make; what was made is kept"
    assert table == "depoison: not made: reports/tiny/broken.md, which lacks 4 of 6 results"
    ft, sig = sorted(errors, key=lambda line: line.split()[2] == "poison")
    where = r"workflow/depoison/defenses/ft\.py, line \d+"
    assert re.fullmatch(
        rf"depoison: error: purify \S+-ft \(logs/purify/\S+-ft-\w+\.log\): ValueError: made to fail \({where}\)", ft
    )
    assert re.match(
        r"depoison: error: poison digits-sig-0\.2-s0 \(logs/poison/\S+\.log\): sig on digits-\w+: poisoning", sig
    )
    assert done.stderr.count("made to") == 1, "a cause is told once"
    (log,) = made.path.glob("logs/purify/*-ft-*.log")
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return None", ("returns nothing", "valid: the purified Classifier")),
        pytest.param("return model.state_dict()", ("returns a OrderedDict",), marks=pytest.mark.drill),
        pytest.param(
            "model.more = model.classifier; return model", ("another network", "more."), marks=pytest.mark.drill
        ),
    ],
    ids=["nothing", "no model", "another model"],
)
def test_a_defense_that_returns_something_else_is_named(body, words, made):
    code = made / "workflow/depoison/defenses/lp.py"
    code.write_text(code.read_text().replace("    return tune(", f"    {body}\n    return tune("))
    words = ("workflow/depoison/defenses/lp.py: defense lp ", *words)
    refused(run(made, tiny_cell(defense="lp+lr=0.5")), *words, progress=True)


FORMS = {
    "reports/digits/table2.pdf": "a table is written as .md, .tex, .csv, .json",
    "reports/digits/figure2.svg": "a figure is written as .png, .pdf, .csv",
    "reports/digits/fst/paper.md": "the document of a paper is written as .pdf, .tex",
    "reports/digits/figures.html": "the page of figures is written as .md",
    "reports/index.md": "the page of a track is written as .html",
    "reports/digits/claims.csv": "the page of a paper's claims is written as .md, .json",
}


@pytest.mark.parametrize("target", FORMS)
def test_a_report_in_a_form_that_there_is_not(target):
    with pytest.raises(DepoisonError, match=re.escape(f"{target}: {FORMS[target]}")):
        kind_of(target)
    kind_of(target.rpartition(".")[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-n", "reports/digits/table2.pdf"), ("a table is written as .md",)),
        (("-n", "reports/digits/table2"), ("no report; valid: reports/",)),
        (
            ("-n", "--resources", "gpu=1", "reports/digits/table2.md"),
            ("--resources takes reports/", "put -- before it"),
        ),
        (("--cores", "0", "--", "reports/digits/table2.md"), ("--cores 0", "at least 1")),
    ],
    ids=["form", "no form", "resources", "cores"],
)
def test_snakemake_says_in_one_line_what_it_cannot_make(arguments, words, untouched):
    done = untouched.snakemake(*arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("depoison: error: ") and all(word in last for word in words), done.stderr


@pytest.mark.drill
def test_snakemake_called_by_its_path_finds_its_own_python(made):
    target = tiny_cell(defense="lp+lr=0.5")
    snakemake = str(Path(sys.executable).with_name("snakemake"))
    done = made.run(snakemake, "--cores", "1", "--", target, PATH="/usr/bin:/bin")
    assert done.returncode == 0 and (made / target).exists(), done.stderr


def test_a_folder_that_cannot_be_written_is_said_before_the_first_job(made):
    shutil.rmtree(made / "reports")
    (made / "reports").mkdir()
    (made / "reports/tiny").write_text("a file where a folder should be")
    for path in made.path.glob("results/evaluate/*/metrics.json"):
        path.unlink()
    done = made.snakemake("--cores", "1", "--", "reports/tiny/small.md")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "depoison: error: reports/tiny: is a file, not a folder"
    assert not list(made.path.glob("results/evaluate/*/metrics.json"))
    refused(made.depoison("report", "reports/tiny/index.html"), "reports/tiny")


def test_a_figure_without_what_it_draws_says_what_makes_it(made):
    refused(
        made.depoison("report", "reports/tiny/figure2"), "are missing, the first is results/", "`snakemake -- reports/"
    )
    refused(made.depoison("report", "reports/tiny/figures"), "are missing, the first is reports/tiny/figure2.png")


@pytest.mark.drill
def test_a_job_that_is_killed_says_so(made):
    code, kill = made / "workflow/depoison/defenses/lp.py", "    import os\n\n    os.kill(os.getpid(), 9)\n"
    code.write_text(code.read_text().replace("    return tune(", f"{kill}    return tune("))
    done = made.snakemake("--cores", "1", "--", tiny_cell(defense="lp+lr=0.5"))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("depoison: error: purify ") and "it was ended by SIGKILL (for want of memory?)" in last


def folder_of_images(root: Path) -> Path:
    for number, part in enumerate(f"{split}/{label}" for split in ("train", "test") for label in "ab"):
        (root / part).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (number * 40, i * 20, 0)).save(root / part / f"{i}.png")
    return root


def test_folders_of_images(tiny, tmp_path):
    root = folder_of_images(tmp_path / "images")
    dataset = {"source": "imagefolder", "root": str(root), "reserve": 0.5}

    def made_from(root: Path) -> Done:
        return run(tiny, tiny_cell(defense="none"), overlay={"datasets": {"digits": {**dataset, "root": str(root)}}})

    refused(made_from(tmp_path / "nowhere"), f"{tmp_path}/nowhere: no such folder", "train/<class>", progress=True)
    (tmp_path / "empty/train").mkdir(parents=True)
    (tmp_path / "empty/test").mkdir()
    refused(made_from(tmp_path / "empty"), f"{tmp_path}/empty/train: no class folders", progress=True)
    small = {"datasets": {"digits": {**dataset, "root": str(root)}}, "runtime": {"largest_image": 6e-5}}
    refused(
        run(tiny, tiny_cell(defense="none"), overlay=small), f"{root}/train/a/0.png", "8 x 8 px; valid: up to 6e-05 mega",
        "runtime.largest_image", progress=True,
    )  # fmt: skip
    (root / "test/b/3.png").write_bytes(b"no image")
    refused(made_from(root), f"{root}/test/b/3.png: not a readable image", progress=True)
    assert not list(tiny.path.glob("results/*/*"))


@pytest.mark.parametrize(
    ("dataset", "attack", *["words"]),
    [
        ("cifar10", "badnet+target=10", ("target label 10", "valid: 0 to 9")),
        ("gtsrb", "badnet+target=43", ("target label 43", "valid: 0 to 42")),
        ("tiny-imagenet", "sig+target=200", ("target label 200", "valid: 0 to 199")),
        ("cifar10", "badnet+size=40", ("a patch of 40 pixels", "the maximum is 32")),
        ("tiny-imagenet", "bypass-patch+size=33", ("a patch of 33 pixels", "the maximum is 32")),
    ],
)
def test_an_attack_that_does_not_fit_the_dataset_is_known_when_planning(dataset, attack, words, untouched):
    plan, name = untouched.plan(), cell(track="paper", dataset=dataset, attack=attack)
    with pytest.raises(DepoisonError) as error:
        plan.cell(name)
    assert all(word in str(error.value) for word in (name, *words))
    plan.cell(cell(track="paper", dataset="tiny-imagenet", attack="badnet+size=64+enlarge=false"))


@pytest.mark.parametrize("enlarge", [True, False])
@pytest.mark.parametrize("side", [8, 31, 32, 33, 63, 64, 65, 96, 100, 224])
def test_planning_and_the_attack_agree_on_how_large_a_patch_may_be(side, enlarge, untouched):
    def told(call: Callable[[], object]) -> str:
        try:
            call()
        except DepoisonError as error:
            return str(error)[str(error).index("the maximum is") :]
        return ""

    name = cell(dataset=f"digits+size={side}", attack=f"badnet+enlarge={str(enlarge).lower()}+size=64")
    assert told(lambda: untouched.plan().cell(name)) == told(lambda: checkerboard(64, enlarge, (3, side, side)))


def folder_cell(project: Project, root: Path, **values: Any) -> Cell:
    dataset = {"source": "imagefolder", "root": str(root), "reserve": 0.5, **values}
    (project / "mine.yaml").write_text(json.dumps({"datasets": {"digits": dataset}}))
    return project.plan("mine.yaml").cell(tiny_cell(defense="none"))


def test_the_classes_of_a_folder_are_counted_when_planning(tiny, tmp_path):
    root = folder_of_images(tmp_path / "images")
    folder_cell(tiny, root)
    tiny.set("config/attacks/badnet.yaml", "values", "target", to=2)
    with pytest.raises(DepoisonError, match="target label 2 is none of the dataset's; valid: 0 to 1"):
        folder_cell(tiny, root)
    with pytest.raises(DepoisonError, match="nc/s0.json: NC needs 3 classes, and Digits has 2$"):
        tiny.plan("mine.yaml").cell(tiny_cell(defense="nc"))
    shutil.rmtree(root / "train/b")
    with pytest.raises(DepoisonError, match=f"{root}: dataset digits has 1 class; valid: at least 2"):
        folder_cell(tiny, root)


def test_a_folder_that_is_not_there_is_refused_when_planning(tiny, tmp_path):
    folder_cell(tiny, tmp_path / "nowhere")
    done = tiny.snakemake("-n", "--configfile", "mine.yaml", "--", tiny_cell(defense="none"))
    refused(done, f"{tmp_path}/nowhere: no such folder", "root of dataset digits", "train/<class>")
    refused(
        tiny.depoison("run", "--configfile", "mine.yaml", tiny_cell(defense="none")),
        f"{tmp_path}/nowhere: no such folder",
    )


@pytest.fixture
def read_folder(tiny, tmp_path, monkeypatch) -> tuple[Path, Callable[[], Plan]]:
    """A folder of images that was read, and what plans a cell of it."""
    monkeypatch.chdir(tiny.path)
    root = folder_of_images(tmp_path / "images")
    for part in ("train", "test"):
        shutil.copytree(root / part / "a", root / part / "c")
    dataset = folder_cell(tiny, root).evaluation.upstream["dataset"]
    run_stage(dataset.spec, dataset.directory, Runtime(), str(root))

    def planned() -> Plan:
        plan = tiny.plan("mine.yaml")
        plan.cell(tiny_cell(defense="none"))
        plan.require_unchanged()
        return plan

    return root, planned


def moved_away(root: Path) -> None:
    (root / "train/b").rename(root.parent / "away")


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "class moved": ("train/b", moved_away),
    "image moved": ("test/a", lambda root: (root / "test/a/1.png").unlink()),
    "image added": ("train/a", lambda root: (root / "train/a/new.png").write_bytes(b"x")),
    "image renamed": ("train/a", lambda root: (root / "train/a/1.png").rename(root / "train/a/9.png")),
    "time": ("train/a", lambda root: os.utime(root / "train/a/1.png", (1, 1))),
    "class added": ("train/d", lambda root: (root / "train/d").mkdir()),
}


@pytest.mark.parametrize(("where", "change"), CHANGES.values(), ids=list(CHANGES))
def test_a_folder_that_changed_after_it_was_read_is_noticed(where, change, read_folder):
    root, planned = read_folder
    assert not planned().notes
    change(root)
    with pytest.raises(DepoisonError, match=f"{root}/{where}: changed since results/dataset/digits-[0-9a-f]*") as error:
        planned()
    assert "\n" not in str(error.value) and "`checksum`" in str(error.value)
    (listing,) = Path("results/dataset").glob("*/listing.json")
    assert str(listing) in str(error.value)
    listing.unlink()
    planned()


def test_what_was_put_back_is_no_change(read_folder):
    root, planned = read_folder
    moved_away(root)
    (root.parent / "away").rename(root / "train/b")
    planned()


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_a_listing_that_is_none_is_named(text, read_folder):
    _, planned = read_folder
    (listing,) = Path("results/dataset").glob("*/listing.json")
    listing.write_text(text)
    with pytest.raises(DepoisonError, match=f"{listing}: corrupted .*delete it"):
        planned()
    listing.unlink()
    planned()


def test_a_folder_that_is_gone_is_told(read_folder):
    root, planned = read_folder
    shutil.rmtree(root)
    (note,) = planned().notes.values()
    assert re.fullmatch(
        rf"{root}: not there any more; dataset digits is what was read from it on 20\d\d-\d\d-\d\d", note
    )


def test_a_changed_folder_stops_every_run(read_folder, tiny):
    root, _ = read_folder
    moved_away(root)
    for done in (
        tiny.depoison("run", "--configfile", "mine.yaml", tiny_cell(defense="none")),
        tiny.snakemake("-n", "--configfile", "mine.yaml", "--", tiny_cell(defense="none")),
    ):
        refused(done, f"{root}/train/b: changed since")


def test_a_folder_that_is_known_by_its_content_may_change(read_folder, tiny):
    root, planned = read_folder
    (run_json,) = Path("results/dataset").glob("*/run.json")
    dataset = folder_cell(tiny, root, checksum=json.loads(run_json.read_text())["checksum"]).evaluation.upstream[
        "dataset"
    ]
    run_stage(dataset.spec, dataset.directory, Runtime(), str(root))
    assert not Path(dataset.directory, "listing.json").exists()
    os.utime(root / "train/a/1.png", (1, 1))
    planned()


def test_any_dataset_may_be_a_folder_of_images(tiny, tmp_path):
    """A local copy of a standard set (config/config.yaml shows one), whatever options its own source takes."""
    root = folder_of_images(tmp_path / "images")
    overlay = {"datasets": {"gtsrb": {"source": "imagefolder", "root": str(root), "reserve": 0.5, "size": 8}}}
    done = run(tiny, tiny_cell(dataset="gtsrb", defense="none"), overlay=overlay)
    assert done.returncode == 0, done.stderr


def test_a_checksum_that_is_not_the_images(tiny):
    done = run(tiny, tiny_cell(), overlay={"datasets": {"digits": {"checksum": "0" * 64}}})
    refused(done, "dataset digits", "checksum", "configured is 000", progress=True)
    assert not list(tiny.path.glob("results/*/*"))


@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_json_has_no_nan(number, tmp_path):
    with pytest.raises(DepoisonError, match=re.escape(f"{tmp_path}/x.json: a.1.b is NaN or infinite")):
        write_json(tmp_path / "x.json", {"a": [1.0, {"b": number}]})
    assert not list(tmp_path.iterdir())


def test_a_training_that_diverged_is_told_and_counts_as_a_failure(made):
    """Its file is JSON, and nobody reads an ASR of 100% into a class 0 that argmax finds among numbers that are none."""
    asked = tiny_cell(attack="badnet+rate=0.1+lr=1e30")
    done = run(made, asked)
    assert done.returncode == 0, done.stderr
    assert "the loss is nan: it diverged" in done.stderr and "test images are no numbers" in done.stderr
    found = json.loads((made / asked).read_text(), parse_constant=pytest.fail)
    assert found["diverged"] and (found["metrics"]["c_acc"], found["metrics"]["asr"]) == (0.0, 0.0)
    of_both = made.path.glob("results/evaluate/*badnet-0.1*-lp-*/metrics.json")
    assert sorted(json.loads(path.read_text())["diverged"] for path in of_both) == [False, True]


@pytest.mark.parametrize(("ratio", "count", "told"), [(0.1, 10, 0), (0.03, 3, 1), (0.02, 2, 1)])
def test_a_tuning_set_with_fewer_images_than_classes_is_told(ratio, count, told):
    job = Job({"parameters": {"tuning_ratio": ratio}}, Path(), Path(), Runtime())
    assert tuning_images(job, 100, 10) == count
    assert job.facts.get("warnings", []) == told * [
        f"tuning_ratio {ratio:g} of 100 images: {count} to tune on, fewer than the 10 classes"
    ]


def test_a_tuning_set_of_one_image_is_refused():
    job = Job({"parameters": {"tuning_ratio": 0.01}}, Path(), Path(), Runtime())
    with pytest.raises(DepoisonError, match=r"tuning_ratio 0.01 of 100 images: 1 to tune on; the minimum is 0.02"):
        tuning_images(job, 100, 10)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("pattern", "damage", "asked"),
    [
        ("dataset/*/data.safetensors", flip_a_byte, tiny_cell(attack="badnet+rate=0.2")),
        (
            "train/*badnet*/model.safetensors",
            lambda path: path.write_bytes(path.read_bytes()[:-1000]),
            tiny_cell(defense="lp+lr=0.1"),
        ),
        ("split/*/run.json", lambda path: path.write_text("{"), tiny_cell(attack="badnet+rate=0.2")),
        ("dataset/*/classes.json", lambda path: path.write_text("["), tiny_cell(attack="badnet+rate=0.2")),
        ("train/*badnet*/spec.json", lambda path: path.write_text("{}"), tiny_cell(defense="lp+lr=0.1")),
    ],
    ids=["flipped byte", "truncated", "run.json", "classes.json", "spec.json"],
)
def test_a_corrupted_artifact_is_named(pattern, damage, asked, made):
    (path,) = made.path.glob(f"results/{pattern}")
    damage(path)
    before = made.checksums("results/**/*")
    refused(run(made, asked), str(path.relative_to(made.path)), "delete", progress=True)
    assert made.checksums("results/**/*") == before


def test_a_missing_upstream_artifact_is_named(made):
    plan = made.plan()
    found = plan.cell(tiny_cell(defense="lp+lr=0.1")).evaluation.upstream["model"]
    missing = found.upstream["split"]
    (made / missing.product).unlink()
    refused(made.depoison("stage", canonical(found.spec), "--output", found.directory), f"{missing.directory}: missing")
    refused(
        made.depoison("stage", canonical(found.spec), "--output", missing.directory), "another spec", found.directory
    )
    refused(made.depoison("report", tiny_cell(defense="lp+lr=0.1")), "metrics.json: missing")


@pytest.mark.parametrize("devices", ["", "-1"])
def test_a_gpu_where_there_is_none(devices, made):
    done = run(made, tiny_cell(defense="lp+lr=0.1"), overlay={"runtime": {"device": "cuda"}}, DEPOISON_DEVICES=devices)
    refused(done, "1 GPU", "runtime.device", "cpu", progress=True)


def test_more_gpus_than_there_are(made):
    arguments = ("--resources", "gpu=2", "--cores", "1", "--quiet", "all", "--", tiny_cell(defense="lp+lr=0.1"))
    done = made.snakemake(*arguments, DEPOISON_DEVICES="0")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "depoison: error: --resources gpu=2: this machine has 1 GPU" in done.stderr
    assert "at most 1" in done.stderr


FULL = """
import resource, sys
from depoison.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 1024, 100 * 1024))
sys.exit(main(["run", sys.argv[1]]))
"""


def test_a_disk_that_is_full(tiny):
    (tiny / "full.py").write_text(FULL)  # no file above 100 KiB
    done = tiny.python("full.py", tiny_cell())
    refused(done, "results/dataset/", "nothing finished is lost", progress=True)
    assert not list(tiny.path.glob("results/*/*"))


def test_a_place_that_cannot_be_written(made):
    shutil.rmtree(made / "results/purify")
    (made / "results/purify").write_text("a file where a folder should be")
    refused(run(made, tiny_cell(defense="lp+lr=0.1")), "results/purify", progress=True)


READ_ONLY = """
mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" || exit 77
python -m depoison verify && python -m depoison explain {cell} > /dev/null || exit 1
for command in "report reports/tiny/small.md" "report reports/tiny/index.html" "report {cell}" "run {other}" "lock" \
    "verify reports/tiny/small.md --recompute 1" "report reports/tiny/claims.md"; do
  python -m depoison $command > /dev/null 2> $TMPDIR/told && exit 1
  tail -n 1 $TMPDIR/told; grep Traceback $TMPDIR/told
done
"""


@pytest.mark.drill
def test_a_checkout_that_is_read_only(made, tmp_path):
    """What only reads works, and what writes says in a line what cannot be written."""
    script = READ_ONLY.format(cell=tiny_cell(), other=tiny_cell(defense="lp+lr=0.1"))
    done = made.run("unshare", "--map-root-user", "--mount", "bash", "-c", script, TMPDIR=str(tmp_path))
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 1 and not done.stderr, done.stderr  # of the last grep
    first, *lines = done.stdout.splitlines()
    assert first.endswith("no faults") and len(lines) == 7
    assert all(line.startswith("depoison: error: ") and "Read-only file system" in line for line in lines), lines


@pytest.mark.drill
def test_a_file_that_is_larger_than_memory_is_named(made):
    path = next(made.path.glob("results/evaluate/*badnet*-lp-*/metrics.json")).relative_to(made.path)
    script = f"truncate -s 2G {path}; ulimit -v 2000000; python -m depoison report reports/tiny/small.md"
    refused(made.run("bash", "-c", script), f"{path}: larger than the memory that this process may use")


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\n{}\n", *seldom("[]"), '{"stage train": 3}', "[" * 100_000])
def test_a_lock_that_is_none_is_named_and_written_anew(text, project, monkeypatch, capsys):
    """Such as one in which two branches met."""
    monkeypatch.chdir(project.path)
    lock = project / "workflow/depoison.lock.json"
    before = lock.read_text()
    lock.write_text(text)
    with pytest.raises(DepoisonError, match="depoison.lock.json: "):
        stale(project.path)
    if text == "[]":  # which takes a while
        assert main(["check"]) == 1 and "depoison.lock.json: " in capsys.readouterr().err
    assert main(["lock"]) == 0 and lock.read_text() == before


def test_any_other_want_of_memory_is_a_line(untouched, monkeypatch, capsys):
    monkeypatch.chdir(untouched.path)
    monkeypatch.setattr("depoison.papers.check.check", lambda plan: bytearray(2**62))
    assert main(["check"]) == 1
    assert re.fullmatch(r"depoison: error: out of memory \(\S*test_errors\.py, line \d+\)\n", capsys.readouterr().err)


# --- through Snakemake -------------------------------------------------------------------------------------------


REFUSED = {
    "defense": (None, cell(defense="fts"), ("unknown defense 'fts'; did you mean", "fst")),
    "table": (None, "reports/table99.md", ("unknown table of fst 'table99'", "table2")),
    "artifact": (
        None,
        "results/train/x-0123456789/model.safetensors",
        ("results/train/x-0123456789", "ask for a cell"),
    ),
    "dead key": (FILES["dead key"][0], "reports/table2.md", ("'beta' is dead", f"{FST}:")),
}
SELDOM = {
    "cell": (None, "results/cells/digits/s0.json", ("results/cells/{track}",)),
    "track": (None, "reports/digit/table2.md", ("did you mean 'digits'?",)),
    "section": (FILES["unknown section"][0], "reports/table2.md", (CONFIG, "'tunning'")),
    "YAML": (FILES["YAML"][0], "reports/table2.md", (f"{FST}:3: not valid YAML",)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*REFUSED, *seldom(*SELDOM)])
def test_snakemake_refuses_with_the_same_line(name, project):
    change, target, words = (REFUSED | SELDOM)[name]
    if change:
        change(project)
    refused(project.snakemake("-n", target), *words)


@pytest.mark.parametrize("command", [["list", "attacks"], *seldom(["lock"]), ["new", "dataset", "--help"]])
def test_output_that_nobody_reads_to_its_end_is_no_error(project: Project, command: list[str]) -> None:
    done = subprocess.Popen(
        [sys.executable, "-m", "depoison", *command], cwd=project.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert done.stdout is not None and done.stderr is not None
    done.stdout.close()
    assert (done.stderr.read(), done.wait()) == (b"", 0)
