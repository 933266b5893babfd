"""The command line: `depoison …`, or `python -m depoison …` where the package is not installed."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import random
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from depoison import __version__
from depoison.errors import INTERRUPTED, TOLD, DepoisonError, is_full_disk, told, unknown
from depoison.running.logs import LogFile, log_of
from depoison.running.worker import ARGUMENTS, ask

TOLERANCE = 1.0
"""Percentage points that a number may be off when it is made anew: on another kind of processor sums round otherwise."""

EXPORTED = ("like-input", "safetensors", "pt")

LISTED = ("attacks", "defenses", "models", "datasets", "tracks", "papers", "metrics")

EXAMPLES = """examples:
  snakemake -- reports/demo/overview.md                  a table, with all that it needs; most work is asked of Snakemake
  depoison list defenses fst                             what a method does, and every value that it takes
  depoison explain results/cells/demo/fashion-mnist/resnet18/badnet/fst/s0.json
  depoison report --partial reports/demo/overview.md     a table of what is there
"""

PROJECT = "config/config.yaml"
"""What the project's folder is known by."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = None
    try:
        options = _parser().parse_args(arguments)
        if options.command is _stage and not options.debug:
            code = ask({name: getattr(options, name) for name in ARGUMENTS})
            if code is not None:
                return code
        return _carry_out(options)
    except KeyboardInterrupt:
        if options and options.command is _run:
            print("\r\033[K" * sys.stderr.isatty() + f"depoison: {INTERRUPTED}", file=sys.stderr)
        return 130


def _carry_out(options: argparse.Namespace) -> int:
    """Run a command; returns the exit code. An error is told in one line."""
    file = getattr(options, "log", None)
    try:
        _set_up_logging(file)
        if options.command not in (_stage, _worker, _init):
            _stand_in_the_project()
        code = options.command(options) or 0
        sys.stdout.flush()
        return code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not file:  # nobody reads on: `depoison list attacks | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        foreseen = isinstance(error, DepoisonError | OSError | MemoryError)
        if options.debug or not (foreseen or file):
            raise
        if not foreseen:
            _log_alone("".join(traceback.format_exception(error)).rstrip())
        log.error("error: %s", told(error), extra={"cause": told(error)})
        # A full disk may leave no room to say so in the log.
        return errno.ENOSPC if file and is_full_disk(error) else getattr(options, "failure", 1)


