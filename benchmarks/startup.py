"""Seconds from launching a stage's command to its first optimizer step, and where they go.

A run of many small cells is mostly this: each stage is a process of its own. The inputs are real: the stages behind a
digits cell are made first, in a temporary folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import PROJECT, environment, machine, parser, report, spread, table
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact

MEASURED = "results/cells/digits/digits/resnet18/badnet/none/s0.json"
INPUTS = "results/cells/digits/digits/resnet18/badnet+epochs=1/fst/s0.json"
"""The second cell's backdoored model, of one epoch, is what the measured purification starts from."""
TARGET = 2.5
PROBE = PROJECT / "benchmarks" / "startup_probe.py"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=1, help="of a stage; runtime.threads of config.yaml")
    arguments.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = arguments.parse_args()
    facts = machine(options.threads)
    plan = Plan(PROJECT)
    chain = [artifact for name in (MEASURED, INPUTS) for artifact in plan.cell(name).evaluation.chain().values()]
    train, purify = (
        next(artifact for artifact in plan.cell(name).evaluation.chain().values() if artifact.stage == stage)
        for name, stage in ((MEASURED, "train"), (INPUTS, "purify"))
    )
    runtime = plan.configuration.config.runtime.model_copy(
        update={"threads": options.threads, "device": options.device}
    )
    with tempfile.TemporaryDirectory() as folder:
        for artifact in chain:
            if artifact.stage in ("dataset", "split", "poison") or artifact is purify.upstream["model"]:
                _run([sys.executable, "-m", "depoison"], artifact, runtime.model_dump_json(), Path(folder))
        seconds: dict[str, list[dict[str, float]]] = {"train": [], "purify": []}
        for repeat in range(options.repeats + 1):
            for artifact in (train, purify):
                found = _run([sys.executable, str(PROBE)], artifact, runtime.model_dump_json(), Path(folder))
                if not found:
                    sys.exit(f"{artifact.directory}: no optimizer step was seen; see startup_probe.py")
                if repeat:  # the first fills the file cache and compiles modules
                    seconds[artifact.stage].append(json.loads(found))

    result = {
        stage: {part: spread([run[part] for run in runs]) for part in runs[0]}
        | {"total": spread([sum(run.values()) for run in runs])}
        for stage, runs in seconds.items()
    }
    rows = [[part, *(f"{result[stage][part]['median']:.2f}" for stage in result)] for part in result["train"]]
    for name in ("min", "max"):
        rows.append([f"total, {name}", *(f"{result[stage]['total'][name]:.2f}" for stage in result)])
    reached = ["yes" if result[stage]["total"]["median"] <= TARGET else "no" for stage in result]
    rows.append([f"at most {TARGET} s", *reached])
    report(options, facts, table(["median seconds", *result], rows), {"target": TARGET, **result})


def _run(program: list[str], artifact: Artifact, runtime: str, folder: Path) -> str:
    """Run `depoison stage` for an artifact; returns what it prints."""
    command = [*program, "stage", json.dumps(artifact.spec), "--output", artifact.directory, "--runtime", runtime]
    launched = {"DEPOISON_LAUNCHED": str(time.perf_counter())}
    done = subprocess.run(
        command, cwd=folder, env=environment() | launched, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{artifact.directory}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
