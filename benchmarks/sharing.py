"""Seconds of `depoison share push`, `status` and `pull`, and of `gc`, with a thousand artifacts and a folder as remote.

The artifacts are made up: right names, records and checksums, random content. Tables of FST with several seeds name them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import environment, machine, parser, project_copy, report, spread, table
from depoison.files import RUN, SPEC, sha256_of, write_json
from depoison.plan.plan import Plan
from depoison.plan.specs import STAGES, Artifact
from depoison.reports.kinds import artifacts
from depoison.running.share import heavy_files

TARGET = "reports/table2.md"


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--files", type=int, default=1000, help="heavy files, at least")
    own.add_argument("--kilobytes", type=int, default=64, help="size of each")
    options = own.parse_args()
    facts = machine(1)
    seconds: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        with project_copy() as author:
            count = _fill(author, options.files, options.kilobytes)
            _call(author, "git", "init", "-q")
            _call(author, "dvc", "init", "-q")
            _call(author, "dvc", "remote", "add", "-q", "--default", "team", str(author.parent / "remote"))
            took = {"push": _share(author, "push"), "push again": _share(author, "push")}
            _call(author, "git", "add", "-A")
            _call(author, "git", "-c", "user.name=b", "-c", "user.email=b@example.org", "commit", "-qm", "all")
            reader = author.parent / "reader"
            _call(author, "git", "clone", "-q", ".", str(reader))
            took["status, all here"] = _share(reader, "status")
            # Without the evaluations everything that they were made from is needed.
            shutil.rmtree(reader / "results/evaluate")
            took |= {"status, all to pull": _share(reader, "status"), "pull": _share(reader, "pull")}
            took |= {"pull again": _share(reader, "pull"), "gc": _call(reader, *_depoison("gc"))}
        for name, value in took.items():
            seconds.setdefault(name, []).append(value)
    result = {"files": count, "kilobytes": options.kilobytes, "seconds": {k: spread(v) for k, v in seconds.items()}}
    rows = [[name, *(f"{spread(all_)[key]:.2f}" for key in ("median", "min", "max"))] for name, all_ in seconds.items()]
    report(options, facts | {"files": count}, table(["command", "seconds", "min", "max"], rows), result)


def _fill(project: Path, files: int, kilobytes: int) -> int:
    """Make up the artifacts of as many seeds as it takes; returns the number of heavy files."""
    count, seeds = 0, 0
    made: set[str] = set()
    with contextlib.chdir(project):
        while count < files:
            seeds += 1
            Path("seeds.yaml").write_text(f"seeds: {list(range(seeds))}\n")
            for evaluation in artifacts(Plan(project, ["seeds.yaml"]), [TARGET]):
                for artifact in evaluation.chain().values():
                    if artifact.directory not in made:
                        made.add(artifact.directory)
                        count += _make_up(artifact, kilobytes)
    return count


def _make_up(artifact: Artifact, kilobytes: int) -> int:
    heavy = heavy_files(artifact)
    for file in (Path(artifact.directory, name) for name in STAGES[artifact.stage].files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(1024 * kilobytes) if file in heavy else b"{}")
    complete(artifact)
    return len(heavy)


def complete(artifact: Artifact) -> None:
    """Write what makes an artifact of its files: its spec, and its record with their checksums."""
    folder = Path(artifact.directory)
    write_json(folder / SPEC, artifact.spec)
    sums = {name: sha256_of(folder / name) for name in STAGES[artifact.stage].files}
    write_json(folder / RUN, {"sha256": sums, "seconds": 1.0})


def _depoison(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "depoison", *arguments, "--configfile", "seeds.yaml"]


def _share(folder: Path, action: str) -> float:
    return _call(folder, *_depoison("share", action, TARGET))


def _call(folder: Path, *command: str) -> float:
    """Run a command; returns its seconds."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
