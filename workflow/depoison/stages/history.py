"""The course of a training: a CSV beside the model, and progress for whoever watches."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

from depoison.files import csv_bytes, write_bytes
from depoison.plan.metrics import watched
from depoison.stages.measure import followed
from depoison.stages.runner import Job

log = logging.getLogger("depoison")


def write_history(job: Job, history: list[dict[str, Any]]) -> None:
    """One row an epoch in history.csv; the metrics that it follows (percent) where they were measured.

    Whether the loss ended as no number goes into the record as `diverged`, and is said.
    """
    columns = ("epoch", "loss", "train_acc", *followed(), "images_per_second")
    write_bytes(job.folder / "history.csv", csv_bytes(columns, history, whole=False))
    job.facts["diverged"] = bool(history) and not math.isfinite(history[-1]["loss"])
    if job.facts["diverged"]:
        job.warn(
            f"the loss is {history[-1]['loss']}: it diverged, and what follows from it says nothing about the method"
        )


LOG_SECONDS = 30.0
"""How often, at most, a log hears of the middle of an epoch."""


class Progress:
    """Reports each epoch, and how far a long one is: a line that is rewritten on a terminal, plain lines elsewhere.

    The lines' records carry it as their `course`, too: {epoch, epochs, measured: {label: percent}, images_per_second,
    seconds_left}, with what was last measured.
    """

    def __init__(self, what: str):
        self.what, self._logged = what, -math.inf
        self._measured: dict[str, float] = {}

    def __call__(self, row: dict[str, Any]) -> None:
        """Args: row: of the history, with `epochs` and `seconds_left`."""
        measured = {label: row[key] for key, label in watched().items() if key in row}
        self._measured = measured or self._measured
        shown = "".join(f"  {name} {value:.2f}" for name, value in measured.items())
        self._tell(row, f"loss {row['loss']:.4f}{shown}", last=row["epoch"] == row["epochs"])

    def within(self, row: dict[str, Any]) -> None:
        """Args: row: as above, with `part` of the epoch in place of what is measured at its end."""
        self._tell(row, f"{row['part']:.0%} of it", logged=time.monotonic() - self._logged >= LOG_SECONDS)

    def _tell(self, row: dict[str, Any], found: str, *, logged: bool = True, last: bool = False) -> None:
        left = f"{row['seconds_left'] / 60:.1f} min" if row["seconds_left"] >= 90 else f"{row['seconds_left']:.0f} s"
        line = f"{self.what} epoch {row['epoch']}/{row['epochs']}  {found}  {row['images_per_second']:.0f} img/s  {left} left"
        if logged:
            course = {key: row[key] for key in ("epoch", "epochs", "images_per_second", "seconds_left")}
            log.info("%s", line, extra={"course": course | {"measured": self._measured}})
            self._logged = time.monotonic()
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
