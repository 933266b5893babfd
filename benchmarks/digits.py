"""Where the time of a whole digits table goes: computing, starting jobs, planning, idle cores; and memory for each job.

Runs `snakemake` for the table in a temporary copy of the project. Time is counted in core-seconds, cores × wall clock:
*compute* is what stages recorded, *start* what their jobs took besides, *planning* all cores until the first stage
begins, *idle* the rest, in which Snakemake itself works as well. Afterwards one cell is asked for with one value changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from common import cores, environment, machine, parser, project_copy, report, spread, table

ONE_MORE = "results/cells/digits/digits/resnet18/badnet+rate=0.05/fst+alpha=0.07/s0.json"
"""A cell of Table 2 with one value changed: a purification, an evaluation and the cell's file."""

PARTS = ("compute", "start", "planning", "idle")


def main() -> None:
    arguments = parser(__doc__)
    arguments.set_defaults(repeats=1)
    arguments.add_argument("--target", nargs="+", default=["reports/digits/table2.md"])
    arguments.add_argument(
        "--seeds", type=int, nargs="+", default=[1], help="numbers of seeds: how it grows with cells"
    )
    arguments.add_argument("--cores", type=int, default=cores())
    arguments.add_argument("--cold", action="store_true", help="without the warm worker")
    options = arguments.parse_args()
    facts = machine(1)
    rows, memory, result = [], [], {}
    for seeds in options.seeds:
        runs = [_run(options, seeds) for _ in range(options.repeats)]
        found = {key: spread([run[key] for run in runs]) for key in ("seconds", "one more cell", "jobs", *PARTS)}
        result[f"{seeds} seeds"] = found | {"megabytes": runs[0]["megabytes"]}
        total = options.cores * found["seconds"]["median"]
        shares = [f"{found[part]['median']:.0f} ({100 * found[part]['median'] / total:.0f}%)" for part in PARTS]
        rows.append(
            [
                f"{seeds} seeds",
                runs[0]["jobs"],
                f"{found['seconds']['median']:.1f}",
                *shares,
                f"{found['one more cell']['median']:.1f}",
            ]
        )
        memory = [
            [stage, *(f"{values[key]:.0f}" for key in ("median", "max"))]
            for stage, values in runs[0]["megabytes"].items()
        ]
    shown = table(["run", "jobs", "seconds", *(f"{part}, core-s" for part in PARTS), "one more cell, s"], rows)
    report(options, facts, f"{shown}\n\n{table(['stage', 'peak MB', 'max'], memory)}", result)


def _run(options: argparse.Namespace, seeds: int) -> dict[str, Any]:
    with project_copy() as copy:
        (copy / "seeds.yaml").write_text(f"seeds: {list(range(seeds))}\n")
        if options.cold:
            worker = copy / "workflow/depoison/running/worker.py"
            worker.write_text(worker.read_text().replace("SUPPORTED = ", "SUPPORTED = False and "))
        command = [sys.executable, "-m", "snakemake", "--cores", str(options.cores), "--configfile", "seeds.yaml", "--"]
        environ = environment(copy)
        started, clock = time.time(), time.perf_counter()
        done = subprocess.run([*command, *options.target], cwd=copy, env=environ, capture_output=True, text=True)
        seconds = time.perf_counter() - clock
        if done.returncode:
            sys.exit(done.stderr)
        records = {path.parent: json.loads(path.read_text()) for path in copy.glob("results/*/*/run.json")}
        compute = sum(record["seconds"] for record in records.values())
        # The second line of a rule's benchmark file begins with its seconds, from the shell's start to its end.
        jobs = [float(path.read_text().split("\n")[1].split("\t")[0]) for path in copy.glob("logs/**/*.tsv")]
        begun = [_first_moment(path) for path in copy.glob("logs/*/*.log")]
        planning = options.cores * (min(moment for moment in begun if moment) - started)
        megabytes = {
            stage: spread(
                [r["peak_memory_bytes"] / 1e6 for folder, r in records.items() if folder.parent.name == stage]
            )
            for stage in sorted({folder.parent.name for folder in records})
        }
        clock = time.perf_counter()
        subprocess.run([*command, ONE_MORE], cwd=copy, env=environ, capture_output=True, check=True)
        one_more = time.perf_counter() - clock
    start = sum(jobs) - compute
    return {
        "seconds": seconds, "one more cell": one_more, "jobs": len(jobs), "compute": compute, "start": start,
        "planning": planning, "idle": options.cores * seconds - compute - start - planning, "megabytes": megabytes,
    }  # fmt: skip


def _first_moment(log: Path) -> float | None:
    words = log.read_text().split(" ")
    return datetime.strptime(" ".join(words[:2]), "%Y-%m-%d %H:%M:%S,%f").timestamp() if len(words) > 2 else None


if __name__ == "__main__":
    main()
