"""`depoison papers check`: what a paper prints that does not add up."""

from __future__ import annotations

import pytest

from conftest import ROOT, Project
from depoison.errors import DepoisonError
from depoison.reporting.papers import errata

HEADER = "dataset,model,attack,rate,variant,defense,c_acc,asr"


def paper(project: Project, *rows: str, table: str = "table1") -> None:
    folder = project / "config/papers/one/published"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table}.csv").write_text("\n".join([HEADER, *(f"cifar10,resnet18,{row}" for row in rows)]) + "\n")


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
def test_averages_and_deviations_are_recomputed(printed, told, project):
    # Another defense's rows and the summaries themselves do not count.
    rows = ("badnet,0.1,,lp,90.00,10.00", "blended,0.1,,lp,91.00,20.00", "sig,0.1,,lp,92.00,30.00")
    paper(project, *rows, "badnet,0.1,,ft,10.00,99.00", printed)
    assert section(project, SUMS) == (told or ["None."])


def test_a_cell_printed_differently_by_two_tables(project):
    paper(project, "badnet,0.1,,lp,90.00,10.0", "badnet,0.05,,lp,90.00,10.00")
    paper(project, "badnet,0.1,,lp,90.0,11.00", "badnet,0.05,a=1,lp,1.00,1.00", table="table10")
    told = "- cifar10 resnet18 badnet 0.1 lp, ASR: 10.0 in table1, 11.00 in table10"
    assert section(project, "cells that two tables print differently") == [told]


def test_a_row_that_has_the_numbers_of_another(project):
    same, other = ("lp,90.00,10.00", "ft,80.00,1.00"), ("lp,90.00,10.00", "ft,80.00,2.00")
    lines = [
        f"{attack},{numbers}"
        for attack, row in (("badnet,0.1,", same), ("sig,0.1,", other), ("badnet,0.05,", same))
        for numbers in row
    ]
    paper(project, *lines)
    assert section(project, "rows printed twice") == ["- table1: badnet 0.05 has the numbers of badnet 0.1"]


@pytest.mark.parametrize("row", ["badnet,0.1,,lp,many,1", "badnet,0.1,,lp"])
def test_a_file_that_cannot_be_read_is_named(row, project):
    paper(project, row)
    with pytest.raises(DepoisonError, match="one/published/table1.csv"):
        errata(project.path)


def test_the_page_is_what_the_command_writes(project):
    assert (ROOT / "docs/errata.md").read_text(encoding="utf-8") == errata(ROOT)
    done = project.depoison("papers", "check")
    assert done.returncode == 0 and done.stdout == errata(ROOT)


def test_known_misprints_of_fst_are_found():
    text = errata(ROOT)
    assert "| table2 | average | i-bau | ASR | 54.46 | 21.35 | 19 |" in text
    assert "label-consistent 0.005 fe-tuning, ASR: 22.22 in table1, 22.66 in table2" in text
    assert "table9: label-consistent 0.005 has the numbers of label-consistent 0.01" in text
