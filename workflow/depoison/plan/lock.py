"""The lock of code versions: code that makes artifacts may not change unnoticed.

An artifact's path follows from its spec, and the spec holds a version for the stage and for the method, not the code. So
`depoison.lock.json` keeps a hash of the code behind each version. Whoever changes code raises the version where the numbers
change (artifacts move), and runs `depoison lock`. Every run compares, and so does a test.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from depoison.errors import DepoisonError
from depoison.files import read_json, write_json
from depoison.plan.code import PACKAGE, Code
from depoison.plan.methods import KINDS, methods_in, stem_of
from depoison.plan.plan import Plan
from depoison.plan.specs import STAGES, Artifact, chain_of

LOCK = "workflow/depoison.lock.json"
SEEN = Path(".snakemake/depoison/code.json")
"""What the last comparison found, and the names, sizes and times of the files that it looked at."""

Entry = dict[str, Any]
"""{"version": int, "code": str} of a stage, method or source."""


def current(root: Path) -> dict[str, Entry]:
    """{"stage train": {"version", "code"}, "defense fst": …} of the package's code as it is."""
    plan = Plan(root)
    code, root = Code(plan.root), plan.root
    configuration, methods = plan.configuration, plan.configuration.methods

    def entry(version: int, file: Path) -> Entry:
        return {"version": version, "code": code.of_method(file)}

    found: dict[str, Entry] = {
        f"stage {stage}": {"version": facts.version, "code": code.of_stage(stage)} for stage, facts in STAGES.items()
    }
    for name, task in configuration.tasks.items():
        found[f"task {name}"] = entry(task.version, root / PACKAGE / "tasks" / f"{stem_of(name)}.py")
    for kind, folder in KINDS.items():
        for name in methods.of_package(folder) if kind != "dataset" else ():
            found[f"{kind} {name}"] = entry(
                configuration.method(kind, name).content.version, methods.code(folder, name)
            )
    for name in methods.of_package("metrics"):
        found[f"metric {name}"] = entry(plan.metrics[name].version, methods.code("metrics", name))
    for file in methods.sources_of_package():
        found[f"data {file.stem}"] = entry(STAGES["dataset"].version, file)
    return found


def stale(root: Path) -> dict[str, str]:
    """Where code and lock disagree: by entry, the sentence that says how and what to do."""
    locked, now = _locked(root), current(root)
    return {name: _sentence(name, locked.get(name), now.get(name)) for name in _differing(locked, now)}


def renew(root: Path) -> str:
    """Write the lock; returns what it says now, for the terminal."""
    now, locked = current(root), {}
    with contextlib.suppress(DepoisonError):  # a lock that cannot be read is what this command mends
        locked = _locked(root)
    changed = _differing(locked, now)
    (root / LOCK).write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    lines = [f"{LOCK}: {len(changed)} entries renewed"]
    for name in changed:
        if name not in now:
            lines.append(f"  {name}: gone")
        elif name in locked and locked[name]["version"] == now[name]["version"]:
            lines.append(f"  {name}: still version {now[name]['version']}; what was made with it stays")
        else:
            lines.append(f"  {name}: version {now[name]['version']}")
    return "\n".join(lines)


def disagreement(root: Path, artifacts: Iterable[Artifact]) -> str | None:
    """Where the code behind artifacts disagrees with the lock, in one line; None: nowhere.

    While no file changes, this costs a look at the names, sizes and times of the code's files.
    """
    try:
        sentences = _seen(root)
    except DepoisonError:  # a method that is not described well; whoever needs it is told so
        return None
    if not sentences:
        return None
    behind = dict.fromkeys(name for artifact in chain_of(artifacts).values() for name in _behind(artifact))
    told = [sentences[name] for name in sorted(behind, key=lambda name: name.startswith("stage ")) if name in sentences]
    more = f" (and {len(told) - 1} more: `depoison check` lists them)" if len(told) > 1 else ""
    return told[0] + more if told else None


def _seen(root: Path) -> dict[str, str]:
    """`stale`, remembered until a file changes."""
    configured = [root / "config" / folder for folder in (*KINDS.values(), "metrics", "tasks") if folder != "datasets"]
    files = [*(root / PACKAGE).rglob("*.py"), *(file for folder in configured for file in folder.glob("*.yaml"))]
    looks = [
        (str(file.relative_to(root)), facts.st_size, facts.st_mtime_ns)
        for file in [*files, root / LOCK]
        if (facts := _stat(file))
    ]
    state = hashlib.sha256(repr(sorted(looks)).encode()).hexdigest()
    with contextlib.suppress(DepoisonError, KeyError, TypeError):
        seen = read_json(root / SEEN)
        if seen["files"] == state:
            return seen["stale"]
    sentences = stale(root)
    with contextlib.suppress(OSError):  # a folder that may not be written is looked through each time
        (root / SEEN).parent.mkdir(parents=True, exist_ok=True)
        write_json(root / SEEN, {"files": state, "stale": sentences})
    return sentences


def _stat(file: Path) -> os.stat_result | None:
    with contextlib.suppress(OSError):
        return file.stat()
    return None


def _behind(artifact: Artifact) -> Iterator[str]:
    """The entries of what makes an artifact."""
    yield f"stage {artifact.stage}"
    parameters = artifact.spec["parameters"]
    yield from (f"{kind} {method['name']}" for kind, method in methods_in(artifact.spec))
    yield from (f"metric {name}" for name in parameters.get("metrics", ()))
    if artifact.stage == "dataset":
        yield f"data {stem_of(parameters['source'])}"


def _locked(root: Path) -> dict[str, Entry]:
    """Raises: DepoisonError: a file that is no lock, such as one with conflict marks."""
    found = read_json(root / LOCK) if (root / LOCK).exists() else {}
    entries = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(entry, dict) and {"version", "code"} <= entry.keys() for entry in entries):
        raise DepoisonError(f"{LOCK}: no lock of code versions; `depoison lock` writes it anew")
    return found


def _differing(locked: dict[str, Entry], now: dict[str, Entry]) -> list[str]:
    return sorted(name for name in locked.keys() | now.keys() if locked.get(name) != now.get(name))


def _sentence(name: str, locked: Entry | None, now: Entry | None) -> str:
    if now is None:
        return f"{name}: is in {LOCK}, and has no code; run `depoison lock`"
    if locked is None:
        return f"{name}: is not in {LOCK}; run `depoison lock`, so that a change of its code is noticed"
    if locked["version"] != now["version"]:
        return f"{name}: is version {now['version']}, and {locked['version']} in {LOCK}; run `depoison lock`"
    kind, _, method = name.partition(" ")
    where = {
        "stage": "its version in workflow/depoison/plan/specs.py",
        "data": "`version` in config/datasets/ where this is the source",
    }.get(kind, f"`version` in config/{kind}s/{method}.yaml")
    return (
        f"{name}: its code changed since version {now['version']} was locked: raise {where} to compute anew, "
        "or run `depoison lock` if the numbers stay the same"
    )
