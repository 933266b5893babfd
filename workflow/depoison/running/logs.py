"""A job's log for people, and beside it what the job says of itself for whoever shows the run: `NAME.log`, `NAME.json`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depoison.errors import DepoisonError
from depoison.files import write_bytes
from depoison.running.estimate import duration

log = logging.getLogger("depoison")

TICK = 0.02
"""Seconds by which the time of a file may lie behind the clock when it was written: the kernel's tick."""


def log_of(directory: str) -> Path:
    """Where the stage that makes the artifact with this directory writes its log."""
    return Path(f"logs/{directory.removeprefix('results/')}.log")


class LogFile(logging.FileHandler):
    """A log. The `course` of a record (stages.history) or its `cause`, that of a failure, is kept beside it.

    An error that cannot be written there, the disk being full, goes to stderr.

    Raises:
        DepoisonError: it cannot be opened.
    """

    def __init__(self, path: str | Path, mode: str = "w"):
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            super().__init__(path, mode=mode, encoding="utf-8")
            if mode == "w":
                _beside(Path(path)).unlink(missing_ok=True)
        except OSError as error:
            raise DepoisonError(f"{path}: {error.strerror}") from None
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        said = {key: getattr(record, key) for key in ("course", "cause") if hasattr(record, key)}
        if said:
            with contextlib.suppress(OSError):  # whoever shows the run does without
                write_bytes(_beside(Path(self.baseFilename)), json.dumps(said).encode())

    def handleError(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR and logging.StreamHandler not in map(type, log.handlers):
            print(f"depoison: {record.getMessage()}", file=sys.stderr)


@dataclass(frozen=True)
class Course:
    """Where a training is, as it said.

    Attributes:
        shown: epoch, what was last measured, what is left and img/s, the most important first.
        left: seconds, at the moment of `when`.
    """

    shown: tuple[str, ...]
    left: float
    when: float


def course_in(log: Path, since: float) -> Course | None:
    """The course of the job that writes a log; None where it told none, or none since then."""
    said, when = _said(log, since)
    if "course" not in said:
        return None
    row = said["course"]
    left = row["seconds_left"]
    measured = (f"{name} {value:.2f}" for name, value in row["measured"].items())
    epoch, speed = f"epoch {row['epoch']}/{row['epochs']}", f"{row['images_per_second']:.0f} img/s"
    return Course((epoch, *measured, f"{duration(left)} left", speed), left, when)


def cause_in(log: Path, since: float = 0.0) -> str | None:
    """Why the job that writes a log failed; None where it told nothing, or nothing since then."""
    said, _ = _said(log, since)
    return said.get("cause")


def _beside(log: Path) -> Path:
    return log.with_suffix(".json")


def _said(log: Path, since: float) -> tuple[Mapping[str, Any], float]:
    """What was said beside a log, and when; nothing where that was before `since`."""
    with contextlib.suppress(OSError, ValueError), _beside(log).open(encoding="utf-8") as file:
        when = os.fstat(file.fileno()).st_mtime
        if when >= since - TICK:
            return json.load(file), when
    return {}, 0.0
