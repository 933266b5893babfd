"""What the Snakefile asks of the plan. Planning stays pure: this is the only module that knows Snakemake."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import platform
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from functools import cache, cached_property
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any, TextIO

from snakemake.io import flag, report
from snakemake.logging import logger

from depoison.errors import DepoisonError, told
from depoison.files import refuse_links
from depoison.gpu import devices, remarks
from depoison.papers.tables import locate
from depoison.plan.cells import PREFIX
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact, canonical, computes, fingerprint
from depoison.reports.kinds import Report, artifacts, kind_of, report_of
from depoison.running import display
from depoison.running.board import Board, Item, item_of
from depoison.running.share import notices
from depoison.running.worker import remove, start_worker
from depoison.stages.runner import tidy

STAMPS = Path(".snakemake/depoison/stamps")
"""Scratch files whose modification time tells Snakemake whether a file with a fixed name is out of date."""

HANDED_ON = Path(".snakemake/depoison/artifacts.jsonl")
"""Specs for jobs on other machines: such a job reads the Snakefile anew and knows its output, not the cell behind it."""

RUNNING = Path(".snakemake/depoison/running")
"""Held by every Snakemake that is alive; says on which host."""

SNAKEMAKES_LOCKS = Path(".snakemake/locks")


class Lookup:
    """Answers the rules' questions.

    Args:
        workflow: Snakemake's.

    Bad input ends Snakemake with one line and exit code 1.
    """

    def __init__(self, workflow: Any):
        # Not the merged configuration: what equals a default there is the user's will nonetheless, and wins over a track.
        self._workflow, self._given = workflow, dict(workflow.config_settings.overwrite_config)
        # A report's input functions are asked more than once.
        self._read = cache(self._read_anew)
        # Planning makes millions of objects that live until its end: looking for garbage among them is a fifth of its time.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        self._said, self._told = 0, not workflow.is_main_process
        if workflow.is_main_process:
            signal.signal(signal.SIGINT, display.stop)
            logger.addFilter(_worth_saying)
        with _refusing():
            if workflow.is_main_process:
                self._alive = _clear_stale_locks()
                _check_machine(workflow.resource_settings)
            self.plan = Plan(".", workflow.configfiles, self._given)
        # What is up to date for one configuration is not for another that plans at the same time.
        self._stamps = STAMPS / fingerprint([self._given, self.plan.overlays])
        # Jobs run the package of this checkout, too, whatever their environment has installed (none, in that of --sdm conda).
        package = str(Path(__file__).parents[1])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self.runtime = self.plan.configuration.config.runtime
        here = workflow.resource_settings.nodes is None
        if here and "gpu" not in workflow.global_resources and devices() and self.runtime.device != "cpu":
            # Without a limit Snakemake would start a GPU job on every core.
            workflow.register_resource("gpu", len(devices()) * self.runtime.jobs_per_gpu)

    def _read_anew(self, target: str) -> Report:
        """After which everything is said that there is to say about it."""
        found = report_of(self.plan, target)
        self._say_notes()
        return found

    def _say_notes(self) -> None:
        notes = list(self.plan.notes.values())
        if self._workflow.is_main_process:
            for note in notes[self._said :]:
                _say(note)
        self._said = len(notes)

    def start(self) -> None:
        """Before the first job: hand specs on to other machines, or see that this one has the devices asked for.

        A dry run does not come here: it may plan for another machine.
        """
        with _refusing():
            _check_folders(path for job in self._workflow.dag.needrun_jobs() for path in (*job.output, *job.log))
        tidy()
        missing = [a for a in self.plan.artifacts.values() if not Path(a.product).exists()]
        if self._workflow.executor_plugin.name != "local":
            HANDED_ON.parent.mkdir(parents=True, exist_ok=True)
            with HANDED_ON.open("a", encoding="utf-8") as file:
                file.writelines(
                    canonical([a.directory, a.spec, self.plan.local_copies.get(a.directory)]) + "\n" for a in missing
                )
            self._show_progress()
            return
        limit, found = self._workflow.global_resources.get("gpu"), len(devices())
        wanted = getattr(limit, "value", limit)
        if wanted and int(wanted) > found * self.runtime.jobs_per_gpu:
            instead = "leave it out to compute on the CPU" if not found else f"valid: at most {found}"
            with _refusing():
                raise DepoisonError(f"--resources gpu={wanted}: this machine has {found} GPUs; {instead}")
        if found and self.runtime.device != "cpu":
            with _refusing():
                for remark in remarks(self.runtime.jobs_per_gpu):
                    _say(remark)
        # With a limit on jobs per second, as is Snakemake's default, it looks at every ready job's inputs once a second.
        self._workflow.scheduler.job_rate_limiter = None
        self._show_progress()
        if missing:
            self._worker = start_worker(RUNNING.parent, self.runtime.threads)

    def failed(self) -> None:
        """After jobs failed, or were ended by Ctrl-C, which is another exit code."""
        if display.interrupted:
            raise SystemExit(130)

    def _show_progress(self) -> None:
        """Hand the jobs over to the logger plugin, where it is in use."""
        if display.current is None:
            return
        ids = {_name(job): job.jobid for job in self._workflow.dag.needrun_jobs()}
        made = {path.rpartition("/")[0]: jobid for path, jobid in ids.items()}
        items: dict[Hashable, Item] = {}
        for artifact in self.plan.artifacts.values():  # upstream first
            if artifact.directory in made:
                gpus = int(computes(artifact.stage, artifact.upstream))
                after = tuple(made[one.directory] for one in artifact.upstream.values() if one.directory in made)
                uses = {"cores": self.runtime.threads, "gpu": gpus}
                items[made[artifact.directory]] = item_of(artifact, uses=uses, after=after)
        for job in self._workflow.dag.needrun_jobs():
            if job.jobid not in items:
                shows = tuple(str(path) for path in job.input if not str(path).startswith(f"{STAMPS}/"))
                items[job.jobid] = Item(_name(job), shows=shows if job.output else ())
        if self._workflow.executor_plugin.name == "local":
            gpu = self._workflow.global_resources.get("gpu")
            limits = {"cores": self._workflow.cores, "gpu": int(getattr(gpu, "value", gpu) or 0)}
            board = Board(items, limits)
        else:
            items = {key: replace(item, uses={"jobs": 1}) for key, item in items.items()}
            board = Board(items, queue=True)
        display.current.begin(board)

    def inputs(self, stage: str) -> Callable[[Any], list[Any]]:
        """Input function: what an artifact is made from; nothing where it is there already, which makes it a leaf."""

        def upstream(wildcards: Any) -> list[Any]:
            artifact = self._artifact(stage, wildcards)
            if Path(artifact.product).exists():
                return []
            with _refusing():
                self.plan.require_sources([artifact])
            return [flag(needed.product, "ancient") for needed in artifact.upstream.values()]

        return upstream

    def arguments(self, stage: str) -> Callable[[Any], str]:
        """Params function: what `depoison stage` is told, quoted for the shell."""
        runtime = canonical(self.runtime.model_dump())

        def told(wildcards: Any) -> str:
            artifact = self._artifact(stage, wildcards)
            words = [canonical(artifact.spec), "--output", artifact.directory, "--runtime", runtime]
            if artifact.directory in self.plan.local_copies:
                words.append(f"--root={self.plan.local_copies[artifact.directory] or ''}")
            return shlex.join(words)

        return told

    def gpus(self, stage: str) -> Callable[[Any], int]:
        """Resource function: how many GPUs an artifact of a stage that seldom computes wants."""
        return lambda wildcards: int(computes(stage, self._artifact(stage, wildcards).upstream))

    def _artifact(self, stage: str, wildcards: Any) -> Artifact:
        directory = f"results/{stage}/{wildcards.id}"
        if directory not in self.plan.artifacts and HANDED_ON.exists():
            with HANDED_ON.open(encoding="utf-8") as lines:
                for line in lines:
                    self.plan.adopt(*json.loads(line))
        with _refusing():
            return self.plan.artifact(directory)

    @property
    def config_json(self) -> str:
        return canonical(self._given)

    def category(self, wildcards: Any) -> str:
        """Where Snakemake's report shows a table or figure: paper and track."""
        paper, track, _ = locate(self.plan, f"reports/{wildcards.where}any")
        return f"{self.plan.paper_label(paper)} on the track {track}"

    @property
    def overlays(self) -> str:
        """Options that name the configuration files, for what quotes the command that makes it."""
        return shlex.join(f"--configfile={file}" for file in self.plan.overlays)

    def outputs(self, kind: type[Report]) -> list[Any]:
        """The files of a kind's rule, marked for Snakemake's report where they stand in it."""
        words = {"caption": f"../report/{kind.__module__.rpartition('.')[2]}.rst", "category": self.category}
        return [
            report(file, **words, subcategory=kind.section, labels={"name": "{name}", "file": kind.shown[suffix]})
            if suffix in kind.shown
            else file
            for suffix, file in ((suffix, kind.path + suffix) for suffix in kind.suffixes)
        ]

    def refuse(self, wildcards: Any) -> list[Any]:
        """Input function of reports that no rule makes: ends Snakemake with a line that says which there are."""
        target = f"reports/{wildcards.unknown}"
        with _refusing():
            kind_of(target)
            raise DepoisonError(f"{target}: no report; valid: reports/[track/][paper/]NAME.md, as in docs/tables.md")

    def needs(self, kind: type[Report]) -> Callable[[Any], list[Any]]:
        """Input function: what a report is made from, and a stamp that is new where one of its files is out of date.

        Of one that asks for nothing that is missing, what is there and what else was asked for.
        """

        def needed(wildcards: Any) -> list[Any]:
            with _refusing():
                made = self._read(kind.path.format(**wildcards))
                files = made.needs() if kind.computes else self._there_or_asked(made.needs())
                return self._view(made.target, files, all(map(os.path.exists, files)) and made.is_current())

        return needed

    def _there_or_asked(self, products: Iterable[str]) -> list[str]:
        """What a report is made from that asks for nothing that is missing.

        But whoever asks for a table and for such a report wants that table in it.
        """
        return [product for product in products if product in self._asked or Path(product).exists()]

    def _tell(self) -> None:
        """Say, before any job, what files cannot show: code that changed, and what somebody shared."""
        dag = self._workflow.dag
        asked = [*dag.targetfiles, *(file for rule in dag.targetrules for file in rule.input if isinstance(file, str))]
        targets = [str(target) for target in asked if str(target).startswith((PREFIX, "reports/"))]
        with contextlib.suppress(DepoisonError):  # a target that means nothing; its rule says so
            lines = notices(self.plan, sorted(targets))
            self._say_notes()
            for line in lines:
                _say(line)
        with _refusing():
            self.plan.require_unchanged()
        self._say_notes()

    @cached_property
    def _asked(self) -> set[str]:
        """The products behind the cells, tables and figures that Snakemake was asked for."""
        targets = [str(target) for target in self._workflow.dag_settings.targets]
        makes = [target for target in targets if target.startswith((PREFIX, "reports/")) and kind_of(target).computes]
        return {artifact.product for artifact in artifacts(self.plan, makes)}

    def _view(self, path: str, files: list[str], current: bool) -> list[Any]:
        if not self._told:
            self._told = True
            self._tell()
        # Each in a folder of its own: Snakemake lists a folder once, and would not see what joins it later.
        stamp = self._stamps / path.replace("/", "!") / "stamp"
        moment = 1 if current else time.time()
        with _refusing():
            stamp.parent.mkdir(parents=True, exist_ok=True)
            # Snakemake compares the content of small files, too: it must be new whenever the time is.
            stamp.write_text(f"{moment}\n", encoding="utf-8")
            os.utime(stamp, (moment, moment))
        return [*(flag(file, "ancient") for file in files), str(stamp)]


