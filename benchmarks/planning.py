"""Seconds and peak memory of planning: `snakemake -n` for a cell and for tables.

Runs in a temporary copy of the project, where nothing is made yet: the largest plan that a target can have.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import PROJECT, environment, machine, parser, report, spread, table

TARGETS = {
    "snakemake --version": ["--version"],
    "one digits cell": ["-n", "--", "results/cells/digits/digits/resnet18/badnet/fst/s0.json"],
    "reports/digits/table2.md": ["-n", "--", "reports/digits/table2.md"],
    "reports/table2.md": ["-n", "--", "reports/table2.md"],
}
"""The first is what Snakemake alone takes."""
LIMITS = {"one digits cell": 3.0}


def main() -> None:
    options = parser(__doc__).parse_args()
    facts = machine(1)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in TARGETS}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        for name in ("config", "envs", "profiles", "workflow"):
            shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(PROJECT / "Snakefile", copy)
        for repeat in range(options.repeats + 1):
            for name, arguments in TARGETS.items():
                found = _run(arguments, copy)
                if repeat:  # the first fills the file cache and compiles modules
                    runs[name].append(found)

    rows, result = [], {}
    for name, found in runs.items():
        jobs = found[0]["jobs"]
        seconds, megabytes = (spread([run[key] for run in found]) for key in ("seconds", "megabytes"))
        result[name] = {"jobs": jobs, "seconds": seconds, "megabytes": megabytes, "target": LIMITS.get(name)}
        numbers = [f"{seconds[key]:.2f}" for key in ("median", "min", "max")]
        limit = f"{LIMITS[name]:.1f}" if name in LIMITS else "-"
        rows.append([name, "-" if jobs is None else jobs, *numbers, f"{megabytes['median']:.0f}", limit])
    header = ["target", "jobs", "seconds", "min", "max", "peak MB", "seconds at most"]
    report(options, facts, table(header, rows), result)


def _run(arguments: list[str], copy: Path) -> dict[str, Any]:
    """Run Snakemake once; returns the jobs that it plans, its seconds and its peak resident memory."""
    environ = environment() | {"PYTHONPATH": str(copy / "workflow"), "XDG_CACHE_HOME": str(copy.parent / "cache")}
    output = copy.parent / "output.txt"
    started = time.perf_counter()
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments], cwd=copy, env=environ, stdout=file, stderr=file
        )
        _, status, usage = os.wait4(process.pid, 0)  # unlike getrusage, of this one child
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    text = output.read_text(errors="replace")
    if process.returncode:
        sys.exit(f"snakemake {' '.join(arguments)}: {text.strip()}")
    jobs = re.search(r"^total\s+(\d+)", text, re.MULTILINE)
    return {
        "jobs": int(jobs[1]) if jobs else None,
        "seconds": seconds,
        "megabytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6,
    }


if __name__ == "__main__":
    main()
