"""Sharing artifacts through DVC: `depoison share push`, `pull` and `status`, and `depoison gc`.

Every heavy file has one pointer beside it (`model.safetensors.dvc`), small enough for git. Pointers never overlap, so
that two branches that add cells merge without a conflict. All files of a call go to DVC at once, in one `dvc add`,
`dvc push` or `dvc pull`: each call costs half a second, and DVC locks its repository.

Nothing is ever deleted from a remote. DVC does that: where the remote is a folder, it removes each object that it is asked
about and finds damaged. So in a folder we look ourselves, and keep damaged objects from DVC.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from depoison.errors import DepoisonError
from depoison.files import RUN, read_json, sha256_of
from depoison.plan.cells import PREFIX
from depoison.plan.figures import all_figures, is_figure, read_figures
from depoison.plan.lock import disagreement
from depoison.plan.parts import is_view, parts_of
from depoison.plan.plan import Plan
from depoison.plan.specs import STAGES, Artifact, chain_of
from depoison.plan.tables import all_tables, read_report

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

PLURAL = {
    "dataset": "datasets",
    "split": "splits",
    "asset": "networks of attacks",
    "poison": "poisoned sets",
    "train": "backdoored models",
    "purify": "purified models",
    "embedding": "embeddings",
    "examples": "examples",
    "evaluate": "evaluations",
}
"""What each stage makes, for people."""

TO_COMMIT = Path(".dvc/tmp/to-commit")
"""The paths that `push` suggests to commit, one a line; git ignores the folder."""

NAMED = 3
"""How many targets a suggested command spells out."""

SUFFIXES = (".md", ".tex", ".csv", ".json", ".png", ".pdf", ".html")
"""Of cells and reports."""


@dataclass
class Need:
    """What targets are made from: what of it is not here, and where it can come from.

    Attributes:
        pull: files that have a pointer, so that they can be fetched.
        compute: artifacts that nobody shared, so that they have to be made; upstream first.
        behind: artifacts that are not here, and that nobody needs: what was made from them is here.
        chain: all that targets are made from, upstream first.
    """

    pull: list[Path] = field(default_factory=list)
    compute: list[Artifact] = field(default_factory=list)
    behind: list[Artifact] = field(default_factory=list)
    chain: list[Artifact] = field(default_factory=list)


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


def need(asked: Sequence[Artifact], models: bool = False) -> Need:
    """Walk from what is missing down to what can be fetched; behind a complete artifact only `models` are looked for.

    Args:
        asked: what targets are made from.
        models: whether to fetch, too, what is behind complete artifacts and was shared: models, and what they are made from.
    """
    wanted, seen = Need(), set()

    def walk(artifact: Artifact) -> None:
        if artifact.directory in seen:
            return
        seen.add(artifact.directory)
        if _is_here(artifact):
            return
        if _is_shared(artifact):
            wanted.pull += [file for file in heavy_files(artifact) if not file.exists()]
            return
        for upstream in artifact.upstream.values():
            walk(upstream)
        wanted.compute.append(artifact)

    for artifact in asked:
        walk(artifact)
    wanted.chain = list(chain_of(asked).values())
    for artifact in wanted.chain:
        if artifact.directory in seen or _is_here(artifact):
            continue
        if models and _is_shared(artifact):
            wanted.pull += [file for file in heavy_files(artifact) if not file.exists()]
        else:
            wanted.behind.append(artifact)
    return wanted


def notices(plan: Plan, targets: Sequence[str], makes: bool = True) -> list[str]:
    """Lines for whoever asks for targets: on code that changed and, if what is missing is to be made, on what somebody
    shared of it. Asks no remote."""
    asked = artifacts(plan, (target for target in targets if not is_view(target)))
    lines = [line] if (line := disagreement(plan.root, asked)) else []
    if makes and (shared := len({file.parent for file in need(asked).pull})):
        lines.append(
            f"somebody shared {shared} of the artifacts that this makes: `{_command('pull', targets)}` fetches those that "
            "the remote has"
        )
    return lines


def push(plan: Plan, targets: Sequence[str]) -> str:
    """Add the heavy files behind targets to DVC and push them.

    A file that has a pointer keeps it: the first published copy wins, also where a GPU would make other bytes today.

    Returns:
        What was pushed, and what to commit.

    Raises:
        DepoisonError: no DVC repository or remote, or DVC failed.
    """
    store = _store(new=True)
    chain = chain_of(artifacts(plan, targets))
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
    # DVC pushes from its cache alone, and takes no notice of what that lost.
    lost = [file for file in files if pointer(file).exists() and not (store.cache / _object(file)).exists()]
    if new or lost:
        _dvc("add", "--quiet", *map(str, [*new, *lost]))
    wanted, damaged = files, []
    if store.folder:
        faults = _faults(store, files)
        damaged = [file for file, fault in faults.items() if fault == "damaged"]
        wanted = [file for file in faults if file not in damaged]
        for file in damaged:
            _replace(store.folder / _object(file), file)
    if wanted:
        _dvc("push", "--quiet", *(str(pointer(file)) for file in wanted))
    lines = [f"pushed {len(files)} files ({_size(files)}), {len(new)} of them new"]
    lines += [f"  replaced what the remote held damaged: {file}" for file in damaged]
    if commit := _to_commit(plan, targets, chain.values()):
        lines.append(f"commit the {commit} files that belong to this (pointers, records, evaluations, reports):")
        lines.append(f"  git add --pathspec-from-file={TO_COMMIT} && git commit")
    return "\n".join(lines)


def pull(plan: Plan, targets: Sequence[str], models: bool = False) -> str:
    """Fetch what targets need and somebody shared.

    Args:
        models: whether to fetch, too, what was shared behind artifacts that are here: what a push of the targets added.

    Returns:
        What was fetched, and what remains to be computed.

    Raises:
        DepoisonError: no remote; or an object that the remote lacks or holds damaged, after everything else was fetched.
    """
    store = _store()
    wanted = need(artifacts(plan, targets), models)
    faults = _fetch(store, wanted.pull) if wanted.pull else {}
    if faults:
        lacks, damaged = (list(faults.values()).count(fault) for fault in ("missing", "damaged"))
        raise DepoisonError(
            f"{', '.join(map(str, faults))}: the remote lacks {lacks} and holds {damaged} damaged; a run computes them "
            f"anew, or who has them pushes them again (the other {len(wanted.pull) - len(faults)} files were fetched)"
        )
    lines = [f"pulled {len(wanted.pull)} files ({_size(wanted.pull)})"]
    lines += [f"  {_size([file]):>9}  {file}" for file in wanted.pull]
    lines.append(f"to compute: {len(wanted.compute)} artifacts")
    return "\n".join(lines + _behind(wanted, targets))


def status(plan: Plan, targets: Sequence[str], models: bool = False) -> str:
    """What is here, what the remote has, and what would be computed, with an estimate from recorded times.

    Args:
        models: as for `pull`.
    """
    wanted = need(artifacts(plan, targets), models)
    lines = [f"here: {_counts(wanted.chain)}", f"to pull: {len(wanted.pull)} files"]
    try:
        faults = _faults(_store(), wanted.pull, thorough=False)
    except DepoisonError as error:
        lines += [*(f"  {'shared':<22}{file}" for file in wanted.pull), f"the remote was not asked: {error}"]
    else:
        where = {file: f"{faults[file]} in the remote" if file in faults else "in the remote" for file in wanted.pull}
        lines += [f"  {where[file]:<22}{file}" for file in wanted.pull]
    lines.append(f"to compute: {len(wanted.compute)} artifacts, {_estimate(wanted.compute)}")
    lines += [f"  {artifact.directory}" for artifact in wanted.compute]
    return "\n".join(lines + _behind(wanted, targets))


def _counts(chain: Sequence[Artifact]) -> str:
    """How many of each kind are here."""
    of_stage = {stage: [artifact for artifact in chain if artifact.stage == stage] for stage in PLURAL}
    return ", ".join(
        f"{sum(map(_is_here, some))} of {len(some)} {PLURAL[stage]}" for stage, some in of_stage.items() if some
    )


def _behind(wanted: Need, targets: Sequence[str]) -> list[str]:
    """A line on what is not here and not needed, where there is such."""
    if not wanted.behind:
        return []
    shared = sum(map(_is_shared, wanted.behind))
    fetch = f"; `{_command('pull --models', targets)}` fetches these" if shared else ""
    return [f"neither here nor needed: {len(wanted.behind)} artifacts, {shared} of them shared{fetch}"]


def _command(action: str, targets: Sequence[str]) -> str:
    named = [*targets] if len(targets) <= NAMED else [*targets[:NAMED], "…"]
    return f"depoison share {action} {' '.join(named)}"


def _is_here(artifact: Artifact) -> bool:
    return Path(artifact.product).exists()


def _is_shared(artifact: Artifact) -> bool:
    """Whether every heavy file has a pointer, or is here."""
    files = heavy_files(artifact)
    return bool(files) and all(file.exists() or pointer(file).exists() for file in files)


def _to_commit(plan: Plan, targets: Sequence[str], chain: Iterable[Artifact]) -> int:
    """Write down where what belongs to targets lies; returns how many files of it git does not have as they are."""
    paths = [artifact.directory for artifact in chain if Path(artifact.directory).is_dir()]
    parts = list(dict.fromkeys([*targets, *parts_of(plan, targets)]))
    parts += [figure.target for part in parts if is_figure(part) for figure in read_figures(plan, part)]
    for part in parts:
        path = Path(part)
        name = path.stem if path.suffix in SUFFIXES else path.name
        beside = path.parent.iterdir() if path.parent.is_dir() else []
        paths += sorted(str(file) for file in beside if file.suffix in SUFFIXES and file.stem == name)
    TO_COMMIT.parent.mkdir(parents=True, exist_ok=True)
    TO_COMMIT.write_text("".join(f"{path}\n" for path in dict.fromkeys(paths)), encoding="utf-8")
    git = shutil.which("git")
    told = git and _call(git, "add", "--dry-run", f"--pathspec-from-file={TO_COMMIT}").stdout
    return len(told.splitlines()) if told else 0


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
    reached = chain_of(artifacts(plan, [*all_tables(plan), *all_figures(plan), *_cells_made(plan), *keep]))
    stray = [path for stage in STAGES for path in sorted(Path("results", stage).glob("*")) if path.is_dir()]
    stray = [path for path in stray if str(path) not in reached and not path.name.startswith(".")]
    heavy = {path: files for path in stray if (files := sorted(path.glob("*.safetensors")))}
    shared = [file for files in heavy.values() for file in files if pointer(file).exists() and _is_published(file)]
    absent = _faults(_store(), shared) if shared else {}
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


def _published(file: Path) -> dict[str, Any]:
    """{"md5", "size", …} of the published copy of a file, from its pointer."""
    return yaml.load(pointer(file).read_text(encoding="utf-8"), Loader=_Loader)["outs"][0]


def _is_published(file: Path, copy: Path | None = None) -> bool:
    """Whether a file, or a `copy` of it elsewhere, has the bytes that the file's pointer names."""
    with (copy or file).open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest() == _published(file)["md5"]


