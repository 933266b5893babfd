"""`depoison verify`: whether what is here is what was recorded, and whether evaluations made anew give the same numbers.

A checksum shows what changed after it was recorded. Whoever changes the record, too, is found by making the number again.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from depoison.artifacts import METRICS_FILE, read_evaluation, read_record, read_spec
from depoison.errors import DepoisonError, told
from depoison.files import RUN, corrupted, sha256_of
from depoison.gpu import lease
from depoison.papers.tables import locate, stem_of
from depoison.plan.cells import PREFIX, CellName
from depoison.plan.plan import Plan
from depoison.plan.specs import STAGES, Artifact, chain_of
from depoison.reports.kinds import artifacts, report_of
from depoison.reports.tables import command
from depoison.reports.verification import Recomputed, Verification, checksum_of, path_of
from depoison.running.share import SUFFIXES
from depoison.stages.runner import devices_wanted, git_commit, run_stage

GIVEN = ("dataset", "split", "train", "adopt")
"""What a purification and its evaluation are made from, and what is not made anew."""

Tell = Callable[[str], None]


# --- against the records -----------------------------------------------------------------------------------------


def check(plan: Plan, targets: Sequence[str], tell: Tell) -> bool:
    """Compare every file of the artifacts behind targets with its record, and the targets with what they are made from.

    What is not here is counted, and is no fault.

    Args:
        targets: cells and reports; none: all artifacts, cells and reports that are here.
        tell: takes a line for each fault, and the count.

    Returns:
        Whether there is no fault.

    Raises:
        DepoisonError: a target that is none.
    """
    files = {directory: _files(directory) for directory in _directories(plan, targets)}
    here = {directory: [file for file in names if file.exists()] for directory, names in files.items()}
    progress = _Progress(sum(file.stat().st_size for names in here.values() for file in names))
    faults: set[str] = set()  # a report meets those of its artifacts once more

    def meet(lines: Iterable[str]) -> None:
        for line in lines:
            if line not in faults:
                faults.add(line)
                progress.clear()
                tell(line)

    for directory, names in here.items():
        meet(_faults(directory, names, progress.add))
    progress.clear()
    views = _views(targets)
    untold = 0
    for target in views:
        if (found := _faults_of_view(plan, target, strict=bool(targets))) is None:
            untold += 1
        else:
            meet(found)
    counts = [sum(map(len, of.values())) for of in (here, files)]
    tell(
        f"{len(files)} artifacts, {counts[0]} of their {counts[1]} files here ({_size(progress.total)}); {len(views)} cells "
        f"and reports{f', {untold} of them not comparable' * bool(untold)}: {len(faults) or 'no'} faults"
    )
    return not faults


def _directories(plan: Plan, targets: Sequence[str]) -> list[Path]:
    """Of the artifacts behind targets, here or not; without targets of all that are here."""
    if targets:
        return [Path(directory) for directory in chain_of(artifacts(plan, targets))]
    return [path for stage in STAGES for path in sorted(Path("results", stage).glob("[!.]*")) if path.is_dir()]


def _files(directory: Path) -> list[Path]:
    return [directory / name for name in STAGES[directory.parts[1]].files]


def _faults(directory: Path, files: Sequence[Path], seen: Callable[[int], None]) -> Iterator[str]:
    """What differs from the record of an artifact, a line for each of these files."""
    if not files:
        return
    try:
        read_spec(directory)
        recorded = read_record(directory)["sha256"]
    except DepoisonError as error:
        yield str(error)
        return
    for file in files:
        try:
            if sha256_of(file, seen) != recorded.get(file.name):
                yield str(corrupted(file, f"its sha256 is not the one in {RUN}"))
            elif file.name == METRICS_FILE:
                yield from _faults_of_evaluation(file)
        except OSError as error:
            yield f"{file}: {error.strerror}"
        except DepoisonError as error:
            yield str(error)


def _faults_of_evaluation(file: Path) -> Iterator[str]:
    """Numbers that no count of images gives, and a model that is another now."""
    content = read_evaluation(file).content
    measured = {"": content} | {f"parts.{part}.": own for part, own in content.get("parts", {}).items()}
    counts = [(at, own, *count) for at, own in measured.items() for count in own.get("denominators", {}).items()]
    for at, own, metric, total in counts:
        value = own["metrics"].get(metric)
        if value is not None and total and abs(value * total / 100 - round(value * total / 100)) > 1e-6:
            yield str(corrupted(file, f"{at}metrics.{metric}: {value}% of {total} images is no number of images"))
    model = content.get("model") or {}
    directory = model.get("directory", "")
    if Path(directory, RUN).exists():
        then, now = (record["sha256"].get("model.safetensors") for record in (model, read_record(directory)))
        if then != now:
            yield f"{file}: evaluates another model than the one in {directory}; delete {file} and run again"


def _views(targets: Sequence[str]) -> list[str]:
    """The cells and reports that are here: of these targets, or all."""
    if targets:
        beside = {target: [target, *(f"{stem_of(target)}{suffix}" for suffix in SUFFIXES)] for target in targets}
        return [target for target, names in beside.items() if any(Path(name).is_file() for name in names)]
    cells = [str(path) for path in sorted(Path(PREFIX).rglob("s*.json"))]
    files = [path for path in Path("reports").rglob("[!.]*") if path.suffix in SUFFIXES and path.is_file()]
    files = sorted(files, key=lambda path: SUFFIXES.index(path.suffix), reverse=True)  # .md stands for all four
    reports = {stem_of(str(path)): str(path) for path in files if path.name != path_of("any").name}
    return [*cells, *sorted(reports.values())]


def _faults_of_view(plan: Plan, target: str, strict: bool) -> list[str] | None:
    """Why a cell or report is not what would be written now; None where that cannot be told.

    Args:
        strict: whether a target that means nothing is an error; else it cannot be told.
    """
    try:
        report = report_of(plan, target, partial=True)
    except DepoisonError:
        if strict:
            raise
        return None
    try:
        current = report.holds()
    except DepoisonError as error:
        return [str(error)]
    fault = f"{target}: not what would be written now; `{command(plan, target)}` writes it anew"
    return None if current is None else [] if current else [fault]


class _Progress:
    """How far it is, on a terminal in a line that is rewritten; `total` in bytes."""

    EVERY = 0.2

    def __init__(self, total: int):
        self.total, self._done, self._told = total, 0, time.monotonic()

    def add(self, size: int) -> None:
        self._done += size
        if sys.stderr.isatty() and time.monotonic() - self._told >= self.EVERY:
            self._told = time.monotonic()
            print(f"\r\033[K{_size(self._done)} of {_size(self.total)}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _size(number: float) -> str:
    return f"{number / 2**20:.1f} MiB" if number < 2**30 else f"{number / 2**30:.1f} GiB"


# --- against numbers made anew -----------------------------------------------------------------------------------


def track_of(plan: Plan, targets: Sequence[str]) -> str:
    """The track that targets are on.

    Raises:
        DepoisonError: none, or several.
    """
    tracks = {
        CellName.parse(target).track if target.startswith(PREFIX) else locate(plan, target)[1] for target in targets
    }
    if len(tracks) != 1:
        given = f"these are on {', '.join(sorted(tracks))}" if tracks else "there is none"
        raise DepoisonError(f"--recompute takes cells and reports of one track; {given}")
    return tracks.pop()


def recompute(plan: Plan, targets: Sequence[str], count: int, seed: int, tolerance: float, tell: Tell) -> Verification:
    """Make a random sample of the evaluations behind targets anew, from the backdoored model on, and compare.

    Purification and evaluations run in a folder for temporary files; nothing below results/ is written. The evaluation
    without a defense is made anew, too, wherever another is compared with it.

    Args:
        count: how many; where fewer can be made from what is here, all of these.
        tolerance: how far each metric may be off, in percentage points.
        tell: takes a line for each.

    Raises:
        DepoisonError: targets of several tracks, or none that can be made anew from what is here.
    """
    track_of(plan, targets)
    wanted = sorted(artifacts(plan, targets), key=lambda artifact: artifact.directory)
    there = [one for one in wanted if one.stage == "evaluate" and Path(one.product).exists()]
    able = [one for one in there if all(map(_is_whole, _given(one)))]
    if not able:
        lacking = next((str(a.directory) for one in there for a in _given(one) if not _is_whole(a)), "an evaluation")
        raise DepoisonError(
            f"{' '.join(targets)}: none of {len(there)} evaluations can be made anew: {lacking} is not here; "
            f"`depoison share pull --models {' '.join(targets)}` fetches what was shared"
        )
    runtime, sample = plan.configuration.config.runtime, random.Random(seed).sample(able, min(count, len(able)))
    runtime = runtime.model_copy(update={"downloads": str(Path(runtime.downloads).expanduser().resolve())})
    population = {one.directory: checksum_of(one.directory) for one in there}
    tell(
        f"{len(sample)} of {len(there)} evaluations, drawn with --seed {seed}"
        + f" from the {len(able)} whose models are here" * (len(able) < len(there))
    )
    cells, record, root = [], {}, Path.cwd()
    with (
        lease(devices_wanted(runtime), runtime.jobs_per_gpu),
        tempfile.TemporaryDirectory(prefix="depoison-") as scratch,
    ):
        for number, artifact in enumerate(sample, 1):
            was, now, fault = {}, {}, ""
            try:
                was = read_evaluation(artifact.product).metrics
                with _inside(Path(scratch), artifact, root):
                    for one in (one for one in artifact.chain().values() if one.stage in ("purify", "evaluate")):
                        run_stage(one.spec, one.directory, runtime)
                    now, record = read_evaluation(artifact.product).metrics, read_record(artifact.directory)
            except Exception as error:  # one that cannot be made anew says nothing of the others
                fault = told(error)
            cells.append(Recomputed(evaluation=artifact.directory, was=was, now=now, error=fault))
            tell(f"[{number}/{len(sample)}] {_in_words(plan, cells[-1], tolerance)}")
    return Verification(
        targets=list(targets), when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), seed=seed, tolerance=tolerance,
        device=record.get("device", ""), threads=runtime.threads, packages=record.get("packages", {}),
        commit=git_commit(), evaluations=population, cells=cells,
    )  # fmt: skip


def _given(evaluation: Artifact) -> list[Artifact]:
    return [artifact for artifact in evaluation.chain().values() if artifact.stage in GIVEN]


def _is_whole(artifact: Artifact) -> bool:
    return all(file.exists() for file in _files(Path(artifact.directory)))


@contextlib.contextmanager
def _inside(scratch: Path, evaluation: Artifact, root: Path) -> Iterator[None]:
    """Stand in a folder where all that a purification is made from is there, by links that are only read."""
    for artifact in evaluation.chain().values():
        link = scratch / artifact.directory
        if artifact.stage not in ("purify", "evaluate") and not link.is_symlink() and Path(artifact.directory).is_dir():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(root / artifact.directory, target_is_directory=True)
    with contextlib.chdir(scratch):
        yield


def _in_words(plan: Plan, cell: Recomputed, tolerance: float) -> str:
    """A cell in a line: was → now."""
    if cell.error:
        return f"{cell.evaluation}: could not be made anew: {cell.error}"
    numbers = ", ".join(f"{metric} {was} → {now}" for metric, was, now in cell.numbers(plan.metrics.labels))
    return f"{cell.evaluation}: {numbers}: {'agrees' if cell.agrees(tolerance) else 'DIFFERS'}"
