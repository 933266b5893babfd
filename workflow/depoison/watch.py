"""What a run is doing: from the events of a run, or from what lies in results/ and logs/, to lines for a person."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from depoison.artifacts import read_evaluation, read_record
from depoison.errors import INTERRUPTED, DepoisonError
from depoison.files import SPEC, read_json
from depoison.plan.specs import STAGES, Artifact
from depoison.progress import Estimate, Records, Remaining, Work, duration, estimate, work_of

RECORDS_READ = 500
"""How many artifacts of a stage are looked at for their recorded times, the newest first."""

SEEN = 4096
"""Bytes at the end of a log in which its latest epochs are looked for."""


class Display(Protocol):
    """Shows a run while it goes on (the logger plugin)."""

    def begin(self, board: Board) -> None: ...


display: Display | None = None
"""Of this process, where there is one."""

interrupted = False
"""Whether somebody pressed Ctrl-C: what fails from then on is no news."""


def stop(*_: Any) -> None:
    """On Ctrl-C in Snakemake: say so in one line, whatever it is doing; it ends its jobs as after a KeyboardInterrupt."""
    global interrupted
    if not interrupted:
        interrupted = True
        os.write(2, f"depoison: {INTERRUPTED}\n".encode())
    raise SystemExit(130)


@dataclass(frozen=True)
class Item:
    """A job.

    Attributes:
        name: for people.
        artifact: what it makes; None for a view such as a table.
        uses: what it holds while it runs, such as {"cores": 1}.
        after: the jobs that it waits for.
        shows: of a view, the files that it is made from.
    """

    name: str
    artifact: Artifact | None = None
    uses: Mapping[str, float] = field(default_factory=lambda: {"jobs": 1})
    after: tuple[Hashable, ...] = ()
    shows: tuple[str, ...] = ()

    @property
    def log(self) -> Path | None:
        """Where the artifact's stage writes its log."""
        return self.artifact and log_of(self.artifact.directory)


def item_of(artifact: Artifact, **facts: Any) -> Item:
    """The job that makes an artifact; if `facts` say nothing else, jobs are known by their artifacts' directories."""
    after = tuple(upstream.directory for upstream in artifact.upstream.values())
    return Item(_name_of(artifact.directory), artifact, **{"after": after} | facts)


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


# --- files -------------------------------------------------------------------------------------------------------


def records_below(results: Path, works: Iterable[Work], but: Container[str] = ()) -> Records:
    """The recorded times of finished artifacts, `but` those with these directories, that tell something about `works`."""
    keys = {key for work in works for key in work.keys}
    stages = {stage for stage in STAGES if any(key.startswith(f'["{stage}",') for key in keys)}
    specs: dict[str, Any] = {}

    def spec_of(directory: str) -> Any:
        if directory not in specs:
            specs[directory] = read_json(results.parent / directory / SPEC)
        return specs[directory]

    records = Records()
    for stage in stages:
        found = []
        with contextlib.suppress(OSError), os.scandir(results / stage) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
        with contextlib.suppress(OSError):
            found.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in found[:RECORDS_READ]:
            with contextlib.suppress(DepoisonError, KeyError, TypeError):  # a folder that is no whole artifact
                directory = f"results/{stage}/{entry.name}"
                work = work_of(spec_of(directory), spec_of)
                if directory not in but and not keys.isdisjoint(work.keys):
                    records.add(work, read_record(entry.path)["seconds"])
    return records


@dataclass(frozen=True)
class Course:
    """Where a training is, as its log says.

    Attributes:
        shown: epoch, C-Acc and ASR as last measured, img/s and what is left, the most important first.
        left: seconds, at the moment of `when`.
    """

    shown: tuple[str, ...]
    left: float
    when: float


def course_in(log: Path, since: float) -> Course | None:
    """The course that a log tells; None where it tells none, or was last written before `since`."""
    try:
        with log.open("rb") as file:
            when, size = os.fstat(file.fileno()).st_mtime, file.seek(0, os.SEEK_END)
            file.seek(max(0, size - SEEN))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    epochs = list(re.finditer(r" epoch (\d+/\d+) .* (\d+ img/s)  ([\d.]+) (s|min) left", text))
    if not epochs or when < since:
        return None
    last = epochs[-1]
    left = float(last[3]) * (60 if last[4] == "min" else 1)
    measured = [re.findall(rf"{name} [\d.]+", text) for name in ("C-Acc", "ASR")]
    shown = (f"epoch {last[1]}", *(found[-1] for found in measured if found), f"{duration(left)} left", last[2])
    return Course(shown, left, when)