def _intact(file: Path) -> bool:
    return sha256_of(file) == read_json(file.with_name(RUN))["sha256"].get(file.name)


def _size(files: Iterable[Path]) -> str:
    total = float(sum(file.stat().st_size for file in files))
    for unit in ("B", "KiB", "MiB"):
        if total < 1024:
            return f"{total:.0f} {unit}" if unit == "B" else f"{total:.1f} {unit}"
        total /= 1024
    return f"{total:.1f} GiB"


class _Store(NamedTuple):
    """Where DVC keeps objects.

    Attributes:
        cache: its cache on this machine.
        folder: the remote, where that is a folder.
    """

    cache: Path
    folder: Path | None


def _object(file: Path) -> Path:
    """Where a file's published copy lies in a cache or a remote."""
    md5 = _published(file)["md5"]
    return Path("files", "md5", md5[:2], md5[2:])


def _store(new: bool = False) -> _Store:
    """Ask DVC how it is configured.

    Args:
        new: whether a remote that is a folder need not exist yet.

    Raises:
        DepoisonError: no DVC repository, no remote, or a folder that is not there.
    """
    if not Path(".dvc").is_dir():
        raise DepoisonError(".dvc: missing; share from a clone of the repository, or run `dvc init`")
    lines = _dvc("config", "--list").stdout.splitlines()
    config = {key.lower(): value for key, _, value in (line.partition("=") for line in lines)}
    name = config.get("core.remote", "").lower()
    if not name:
        example = "dvc remote add --default team s3://bucket/path"
        raise DepoisonError(f"no DVC remote is configured; add one with `{example}` (or ssh://host/path, or a folder)")
    url = config.get(f"remote.{name}.url", "")
    while url.startswith("remote://"):  # a place in another remote
        base, _, below = url.removeprefix("remote://").partition("/")
        url = f"{config.get(f'remote.{base.lower()}.url', '')}/{below}"
    path = url.removeprefix("file://")
    folder = None if "://" in path else Path(path).expanduser()
    if folder and not (new or folder.is_dir()):
        raise DepoisonError(f"{folder}: DVC's remote {name!r} is not there; mount or create it, or name another one")
    return _Store(Path(config.get("cache.dir", ".dvc/cache")), folder)