log = logging.getLogger("depoison")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="depoison", description="Reproduce papers on purifying backdoored networks.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=function)
        return sub

    def configured(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("--configfile", action="append", default=[], help="lay this file over config/config.yaml")
        sub.add_argument(
            "--methods", metavar="DIR", help="folder of methods of your own (runtime.methods); default: methods"
        )
        sub.add_argument("--config-json", help=argparse.SUPPRESS)
        return sub

    sub = command("init", _init, "lay out a working folder, for whoever installed the package and has no clone")
    sub.add_argument("folder", type=Path, help="a new folder")

    new = command("new", None, "write a file of your own to edit").add_subparsers(required=True, metavar="WHAT")
    help = "measure a folder of images, or a file of arrays, and write config/datasets/NAME.yaml"
    sub = configured(new.add_parser("dataset", help=help, description=help))
    sub.set_defaults(command=_new_dataset)
    sub.add_argument(
        "path", type=Path, help="train/<class>/* and test/<class>/*, or <class>/* alone; or .npz, .safetensors"
    )
    sub.add_argument("--name", required=True, help="what cells call it, such as my-photos")
    sub.add_argument("--size", type=_positive, help="height and width in pixels; default: what the images have")
    for what, help in (
        ("track", "write config/tracks/NAME.yaml: a budget that tables are made at"),
        ("table", "write config/papers/mine/NAME.yaml: a table of your own"),
        ("defense", "write methods/defenses/NAME.py and .yaml: a defense of your own"),
        ("attack", "write methods/attacks/NAME.py and .yaml: an attack of your own"),
    ):
        sub = configured(new.add_parser(what, help=help, description=help))
        sub.set_defaults(command=_new, what=what)
        sub.add_argument("--name", required=True, help="what targets and cells call it, such as my-first")

    help = "recognize a network by its weights, and write config/checkpoints/NAME.yaml"
    sub = configured(new.add_parser("checkpoint", help=help, description=help))
    sub.set_defaults(command=_new_checkpoint)
    sub.add_argument("path", type=Path, help="a file of weights: .safetensors, or .pt, .pth, … of tensors")
    sub.add_argument("--name", required=True, help="what cells call it, in an attack's place")
    sub.add_argument("--dataset", required=True, help="what it classifies")
    sub.add_argument(
        "--model", default="", help="which model it is, such as resnet18+width=32; default: the one that fits"
    )
    sub.add_argument(
        "--key", default="", help="where the weights lie in the file, such as ema; default: where they fit"
    )

    sub = configured(
        command("audit", _audit, "try every defense that can purify a checkpoint, and say which one to take")
    )
    sub.add_argument("name", help="of config/checkpoints/NAME.yaml; the report is reports/audit/NAME.md and .html")

    sub = configured(command("export", _export, "write the model of a cell as a file of weights"))
    sub.add_argument("target", help="a cell, results/cells/…/s0.json")
    sub.add_argument("--output", type=Path, required=True, help="the file")
    sub.add_argument(
        "--format", choices=EXPORTED, default=EXPORTED[0],
        help="like-input: of a checkpoint's cell with names, types and key as in the file that was brought (%(default)s)",
    )  # fmt: skip

    sub = configured(
        command("list", _list, "what there is: attacks, defenses, models, …, and all that is known of one")
    )
    sub.add_argument("kind", choices=LISTED, help=", ".join(LISTED), metavar="KIND")
    sub.add_argument("name", nargs="?", default="", help="one of them")

    sub = configured(command("run", _run, "make cells and reports without Snakemake, one job after the other"))
    sub.add_argument("targets", nargs="+", help="cells (results/cells/…) and reports (reports/…)")

    sub = configured(command("explain", _explain, "every resolved value of a cell, and the file and line that set it"))
    sub.add_argument("target", help="a cell, results/cells/…/s0.json")
    sub.add_argument("--all", action="store_true", help="also show the values that were overruled")

    sub = configured(
        command("progress", _progress, "what a run makes now, wherever it runs, and how long the rest takes")
    )
    sub.add_argument(
        "targets", nargs="*", help="what the run makes (results/cells/…, reports/…); else what is being made"
    )

    sub = configured(
        command(
            "verify", _verify, "whether artifacts, cells and reports are what was recorded, and numbers come out again"
        )
    )
    sub.add_argument("targets", nargs="*", help="cells and reports, with all behind them; default: all that is here")
    sub.add_argument(
        "--recompute", type=_positive, metavar="N", help="make N of the evaluations behind targets anew and compare"
    )
    sub.add_argument("--seed", type=int, help="of the draw of these N; default: another one each time")
    sub.add_argument(
        "--tolerance", type=_points, default=TOLERANCE, help="percentage points that a number may be off (%(default)g)"
    )

    sub = configured(command("check", _check, "validate every file below config/"))

    sub = configured(command("report", _report, "write cells and reports from what they show, which is there"))
    sub.add_argument("targets", nargs="+", help="cells (results/cells/…) and reports (reports/…)")
    sub.add_argument(
        "--partial", action="store_true", help="leave empty what is not computed yet, and say what makes it"
    )
    sub.add_argument("--log")

    sub = configured(
        command("compare", _compare, "which cells of two tracks, folders or git revisions differ beyond noise")
    )
    sub.add_argument("first", help="a track, the folder of another checkout, or a git revision")
    sub.add_argument("second", help="likewise")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="every number")
    form.add_argument("--markdown", action="store_true", help="the table as Markdown")
    sub.set_defaults(failure=2)

    share = command("share", None, "share artifacts with a team through DVC (docs/sharing.md)").add_subparsers(
        required=True, metavar="ACTION"
    )
    for action, help in (
        ("push", "add what targets use to DVC and push it"),
        ("pull", "fetch what targets need and somebody shared"),
        ("status", "what is here, what is in the remote, what would be computed"),
    ):
        sub = configured(share.add_parser(action, help=help, description=help))
        sub.set_defaults(command=_share, action=action)
        sub.add_argument("targets", nargs="+", help="cells (results/cells/…) and reports (reports/…)")
        if action != "push":  # which takes along all that is here
            about = "also models, and what they were made from, that are not needed: their evaluations are here"
            sub.add_argument("--models", action="store_true", help=about)

    sub = configured(
        command("gc", _gc, "list, or remove, artifacts that no table or figure of the configuration reaches")
    )
    sub.add_argument("targets", nargs="*", help="further cells and reports to keep")
    sub.add_argument("--remove", action="store_true", help="remove those that DVC's remote has")
    sub.add_argument("--unshared-too", action="store_true", help="with --remove: also those that exist nowhere else")

    papers = command("papers", None, "the papers' own numbers").add_subparsers(required=True, metavar="ACTION")
    help = "list what the papers print that does not add up"
    sub = papers.add_parser("check", help=help, description=help)
    sub.set_defaults(command=_papers)
    sub.add_argument("--output", type=Path, help="write the list there (docs/errata.md)")

    sub = command("schema", _schema, "write what is generated: .schemas/ for editors, and dvc.yaml")

    sub = command("reference", _reference, "write what is generated of the documentation: docs/reference/")

    sub = command("lock", _lock, "accept the code of stages and methods as it is (see docs/architecture.md)")

    sub = command("worker", _worker, "run stages for `depoison stage` in processes that need not start (for Snakemake)")
    sub.add_argument("socket", type=Path)
    sub.add_argument("descriptor", type=int)

    sub = command("stage", _stage, "make one artifact from its spec")
    sub.add_argument("spec", help="the spec as JSON")
    sub.add_argument("--output", required=True, help="the artifact's directory")
    sub.add_argument("--runtime", default="{}", help="how to work, as JSON: the section `runtime` of the configuration")
    sub.add_argument("--root", default="", help="the local copy of a dataset")
    sub.add_argument("--log", default="", help="file for the log")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _points(text: str) -> float:
    if not 0 <= (number := float(text)) <= 100:
        raise ValueError(text)
    return number


