"""Sharing artifacts through DVC: `depoison share push`, `pull` and `status`, and `depoison gc`.

Every heavy file has one pointer beside it (`model.safetensors.dvc`), small enough for git. Pointers never overlap, so
that two branches that add cells merge without a conflict. All files of a call go to DVC at once, in one `dvc add`,
`dvc push` or `dvc pull`: each call costs half a second, and DVC locks its repository.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from depoison.errors import DepoisonError
from depoison.files import RUN, read_json, sha256_of
from depoison.plan.cells import PREFIX
from depoison.plan.figures import all_figures, is_figure, read_figures
from depoison.plan.parts import parts_of
from depoison.plan.plan import Plan
from depoison.plan.specs import STAGES, Artifact
from depoison.plan.tables import all_tables, read_report


@dataclass
class Need:
    """What targets need that is not here.

    Attributes:
        pull: files that have a pointer, so that they can be fetched.
        compute: artifacts that nobody shared, so that they have to be made; upstream first.
        here: artifacts that are complete and that the targets use.
    """

    pull: list[Path] = field(default_factory=list)
    compute: list[Artifact] = field(default_factory=list)
    here: list[Artifact] = field(default_factory=list)


def evaluations(plan: Plan, targets: Iterable[str]) -> list[Artifact]:
    """The evaluations behind cells and tables, each once."""
    found: dict[str, Artifact] = {}
    for target in targets:
        cells = [plan.cell(target)] if target.startswith(PREFIX) else read_report(plan, target).cells()
        found.update((cell.evaluation.directory, cell.evaluation) for cell in cells)
    return list(found.values())


def artifacts(plan: Plan, targets: Iterable[str]) -> list[Artifact]:
    """What cells and reports are made from, each once."""
    targets = parts_of(plan, targets)
    found = evaluations(plan, (target for target in targets if not is_figure(target)))
    drawn = (figure for target in targets if is_figure(target) for figure in read_figures(plan, target))
    found += (artifact for figure in drawn for artifact in figure.artifacts())
    return list({artifact.directory: artifact for artifact in found}.values())


def heavy_files(artifact: Artifact) -> list[Path]:
    """The files of an artifact that live in DVC; the others are small and live in git."""
    return [Path(artifact.directory, name) for name in STAGES[artifact.stage].files if name.endswith(".safetensors")]


def pointer(file: Path) -> Path:
    return file.with_name(file.name + ".dvc")


def need(plan: Plan, targets: Iterable[str]) -> Need:
    """Walk from what is missing down to what can be fetched; behind a complete artifact nothing is looked at."""
    found, seen = Need(), set()

    def walk(artifact: Artifact) -> None:
        if artifact.directory in seen:
            return
        seen.add(artifact.directory)
        files = heavy_files(artifact)
        if Path(artifact.product).exists():
            found.here.append(artifact)
        elif files and all(file.exists() or pointer(file).exists() for file in files):
            found.pull += [file for file in files if not file.exists()]
        else:
            for upstream in artifact.upstream.values():
                walk(upstream)
            found.compute.append(artifact)

    for artifact in artifacts(plan, targets):
        walk(artifact)
    return found


def push(plan: Plan, targets: Sequence[str]) -> str:
    """Add the heavy files that targets use to DVC and push them.

    A file that has a pointer keeps it: the first published copy wins, also where a GPU would make other bytes today.

    Returns:
        What was pushed, and what to commit.

    Raises:
        DepoisonError: no DVC repository or remote, or DVC failed.
    """
    _require_remote()
    chain = {a.directory: a for made in artifacts(plan, targets) for a in made.chain().values()}
    files = [file for artifact in chain.values() for file in heavy_files(artifact) if file.exists()]
    if not files:
        raise DepoisonError(f"{' '.join(targets)}: nothing to push; make it first with snakemake")
    other = [file for file in files if pointer(file).exists() and not _is_published(file)]
    if other:
        raise DepoisonError(
            f"{', '.join(map(str, other))}: differs from the published copy; take that back with `git checkout` and "
            "`dvc checkout`, or delete the pointer to publish yours"
        )
    new = [file for file in files if not pointer(file).exists()]
    if new:
        _dvc("add", "--quiet", *map(str, new))
    _dvc("push", "--quiet", *(str(pointer(file)) for file in files))
    lines = [f"pushed {len(files)} files ({_size(files)}), {len(new)} of them new"]
    if new:
        lines += ["commit the pointers, evaluations and reports:", "  git add results reports && git commit"]
    return "\n".join(lines)


def pull(plan: Plan, targets: Sequence[str]) -> str:
    """Fetch what targets need and somebody shared, nothing else.

    Returns:
        What was fetched, and what remains to be computed.

    Raises:
        DepoisonError: no remote; or an object that the remote lacks or holds corrupted, after everything else was fetched.
    """
    wanted = need(plan, targets)
    if wanted.pull:
        _require_remote()
        pulled = _dvc("pull", "--quiet", *(str(pointer(file)) for file in wanted.pull), check=False)
        lost = [file for file in wanted.pull if not file.exists()]
        corrupted = [file for file in wanted.pull if file.exists() and not _intact(file)]
        for file in corrupted:
            file.unlink()
        if lost or corrupted:
            names = ", ".join(map(str, [*lost, *corrupted]))
            raise DepoisonError(
                f"{names}: the remote lacks {len(lost)} and holds {len(corrupted)} corrupted; a run computes them anew "
                f"(the other {len(wanted.pull) - len(lost) - len(corrupted)} files were fetched)"
            )
        if pulled.returncode:
            raise DepoisonError(f"dvc pull: {' '.join(pulled.stderr.split())}")
    lines = [f"pulled {len(wanted.pull)} files ({_size(wanted.pull)})"]
    lines += [f"  {_size([file]):>9}  {file}" for file in wanted.pull]
    lines.append(f"to compute: {len(wanted.compute)} artifacts")
    return "\n".join(lines)


def status(plan: Plan, targets: Sequence[str]) -> str:
    """What is here, what the remote has, and what would be computed, with an estimate from recorded times."""
    wanted = need(plan, targets)
    lines = [f"here: {len(wanted.here)} artifacts", f"to pull: {len(wanted.pull)} files"]
    absent = _not_in_remote(wanted.pull) if wanted.pull else set()
    lines += [f"  {'missing in the remote' if file in absent else 'in the remote':<22}{file}" for file in wanted.pull]
    lines.append(f"to compute: {len(wanted.compute)} artifacts, {_estimate(wanted.compute)}")
    lines += [f"  {artifact.directory}" for artifact in wanted.compute]
    return "\n".join(lines)


def collect(plan: Plan, keep: Sequence[str], remove: bool, unshared_too: bool) -> str:
    """List artifacts that no table or figure, no cell made and none of `keep` reaches; free their space on request.

    Only heavy files are ever removed: pointers, specs and evaluations are small and stay. What a killed job left of an
    artifact that is no longer wanted counts as one that exists only here.

    Args:
        remove: whether to remove the files of those whose heavy files are all in the remote.
        unshared_too: with `remove`, whether to remove the files of those that exist only here as well.

    Returns:
        One line for each artifact, and the sum.
    """
    reached: set[str] = set()
    for artifact in artifacts(plan, [*all_tables(plan), *all_figures(plan), *_cells_made(plan), *keep]):
        reached.update(artifact.chain())
    stray = [path for stage in STAGES for path in sorted(Path("results", stage).glob("*")) if path.is_dir()]
    stray = [path for path in stray if str(path) not in reached and not path.name.startswith(".")]
    heavy = {path: files for path in stray if (files := sorted(path.glob("*.safetensors")))}
    shared = [file for files in heavy.values() for file in files if pointer(file).exists() and _is_published(file)]
    if shared:
        _require_remote()
    absent = _not_in_remote(shared) if shared else set()
    lines, removed = [], 0
    for path, files in heavy.items():
        safe = all(file in shared and file not in absent for file in files)
        gone = remove and (safe or unshared_too)
        verb = "removed" if gone else "stray" if safe else "stray, nowhere else"
        lines.append(f"{verb:<20}{_size(files):>10}  {path}")
        if gone:
            for file in files:
                file.unlink()
            removed += 1
    unfinished = [path for path in Path("results").glob("*/.*") if _unfinished(path) not in {None, *reached}]
    for path in unfinished:
        gone = remove and unshared_too
        size = _size(file for file in path.rglob("*") if file.is_file())
        lines.append(f"{'removed' if gone else 'unfinished':<20}{size:>10}  {path}")
        if gone:
            shutil.rmtree(path)
            removed += 1
    stray_ones = len(heavy) + len(unfinished)
    kept = stray_ones - removed
    lines.append(f"{stray_ones} stray artifacts, {removed} removed" + (f", {kept} kept" if removed and kept else ""))
    if stray_ones and not remove:
        lines.append("remove them with --remove; those that are nowhere else only with --unshared-too as well")
    return "\n".join(lines)


def _unfinished(path: Path) -> str | None:
    """The directory of the artifact whose resumable state or unfinished files these are; None for anything else."""
    name = re.fullmatch(r"\.(.+-[0-9a-f]{10})\.(scratch|[^.]+\.building)", path.name)
    return str(path.with_name(name[1])) if name else None


def _cells_made(plan: Plan) -> list[str]:
    """Single cells that somebody asked for before; those whose names mean nothing any more are left out."""
    made = []
    for path in sorted(Path(PREFIX).rglob("*.json")):
        with contextlib.suppress(DepoisonError):
            made.append(plan.cell(str(path)).name.path)
    return made


def _estimate(artifacts: Sequence[Artifact]) -> str:
    """Seconds that these would take one after the other: the mean of recorded ones of the same stage and method."""
    known: dict[tuple[str, str], list[float]] = {}
    for record in Path("results").glob(f"*/*/{RUN}"):
        stage, seconds = record.parts[1], read_json(record)["seconds"]
        for method in (_method(record.parent.name), ""):
            known.setdefault((stage, method), []).append(seconds)
    total, unknown = 0.0, 0
    for artifact in artifacts:
        times = known.get((artifact.stage, _method(Path(artifact.directory).name))) or known.get((artifact.stage, ""))
        total, unknown = (total + sum(times) / len(times), unknown) if times else (total, unknown + 1)
    text = (
        f"about {total / 60:.0f} min one after the other" if total >= 90 else f"about {total:.0f} s one after the other"
    )
    return text + (f", without {unknown} of a kind never made here" if unknown else "")


def _method(name: str) -> str:
    """The last word of an artifact's readable name, which tells its method well enough for an estimate."""
    return name.rsplit("-", 2)[-2]


