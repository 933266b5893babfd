"""Seconds and peak memory of planning: `snakemake -n` for a cell and for tables, and how both grow with cells.

Runs in a temporary copy of the project, where nothing is made yet: the largest plan that a target can have.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import environment, machine, parser, project_copy, report, spread, table
from depoison.papers.tables import all_tables
from depoison.plan.plan import Plan
from depoison.reports.kinds import artifacts

GROWTH = (1_000, 5_000, 10_000, 50_000)
TARGETS = {
    "snakemake --version": ["--version"],
    "one digits cell": ["-n", "--", "results/cells/digits/digits/resnet18/badnet/fst/s0.json"],
    "reports/digits/table2.md": ["-n", "--", "reports/digits/table2.md"],
    "reports/table2.md": ["-n", "--", "reports/table2.md"],
}
"""The first is what Snakemake alone takes."""
LIMITS = {"one digits cell": 3.0}


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--cells", type=int, nargs="*", default=GROWTH, help="sizes of FST's Table 2, by more seeds")
    options = own.parse_args()
    facts = machine(1)
    with project_copy() as copy:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in TARGETS}
        every = [f"{target}.md" for target in all_tables(Plan(copy))]
        for repeat in range(options.repeats + 1):
            for name, arguments in TARGETS.items():
                found = _run(arguments, copy)
                if repeat:  # the first fills the file cache and compiles modules
                    runs[name].append(found)
        runs["every table on every track"] = [_run(["-n", "--", *every], copy)]
        a_seed = len(artifacts(Plan(copy), ["reports/table2.md"]))
        for cells in options.cells:
            seeds = -(-cells // a_seed)
            (copy / "seeds.yaml").write_text(f"seeds: {list(range(seeds))}\n")
            runs[f"reports/table2.md, {seeds * a_seed} cells"] = [
                _run(["-n", "--configfile", "seeds.yaml", "--", "reports/table2.md"], copy)
            ]

    rows, result = [], {}
    alone = statistics.median(run["seconds"] for run in runs["snakemake --version"])
    for name, found in runs.items():
        jobs = found[0]["jobs"]
        seconds, megabytes = (spread([run[key] for run in found]) for key in ("seconds", "megabytes"))
        a_job = 1000 * (seconds["median"] - alone) / jobs if jobs else None
        result[name] = {
            "jobs": jobs, "seconds": seconds, "megabytes": megabytes, "milliseconds_a_job": a_job,
            "target": LIMITS.get(name),
        }  # fmt: skip
        numbers = [f"{seconds[key]:.2f}" for key in ("median", "min", "max")]
        limit = f"{LIMITS[name]:.1f}" if name in LIMITS else "-"
        shown = ["-", "-"] if jobs is None else [jobs, f"{a_job:.2f}"]
        rows.append([name, *shown, *numbers, f"{megabytes['median']:.0f}", limit])
    header = ["target", "jobs", "ms a job", "seconds", "min", "max", "peak MB", "seconds at most"]
    report(options, facts, table(header, rows), result)


def _run(arguments: list[str], copy: Path) -> dict[str, Any]:
    """Run Snakemake once; returns the jobs that it plans, its seconds and its peak resident memory."""
    environ = environment(copy) | {"XDG_CACHE_HOME": str(copy.parent / "cache")}
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
