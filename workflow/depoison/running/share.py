"""Sharing artifacts through DVC: `depoison share push`, `pull` and `status`, and `depoison gc`.

Every heavy file has one pointer beside it (`model.safetensors.dvc`), small enough for git. Pointers never overlap, so
that two branches that add cells merge without a conflict.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from depoison.artifacts import read_record, read_recorded
from depoison.errors import DepoisonError
from depoison.files import RUN, artifact_beside, refuse_links
from depoison.papers.figures import all_figures
from depoison.papers.tables import all_tables
from depoison.plan.cells import PREFIX
from depoison.plan.lock import disagreement
from depoison.plan.plan import Plan
from depoison.plan.specs import STAGES, Artifact, chain_of
from depoison.reports.kinds import artifacts, kind_of, with_parts
from depoison.running.store import Fault, dvc, is_published, open_store, pointer, published

PLURAL = {
    "dataset": "datasets",
    "split": "splits",
    "asset": "networks of attacks",
    "poison": "poisoned sets",
    "train": "backdoored models",
    "adopt": "adopted models",
    "purify": "purified models",
    "embedding": "embeddings",
    "hessian": "curvatures of losses",
    "examples": "examples",
    "gradcam": "heat maps",
    "neurons": "gradients of neurons",
    "course": "courses of curvatures",
    "masks": "factors of weights",
    "evaluate": "evaluations",
    "probe": "values of probes",
}
"""What each stage makes, for people."""

TO_COMMIT = Path(".dvc/tmp/to-commit")
"""The paths that `push` suggests to commit, one a line; git ignores the folder."""

NAMED = 3
"""How many targets a suggested command spells out, and how many files a complaint."""

WORDS = {
    "missing": "missing in the remote",
    "damaged": "damaged in the remote",
    "unrecorded": "not as recorded",
    "unknown": "shared",
}
"""What `status` and `pull` say beside a file that has a fault."""

SUFFIXES = (".md", ".tex", ".csv", ".json", ".png", ".pdf", ".html")
"""Of cells and reports."""


@dataclass
class Need:
    """What targets are made from: what of it is not here, and where it can come from.

    Attributes:
        pull: files that have a pointer, so that they can be fetched.
        compute: artifacts that nobody shared, so that they have to be made; upstream first.
        behind: artifacts that are not here, and that nobody needs: what was made from them is here.
        refused: files with a pointer that is none, so that they have to be made: a line that says why.
        chain: all that targets are made from, upstream first.
    """

    pull: list[Path] = field(default_factory=list)
    compute: list[Artifact] = field(default_factory=list)
    behind: list[Artifact] = field(default_factory=list)
    refused: dict[Path, str] = field(default_factory=dict)
    chain: list[Artifact] = field(default_factory=list)


class Told(NamedTuple):
    """What a command did, and what is wrong with what it left, a line for each kind or pointer."""

    text: str
    faults: list[str]


def heavy_files(artifact: Artifact) -> list[Path]:
    """The files of an artifact that live in DVC; the others are small and live in git."""
    return [Path(artifact.directory, name) for name in STAGES[artifact.stage].files if name.endswith(".safetensors")]


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
        if _is_shared(artifact, wanted.refused):
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
        if models and _is_shared(artifact, wanted.refused):
            wanted.pull += [file for file in heavy_files(artifact) if not file.exists()]
        else:
            wanted.behind.append(artifact)
    return wanted


def notices(plan: Plan, targets: Sequence[str], makes: bool = True) -> list[str]:
    """Lines for whoever asks for targets: on code that changed and, if what is missing is to be made, on what somebody
    shared of it. Asks no remote."""
    asked = artifacts(plan, (target for target in targets if kind_of(target).computes))
    lines = [line] if (line := disagreement(plan.root, asked)) else []
    wanted = need(asked) if makes else Need()
    if shared := len({file.parent for file in wanted.pull}):
        lines.append(
            f"somebody shared {shared} of the artifacts that this makes: `{_command('pull', targets)}` fetches those that "
            "the remote has"
        )
    return [*lines, *wanted.refused.values()]


def push(plan: Plan, targets: Sequence[str]) -> Told:
    """Add the heavy files behind targets to DVC and push them.

    A file that has a pointer keeps it: the first published copy wins, also where a GPU would make other bytes today.

    Returns:
        What was pushed, and what to commit; files that could not be pushed.

    Raises:
        DepoisonError: no DVC repository or remote, or nothing to push.
    """
    store = open_store(new=True)
    chain = chain_of(artifacts(plan, targets))
    files = [file for artifact in chain.values() for file in heavy_files(artifact) if file.exists()]
    if not files:
        raise DepoisonError(f"{' '.join(targets)}: nothing to push; make it first with snakemake")
    old = [file for file in files if _has_pointer(file)]
    refused = _refusals(old) | _refusals((file for file in files if file not in old), read_recorded)
    new = [file for file in files if file not in {*old, *refused}]
    other = [file for file in old if file not in refused and not is_published(file)]
    cause = dvc("add", new)
    failed = {file: cause for file in new if not _has_pointer(file)}
    ready = [file for file in files if file not in {*refused, *other, *failed}]
    unpushed, damaged = store.push(ready)
    failed |= unpushed
    pushed = [file for file in ready if file not in failed]
    lines = [f"pushed {len(pushed)} files ({_size(pushed)}), {sum(file in pushed for file in new)} of them new"]
    lines += [f"  replaced what the remote held damaged: {file}" for file in damaged if file in pushed]
    if commit := _to_commit(plan, targets, chain.values()):
        lines.append(f"commit the {commit} files that belong to this (pointers, records, evaluations, reports):")
        lines.append(f"  git add --pathspec-from-file={TO_COMMIT} && git commit")
    instead = "take that back with `git checkout` and `dvc checkout`, or delete the pointer to publish yours"
    faults = [*refused.values(), *_complaint(dict.fromkeys(other, ""), f"differs from the published copy; {instead}")]
    return Told("\n".join(lines), faults + _complaint(failed, "not pushed; push again"))


def pull(plan: Plan, targets: Sequence[str], models: bool = False) -> Told:
    """Fetch what targets need and somebody shared.

    Args:
        models: whether to fetch, too, what was shared behind artifacts that are here: what a push of the targets added.

    Returns:
        What was fetched, and what remains to be computed; files that could not be fetched.

    Raises:
        DepoisonError: no remote, or no DVC.
    """
    store = open_store()
    wanted = need(artifacts(plan, targets), models)
    faults = store.fetch(wanted.pull)
    pulled = [file for file in wanted.pull if file.exists()]
    lines = [f"pulled {len(pulled)} files ({_size(pulled)})"]
    lines += [f"  {_size([file]):>9}  {file}" for file in pulled]
    lines += [f"  {WORDS[fault.kind]:<22}{file}" for file, fault in faults.items()]
    lines.append(f"to compute: {len(wanted.compute)} artifacts")
    return Told("\n".join(lines + _behind(wanted, targets)), [*wanted.refused.values(), *_complaints(faults)])


def status(plan: Plan, targets: Sequence[str], models: bool = False) -> Told:
    """What is here, what the remote has, and what would be computed, with an estimate from recorded times.

    Args:
        models: as for `pull`.
    """
    wanted = need(artifacts(plan, targets), models)
    lines = [f"here: {_counts(wanted.chain)}", f"to pull: {len(wanted.pull)} files"]
    try:
        faults = open_store().faults(wanted.pull, thorough=False)
        silent = [fault.cause for fault in faults.values() if fault.kind == "unknown"]
    except DepoisonError as error:
        silent = [str(error)]
        faults = dict.fromkeys(wanted.pull, Fault("unknown"))
    lines += [f"  {WORDS[faults[file].kind] if file in faults else 'in the remote':<22}{file}" for file in wanted.pull]
    lines += [f"the remote was not asked: {cause}" for cause in silent[:1]]
    lines.append(f"to compute: {len(wanted.compute)} artifacts, {_estimate(wanted.compute)}")
    lines += [f"  {artifact.directory}" for artifact in wanted.compute]
    return Told("\n".join(lines + _behind(wanted, targets)), [*wanted.refused.values()])


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


def _is_shared(artifact: Artifact, refused: dict[Path, str] | None = None) -> bool:
    """Whether every heavy file has a pointer, or is here.

    Args:
        refused: gets what is wrong with pointers that are none.
    """
    files = heavy_files(artifact)
    absent = [file for file in files if not file.exists()]
    if not files or not all(map(_has_pointer, absent)):
        return False
    found = _refusals(absent)
    if refused is not None:
        refused |= found
    return not found


def _has_pointer(file: Path) -> bool:
    """Also one that leads nowhere."""
    return os.path.lexists(pointer(file))


def _refusals(files: Iterable[Path], check: Callable[[Path], object] = published) -> dict[Path, str]:
    """What is wrong with files, or with their pointers; those that are as they should be are left out."""
    found = {}
    for file in files:
        try:
            check(file)
        except DepoisonError as error:
            found[file] = str(error)
    return found


def _complaints(faults: Mapping[Path, Fault]) -> list[str]:
    """A line for each kind of fault of files that could not be fetched."""
    anew = "a run computes them anew, or who has them pushes them again"
    said = {
        "missing": f"not in the remote; {anew}",
        "damaged": f"damaged in the remote; {anew}",
        "unrecorded": f"published otherwise than recorded; {anew}",
        "unknown": "not fetched, and nothing says that the remote lacks them; ask again before you compute them",
    }
    of_kind = {kind: {file: fault.cause for file, fault in faults.items() if fault.kind == kind} for kind in said}
    return [line for kind, text in said.items() for line in _complaint(of_kind[kind], text)]


def _complaint(files: Mapping[Path, str], text: str) -> list[str]:
    """One line, or none where there are no files.

    Args:
        files: each with the cause of what the text says, where one is known.
    """
    if not files:
        return []
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    cause = next((f" ({cause})" for cause in files.values() if cause), "")
    return [f"{', '.join(map(str, [*files][:NAMED]))}{more}: {text}{cause}"]


def _to_commit(plan: Plan, targets: Sequence[str], chain: Iterable[Artifact]) -> int:
    """Write down where what belongs to targets lies; returns how many files of it git does not have as they are."""
    paths = [artifact.directory for artifact in chain if Path(artifact.directory).is_dir()]
    for part in with_parts(plan, targets):
        path = Path(part)
        name = path.stem if path.suffix in SUFFIXES else path.name
        beside = path.parent.iterdir() if path.parent.is_dir() else []
        paths += sorted(str(file) for file in beside if file.suffix in SUFFIXES and file.stem == name)
    TO_COMMIT.parent.mkdir(parents=True, exist_ok=True)
    TO_COMMIT.write_text("".join(f"{path}\n" for path in dict.fromkeys(paths)), encoding="utf-8")
    git = shutil.which("git")
    if not git:
        return 0
    command = [git, "add", "--dry-run", f"--pathspec-from-file={TO_COMMIT}"]
    return len(subprocess.run(command, capture_output=True, text=True).stdout.splitlines())


def collect(plan: Plan, keep: Sequence[str], remove: bool, unshared_too: bool) -> Told:
    """List artifacts that no table or figure, no cell made and none of `keep` reaches; free their space on request.

    Only heavy files are ever removed: pointers, specs and evaluations are small and stay. What a killed job left of an
    artifact that is no longer wanted counts as one that exists only here.

    Args:
        remove: whether to remove the files of those whose heavy files are all in the remote.
        unshared_too: with `remove`, whether to remove the files of those that exist only here as well.

    Returns:
        One line for each artifact, and the sum; what was left alone: links, and what the remote is not known to have.
    """
    reached = chain_of(artifacts(plan, [*all_tables(plan), *all_figures(plan), *_cells_made(plan), *keep]))
    stray = [path for stage in STAGES for path in sorted(Path("results", stage).glob("*")) if path.is_dir()]
    stray = [path for path in stray if str(path) not in reached and not path.name.startswith(".")]
    unfinished = [path for path in Path("results").glob("*/.*") if path.suffix != ".lock"]
    unfinished = [path for path in unfinished if artifact_beside(path) not in {None, *reached}]
    linked = _refusals([*stray, *unfinished], refuse_links)
    unfinished = [path for path in unfinished if path not in linked]
    heavy = {path: files for path in stray if path not in linked and (files := sorted(path.glob("*.safetensors")))}
    pointed = [file for files in heavy.values() for file in files if _has_pointer(file)]
    refused = _refusals(pointed)
    shared = [file for file in pointed if file not in refused and is_published(file)]
    faults = open_store().faults(shared) if shared else {}
    lines, removed = [], 0
    for path, files in heavy.items():
        safe = all(file in shared and file not in faults for file in files)
        gone = remove and (safe or unshared_too)
        verb = "removed" if gone else "stray" if safe else "stray, nowhere else"
        lines.append(f"{verb:<20}{_size(files):>10}  {path}")
        if gone:
            for file in files:
                file.unlink()
            removed += 1
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
    unknown = {file: fault.cause for file, fault in faults.items() if fault.kind == "unknown"}
    left = dict.fromkeys([*linked.values(), *refused.values()])
    return Told("\n".join(lines), [*left, *_complaint(unknown, "not known to be in the remote")])


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
        with contextlib.suppress(DepoisonError):  # whoever needs it is told
            seconds = read_record(record.parent).get("seconds", 0.0)
            for method in (_method(record.parent.name), ""):
                known.setdefault((record.parts[1], method), []).append(seconds)
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


def _size(files: Iterable[Path]) -> str:
    total = float(sum(file.stat().st_size for file in files))
    for unit in ("B", "KiB", "MiB"):
        if total < 1024:
            return f"{total:.0f} {unit}" if unit == "B" else f"{total:.1f} {unit}"
        total /= 1024
    return f"{total:.1f} GiB"