def cause_in(log: Path, since: float = 0.0) -> str | None:
    """Why a job failed: the last error that its log tells; None where it tells none, or was last written before `since`."""
    with contextlib.suppress(OSError):
        if log.stat().st_mtime >= since:
            found = re.findall(r"^\S+ \S+ error: (.*)", log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
            return found[-1] if found else None
    return None


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


# --- a run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A job that failed.

    Attributes:
        cause: in one line.
        log: where there is more.
    """

    name: str
    cause: str
    log: Path | str | None

    def __str__(self) -> str:
        return f"{self.name}{f' ({self.log})' if self.log else ''}: {self.cause}"


class Board:
    """The state of a run. Safe to use from several threads.

    Args:
        items: jobs that are to be done, by any key; a job comes after those that it waits for.
        limits: how much there is of what jobs use (`depoison.progress`); None: as many jobs as are seen to run.
        queue: whether a started job may have to wait: then it runs from the moment that its log is there.
        done: jobs that were done before, to be counted.
        cells: evaluations among them.
    """

    def __init__(
        self,
        items: Mapping[Hashable, Item],
        limits: Mapping[str, float] | None = None,
        *,
        queue: bool = False,
        done: int = 0,
        cells: int = 0,
    ):
        self.items, self.limits, self.queue = dict(items), limits, queue
        self.done, self.total = done, done + len(items)
        self.cells = cells
        self.all_cells = cells + sum(self._is_cell(item) for item in items.values())
        self.began = time.time()
        self.running: dict[Hashable, float] = {}
        self.failed: dict[Hashable, Failure] = {}
        self.remarks: list[str] = []
        """What this run's stages recorded that the user should know."""
        self._since: dict[Hashable, float] = {}
        self._courses: dict[Hashable, tuple[float, Course | None]] = {}
        self._first = float("inf")
        self.open = dict(self.items)
        self._works: dict[Hashable, Work | None] = {}
        self._specs: dict[str, Any] = {}
        self._records: Records | None = None
        self._lock = threading.RLock()
        self._estimate, self._estimated, self._again = Estimate(None), 0.0, 0.0

    @staticmethod
    def _is_cell(item: Item) -> bool:
        return item.artifact is not None and item.artifact.stage == "evaluate"

    def started(self, key: Hashable, when: float) -> None:
        with self._lock:
            self.running[key] = when
            self._since.pop(key, None)
            self._courses.pop(key, None)
            self.failed.pop(key, None)

    def finished(self, key: Hashable, when: float) -> str:
        """Returns: a line that says so."""
        with self._lock:
            item = self.items.get(key) or Item(f"job {key}")
            started = self.running.pop(key, None)
            self._first = min(self._first, when)
            self.open.pop(key, None)
            self.done += 1
            self.total = max(self.total, self.done)
            self.cells += self._is_cell(item)
            recorded = self._recorded(item)
            took = recorded.get("seconds")
            self.remarks += [f"{item.name}: {remark}" for remark in recorded.get("warnings", ())]
            seconds = took if started is None or self.queue else when - started
            if took is not None and (work := self._work(key)):
                # Jobs in a queue wait, and the first ones here wait for torch to be imported.
                warm = started is not None and self.limits is not None and started >= self._first
                self.records.observe(work, took, when - started - took if warm else None)
            shown = [f"[{self.done}/{self.total}] {item.name}"]
            if seconds is not None:
                shown.append(f"{seconds:.1f} s" if seconds < 99.5 else duration(seconds))
            shown += _measures(item)
            if self.open:
                shown.append(f"ETA {self.eta(when)}")
            return "  ".join(shown)

    def lost(self, key: Hashable, cause: str = "", log: Path | str | None = None) -> None:
        """The job no longer runs, and is not done.

        Args:
            cause: used where its log tells none.
            log: of a view; an artifact's is known.
        """
        with self._lock:
            started, item = self.running.pop(key, None), self.items.get(key)
            if started is not None and item is not None:
                log = item.log or log
                # The clock of another machine may be behind.
                told = log and cause_in(Path(log), started - (60 if self.queue else 0))
                self.failed[key] = Failure(item.name, told or cause, log)

    def lacking(self) -> list[str]:
        """What was not done because other jobs failed, for people; nothing where none failed."""
        with self._lock:
            if not self.failed:
                return []
            left, failed = len(self.open), len(self.failed)
            why = f"{failed} failed" + f", {left - failed} need what those make" * (left > failed)
            found = [f"{left} of {self.total} jobs are not done: {why}; what was made is kept"]
            for key, item in self.open.items():
                if item.shows and key not in self.failed:
                    missing = sum(not Path(path).exists() for path in item.shows)
                    found.append(f"not made: {item.name}, which lacks {missing} of {len(item.shows)} results")
            return found

    @staticmethod
    def _recorded(item: Item) -> dict[str, Any]:
        """What the stage recorded."""
        with contextlib.suppress(DepoisonError):
            return (item.artifact and read_record(item.artifact.directory)) or {}
        return {}

    def _work(self, key: Hashable) -> Work | None:
        if key not in self._works:
            artifact = self.items[key].artifact if key in self.items else None
            if artifact is not None:
                self._remember(artifact)
            self._works[key] = artifact and work_of(artifact.spec, self._specs.__getitem__)
        return self._works[key]

    def _remember(self, artifact: Artifact) -> None:
        if artifact.directory not in self._specs:
            self._specs[artifact.directory] = artifact.spec
            for upstream in artifact.upstream.values():
                self._remember(upstream)

    @property
    def records(self) -> Records:
        if self._records is None:
            works = [work for key in self.items if (work := self._work(key))]
            self._records = records_below(
                Path("results"), works, but={one.artifact.directory for one in self.items.values() if one.artifact}
            )
        return self._records

    def eta(self, now: float) -> Estimate:
        """The estimate, worked out anew as often as costs a hundredth of the time."""
        with self._lock:
            if now < self._again:
                if self._estimate.seconds is None:
                    return self._estimate
                passed = now - self._estimated
                return Estimate(max(0.0, self._estimate.seconds - passed), self._estimate.unknown)
            clock = time.perf_counter()
            since = {key: moment for key in self.running if (moment := self._runs_since(key, now)) is not None}
            limits = self.limits or {"jobs": max(1, len(since))}
            hopeless: set[Hashable] = set(self.failed)
            for key, item in self.open.items():
                if not hopeless.isdisjoint(item.after):
                    hopeless.add(key)
            ahead = {key: item for key, item in self.open.items() if key not in hopeless}
            places = {key: place for place, key in enumerate(ahead)}
            jobs = [
                Remaining(
                    self._work(key),
                    item.uses,
                    now - since[key] if key in since else None,
                    self._left(key, now),
                    tuple(places[before] for before in item.after if before in places),
                )
                for key, item in ahead.items()
            ]
            self._estimate, self._estimated = estimate(jobs, self.records, limits), now
            self._again = now + max(0.25, 100 * (time.perf_counter() - clock))
            return self._estimate

    def _runs_since(self, key: Hashable, now: float) -> float | None:
        """When a started job began to run; None: it waits in a queue."""
        started = self.running[key]
        log = self.items[key].log if key in self.items else None
        if self.queue and log is not None and key not in self._since:
            with contextlib.suppress(OSError):
                if log.stat().st_mtime >= started:
                    self._since[key] = now
            return self._since.get(key)
        return self._since.get(key, started)

    def _left(self, key: Hashable, now: float) -> float | None:
        course = self._course(key, now)
        return None if course is None else max(0.0, course.left - (now - course.when))

    def _course(self, key: Hashable, now: float) -> Course | None:
        """The course of a job that runs, read at most once a second, and of hundreds less often."""
        log = self.items[key].log if key in self.running and key in self.items else None
        if log is None:
            return None
        read, course = self._courses.get(key, (0.0, None))
        if now - read >= 1 + 0.02 * len(self.running):
            course = course_in(log, self.running[key])
            self._courses[key] = now, course
        return course

    def lines(self, width: int, height: int, now: float | None = None) -> list[str]:
        """The state in at most `height` lines of at most `width` characters: what is done, then what runs."""
        now = time.time() if now is None else now
        with self._lock:
            parts = [f"{self.done}/{self.total} jobs", f"{self.cells}/{self.all_cells} cells"]
            parts += [f"{len(self.failed)} failed"] * bool(self.failed)
            parts += [duration(now - self.began), f"ETA {self.eta(now)}"]
            text = "  ".join(parts)
            bar = min(30, width - len(text) - 3)
            if bar >= 6:
                full = bar * self.done // max(1, self.total)
                text = f"{'━' * full}{'─' * (bar - full)}  {text}"
            found = [text[:width]]
            room = max(1, height - 1)
            running = list(self.running)
            if len(running) > room:
                running = running[: room - 1]
            rows = []
            for key in running:
                item, course = self.items.get(key) or Item(f"job {key}"), self._course(key, now)
                since = self._runs_since(key, now)
                shown = course.shown if course else ("queued" if since is None else duration(now - since),)
                rows.append((item.name, shown))
            found += _rows(rows, width)
            if len(self.running) > len(running):
                found.append(f"  and {len(self.running) - len(running)} more"[:width])
            return found


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
            found.append((_name_of(directory), course.shown if course else (duration(now - since),)))
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
        return _rows(rows, width) or ["nothing is being made"]

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


def log_of(directory: str) -> Path:
    return Path(f"logs/{directory.removeprefix('results/')}.log")


def _name_of(directory: str) -> str:
    stage, name = directory.split("/")[1:]
    return f"{stage} {name[: -len('-0123456789')]}"


def _measures(item: Item) -> list[str]:
    """What an evaluation found."""
    if item.artifact is None or item.artifact.stage != "evaluate":
        return []
    try:
        metrics = read_evaluation(item.artifact.product).metrics
    except DepoisonError:
        return []
    named = (("C-Acc", metrics.get("c_acc")), ("ASR", metrics.get("asr")))
    return [f"{name} {value:.2f}" for name, value in named if value is not None]


def _rows(rows: Sequence[tuple[str, Sequence[str]]], width: int) -> list[str]:
    """Lines of running jobs; where they are too long, less is shown of the courses, and of names that fill half a line."""
    longest = max((len(name) for name, _ in rows), default=0)
    course = max((len("  ".join(shown)) for _, shown in rows), default=0)
    column = min(longest, max(width // 2, width - 4 - course))
    found = []
    for name, shown in rows:
        if len(name) > column:
            name = f"{name[: column - column // 2 - 1]}…{name[-(column // 2) :]}"
        line = f"  {name:<{column}}"
        for part in shown:
            if len(line) + 2 + len(part) > width:
                break
            line += f"  {part}"
        found.append(line[:width])
    return found


# --- a terminal --------------------------------------------------------------------------------------------------


def can_redraw(stream: TextIO) -> bool:
    """Whether lines can be drawn anew there: a terminal that can move its cursor, and rich to do it."""
    try:
        import rich.live  # noqa: F401
    except ImportError:
        return False
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class Screen:
    """A board at the foot of a terminal, drawn twice a second; what is printed scrolls by above it.

    What other processes write to this terminal goes the same way, line by line: their files 1 and 2, where these are the
    terminal, are a pipe from here on. The cursor stays visible, so that nothing has to be put right after a kill.

    Args:
        lines: the lines to draw, given the terminal's width and height.
        no_color: also follows from NO_COLOR.
    """

    def __init__(self, lines: Callable[[int, int], Sequence[str]], no_color: bool = False):
        from rich.console import Console, ConsoleDimensions
        from rich.live import Live
        from rich.text import Text

        class Terminal(Console):
            @property
            def size(self) -> ConsoleDimensions:
                with contextlib.suppress(OSError):
                    width, height = os.get_terminal_size(self.file.fileno())
                    if width and height:
                        return ConsoleDimensions(width, height)
                return ConsoleDimensions(80, 24)

            def show_cursor(self, show: bool = True) -> bool:
                return False

        def drawn() -> Text:
            width, height = console.size
            try:
                found = lines(width - 1, max(2, min(12, height // 2)))
            except Exception as error:  # of a thread that would die with it
                found = [f"progress: {type(error).__name__}: {error}"]
            text = Text("\n".join(found), no_wrap=True, overflow="crop")
            text.highlight_regex(r"\d+ failed", "bold red")
            text.highlight_regex(r"ETA .*", "bold")
            text.highlight_regex(r"━+", "green")
            return text

        self._text, self._stopped = Text, False
        self._saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2) if os.isatty(descriptor)}
        file = os.fdopen(os.dup(self._saved[2]), "w", encoding=sys.stderr.encoding, errors="replace")
        self._console = console = Terminal(file=file, no_color=no_color or None, highlight=False, markup=False)
        self._live = Live(
            console=console, get_renderable=drawn, refresh_per_second=2, transient=True, redirect_stdout=False,
            redirect_stderr=False, vertical_overflow="crop",
        )  # fmt: skip
        self._read, write = os.pipe()
        self._stop, self._stopping = os.pipe()
        _flush()
        for descriptor in self._saved:
            os.dup2(write, descriptor)
        os.close(write)
        self._reader = threading.Thread(target=self._forward, daemon=True)
        self._live.start(refresh=True)
        self._reader.start()

    def print(self, text: str, style: str = "") -> None:
        """Print text above the board, in full."""
        found = self._text.from_ansi(text, style=style)
        with contextlib.suppress(OSError):
            self._console.print(found, soft_wrap=True)

    def _forward(self) -> None:
        rest = b""
        while self._read in select.select([self._read, self._stop], [], [])[0]:
            content = os.read(self._read, 65536)
            *lines, rest = (rest + content).split(b"\n")
            if lines:
                self.print(b"\n".join(line.rstrip(b"\r") for line in lines).decode(errors="replace"))
            if not content:
                break
        if rest:
            self.print(rest.decode(errors="replace"))

    def stop(self) -> None:
        """Print what is under way, wipe the board, and give the terminal back."""
        if self._stopped:
            return
        self._stopped = True
        _flush()
        for descriptor, terminal in self._saved.items():
            os.dup2(terminal, descriptor)
            os.close(terminal)
        # Other processes may still hold the pipe, so that it does not end; what is in it now is all that is waited for.
        os.close(self._stopping)
        self._reader.join(timeout=5)
        self._live.stop()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
