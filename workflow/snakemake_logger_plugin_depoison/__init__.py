"""Snakemake's logger `depoison` (profiles/default): what is done, what runs, and how long the rest takes.

On a terminal it draws that at the foot of the screen; elsewhere, and above it, there is one line for each finished job in
place of Snakemake's paragraphs. All else that Snakemake says, errors above all, is formatted by Snakemake and shown in full.
Dry runs, and runs with --quiet, --verbose, --printshellcmds or --debug-dag, are Snakemake's own from the first to the last
line. Snakemake's own complete log in .snakemake/log/ is what it always is.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from depoison import watch
from depoison.errors import DepoisonError
from depoison.plan.documents import read_document

SAID_OTHERWISE = (LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.PROGRESS, LogEvent.SHELLCMD)
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "magenta"}


class LogHandler(LogHandlerBase):
    """Snakemake calls `emit` in a thread of its own; the Snakefile hands over the plan before the first job (`begin`)."""

    def __post_init__(self) -> None:
        from snakemake.logging import ColorizingTextHandler

        asked = self.common_settings
        self._ours = not (asked.dryrun or asked.quiet or asked.verbose or asked.printshellcmds or asked.debug_dag)
        self._board: watch.Board | None = None
        self._screen: watch.Screen | None = None
        self._no_color = asked.nocolor or bool(os.environ.get("NO_COLOR"))
        self._plain = ColorizingTextHandler(nocolor=self._no_color, stream=sys.stderr)
        if self._ours:
            watch.display = self

    def begin(self, board: watch.Board) -> None:
        """From here on, jobs are the board's."""
        with self.lock:
            self._board = board
            if watch.can_redraw(sys.stderr):
                self._screen = watch.Screen(board.lines, self._no_color)
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

    def _told(self, board: watch.Board, record: Any) -> str | None:
        """What to say in place of a record: a line, nothing (""), or the record itself (None)."""
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_INFO:
            board.started(record.jobid, record.created)
        elif event == LogEvent.JOB_FINISHED:
            return board.finished(record.job_id, record.created)
        elif event == LogEvent.JOB_ERROR:
            board.lost(record.jobid)
        elif event == LogEvent.GROUP_ERROR:
            for job in record.job_error_info:
                board.lost(job["jobid"])
        said = record.getMessage() if event is None else ""
        return "" if event in SAID_OTHERWISE or said == "Select jobs to execute..." else None

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
        """The terminal is as it was, and the failed jobs are named once more: their errors may have scrolled away."""
        if self._screen:
            self._screen.stop()
            self._screen = None
        if self._board is not None:
            for item in self._board.failed.values():
                print(f"failed: {item.name}{f' ({item.log})' if item.log else ''}", file=sys.stderr)
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


refuse_configfiles(sys.argv[0], sys.argv[1:])