def _stand_in_the_project() -> None:
    """All paths are relative to the project's folder.

    Raises:
        DepoisonError: the working directory is not the project's folder.
    """
    here = Path.cwd()
    if not (here / PROJECT).exists():
        above = next((folder for folder in here.parents if (folder / PROJECT).exists()), None)
        raise DepoisonError(f"{here}: no {PROJECT} here; run this in {above or 'a clone of the project'}")


def _set_up_logging(file: str | None) -> None:
    """Lines on stderr, or with a log file all lines there and only errors on stderr.

    Raises:
        DepoisonError: the file cannot be written.
    """
    logging.raiseExceptions = False  # a full disk is told once, by whoever needs the space
    log.setLevel(logging.INFO)
    log.handlers.clear()
    log.propagate = False
    screen = logging.StreamHandler()
    screen.setFormatter(logging.Formatter("depoison: %(message)s"))
    if file or sys.stderr.isatty():
        screen.setLevel(logging.ERROR if file else logging.WARNING)
    log.addHandler(screen)
    if file:
        log.addHandler(LogFile(file))
        if os.environ.get(TOLD) == "in-log":
            log.removeHandler(screen)


def _log_alone(text: str, **said: str) -> None:
    """Write it into the log, where there is one, and nowhere else."""
    for handler in log.handlers:
        if isinstance(handler, LogFile):
            handler.emit(logging.makeLogRecord({"msg": text, **said}))


def _plan(options: argparse.Namespace) -> Any:
    from depoison.importing import use
    from depoison.plan.plan import Plan
    from depoison.reports.kinds import kind_of

    for target in getattr(options, "targets", []):
        kind_of(target)
    given = json.loads(options.config_json) if options.config_json else {}
    if options.methods:
        given["runtime"] = given.get("runtime", {}) | {"methods": options.methods}
    plan = Plan(".", options.configfile, given)
    use(plan.configuration.methods.folder)
    return plan


def _tell(plan: Any, options: argparse.Namespace, targets: list[str], makes: bool = False) -> None:
    """Say what planning noted and files cannot show, but for a job of Snakemake's, which said it when it planned."""
    from depoison.running.share import notices

    if getattr(options, "log", None) is None:
        plan.require_unchanged()
        for note in [*plan.notes.values(), *notices(plan, targets, makes)]:
            print(f"depoison: {note}", file=sys.stderr)


def _init(options: argparse.Namespace) -> None:
    from depoison.project import lay_out

    print(f"{options.folder} has {', '.join(lay_out(options.folder))}; next: cd {options.folder} && snakemake -n")


def _new_dataset(options: argparse.Namespace) -> None:
    from depoison.new import new_dataset

    print(new_dataset(_plan(options), options.path, options.name, options.size), end="")


def _new_checkpoint(options: argparse.Namespace) -> None:
    from depoison.checkpoints import new_checkpoint

    told = new_checkpoint(_plan(options), options.path, options.name, options.dataset, options.model, options.key)
    print(told, end="")


