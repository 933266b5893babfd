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

from snakemake.io import flag
from snakemake.logging import logger

from depoison.errors import DepoisonError, told
from depoison.files import refuse_links
from depoison.gpu import devices, remarks
from depoison.papers.claims import read_claims
from depoison.papers.figures import read_figure, read_page
from depoison.papers.index import read_index
from depoison.papers.parts import check_form, is_view
from depoison.papers.pdf import read_paper
from depoison.papers.tables import locate, read_report
from depoison.plan.cells import PREFIX
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact, canonical, computes, fingerprint
from depoison.reports.cells import cell_is_current, read_cell
from depoison.reports.claims import claims_are_current
from depoison.reports.figures.write import figure_is_current, page_is_current
from depoison.reports.html.page import index_is_current
from depoison.reports.paper import paper_is_current
from depoison.reports.tables import table_is_current
from depoison.running import display
from depoison.running.board import Board, Item, item_of
from depoison.running.share import artifacts, notices
from depoison.running.worker import remove, start_worker

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

    def _read_anew(self, read: Callable[[Plan, str], Any], target: str) -> Any:
        """A report, after which everything is said that there is to say about it."""
        found = read(self.plan, target)
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
            if stage == "dataset":
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

    def refuse(self, wildcards: Any) -> list[Any]:
        """Input function of reports that no rule makes: ends Snakemake with a line that says which there are."""
        target = f"reports/{wildcards.unknown}"
        with _refusing():
            check_form(target)
            raise DepoisonError(f"{target}: no report; valid: reports/[track/][paper/]NAME.md, as in docs/tables.md")

    def cell_inputs(self, wildcards: Any) -> list[Any]:
        """Input function: a cell's evaluation, and a stamp that is new where the cell's file is out of date."""
        with _refusing():
            cell = self._read(read_cell, f"{PREFIX}{wildcards.cell}")
            return self._view(cell.name.path, [cell.evaluation.product], cell_is_current(cell))

    def table_inputs(self, wildcards: Any) -> list[Any]:
        """Input function: a table's evaluations, and a stamp that is new where the table is out of date."""
        target = f"reports/{wildcards.where}{wildcards.table}"
        with _refusing():
            table = self._read(read_report, target)
            return self._view(table.target, table.products(), table_is_current(self.plan, table))

    def figure_inputs(self, wildcards: Any) -> list[Any]:
        """Input function: what a figure draws, and a stamp that is new where one of its files is out of date."""
        target = f"reports/{wildcards.where}{wildcards.figure}"
        with _refusing():
            figure = self._read(read_figure, target)
            products = [artifact.product for artifact in figure.artifacts()]
            return self._view(figure.target, products, figure_is_current(figure))

    def figure_page_inputs(self, wildcards: Any) -> list[Any]:
        """Input function: the pictures beside the page, and a stamp that is new where its text is out of date."""
        with _refusing():
            page = self._read(read_page, f"reports/{wildcards.where}figures")
        pictures = [f"{figure.target}.png" for figure in page.figures]
        return self._view(page.target, pictures, page_is_current(self.plan, page))

    def claims_inputs(self, wildcards: Any) -> list[Any]:
        """Input function: what is there of the claims' cells, what else was asked for, and a stamp as the others have it."""
        target = f"reports/{wildcards.where}claims"
        with _refusing():
            claims = self._read(read_claims, target)
            products = self._there_or_asked(claims.products())
            current = all(Path(product).exists() for product in products) and claims_are_current(self.plan, claims)
            return self._view(claims.target, products, current)

    def html_inputs(self, wildcards: Any) -> list[Any]:
        """Input function: what a track's page shows and is there, what else was asked for, and a stamp as above."""
        with _refusing():
            index = self._read(read_index, f"reports/{wildcards.where}index.html")
            products = self._there_or_asked(index.products())
            current = all(Path(product).exists() for product in products) and index_is_current(self.plan, index)
            return self._view(index.target, products, current)

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
        makes = [target for target in targets if target.startswith((PREFIX, "reports/")) and not is_view(target)]
        return {artifact.product for artifact in artifacts(self.plan, makes)}

    def paper_inputs(self, wildcards: Any) -> list[Any]:
        """Input function: evaluations of all tables, all figures, and a stamp that is new where it is out of date."""
        with _refusing():
            paper = self._read(read_paper, f"reports/{wildcards.where}paper")
            current = paper_is_current(self.plan, paper)
        needed = [*paper.tables.products(), *(f"{figure.target}.pdf" for figure in paper.figures)]
        return self._view(paper.target, needed, current)

    def _view(self, path: str, evaluations: list[str], current: bool) -> list[Any]:
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
        return [*(flag(product, "ancient") for product in evaluations), str(stamp)]


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
