"""A paper by YAML and CSV alone: what stands on its tables' axes, which printed number belongs where, and metrics."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import ROOT, Project, lean, lines_of, put_recorded, with_weight
from depoison.errors import DepoisonError
from depoison.papers.published import read_published
from depoison.papers.tables import Table, read_table
from depoison.plan.metrics import metrics_of
from depoison.reports.claims import claims_of
from depoison.reports.tables import render

PAPER = "config/papers/made"
NONE, FT = {"label": "None", "defense": "none"}, {"label": "FT", "defense": "ft"}
BADNETS = [
    {"label": "BadNets-A2O", "attack": "badnet+rate=0.1+labels=all-to-one"},
    {"label": "BadNets-A2A", "attack": "badnet+rate=0.1+labels=all-to-all"},
]
"""Two label maps of one attack at one rate."""
ALPHAS = {"label": "FST", "defense": "fst", "each": {"defense": "alpha", "values": [0.1, 0.2], "label": "α"}}


def paper(
    project: Project, *printed: str, rows: Any, columns: Any, show: Any = ("asr",), at: str = "columns", **more: Any
) -> None:
    """Its one table.

    Args:
        printed: lines of its CSV, without dataset and model.
        show, at: its metrics, and whether these stand in columns or in rows.
    """
    folder = project / PAPER
    folder.mkdir(parents=True, exist_ok=True)
    table = {
        "title": "Made", "caption": "Made up", "dataset": "cifar10", "model": "resnet18", "published": "table1.csv",
        "axes": {"rows": rows, "columns": columns}, "metrics": {"in": at, "show": list(show)},
    }  # fmt: skip
    (folder / "table1.yaml").write_text(yaml.safe_dump(table | more, allow_unicode=True))
    lines = ["dataset,model,attack,defense,metric,value", *(f"cifar10,resnet18,{line}" for line in printed)]
    (folder / "table1.csv").write_text("\n".join(lines) + "\n")


def read(project: Project, track: str = "tiny/") -> Table:
    return read_table(project.plan(), f"reports/{track}made/table1")


def measure(table: Table, numbers: Any, **record: Any) -> None:
    """Args: numbers: from a place to its metrics; record: how long a purification took."""
    for place in table.places.values():
        for cell in place.cells:
            evaluation = {"metrics": numbers(place), "model": {"sha256": {}, **record}}
            put_recorded(cell.evaluation.product, evaluation)


def shown(table: Table, kind: str) -> list[list[Any]]:
    """An attribute of each number, line by line."""
    return [[getattr(number, kind) for number in line.numbers] for line in lines_of(table)]


@pytest.fixture
def here(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tiny.path)
    return tiny


# --- places ------------------------------------------------------------------------------------------------------


def test_label_maps_and_hyper_parameters_have_printed_numbers_of_their_own(here):
    paper(
        here, "badnet+labels=all-to-one+rate=0.1,none,asr,99", "badnet+rate=0.1+labels=all-to-all,none,asr,88",
        "badnet+labels=all-to-one+rate=0.10,fst+alpha=0.1,asr,1.5", "badnet+labels=all-to-one+rate=0.1,fst+alpha=0.2,asr,2.5",
        "badnet+labels=all-to-all+rate=0.1,fst+alpha=0.2,asr,3.5", rows=BADNETS, columns=[NONE, ALPHAS],
    )  # fmt: skip
    table = read(here)
    assert shown(table, "published") == [[99, 1.5, 2.5], [88, None, 3.5]]
    labels = {place.cells[0].settings["attack"]["labels"][-1].value for place in table.places.values()}
    assert labels == {"all-to-one", "all-to-all"} and len(table.evaluations()) == 6
    measure(table, lambda place: {"c_acc": 90.0, "asr": {"none": 90.0}.get(place.defense.name, 5.0)})
    files = render(here.plan(), table)
    assert "| Attack |  | None ASR | FST 0.1 ASR | FST 0.2 ASR |" in files[".md"]
    assert (
        "| BadNets-A2A |  | 90.00<br><sub>88.00 (+2.00)</sub> | **5.00** | **5.00**<br><sub>3.50 (+1.50)</sub> |"
        in files[".md"]
    )
    lines = [line for line in csv.DictReader(files[".csv"].splitlines()) if line["published"]]
    assert [(line["row"], line["column"], line["published"]) for line in lines] == [
        ("BadNets-A2O", "None", "99.0"), ("BadNets-A2O", "FST 0.1", "1.5"), ("BadNets-A2O", "FST 0.2", "2.5"),
        ("BadNets-A2A", "None", "88.0"), ("BadNets-A2A", "FST 0.2", "3.5"),
    ]  # fmt: skip


def test_metrics_in_rows_are_not_named_again_above_a_wide_table(here):
    wide = [{"label": f"FT {rate}", "defense": f"ft+lr={rate}"} for rate in (0.1, 0.2, 0.3, 0.4, 0.5)]
    paper(here, "badnet,ft+lr=0.1,asr,70.5", rows=[{"attack": "badnet"}], columns=wide, at="rows", show=("asr",))
    assert "ResNet-18. In percent. Each cell: ours and below it" in render(here.plan(), read(here))[".md"]


def test_metrics_may_stand_in_rows(here):
    rows = [{"label": name, "attack": name, "rates": [0.1]} for name in ("badnet", "blended")]
    paper(
        here, "badnet+rate=0.1,ft,der,70.5", "average,ft,c-acc,92", rows=rows, columns=[NONE, FT], at="rows",
        show=("c-acc", "asr", "der"), summary=["average"],
    )  # fmt: skip
    table = read(here)
    values = {("badnet", "none"): (95, 99, None), ("badnet", "ft"): (94, 9, 90), ("blended", "none"): (93, 97, None),
              ("blended", "ft"): (92, 1, 80)}  # fmt: skip
    of = {key: dict(zip(("c_acc", "asr", "der"), found, strict=True)) for key, found in values.items()}
    measure(table, lambda place: of[place.attack.name, place.defense.name])
    assert [(line.label, line.value) for line in lines_of(table)] == [
        *((name, f"10%, {metric}") for name in ("badnet", "blended") for metric in ("C-Acc", "ASR", "DER")),
        ("Average", "C-Acc"), ("Average", "ASR"), ("Average", "DER"), ("Average, as printed", "C-Acc"),
    ]  # fmt: skip
    assert shown(table, "ours") == [
        [95, 94], [99, 9], [None, 90], [93, 92], [97, 1], [None, 80], [94, 93], [98, 5], [None, 85], [None, None],
    ]  # fmt: skip
    assert shown(table, "published")[2] == [None, 70.5] and shown(table, "published")[-1] == [None, 92]
    text = render(here.plan(), table)[".md"]
    assert "| Attack | Rate, Metric | None | FT |" in text and "Higher C-Acc and DER and lower ASR are better" in text


def test_rows_may_be_datasets_models_and_sizes_of_the_tuning_set(here):
    attack = {"label": "BadNet", "attack": "badnet+rate=0.1", "defense": "ft"}
    sizes = {"label": "Tuning set", "each": {"defense": "tuning_ratio", "values": [0.01, 0.02], "percent": True}}
    rows = [{"dataset": "gtsrb"}, {"model": "vgg19-bn"}, sizes]
    paper(here, "badnet+rate=0.1,ft+tuning_ratio=0.02,asr,7", rows=rows, columns=[attack], summary=["average"])
    table = read(here, "")
    assert [tuple(place.key) for place in table.places.values()] == [
        ("gtsrb", "resnet18", "badnet+rate=0.1", "ft"), ("cifar10", "vgg19-bn", "badnet+rate=0.1", "ft"),
        ("cifar10", "resnet18", "badnet+rate=0.1", "ft+tuning_ratio=0.01"),
        ("cifar10", "resnet18", "badnet+rate=0.1", "ft+tuning_ratio=0.02"),
    ]  # fmt: skip
    measure(table, lambda place: {"c_acc": 90.0, "asr": {"gtsrb": 1.0}.get(place.dataset, 3.0)})
    text = render(here.plan(), table)[".md"]
    assert "| Dataset, model, defense | tuning\\_ratio | BadNet ASR |" in text
    assert "| GTSRB |  | 1.00 |" in text and "| VGG19-BN |  | 3.00 |" in text
    assert "| Tuning set | 2% | 3.00<br><sub>7.00 (−4.00)</sub> |" in text and "| Average |  | 2.50 |" in text


def test_a_tuning_set_larger_than_the_track_s_dataset_reserves_is_a_gap(here):
    sizes = {"defense": "ft", "each": {"defense": "tuning_images", "values": [10, 144, 145], "label": "Images"}}
    paper(here, "badnet+rate=0.1,ft+tuning_images=145,asr,7", rows=[sizes], columns=[{"attack": "badnet+rate=0.1"}])
    places = read(here).places.values()
    assert [place.gap for place in places] == ["", "", "145 images are more than the 144 of Digits that are reserved"]
    for count, place in zip((10, 144), places, strict=False):
        parameters = place.cells[0].evaluation.upstream["model"].spec["parameters"]
        assert parameters["tuning_images"] == count and "tuning_ratio" not in parameters
    assert not any(place.gap for place in read(here, "").places.values())  # CIFAR-10 has more


def test_a_time_stands_beside_success_rates(here):
    time = {"label": "Time", "defense": "ft", "metric": "seconds"}
    rows = [{"label": "BadNet", "attack": "badnet", "rates": [0.1]}]
    paper(here, "badnet+rate=0.1,ft,seconds,61.5", rows=rows, columns=[NONE, FT, time])
    table = read(here)
    measure(table, lambda place: {"c_acc": 90.0, "asr": 90.0}, seconds=30.25)
    assert shown(table, "ours") == [[90, 90, 30.25]] and shown(table, "published") == [[None, None, 61.5]]
    files = render(here.plan(), table)
    assert "FT ASR | Time Time (s) |" in files[".md"] and "30.25<br><sub>61.50 (−31.25)</sub>" in files[".md"]
    assert "In percent where no other unit is named. " in files[".md"] and "Time (s)" in files[".tex"]


def test_a_model_without_a_defense_took_no_time(here):
    rows = [{"label": "BadNet", "attack": "badnet", "rates": [0.1]}]
    paper(here, rows=rows, columns=[NONE, FT], show=("seconds", "memory", "tuned-parameters"))
    table = read(here)
    measure(
        table, lambda place: {"c_acc": 90.0, "asr": 90.0}, seconds=2.0, peak_memory_bytes=3 * 2**20, tuned_parameters=12
    )
    assert shown(table, "ours") == [[None, None, None, 2.0, 3.0, 12]]
    assert "| 2.00 | 3 | 12 |" in render(here.plan(), table)[".md"]


def test_the_average_drop_is_that_of_each_row_below_no_defense(here):
    rows = [{"label": name, "attack": name, "rates": [0.1]} for name in ("badnet", "blended")]
    paper(
        here, "badnet+rate=0.1,none,c-acc,95", "badnet+rate=0.1,ft,c-acc,93", "blended+rate=0.1,none,c-acc,94",
        "blended+rate=0.1,ft,c-acc,93", "drop-from-none,ft,c-acc,1.6", rows=rows, columns=[NONE, FT],
        show=("c-acc", "asr"), summary=["average", {"drop-from": "none"}],
    )  # fmt: skip
    table = read(here)
    values = {
        ("badnet", "none"): (95, 100),
        ("badnet", "ft"): (94, 20),
        ("blended", "none"): (92, 90),
        ("blended", "ft"): (90, 50),
    }
    measure(
        table,
        lambda place: dict(
            zip(("c_acc", "asr"), map(float, values[place.attack.name, place.defense.name]), strict=True)
        ),
    )
    lines = {line.label: line for line in lines_of(table)}
    assert [number.ours for number in lines["Average drop"].numbers] == [None, None, 1.5, 60]
    assert (
        lines["Average drop"].numbers[2].published == 1.5
        and lines["Average drop, as printed"].numbers[2].published == 1.6
    )
    assert not any(number.best for number in lines["Average drop"].numbers)


def test_a_row_without_an_attack(here):
    rows = [{"label": "Benign", "attack": "none"}, {"label": "BadNet", "attack": "badnet", "rates": [0.1]}]
    paper(here, "none,ft,c-acc,94.5", rows=rows, columns=[NONE, FT], show=("c-acc", "asr"), summary=["average"])
    table = read(here)
    measure(table, lambda place: {"c_acc": 95.0, "asr": None if place.attack.name == "none" else 99.0})
    text = render(here.plan(), table)[".md"]
    assert "| Benign |  | 95.00 | – | 95.00<br><sub>94.50 (+0.50)</sub> | – |" in text
    assert "| Average<sup>*</sup> | 1 of 2 rows | 95.00 | 99.00 |" in text and "did not take" not in text


def test_defenses_may_stand_in_rows(here):
    """Then the best is sought in a column."""
    rows = [NONE, FT, {"label": "LP", "defense": "lp"}]
    paper(
        here,
        rows=rows,
        columns=[{"label": "BadNet", "attack": "badnet+rate=0.1"}, {"label": "Blended", "attack": "blended+rate=0.1"}],
    )
    table = read(here)
    values = {"none": (99.0, 98.0), "ft": (9.0, 4.0), "lp": (3.0, 50.0)}
    measure(table, lambda place: {"c_acc": 90.0, "asr": values[place.defense.name][place.attack.name == "blended"]})
    assert shown(table, "best") == [[False, False], [False, True], [True, False]]


# --- metrics -----------------------------------------------------------------------------------------------------


@pytest.mark.drill
def test_a_probe_of_a_projects_own_is_made_and_shown_beside_success_rates(made, monkeypatch):
    before = [cell.evaluation.directory for cell in read_table(made.plan(), "reports/tiny/small").cells()]
    with_weight(made)
    after = [cell.evaluation.directory for cell in read_table(made.plan(), "reports/tiny/small").cells()]
    assert before == after  # a probe moves no evaluation
    weights = [
        {"label": name, "defense": defense, "metric": "largest-weight"}
        for name, defense in (("None", "none"), ("LP", "lp"))
    ]
    rows = [{"label": "BadNet", "attack": "badnet", "rates": [0.1]}]
    paper(
        made, "badnet+rate=0.1,lp,largest-weight,3.25", rows=rows, columns=[{"label": "LP", "defense": "lp"}, *weights]
    )
    monkeypatch.chdir(made.path)
    table = read(made)
    assert len(table.missing()) == 2 and len(table.products()) == 4
    done = made.depoison("run", "reports/tiny/made/table1.md")
    assert done.returncode == 0 and "[2/2]" in done.stderr, done.stderr
    (none, lp), metric = (list(table.places.values())[1:], made.plan().metrics["largest-weight"])
    values = [json.loads(Path(place.source(0, metric).product).read_text())["value"] for place in (none, lp)]
    assert values[0] != values[1] and shown(read(made), "ours")[0][1:] == values
    text = (made / "reports/tiny/made/table1.md").read_text(encoding="utf-8")
    assert f"| {values[0]:.1f} | {values[1]:.1f}<br><sub>3.2 (" in text.replace("*", "")  # in italics: it did not take
    assert lean(made).depoison("check").returncode == 0
    made.set("config/metrics/largest-weight.yaml", "parameters", "power", to=3)
    assert len(read(made).missing()) == 2


def test_a_probe_through_snakemake(made):
    with_weight(made)
    rows = [{"label": "BadNet", "attack": "badnet", "rates": [0.1]}]
    paper(made, rows=rows, columns=[{"label": "LP", "defense": "lp"}], show=("asr", "largest-weight"))
    done = made.snakemake("-n", "--", "reports/tiny/made/table1.md")
    assert done.returncode == 0 and re.search(r"^probe +1$", done.stdout + done.stderr, re.MULTILINE), done.stderr


def test_a_claim_may_be_of_any_metric_that_is_there(here):
    rows = [{"label": "BadNet", "attack": "badnet", "rates": [0.1]}]
    paper(here, "badnet+rate=0.1,ft,seconds,61.5", rows=rows, columns=[NONE, FT], show=("asr", "seconds"))
    claim = {"says": "It is fast", "where": "here", "over": {"table": "table1", "columns": "ft"}, "of": "seconds",
             "statistic": "max", "is": "< 60"}  # fmt: skip
    (here / PAPER / "claims.yaml").write_text(yaml.safe_dump({"claims": {"fast": claim}}))
    measure(read(here), lambda place: {"c_acc": 90.0, "asr": 90.0}, seconds=30.0)
    (found,) = claims_of(here.plan(), "tiny", "made")
    assert (found.ours.state, found.ours.value, found.published.state) == ("holds", 30.0, "does not hold")
    assert found.rule == "max of Time < 60"


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "key": ({"lable": "x"}, "unknown key 'lable'; did you mean 'label'?"),
    "better": ({"better": "more"}, "better: input should be 'higher', 'lower' or 'none'"),
    "unit": ({"from": "evaluate", "parameters": {}}, "what is from evaluate is in percent"),
    "parameters": (
        {"from": "record", "parameters": {"a": 1}},
        "only what is from a probe or an embedding has parameters",
    ),
    "dead": (
        {"parameters": {"powr": 2}},
        "'powr' is dead: workflow/depoison/metrics/largest_weight.py does not take it",
    ),
    "took": ({"took": 3}, "asr says whether an attack took, too"),
    "right": ({"no-rescue": {"right": "lrc", "clean": "c-acc", "by": 3}}, "unknown metric 'lrc'; did you mean 'lcr'?"),
    "clean": (
        {"no-rescue": {"right": "lcr", "clean": "seconds", "by": 3}},
        "no-rescue.clean: seconds is not from evaluate",
    ),
}


@pytest.mark.parametrize(("changes", "told"), FAULTS.values(), ids=list(FAULTS))
def test_a_metrics_file_with_a_fault(changes, told, project):
    with_weight(project).edit("config/metrics/largest-weight.yaml", lambda data: data.update(changes))
    with pytest.raises(DepoisonError, match=re.escape(told)) as caught:
        metrics_of(project.path)
    assert str(caught.value).startswith("config/metrics/largest-weight.yaml") and "\n" not in str(caught.value)


def test_a_metric_without_code_is_refused(project):
    with_weight(project)
    (project / "workflow/depoison/metrics/largest_weight.py").unlink()
    with pytest.raises(
        DepoisonError, match=r"metrics/largest_weight\.py: missing; a method is one YAML file and one file of code"
    ):
        metrics_of(project.path)


def test_a_metric_is_a_file_of_code_and_a_yaml_and_knows_no_other():
    code = {
        file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "workflow/depoison/metrics").glob("[!_]*.py")
    }
    assert {metric.key for metric in metrics_of(ROOT).values()} == set(code)
    imports = {line.strip() for text in code.values() for line in text.splitlines() if "import" in line}
    assert not [line for line in imports if "metrics" in line or line.startswith("from .")]


NAMES = (
    "c_acc",
    "c-acc",
    "asr",
    "lcr",
    "der",
    "tuned_parameters",
    "tuned-parameters",
    "mixing",
    "C-Acc",
    "ASR",
    "LCR",
    "DER",
)
"""Keys, names and labels; `seconds` and `memory` are words of other things, too."""
FREE = (
    "plan",
    "papers",
    "reports",
    "artifacts.py",
    "cli.py",
    "running/verify.py",
    "running/share.py",
    "running/lookup.py",
    "running/board.py",
    "stages/evaluate.py",
    "stages/history.py",
    "stages/measure.py",
    "stages/probe.py",
    "stages/train.py",
)
"""Where no metric is named: of the rest, an attack may measure its own network, and an oracle's choice is by two."""


