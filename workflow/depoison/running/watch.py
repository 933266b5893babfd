"""What others make, as results/ and logs/ tell it: beside any executor, on any machine that sees these folders."""

from __future__ import annotations

import contextlib
import fcntl
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from depoison.plan.specs import Artifact
from depoison.running.board import Board, item_of, name_of
from depoison.running.estimate import duration
from depoison.running.logs import course_in, log_of
from depoison.running.screen import Screen, can_redraw, in_columns


def missing(wanted: Iterable[Artifact]) -> list[Artifact]:
    """What has to be made, upstream first: behind an artifact that is there nothing is looked at."""
    found: dict[str, Artifact | None] = {}

    def walk(artifact: Artifact) -> None:
        if artifact.directory not in found:
            there = Path(artifact.product).exists()
            for upstream in () if there else artifact.upstream.values():
                walk(upstream)
            found[artifact.directory] = None if there else artifact

    for artifact in wanted:
        walk(artifact)
    return [artifact for artifact in found.values() if artifact]


def being_made(directory: str) -> float | None:
    """Since when somebody makes the artifact with this directory; None: nobody holds its lock."""
    folder, name = directory.rsplit("/", 1)
    lock = Path(folder, f".{name}.lock")
    with contextlib.suppress(OSError):
        with lock.open() as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        return lock.stat().st_mtime
    return None


class Watched:
    """A board of what others are making, kept up to date by what lies in results/: any executor, any machine.

    Args:
        wanted: what somebody asked for, perhaps elsewhere.
    """

    def __init__(self, wanted: Iterable[Artifact]):
        wanted = list(wanted)
        lacking = {artifact.directory: item_of(artifact) for artifact in missing(wanted)}
        chain = {directory: one for artifact in wanted for directory, one in artifact.chain().items()}
        there = [one for directory, one in chain.items() if directory not in lacking and Path(one.product).exists()]
        cells = sum(one.stage == "evaluate" for one in there)
        self.board = Board(lacking, done=len(there), cells=cells)
        self.open = dict(lacking)

    def look(self) -> list[str]:
        """Returns: a line for each artifact that is there since the last look."""
        said, now = [], time.time()
        for directory, item in list(self.open.items()):
            since = being_made(directory)
            if item.artifact is not None and Path(item.artifact.product).exists():
                del self.open[directory]
                said.append(self.board.finished(directory, now))
            elif since is None:
                self.board.lost(directory)
            elif directory not in self.board.running:
                self.board.started(directory, since)
        return said

    @property
    def done(self) -> bool:
        return not self.open


def all_being_made(now: float) -> list[tuple[str, Sequence[str]]]:
    """Names and courses of all artifacts below results/ that somebody is making."""
    found: list[tuple[str, Sequence[str]]] = []
    for lock in sorted(Path("results").glob("*/.*.lock")):
        directory = f"{lock.parent}/{lock.name.removeprefix('.').removesuffix('.lock')}"
        since = being_made(directory)
        if since is not None:
            course = course_in(log_of(directory), since)
            found.append((name_of(directory), course.shown if course else (duration(now - since),)))
    return found


def follow(wanted: Sequence[Artifact]) -> None:
    """Show on standard error what others make of what is wanted, on a terminal until all is there.

    Args:
        wanted: if empty, whatever is being made, on a terminal for as long as anything is.
    """
    watched = Watched(wanted)

    def lines(width: int, height: int) -> list[str]:
        if wanted:
            return watched.board.lines(width, height)
        rows = all_being_made(time.time())[:height]
        return in_columns(rows, width) or ["nothing is being made"]

    watched.look()
    if not can_redraw(sys.stderr):
        print("\n".join(lines(200, 1000)), file=sys.stderr)
        return
    screen = Screen(lines)
    try:
        while not watched.done if wanted else all_being_made(time.time()):
            time.sleep(2)
            for line in watched.look():
                screen.print(line)
    finally:
        screen.stop()
    print("\n".join(lines(200, 1)), file=sys.stderr)
