"""`depoison papers check`: what a paper prints that does not add up."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT, Project, long, printed_lines
from depoison.errors import DepoisonError
from depoison.papers.published import Key, Published, read_published
from depoison.papers.tables import read_table
from depoison.plan.metrics import metrics_of
from depoison.plan.plan import Plan
from depoison.reports.papers import errata, underived

METRICS = metrics_of(ROOT)


@pytest.fixture
def alone(tmp_path: Path) -> Project:
    """A project of which there are metrics and what a test puts there: the check of papers needs no more."""
    return Project(tmp_path / "project", parts=("config/metrics", "workflow/depoison/metrics"))


def paper(project: Project, *rows: str, table: str = "table1") -> None:
    folder = project / "config/papers/one/published"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table}.csv").write_text(long(*(f"cifar10,resnet18,{row}" for row in rows)))


def section(project: Project, title: str) -> list[str]:
    """What is told of the paper `one` below a title."""
    text = errata(project.path).split(f"## ONE: {title}\n\n")[1].split("\n\n## ")[0]
    return [line for line in text.strip().splitlines() if not line.startswith(("| table |", "|---"))]


SUMS = "averages and standard deviations"


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("average,,,lp,91.00,20.00", []),
        ("average,,,lp,91,20", []),
        ("average,,,lp,91.01,19.99", []),  # rounding may do that
        ("average,,,lp,91.02,20.00", ["| table1 | average | lp | C-Acc | 91.02 | 91.00 | 3 |"]),
        ("average,,,lp,,20.02", ["| table1 | average | lp | ASR | 20.02 | 20.00 | 3 |"]),
        ("standard-deviation,,,lp,1.00,10.00", []),  # of a sample
        ("standard-deviation,,,lp,0.82,8.16", []),  # of a population
        ("standard-deviation,,,lp,0.9,10.02", [
            "| table1 | standard deviation | lp | C-Acc | 0.9 | 0.82 | 3 |",
            "| table1 | standard deviation | lp | ASR | 10.02 | 10.00 | 3 |",
        ]),
    ],
)  # fmt: skip
def test_averages_and_deviations_are_recomputed(printed, told, alone):
    # Another defense's rows and the summaries themselves do not count.
    rows = ("badnet,0.1,,lp,90.00,10.00", "blended,0.1,,lp,91.00,20.00", "sig,0.1,,lp,92.00,30.00")
    paper(alone, *rows, "badnet,0.1,,ft,10.00,99.00", printed)
    assert section(alone, SUMS) == (told or ["None."])


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("drop-from-none,,,lp,3.50,70.00", []),
        ("drop-from-none,,,lp,3.52,69.99", ["| table1 | drop from none | lp | C-Acc | 3.52 | 3.50 | 2 |"]),
        ("drop-from-none,,,lp,3.515,70.02", ["| table1 | drop from none | lp | ASR | 70.02 | 70.00 | 2 |"]),
    ],
)
def test_average_drops_are_recomputed_over_the_rows_with_an_attack(printed, told, alone):
    """By hand: (5 + 2) / 2 and (90 + 50) / 2; a model without an attack and a row without a printed model do not count."""
    undefended = ("none,,,none,96.00,0", "badnet,0.1,,none,95.00,100", "sig,0.1,,none,94.00,80.00")
    defended = ("none,,,lp,80.00,0", "badnet,0.1,,lp,90.00,10.00", "sig,0.1,,lp,92.00,30.00", "blended,0.1,,lp,1,1")
    paper(alone, *undefended, *defended, printed)
    assert section(alone, SUMS) == (told or ["None."])


def test_tables_of_any_name_are_checked_in_their_order(alone):
    for name in ("table10", "table-mine", "table9", "table9b"):
        paper(alone, "badnet,0.05,,lp,92,10", "blended,0.05,,lp,90,30", "average,,,lp,95,20", table=name)
    told = [line.split(" | ")[0].removeprefix("| ") for line in section(alone, SUMS)]
    assert told == ["table9", "table9b", "table10", "table-mine"]


def test_a_cell_printed_differently_by_two_tables(alone):
    paper(alone, "badnet,0.1,,lp,90.00,10.0", "badnet,0.05,,lp,90.00,10.00")
    paper(alone, "badnet,0.1,,lp,90.0,11.00", "badnet,0.05,a=1,lp,1.00,1.00", table="table10")
    told = "- cifar10 resnet18 badnet+rate=0.1 lp, ASR: 10.0 in table1, 11.00 in table10"
    assert section(alone, "cells that two tables print differently") == [told]


def test_a_row_that_has_the_numbers_of_another(alone):
    same, other = ("lp,90.00,10.00", "ft,80.00,1.00"), ("lp,90.00,10.00", "ft,80.00,2.00")
    lines = [
        f"{attack},{numbers}"
        for attack, row in (("badnet,0.1,", same), ("sig,0.1,", other), ("badnet,0.05,", same))
        for numbers in row
    ]
    paper(alone, *lines)
    assert section(alone, "rows printed twice") == ["- table1: badnet+rate=0.05 has the numbers of badnet+rate=0.1"]


UNDERIVED, ALIKE = "numbers that do not follow from others", "different cells that two tables print alike"


@given(*[st.floats(0, 100).map(lambda value: round(value, 2))] * 4, st.integers(-4, 4))
def test_what_others_determine_is_told_where_they_do_not_give_it(c_acc, asr, c_acc_before, asr_before, off):
    """By hand: DER of exact numbers that round to the printed ones is within 0.01 of theirs, and printed to 0.005."""
    exact = (max(0, asr_before - asr) - max(0, c_acc_before - c_acc) + 100) / 2
    printed = round(exact + off / 200, 3)
    key = Key("cifar10", "resnet18", "badnet+rate=0.1", "lp")
    lines = {
        key: {"c-acc": str(c_acc), "asr": str(asr), "der": str(printed)},
        key._replace(defense="none"): {"c-acc": str(c_acc_before), "asr": str(asr_before)},
    }
    told = list(underived("table1", lines, METRICS))
    line = f"- table1: badnet+rate=0.1, lp: DER is printed as {printed}, recomputed {exact:.2f}"
    flat = asr_before < asr - 0.01 and c_acc_before < c_acc - 0.01  # nothing of either counts: exactly 50
    if abs(off) == 4 or (flat and abs(off) >= 2):
        assert told == [line]
    if abs(off) <= 1:
        assert not told


def test_nothing_is_said_of_what_cannot_be_recomputed(alone):
    """No undefended number, no number of a kind that is needed, and an average."""
    lines = ["badnet,0.1,,lp,90.00,10.00,1.00", "sig,0.1,,lp,90.00,,1.00", "average,,,lp,90.00,10.00,1.00"]
    paper(alone, *lines, "sig,0.1,,none,90.00,99.00", "average,,,none,90.00,99.00")
    assert section(alone, UNDERIVED) == ["None."]
    paper(alone, *lines, "badnet,0.1,,none,90.00,99.00")
    assert section(alone, UNDERIVED) == ["- table1: badnet+rate=0.1, lp: DER is printed as 1.00, recomputed 94.50"]


def test_cells_of_two_tables_that_are_the_same_in_every_number(alone):
    paper(
        alone, "badnet,0.1,,lp,90.00,10.0,80", "sig,0.1,,lp,90.00,100", "sig,0.05,,lp,80.00", "sig,0.01,,lp,70.00,7.00"
    )
    lines = ("badnet,0.05,,ft,90.0,10.00,70", "sig,0.02,,lp,90.00,100", "sig,0.03,,lp,80.00", "sig,0.01,,lp,70.00,7.00")
    paper(alone, *lines, table="table2")
    assert section(alone, ALIKE) == ["- table2 has of table1: badnet+rate=0.05 ft as badnet+rate=0.1 lp"]


def test_rows_of_single_numbers_that_stand_in_two_tables_under_two_names(alone):
    folder = alone / "config/papers/one/published"
    folder.mkdir(parents=True)

    def table(name: str, **rows: tuple[float, ...]) -> None:
        numbers = [
            f"cifar10,resnet18,{attack}+rate=0.1,{defense},lcr,{value}"
            for defense, values in rows.items()
            for attack, value in zip(("badnet", "sig", "wanet", "blended"), values, strict=False)
        ]
        (folder / f"{name}.csv").write_text("\n".join(["dataset,model,attack,defense,metric,value", *numbers, ""]))

    table("table1", none=(0, 0, 0, 0), lp=(84.7, 80.5, 53.35, 7.0), ft=(78.4, 77.1, 39.4, 8.0), fst=(1.0, 2.0))
    table("table2", fp=(84.70, 80.5, 53.35), ft=(78.4, 77.1, 39.4), nad=(1.0, 2.0), anp=(0, 0, 0))
    assert section(alone, ALIKE) == ["- table2 has of table1: fp as lp (LCR of 3 attacks)"]


SHARED = "## Cells that two papers print\n\n"


def test_what_two_papers_print_alike(alone):
    """Three cells make them of one work; of others nothing is told, and nothing of 0 and 100."""
    attacks = ("badnet", "sig", "wanet")
    ours = [f"{attack},0.1,,none,94.00,99.00" for attack in attacks] + ["none,,,none,100,0", "lf,0.1,,lp,87.00,3.00"]
    theirs = [*ours[:4], "ssba,0.1,,fst,87.0,3.0"]
    ours += [f"{attack},0.1,,lp,9{i}.00,9.00" for i, attack in enumerate(attacks)]
    theirs += [f"{attack},0.1,,lp,9{i}.0{i // 2},9" for i, attack in enumerate(attacks)]
    paper(alone, *ours)
    two = alone / "config/papers/two/published"
    two.mkdir(parents=True)
    (two / "table2.csv").write_text(long(*(f"cifar10,resnet18,{row}" for row in theirs)))
    assert errata(alone.path).split(SHARED)[1].splitlines() == [
        "- one and two, cells that are the same in every number that both print: none 4 of 4, lp 2 of 3. Unlike where most "
        "are alike: wanet+rate=0.1 lp, C-Acc: 92.00 and 92.01.",
        "- two table2 has of one table1: ssba+rate=0.1 fst as lf+rate=0.1 lp",
    ]
    paper(alone, *ours[:2], *ours[3:5])  # two alike, and one of 100 and 0
    assert errata(alone.path).split(SHARED)[1].splitlines() == ["None."]


# --- rows that the averages leave out ----------------------------------------------------------------------------

ATTACKS = ("badnet,0.1", "badnet,0.05", "sig,0.1", "sig,0.05")
VALUES = {"none": ((94, 100), (93.5, 98), (92, 97), (91, 60)), "lp": ((90, 9), (88, 31), (80, 2), (85, 77))}
LEFT_OUT = "rows that the averages leave out"
RISING = "an attack that is stronger where the poisoning rate falls"


def rows(labels: tuple[str, ...], values: dict[str, tuple[tuple[float, float], ...]]) -> list[str]:
    return [
        f"{label},,{defense},{c_acc},{asr}"
        for i, label in enumerate(labels)
        for defense, numbers in values.items()
        for c_acc, asr in [numbers[i]]
    ]


def averages(*names: str) -> list[str]:
    """The summaries of the four rows, by NumPy."""
    found = []
    for name in names:
        function = {"average": np.mean, "standard-deviation": lambda x, axis: np.std(x, axis, ddof=1)}[name]
        for defense, numbers in VALUES.items():
            c_acc, asr = function(np.array(numbers, dtype=float), axis=0)
            found.append(f"{name},,,{defense},{c_acc:.2f},{asr:.2f}")
    return found


SHIFTED = ("badnet,0.1", "badnet,0.05", "badnet,0.01", "sig,0.1", "sig,0.05")
"""The labels of a paper that prints one too many, so that its last row stands twice and others are shifted."""
TWICE = {defense: (*numbers, numbers[-1]) for defense, numbers in VALUES.items()}


def test_a_row_too_many_is_found(alone):
    paper(alone, *rows(SHIFTED, TWICE), *averages("average", "standard-deviation"))
    assert section(alone, LEFT_OUT) == [
        "- table1: without sig+rate=0.1 or sig+rate=0.05, 8 of 8 averages and standard deviations follow from the other "
        "rows; with both 0. Not corrected; the averages above are recomputed without it."
    ]
    assert section(alone, SUMS) == ["None."]  # it is not they that are wrong
    assert section(alone, "rows printed twice") == ["- table1: sig+rate=0.05 has the numbers of sig+rate=0.1"]


def test_a_row_too_many_need_not_be_a_repeated_one(alone):
    """The summaries are of the other four; one of them is misprinted, and stays in the list."""
    strange = {defense: ((10, 10), *numbers) for defense, numbers in VALUES.items()}
    printed = averages("average", "standard-deviation")
    printed[0] = printed[0].replace("92.62", "99.62").replace("92.63", "99.63")
    paper(alone, *rows(("blended,0.1", *ATTACKS), strange), *printed)
    (told,) = section(alone, LEFT_OUT)
    assert told.startswith("- table1: without blended+rate=0.1, 7 of 8 averages") and "with it 0." in told
    (line,) = section(alone, SUMS)
    assert re.fullmatch(r"\| table1 \| average \| none \| C-Acc \| 99.6\d \| 92.6\d \| 4 \|", line)


def test_of_an_undamaged_paper_nothing_is_told(alone):
    """Nor of one whose averages are wrong here and there, nor of one with too few to tell."""
    paper(alone, *rows(ATTACKS, VALUES), *averages("average", "standard-deviation"))
    titles = re.findall("## ONE: (.*)", errata(alone.path))
    assert len(titles) == 8 and all(section(alone, title) == ["None."] for title in titles)
    printed = averages("average", "standard-deviation")
    paper(alone, *rows(ATTACKS, VALUES), *[line.replace(",8", ",1") for line in printed])
    assert section(alone, LEFT_OUT) == ["None."] != section(alone, SUMS)
    paper(alone, *rows(SHIFTED, TWICE), averages("average")[0])  # two numbers, which some row may make by chance
    assert section(alone, LEFT_OUT) == ["None."]


def test_an_attack_that_is_stronger_at_a_lower_rate_is_told(alone):
    numbers = {"none": ((1, 50), (1, 60.0), (1, 90), (1, 20)), "lp": ((1, 10), (1, 90), (1, 10), (1, 90))}
    paper(alone, *rows(ATTACKS, numbers))
    assert section(alone, RISING) == ["None."]  # by ten points, and only without a defense
    numbers["none"] = ((1, 50), (1, 60.5), (1, 90), (1, 20))
    paper(alone, *rows(ATTACKS, numbers))
    assert section(alone, RISING) == ["- table1: badnet without a defense, 50.00 at 0.1 and 60.50 at 0.05"]


# --- corrections -------------------------------------------------------------------------------------------------

MOVES = [
    {"printed": {"attack": "badnet+rate=0.01"}, "belongs": {"attack": "sig+rate=0.1"}},
    {"printed": {"attack": "sig+rate=0.1"}, "belongs": {"attack": "sig+rate=0.05"}},
    {"printed": {"attack": "sig+rate=0.05"}, "belongs": None},
]
FILE = "config/papers/one/published/corrections/table1.yaml"


def correct(project: Project, moves: list[Any], table: str = "table1", **more: Any) -> None:
    path = project / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"evidence": "The averages.\nSay so.", "moves": moves, **more}, sort_keys=False)
    (path.parent / f"{table}.yaml").write_text(text)


def read(project: Project, table: str = "table1") -> Published:
    return read_published(project / f"config/papers/one/published/{table}.csv", project.path, METRICS)


def key(attack: str, rate: str, defense: str) -> Key:
    return Key("cifar10", "resnet18", f"{attack}+rate={rate}" if rate else attack, defense)


def test_a_correction_moves_rows_all_at_once(alone):
    paper(alone, *rows(SHIFTED, TWICE), *averages("average", "standard-deviation"))
    printed = (alone / "config/papers/one/published/table1.csv").read_bytes()
    correct(alone, MOVES)
    found = read(alone)
    expected = {
        (key(*label.split(","), defense), metric): float(number)
        for defense, numbers in VALUES.items()
        for label, row in zip(ATTACKS, numbers, strict=True)
        for metric, number in zip(("c-acc", "asr"), row, strict=True)
    }
    assert {place: float(text) for place, text in found.texts.items() if "rate=" in place[0].attack} == expected
    assert float(found.numbers()[key("average", "", "lp")]["asr"]) == 29.75
    assert found.corrections.printed_at[key("sig", "0.05", "lp"), "asr"] == (key("sig", "0.1", "lp"), "asr")
    assert (alone / "config/papers/one/published/table1.csv").read_bytes() == printed

    assert section(alone, SUMS) == ["None."]
    assert section(alone, LEFT_OUT)[0].endswith("with both 0. Corrected in `" + FILE + "`.")
    assert section(alone, "corrections") == [
        f"- table1 (`{FILE}`): sig 10% (printed as badnet 1%); sig 5% (printed as sig 10%); what is printed as sig 5% is "
        "left out. The averages. Say so. With the correction 8 of 8 averages and standard deviations follow, as printed 0."
    ]


def test_a_correction_of_cells_and_of_single_numbers(alone):
    """Two cells of a row exchanged, and one number of one cell with another of the next."""
    paper(alone, *rows(ATTACKS, VALUES))
    a, b = {"attack": "badnet+rate=0.10"}, {"attack": "sig+rate=0.05"}
    correct(alone, [
        {"printed": a | {"defense": "none"}, "belongs": {"defense": "lp"}},
        {"printed": a | {"defense": "lp"}, "belongs": {"defense": "none"}},
        {"printed": b | {"defense": "none", "metric": "c-acc"}, "belongs": {"defense": "lp", "metric": "asr"}},
        {"printed": b | {"defense": "lp", "metric": "asr"}, "belongs": {"defense": "none", "metric": "c-acc"}},
    ])  # fmt: skip
    found = {of: {metric: float(text) for metric, text in texts.items()} for of, texts in read(alone).numbers().items()}
    assert found[key("badnet", "0.1", "lp")] == {"c-acc": 94, "asr": 100}
    assert found[key("badnet", "0.1", "none")] == {"c-acc": 90, "asr": 9}
    assert found[key("sig", "0.05", "none")] == {"c-acc": 77, "asr": 60}
    assert found[key("sig", "0.05", "lp")] == {"c-acc": 85, "asr": 91}
    assert "lp C-Acc" not in (told := section(alone, "corrections")[0])
    assert "badnet 10%, lp (printed as badnet 10%, none)" in told
    assert "sig 5%, lp ASR (printed as sig 5%, none C-Acc)" in told


MOVE, OTHER, GONE = MOVES
SIG, ALSO = (
    {"attack": "sig+rate=0.1"},
    {"printed": {"attack": "badnet+rate=0.05"}, "belongs": {"attack": "sig+rate=0.05"}},
)
ABSENT, TWO = {"attack": "sgi+rate=0.1"}, {"attack": "sig+rate=0.1", "defense": "lq"}
FAULTS: dict[str, tuple[Any, ...]] = {  # the moves, what the line that is told begins with, what is told
    "row": ([{"printed": ABSENT, "belongs": None}], "attack: sgi", "table1.csv 'sgi+rate=0.1'; did you mean 'sig+rate=0.1'"),
    "cell": ([{"printed": TWO, "belongs": None}], "defense: lq", "at sig+rate=0.1 'lq'; did you mean 'lp'"),
    "form": ([{"printed": {"attack": "sig+rate"}, "belongs": None}], "attack: sig+rate", "'sig+rate' is not of the form"),
    "key": ([{"printed": {"atack": "sig"}, "belongs": None}], "atack: sig", "unknown key 'atack'; did you mean 'attack'?"),
    "key of a move": ([MOVE | {"why": "x"}], "why: x", "unknown key 'why'"),
    "nothing": ([{"printed": {}, "belongs": None}], "printed: {}", "moves.0.printed: names nothing"),
    "belongs missing": ([{"printed": SIG}], "moves:", "moves.0.belongs: field required"),
    "belongs nothing": ([{"printed": SIG, "belongs": {}}], "belongs: {}", "moves.0.belongs: names nothing"),
    "empty": ([{"printed": {"attack": None}, "belongs": None}], "attack: null", "moves.0.printed.attack: is empty"),
    "metric": ([{"printed": SIG, "belongs": {"metric": "asr"}}], "metric: asr", "`printed` does not"),
    "itself": ([{"printed": SIG, "belongs": SIG}], "belongs:", "is what `printed` says"),
    "twice": ([*MOVES, MOVE | {"belongs": None}], "printed:", "resnet18, badnet+rate=0.01, none, c-acc is moved twice"),
    "not free": ([MOVE], "belongs:", "resnet18, sig+rate=0.1, none, c-acc: what stands there is not moved away"),
    "two to one": ([MOVE, GONE, OTHER, ALSO], "belongs:", "sig+rate=0.05, none, c-acc: another number is moved there, too"),
    "no moves": ([], "moves:", "at least 1 item"),
}  # fmt: skip


@pytest.mark.parametrize(("moves", "line", "words"), FAULTS.values(), ids=list(FAULTS))
def test_a_correction_with_a_fault(moves, line, words, alone):
    paper(alone, *rows(SHIFTED, TWICE))
    correct(alone, moves)
    with pytest.raises(DepoisonError) as caught:
        errata(alone.path)
    told = str(caught.value)
    number = re.match(rf"{FILE}:(\d+): ", told)
    assert number and words in told and "\n" not in told, told
    assert (alone / FILE).read_text().splitlines()[int(number[1]) - 1].strip(" -").startswith(line), told


def test_a_correction_without_evidence_or_of_no_table(project):
    paper(project, *rows(SHIFTED, TWICE))
    correct(project, MOVES, evidence="")
    with pytest.raises(DepoisonError, match=rf"{FILE}:1: evidence: string should have at least 1 character"):
        errata(project.path)
    correct(project, MOVES)
    correct(project, MOVES, table="tabel1")
    told = r"corrections/tabel1\.yaml: corrects no transcription: unknown table 'tabel1\.yaml'; did you mean 'table1\.yaml'"
    with pytest.raises(DepoisonError, match=told):
        errata(project.path)
    done = project.depoison("check")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "corrects no transcription" in done.stderr


def test_a_number_is_not_moved_to_a_row_that_the_table_does_not_have(project):
    file = "config/papers/fst/published/corrections/table9.yaml"
    project.edit(file, lambda data: data["moves"][0].update(belongs={"attack": "sig+rate=0.07"}))
    told = r"table9\.yaml:\d+: moves\.0\.belongs: table9 has no place cifar10, vgg19-bn, sig\+rate=0\.07, none, c-acc"
    with pytest.raises(DepoisonError, match=told):
        read_table(project.plan(), "reports/table9")


def test_table_9_cell_by_cell():
    """Of the transcription, read without the package: these rows under other labels, all others where they are printed."""
    table = read_table(Plan(ROOT), "reports/table9")
    lines = printed_lines("table9")
    assert {
        (attack, rate): float(table.published[Key("cifar10", "vgg19-bn", f"{attack}+rate={rate}", "none")]["asr"])
        for attack in ("ssba", "sig", "label-consistent")
        for rate in ("0.05", "0.01", "0.005")
        if (attack, rate) != ("ssba", "0.005")
    } == {
        ("ssba", "0.05"): 89.08, ("ssba", "0.01"): 40.60,
        ("sig", "0.05"): 97.41, ("sig", "0.01"): 93.33, ("sig", "0.005"): 82.42,
        ("label-consistent", "0.05"): 100, ("label-consistent", "0.01"): 100, ("label-consistent", "0.005"): 100,
    }  # fmt: skip
    assert len(table.rows) == 16 and len(table.published) == len(lines) == 16 * 8 + 2 * 8
    for line in lines:
        name = f"{line['attack']}+rate={float(line['rate']):g}" if line["rate"] else line["attack"]
        found = table.published[Key(line["dataset"], line["model"], name, line["defense"])]
        assert found == {"c-acc": line["c_acc"], "asr": line["asr"]}


def test_the_transcription_of_table_9_is_as_printed():
    """Its undefended column as the paper prints it, with the row that stands twice."""
    with (ROOT / "config/papers/fst/published/table9.csv").open(encoding="utf-8", newline="") as file:
        asr = [line["value"] for line in csv.DictReader(file) if (line["defense"], line["metric"]) == ("none", "asr")]
    printed = "100 100 100 99.41 93.87 85.09 94.00 89.08 40.60 97.41 93.33 82.42 100 100 100 100 66.84 90.13 16.01"
    assert asr == printed.split()


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("badnet,lp,asr,many", "could not convert string to float: 'many'"), ("badnet,lp,asr", "a value for each column"),
        ("badnet,lp,ars,1", "unknown metric 'ars'; did you mean 'asr'"), ("badnet+rate,lp,asr,1", "'badnet+rate' is not of"),
        ("badnet,lp,asr,inf", "not finite"), ("badnet,lp,asr,1\ncifar10,resnet18,badnet,lp,asr,1", "lp, asr stands twice"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(row, words, alone):
    paper(alone)
    path = alone / "config/papers/one/published/table1.csv"
    path.write_text(path.read_text() + f"cifar10,resnet18,{row}\n")
    with pytest.raises(DepoisonError, match="one/published/table1.csv") as caught:
        errata(alone.path)
    assert words in str(caught.value)


def test_the_page_is_what_the_command_writes(project):
    assert (ROOT / "docs/errata.md").read_text(encoding="utf-8") == errata(ROOT)
    done = project.depoison("papers", "check")
    assert done.returncode == 0 and done.stdout == errata(ROOT)


def test_known_misprints_of_fst_are_found():
    text = errata(ROOT)
    assert "| table2 | average | i-bau | ASR | 54.46 | 21.35 | 19 |" in text
    assert "label-consistent+rate=0.005 fe-tuning, ASR: 22.22 in table1, 22.66 in table2" in text
    assert "table9: label-consistent+rate=0.005 has the numbers of label-consistent+rate=0.01" in text
    assert (
        "- table9: without label-consistent+rate=0.01 or label-consistent+rate=0.005, 27 of 32 averages and standard "
        "deviations follow from the other rows; with both 0. Corrected in "
        "`config/papers/fst/published/corrections/table9.yaml`."
    ) in text
    assert text.count("| table9 |") == 5 and "| table9 | average | i-bau | ASR | 42.1 | 42.21 | 16 |" in text
    assert "- table9: ssba without a defense, 40.60 at 0.01 and 97.41 at 0.005" in text