def _faults(store: _Store, files: Sequence[Path], thorough: bool = True) -> dict[Path, str]:
    """The files that the remote does not have ("missing"), or not as their pointers say ("damaged").

    Args:
        thorough: where the remote is a folder, whether to read objects, or to look at their sizes alone. In any other
            remote damage shows only after a pull.
    """
    if not files:
        return {}
    if store.folder is None:
        asked = _dvc("status", "--cloud", "--json", *(str(pointer(file)) for file in files)).stdout
        told = json.loads(asked or "{}")
        return {file: "missing" for file in files if told.get(str(file)) in ("missing", "new")}
    faults = {}
    for file in files:
        copy = store.folder / _object(file)
        if not copy.exists():
            faults[file] = "missing"
        elif copy.stat().st_size != _published(file)["size"] or (thorough and not _is_published(file, copy)):
            faults[file] = "damaged"
    return faults


def _fetch(store: _Store, files: Sequence[Path]) -> dict[Path, str]:
    """Fetch files, as far as the remote has them; returns what is wrong with the others, as `_faults` does.

    Raises:
        DepoisonError: the remote cannot be read.
    """
    faults = {}
    if store.folder:
        for file, fault in _faults(store, files).items():
            cached = store.cache / _object(file)
            if not (cached.exists() and _is_published(file, cached)):
                faults[file] = fault
    waiting = asked = [file for file in files if file not in faults]
    for _ in range(2):  # what is damaged in the cache has to be fetched once more
        if not waiting:
            break
        pulled = _dvc("pull", "--quiet", *(str(pointer(file)) for file in waiting), check=False)
        lost = [file for file in waiting if not file.exists()]
        if pulled.returncode and (not lost or len(lost) > len(_faults(store, lost))):
            raise DepoisonError(f"dvc pull: {' '.join(pulled.stderr.split())}")
        faults |= dict.fromkeys(lost, "missing")
        waiting = [file for file in waiting if file.exists() and not _intact(file)]
        for file in waiting:
            _forget(store, file)
    faults |= dict.fromkeys(waiting, "damaged")
    # With a part of its files alone an artifact would pass for complete.
    incomplete = {file.parent for file in faults}
    for file in asked:
        if file.parent in incomplete:
            file.unlink(missing_ok=True)
    return faults


def _forget(store: _Store, file: Path) -> None:
    """Remove a file and its copy in DVC's cache, which DVC would take the next time; unless the remote is the cache."""
    file.unlink()
    cached = store.cache / _object(file)
    if not (store.folder and store.cache.resolve() == store.folder.resolve()):
        with contextlib.suppress(OSError):  # somebody else's, in a cache that several share
            cached.unlink()


def _replace(copy: Path, file: Path) -> None:
    """Put a file in the place of a damaged copy of it, which is there until the new one is whole."""
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}.partial")
    shutil.copyfile(file, temporary)
    temporary.chmod(0o444)
    os.replace(temporary, copy)


def _dvc(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run DVC.

    Args:
        check: whether a failure is an error. Not being able to ask the remote must be: silence never means "it has all".
    """
    try:
        done = _call(shutil.which("dvc") or str(Path(sys.executable).with_name("dvc")), *arguments)
    except FileNotFoundError:
        raise DepoisonError("dvc: not installed; install the environment with `make environment`") from None
    if check and done.returncode:
        raise DepoisonError(f"dvc {arguments[0]}: {' '.join(done.stderr.split())}")
    return done


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)