def _is_published(file: Path) -> bool:
    """Whether a file has the bytes that its pointer names."""
    outs = yaml.safe_load(pointer(file).read_text(encoding="utf-8"))["outs"]
    with file.open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest() == outs[0]["md5"]


def _intact(file: Path) -> bool:
    return sha256_of(file) == read_json(file.with_name(RUN))["sha256"].get(file.name)


def _size(files: Iterable[Path]) -> str:
    total = float(sum(file.stat().st_size for file in files))
    for unit in ("B", "KiB", "MiB"):
        if total < 1024:
            return f"{total:.0f} {unit}" if unit == "B" else f"{total:.1f} {unit}"
        total /= 1024
    return f"{total:.1f} GiB"


def _require_remote() -> None:
    if not Path(".dvc").is_dir():
        raise DepoisonError(".dvc: missing; share from a clone of the repository, or run `dvc init`")
    if not _dvc("config", "core.remote", check=False).stdout.strip():
        example = "dvc remote add --default team s3://bucket/path"
        raise DepoisonError(f"no DVC remote is configured; add one with `{example}` (or ssh://host/path, or a folder)")


def _not_in_remote(files: Sequence[Path]) -> set[Path]:
    told = yaml.safe_load(_dvc("status", "--cloud", "--json", *(str(pointer(file)) for file in files)).stdout or "{}")
    return {file for file in files if told.get(str(file)) in ("missing", "new")}


def _dvc(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run DVC.

    Args:
        check: whether a failure is an error. Not being able to ask the remote must be: silence never means "it has all".
    """
    command = [shutil.which("dvc") or str(Path(sys.executable).with_name("dvc")), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise DepoisonError("dvc: not installed; install the environment with `make environment`") from None
    if check and done.returncode:
        raise DepoisonError(f"dvc {arguments[0]}: {' '.join(done.stderr.split())}")
    return done