def _audit(options: argparse.Namespace) -> int:
    options.targets = [f"reports/audit/{options.name}.md"]
    return _run(options)


def _export(options: argparse.Namespace) -> None:
    from depoison.checkpoints import export

    plan = _plan(options)
    print(export(plan, plan.cell(options.target), options.output, options.format), end="")


def _new(options: argparse.Namespace) -> None:
    from depoison.drafts import new_method, new_table, new_track

    makes = {"track": new_track, "table": new_table}.get(options.what) or partial(new_method, kind=options.what)
    print(makes(_plan(options), name=options.name), end="")


def _list(options: argparse.Namespace) -> None:
    from depoison.reports.listing import listing

    print(listing(_plan(options), options.kind, options.name), end="")


def _explain(options: argparse.Namespace) -> None:
    from depoison.plan.cells import CellName
    from depoison.reports.explain import explain, reports_with

    plan = _plan(options)
    reports = reports_with(plan, CellName.parse(options.target))
    print(explain(plan.cell(options.target), options.all, reports), end="")


def _check(options: argparse.Namespace) -> None:
    from depoison.papers.check import check
    from depoison.plan.lock import stale

    print(check(plan := _plan(options)))
    for line in stale(plan.root).values():
        print(f"depoison: {line}", file=sys.stderr)


def _run(options: argparse.Namespace) -> int:
    from depoison.gpu import lease
    from depoison.plan.specs import unique
    from depoison.running.board import Board, Item, item_of
    from depoison.running.watch import missing
    from depoison.stages.runner import devices_wanted, run_stage

    plan = _plan(options)
    runtime = plan.configuration.config.runtime
    reports = _made_of(plan, options.targets)
    wanted = unique(artifact for report in reports.values() if report.computes for artifact in report.artifacts())
    _tell(plan, options, options.targets, makes=True)
    lacking = missing(wanted)
    plan.require_sources(lacking)
    items = {one.directory: item_of(one, uses={"cores": 1}) for one in lacking}
    items |= {one.main: Item(one.main, shows=tuple(one.needs() if one.computes else ())) for one in reports.values()}
    board = Board(items, {"cores": 1})

    @contextlib.contextmanager
    def job(key: str, logs: logging.Handler | None = None) -> Iterator[None]:
        """Whatever goes wrong inside is this job's failure alone."""
        board.started(key, time.time())
        if logs is not None:
            log.addHandler(logs)
        try:
            yield
            board.finished(key, time.time())
        except Exception as error:
            if options.debug:
                raise
            if not isinstance(error, DepoisonError):
                _log_alone("".join(traceback.format_exception(error)).rstrip())
            _log_alone(f"error: {told(error)}", cause=told(error))
            board.lost(key, told(error))
            if sys.stderr.isatty():
                print("\r\033[K", end="", file=sys.stderr)  # the line of its epochs
            log.warning("failed: %s", board.items[key].name)
        finally:
            if logs is not None:
                log.removeHandler(logs)
                logs.close()

    with lease(devices_wanted(runtime), runtime.jobs_per_gpu):  # one for all: a process cannot change its device
        for number, artifact in enumerate(lacking, 1):
            if any(one.directory in board.open for one in artifact.upstream.values()):
                continue  # of what failed
            line = f"[{number}/{len(lacking)}] {artifact.directory}  ETA {board.eta(time.time())}"
            log.info("%s", line)
            if sys.stderr.isatty():
                print(line, file=sys.stderr)
            root = plan.local_copies.get(artifact.directory)
            with job(artifact.directory, _stage_log(artifact.directory)):
                run_stage(artifact.spec, artifact.directory, runtime, root)
    for report in reports.values():
        if not (report.computes and report.missing()):
            with job(report.main):
                report.write()
    for line in board.lacking():
        log.warning("%s", line)
    for failure in board.failed.values():
        log.error("error: %s", failure)
    return int(bool(board.failed))


def _stage_log(directory: str) -> logging.Handler | None:
    """The log that a job of Snakemake's writes, for whoever watches; without one the stage runs all the same."""
    from depoison.running.watch import being_made

    with contextlib.suppress(DepoisonError):
        return LogFile(log_of(directory), "w" if being_made(directory) is None else "a")
    return None


