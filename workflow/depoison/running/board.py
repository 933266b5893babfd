"""What a run is doing: from its events, and from what its jobs' logs and records tell, to lines for a person."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Container, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depoison.artifacts import read_evaluation, read_record
from depoison.errors import DepoisonError
from depoison.files import SPEC, read_json
from depoison.plan.metrics import watched
from depoison.plan.specs import STAGES, Artifact
from depoison.running.estimate import Estimate, Records, Remaining, Work, duration, estimate, work_of
from depoison.running.logs import TICK, Course, cause_in, course_in, log_of
from depoison.running.screen import in_columns

RECORDS_READ = 500
"""How many artifacts of a stage are looked at for their recorded times, the newest first."""


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
    return Item(name_of(artifact.directory), artifact, **{"after": after} | facts)


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
                if log.stat().st_mtime >= started - TICK:
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
            found += in_columns(rows, width)
            if len(self.running) > len(running):
                found.append(f"  and {len(self.running) - len(running)} more"[:width])
            return found


def name_of(directory: str) -> str:
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
    found = ((label, metrics.get(key)) for key, label in watched().items())
    return [f"{label} {value:.2f}" for label, value in found if value is not None]