def test_no_report_names_a_metric():
    package = ROOT / "workflow/depoison"
    files = [file for part in FREE for file in [package / part, *(package / part).rglob("*")] if file.is_file()]
    pattern = re.compile(rf"(?<![\w-])({'|'.join(NAMES)})(?![\w-])")
    found = {
        f"{file.relative_to(package)}: {match[0]}"
        for file in files
        if file.suffix in (".py", ".jinja", ".js", ".css")
        for match in pattern.finditer(file.read_text(encoding="utf-8"))
    }
    assert len(files) > 50 and not found


# --- printed numbers ---------------------------------------------------------------------------------------------

BEFORE = "492c38e"
"""The last commit with a column for each metric."""
CHECKSUM = "da7e7ea4b011aeaa241ef41bf02b436f692ed8b43b36719578ac51c6a1460d98"
"""Of the 2,062 numbers of FST as they were transcribed then."""


def printed_now() -> list[str]:
    """Every number of FST's eleven tables: table, dataset, model, attack, rate, variant, defense, metric and text."""
    found = []
    for number in range(1, 12):
        file = ROOT / f"config/papers/fst/published/table{number}.csv"
        for (key, metric), text in read_published(file, ROOT, metrics_of(ROOT)).printed.items():
            attack, *values = key.attack.split("+")
            by_key = dict(value.split("=") for value in values)
            rate = by_key.pop("rate", "")
            variant = "".join(f"{name}={value}" for name, value in by_key.items())
            place = (
                key.dataset,
                key.model,
                attack,
                "" if variant else rate,
                variant,
                key.defense,
                metric.replace("-", "_"),
            )
            found.append(",".join([f"table{number}", *place, text]))
    return sorted(found)


def test_each_printed_number_is_the_one_that_was_transcribed():
    found = printed_now()
    assert len(found) == 2062
    assert hashlib.sha256("\n".join(found).encode()).hexdigest() == CHECKSUM


def test_the_checksum_is_of_the_old_files():
    """One by one, where git still has them."""
    found = []
    for number in range(1, 12):
        path = f"{BEFORE}:config/papers/fst/published/table{number}.csv"
        done = subprocess.run(["git", "-C", str(ROOT), "show", path], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"git has no {BEFORE} here")
        for line in csv.DictReader(done.stdout.splitlines()):
            place = [line[key] for key in ("dataset", "model", "attack", "rate", "variant", "defense")]
            found += [",".join([f"table{number}", *place, m, line[m]]) for m in ("c_acc", "asr") if line[m]]
    assert sorted(found) == printed_now()