def _made_of(plan: Any, targets: Iterable[str]) -> dict[str, Any]:
    """Reports by their targets, each after those whose files it shows."""
    from depoison.reports.kinds import report_of

    found: dict[str, Any] = {}
    for target in targets:
        report = report_of(plan, target)
        files = [file for file in report.needs() if file.startswith("reports/")]
        found |= {**_made_of(plan, files), report.target: report}
    return found


def _progress(options: argparse.Namespace) -> None:
    from depoison.reports.kinds import artifacts
    from depoison.running.watch import follow

    follow(artifacts(_plan(options), options.targets) if options.targets else [])


def _verify(options: argparse.Namespace) -> int:
    from depoison.reports.verification import write_verification
    from depoison.running.verify import check, recompute, track_of

    plan = _plan(options)
    tell = partial(print, flush=True)
    track = track_of(plan, options.targets) if options.recompute else ""
    sound = check(plan, options.targets, tell)
    if not options.recompute:
        return int(not sound)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    found = recompute(plan, options.targets, options.recompute, seed, options.tolerance, tell)
    path = write_verification(track, found)
    tell(f"{found.agreeing} of {len(found.cells)} agree within {found.tolerance:g} percentage points: {path}")
    return int(not sound or found.agreeing < len(found.cells))


def _share(options: argparse.Namespace) -> int:
    from depoison.running import share

    chosen = {} if options.action == "push" else {"models": options.models}
    return _say(*getattr(share, options.action)(_plan(options), options.targets, **chosen))


def _gc(options: argparse.Namespace) -> int:
    from depoison.running.share import collect

    return _say(*collect(_plan(options), options.targets, options.remove, options.unshared_too))


def _say(text: str, faults: Sequence[str]) -> int:
    """What was done, and what is wrong with the rest; returns the exit code."""
    print(text, flush=True)
    for fault in faults:
        log.error("error: %s", fault)
    return int(bool(faults))


def _report(options: argparse.Namespace) -> None:
    from depoison.reports.kinds import report_of

    plan = _plan(options)
    reports = [report_of(plan, target, options.partial) for target in options.targets]
    _tell(plan, options, options.targets)
    for report in reports:
        report.write()


def _compare(options: argparse.Namespace) -> int:
    from depoison.reports.changes import as_json, as_text, compare_sides
    from depoison.reports.runs import read_side

    plan = _plan(options)
    found = compare_sides(plan, *(read_side(plan, name) for name in (options.first, options.second)))
    print(as_json(found) if options.json else as_text(found, options.markdown), end="")
    return int(bool(found.changed))


def _stage(options: argparse.Namespace) -> None:
    from depoison.plan.config import Runtime
    from depoison.plan.specs import STAGES
    from depoison.stages.runner import run_stage

    try:
        spec, runtime = json.loads(options.spec), Runtime.model_validate_json(options.runtime)
    except (ValueError, RecursionError) as error:
        raise DepoisonError(f"stage: the spec or the runtime is not valid JSON ({error})") from None
    if not isinstance(spec, dict) or "stage" not in spec:
        raise DepoisonError("stage: the spec has no stage")
    if str(spec["stage"]) not in STAGES:
        raise unknown("stage", str(spec["stage"]), STAGES)
    if set(spec) != {"stage", "version", "upstream", "parameters", "seed"}:
        raise DepoisonError("stage: a spec has the keys stage, version, upstream, parameters and seed")
    run_stage(spec, options.output, runtime, options.root or None)


def _papers(options: argparse.Namespace) -> None:
    from depoison.files import write_bytes
    from depoison.reports.papers import errata

    text = errata(Path("."))
    if options.output:
        write_bytes(options.output, text.encode())
    else:
        print(text, end="")


def _worker(options: argparse.Namespace) -> None:
    from depoison.running.worker import serve

    def stage(arguments: dict[str, str]) -> int:
        return _carry_out(argparse.Namespace(command=_stage, debug=False, **arguments))

    serve(options.socket, options.descriptor, stage)


def _schema(options: argparse.Namespace) -> None:
    from depoison.papers.schema import FOLDER, write_schemas
    from depoison.plan.plan import Plan
    from depoison.running.dvc_file import DVC_FILE, dvc_file

    write_schemas(Path(FOLDER))
    Path(DVC_FILE).write_text(dvc_file(Plan()), encoding="utf-8")


def _reference(options: argparse.Namespace) -> None:
    from depoison.plan.plan import Plan
    from depoison.reports.reference import write_reference

    write_reference(Plan(), _parser())


def _lock(options: argparse.Namespace) -> None:
    from depoison.plan.lock import renew

    print(renew(Path(".")))
