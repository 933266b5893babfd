"""The course of a training: a CSV beside the model, and progress for whoever watches."""

from __future__ import annotations

import csv
import io
import logging
import math
import sys
from typing import Any

from depoison.files import write_bytes
from depoison.stages.runner import Job

COLUMNS = ("epoch", "loss", "train_acc", "c_acc", "asr", "lcr", "images_per_second")

log = logging.getLogger("depoison")


def write_history(job: Job, history: list[dict[str, Any]]) -> None:
    """One row an epoch in history.csv; C-Acc, ASR and LCR (percent) where they were measured.

    Whether the loss ended as no number goes into the record as `diverged`, and is said.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_bytes(job.folder / "history.csv", text.getvalue().encode())
    job.facts["diverged"] = bool(history) and not math.isfinite(history[-1]["loss"])
    if job.facts["diverged"]:
        job.warn(
            f"the loss is {history[-1]['loss']}: it diverged, and what follows from it says nothing about the method"
        )


class Progress:
    """Reports each epoch: a line that is rewritten on a terminal, plain lines elsewhere."""

    def __init__(self, what: str):
        self.what = what

    def __call__(self, row: dict[str, Any]) -> None:
        """Args: row: of the history, with `epochs` and `seconds_left`."""
        measured = "".join(
            f"  {name} {row[key]:.2f}" for key, name in (("c_acc", "C-Acc"), ("asr", "ASR")) if key in row
        )
        left = f"{row['seconds_left'] / 60:.1f} min" if row["seconds_left"] >= 90 else f"{row['seconds_left']:.0f} s"
        line = (
            f"{self.what} epoch {row['epoch']}/{row['epochs']}  loss {row['loss']:.4f}{measured}"
            f"  {row['images_per_second']:.0f} img/s  {left} left"
        )
        log.info("%s", line)
        if sys.stderr.isatty():
            end = "\n" if row["epoch"] == row["epochs"] else ""
            print(f"\r\033[K{line}", end=end, file=sys.stderr, flush=True)
