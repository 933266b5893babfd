"""Snakemake's logger `depoison` (profiles/default): what is done, what runs, and how long the rest takes.

On a terminal it draws that at the foot of the screen; elsewhere, and above it, there is one line for each job that
finished or failed in place of Snakemake's paragraphs, and at the end what is missing, and why: the errors in the logs of
failed jobs. All else that Snakemake says is formatted by Snakemake and shown in full.
Dry runs, and runs with --quiet, --verbose, --printshellcmds or --debug-dag, are Snakemake's own from the first to the last
line. Snakemake's own complete log in .snakemake/log/ is what it always is.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from depoison.errors import NO_ROOM, TOLD, DepoisonError
from depoison.plan.documents import read_document
from depoison.running import display
from depoison.running.board import Board
from depoison.running.screen import Screen, can_redraw

SAID_OTHERWISE = (LogEvent.JOB_STARTED, LogEvent.PROGRESS, LogEvent.SHELLCMD)
CONSEQUENCES = (
    "Shutting down, this might take some time.",
    "Exiting because a job execution failed. Look above for error messages",
    "WorkflowError:\nAt least one job did not complete successfully.",
)
"""What Snakemake says after a job failed: `close` says which and why."""

STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "magenta"}

ENDED = re.compile(r"--log '?(?P<log>[^\s']+)'?\s*' (?P<how>returned non-zero exit status \d+|died with .*)")


def _end(how: str) -> str:
    """How a process ended that wrote no error into its log."""
    number = int(re.findall(r"\d+", how)[-1])
    if number == errno.ENOSPC and not how.startswith("died"):
        return NO_ROOM
    ended = number if how.startswith("died") else number - 128
    if ended in set(signal.Signals):
        name = signal.Signals(ended).name
        return f"it was ended by {name}" + " (for want of memory?)" * (name == "SIGKILL")
    return f"it ended with exit code {number} and no error in its log"


def _wait_for_ctrl_c() -> None:
    """A job has heard it: this process does as well, perhaps a moment later. Or somebody interrupted that job alone."""
    end = time.monotonic() + 1
    while not display.interrupted and time.monotonic() < end:
        time.sleep(0.01)


def _before_anything(program: str, words: Sequence[str]) -> None:
    """While Snakemake starts, which imports its plugins before it reads its command line.

    Args:
        words: of the command line.
    """
    if "snakemake" not in Path(program).parts[-2:]:
        return
    signal.signal(signal.SIGINT, display.stop)  # Snakemake shows a traceback until it starts jobs
    taken = False
    for word in words:
        taken = word in ("--resources", "--res") or (taken and not word.startswith("-"))
        if taken and word.startswith(("reports/", "results/")):
            # Else Snakemake ends with a traceback.
            print(f"depoison: error: --resources takes {word} for a resource; put -- before it", file=sys.stderr)
            raise SystemExit(1)


class LogHandler(LogHandlerBase):
    """Snakemake calls `emit` in a thread of its own; the Snakefile hands over the plan before the first job (`begin`)."""

    def __post_init__(self) -> None:
        from snakemake.logging import ColorizingTextHandler

        asked = self.common_settings
        self._ours = not (asked.dryrun or asked.quiet or asked.verbose or asked.printshellcmds or asked.debug_dag)
        self._board: Board | None = None
        self._screen: Screen | None = None
        self._ends: dict[str, str] = {}
        self._no_color = asked.nocolor or bool(os.environ.get("NO_COLOR"))
        self._plain = ColorizingTextHandler(nocolor=self._no_color, stream=sys.stderr)
        if self._ours:
            display.current = self

    def begin(self, board: Board) -> None:
        """From here on, jobs are the board's."""
        with self.lock:
            self._board = board
            os.environ[TOLD] = "in-log"  # `close` tells what jobs wrote there
            if can_redraw(sys.stderr):
                self._screen = Screen(board.lines, self._no_color)
                atexit.register(self.close)

    def emit(self, record: logging.LogRecord) -> None:
        if not self._ours:
            return
        line = None
        if self._board is not None:
            try:
                line = self._told(self._board, record)
            except Exception:  # a mistake of ours may not cost what Snakemake says
                self.handleError(record)
        if line is None:
            self._show(record)
        elif line and self._screen:
            self._screen.print(line)
        elif line:
            print(line, file=sys.stderr, flush=True)

    def _told(self, board: Board, record: Any) -> str | None:
        """What to say in place of a record: a line, nothing (""), or the record itself (None)."""
        event, said = getattr(record, "event", None), record.getMessage()
        if display.interrupted or event in SAID_OTHERWISE or said == "Select jobs to execute...":
            return ""
        if event == LogEvent.JOB_INFO:
            board.started(record.jobid, record.created)
            return ""
        if event == LogEvent.JOB_FINISHED:
            return board.finished(record.job_id, record.created)
        if event == LogEvent.JOB_ERROR:
            return self._lost(board, record.jobid, record.log, record.rule_msg)
        if event == LogEvent.GROUP_ERROR:  # each of its jobs' errors follows
            return ""
        if event == LogEvent.ERROR:
            ends = ENDED.search(said)
            if ends and record.exception == "RuleException":  # the job's own error follows
                self._ends[ends["log"]] = how = _end(ends["how"])
                if how.endswith("SIGINT"):
                    _wait_for_ctrl_c()
                return ""
            absent = re.search(r"Job (\d+) +completed successfully, but some output files are missing", said)
            if absent:
                return self._lost(board, int(absent[1]), [], "it ended well, but what it makes is not there")
        if match := re.fullmatch(r"Trying to restart job (\d+)\.", said):
            item = board.items.get(int(match[1]))
            return f"once more: {item.name}" if item else None
        return "" if board.failed and said.strip() in CONSEQUENCES else None

    def _lost(self, board: Board, jobid: int, logs: Sequence[str], message: str | None) -> str:
        log = next(iter(logs), None)
        known = next((self._ends[log] for log in logs if log in self._ends), None)
        if known == NO_ROOM and (item := board.items.get(jobid)):
            known = f"{item.artifact.directory if item.artifact else item.name}: {NO_ROOM}"
        board.lost(jobid, message or known or "its log tells no error", log)
        return f"failed: {board.failed[jobid].name}" if jobid in board.failed else ""

    def _show(self, record: logging.LogRecord) -> None:
        """As Snakemake shows it."""
        if self._screen:
            text = self.format(record)
            if text and text != "None":
                self._screen.print(text, STYLES.get(record.levelno, ""))
        else:
            self._plain.setFormatter(self.formatter)
            self._plain.emit(record)

    def close(self) -> None:
        """The terminal is as it was; what is missing and why comes last, where nothing scrolls it away."""
        if self._screen:
            self._screen.stop()
            self._screen = None
        if self._board is not None:
            for line in self._board.remarks + ([] if display.interrupted else self._board.lacking()):
                print(f"depoison: {line}", file=sys.stderr)
            for failure in self._board.failed.values():
                print(f"depoison: error: {failure}", file=sys.stderr)
            self._board = None
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        return self._ours

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        return False

    @property
    def has_formatter(self) -> bool:
        return False

    @property
    def needs_rulegraph(self) -> bool:
        return False


def refuse_configfiles(program: str, words: Sequence[str]) -> None:
    """End with one line where a configuration file is missing or no YAML; Snakemake, which reads it first, does not name it.

    Args:
        program, words: as on the command line; Snakemake imports its plugins before it reads them.
    """
    if "snakemake" not in Path(program).parts[-2:]:
        return
    try:
        for file in _configfiles(words):
            read_document(Path(file).absolute(), Path.cwd())
    except DepoisonError as error:
        print(f"depoison: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _configfiles(words: Sequence[str]) -> Iterator[str]:
    taken = False
    for word in words:
        option, _, value = word.partition("=")
        if word.startswith("-"):
            taken = option in ("--configfile", "--configfiles") and not value
            if value and option in ("--configfile", "--configfiles"):
                yield value
        elif taken:
            yield word


_before_anything(sys.argv[0], sys.argv[1:])
refuse_configfiles(sys.argv[0], sys.argv[1:])
