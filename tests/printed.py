"""What papers print, read without the package."""

from __future__ import annotations

from pathlib import Path

import pandas

PAPERS = Path(__file__).parents[1] / "config/papers"


def transcribed(paper: str, *names: str) -> pandas.DataFrame:
    """The published CSVs of a paper's tables below each other, numbers as texts; `table` says of which each is."""
    folder = PAPERS / paper / "published"
    return pandas.concat([pandas.read_csv(folder / f"{name}.csv", dtype=str).assign(table=name) for name in names])