def _name(job: Any) -> str:
    """A job's first file."""
    return str(next(iter(job.output), job.rule.name))


def _check_machine(settings: Any) -> None:
    """See that jobs can start, and find this environment's Python where Snakemake was called by its path.

    Raises:
        DepoisonError: no cores, or no jobs at a time.
    """
    for option, value in (("--cores", settings.cores), ("--jobs", settings.nodes)):
        if value == 0:
            raise DepoisonError(f"{option} 0: nothing could run; valid: at least 1{', or all' * (option == '--cores')}")
    here = str(Path(sys.executable).parent)
    if Path(shutil.which("python") or "").parent != Path(here):
        os.environ["PATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PATH"))))


def _check_folders(paths: Iterable[Any]) -> None:
    """See that files can be made, before hours are spent on what they shall hold.

    Raises:
        DepoisonError: a folder cannot be written, or is behind a symbolic link.
    """
    for folder in dict.fromkeys(Path(path).parent for path in paths):
        refuse_links(folder)
        there = next(one for one in (folder, *folder.parents) if one.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise DepoisonError(f"{there}: {'cannot be written' if there.is_dir() else 'is a file, not a folder'}")


NOT_WORTH_SAYING = (
    "provenance/metadata so that it in part cannot be used",  # it has none of files that it did not make itself
    "Cannot restore results/",  # what a failed job was to make was not there before either
    "--keep-incomplete mode is set",
)
"""What Snakemake says because of how the profile and the rules treat artifacts: complete, whoever made them."""


def _worth_saying(record: logging.LogRecord) -> bool:
    return not any(words in str(record.msg) for words in NOT_WORTH_SAYING)


def _clear_stale_locks() -> TextIO:
    """Remove the locks of a Snakemake that was killed, as `snakemake --unlock` does.

    Every Snakemake holds a shared flock for as long as it lives; whoever can have it exclusively is alone. On another
    host's word nothing is removed: a shared file system may not carry flocks from one host to another.

    Returns:
        The locked file, to be kept open.
    """
    RUNNING.parent.mkdir(parents=True, exist_ok=True)
    alive = RUNNING.open("a+", encoding="utf-8")
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alive.seek(0)
        if alive.read() == platform.node():
            shutil.rmtree(SNAKEMAKES_LOCKS, ignore_errors=True)
            for left in RUNNING.parent.glob("worker-*"):
                remove(left / "socket")
        alive.truncate(0)
        alive.write(platform.node())
        alive.flush()
    fcntl.flock(alive, fcntl.LOCK_SH)
    return alive


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """End Snakemake with the error's one line; as an exception it would come with Snakemake's frames around it."""
    try:
        yield
    except (DepoisonError, OSError) as error:
        _say(f"error: {told(error)}")
        raise SystemExit(1) from None


def _say(line: str) -> None:
    for handler in logger.handlers:
        if isinstance(handler, QueueHandler):  # what was said before comes before
            handler.queue.join()
    print(f"depoison: {line}", file=sys.stderr)
