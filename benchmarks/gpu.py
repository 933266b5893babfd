"""Everything that is to be measured on a GPU, in one call of at most nine minutes.

    PYTHONPATH=workflow python benchmarks/gpu.py --json gpu.json

Needs the package and torch ≥ 2.8, no Snakemake and no data. Prints what it has after every part and writes the JSON each
time, so that a call that is cut off loses one part. `--device cpu --quick` runs the same code anywhere, to try it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import defenses
from common import PROJECT, environment, machine, project_copy, spread
from depoison.files import RUN, read_json, save_tensors, write_json
from depoison.models.classifier import Classifier
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact, canonical
from depoison.running.worker import ask, start_worker
from loops import BATCH, SIZE, Work, ours, pictures, plain
from sharing import complete

MODELS = ("resnet18", "resnet50", "vgg19-bn", "densenet161", "preactresnet18")
PRECISIONS, LAYOUTS = ("fp32", "tf32", "bf16"), ("NCHW", "NHWC")
PAPER = "tf32, NHWC"
"""How the track `paper` computes."""
CELL = "results/cells/paper/cifar10/resnet18/badnet+epochs=1+evaluate_every=0/fst/s0.json"
TABLE2 = {"models": 19, "epochs": 100, "images": 49_000, "purifications": 152}
"""Of FST: backdoored models, their epochs, the attacker's images, and the cells with a defense."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, default=Path("gpu.json"))
    arguments.add_argument("--minutes", type=float, default=9.0, help="no part is begun that may end later")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--parts", nargs="+", help="only these; later ones use what earlier ones found")
    arguments.add_argument("--quick", action="store_true", help="small networks and few steps, to try the script")
    arguments.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    device = torch.device(options.device)
    steps = 2 if options.quick else 200
    work = Work("resnet18", 8 if options.quick else None, steps, 1 if options.quick else 20, device)
    if options.job:
        _job(work)
        return

    torch.manual_seed(0)
    data = pictures(steps * BATCH)
    parts: dict[str, tuple[float, Callable[[dict[str, Any]], Any]]] = {
        "ceiling": (10, lambda found: _ceiling(work, 256 if options.quick else 8192)),
        "plain": (
            60,
            lambda found: _each((0, min(8, os.cpu_count() or 1)), lambda workers: _plain(data, workers, work)),
        ),
        "eager": (120, lambda found: _each(MODELS, lambda model: _eager(data, model, work, found))),
        "graphs": (30, lambda found: _speeds(data, work, _graphs)),
        "sharing": (80, lambda found: _each((1, 2, 4, 8), lambda count: _sharing(count, options))),
        "defenses": (60, lambda found: defenses.measure(device, 2, 1 if options.quick else 10, work.width)),
        "cell": (60, lambda found: _cell(options)),
        "compiled": (90, lambda found: _speeds(data, work, _compiled)),
        "startup": (30, lambda found: _startup(options.device)),
        "table 2": (0, _table2),
    }
    parts = {name: part for name, part in parts.items() if not options.parts or name in options.parts}
    started, found = time.perf_counter(), {"machine": machine(torch.get_num_threads()) | _device(device)}
    for name, (seconds, part) in parts.items():
        begun = time.perf_counter()
        if begun - started + seconds > 60 * options.minutes:
            found[name] = "left out: no time"
        else:
            found[name] = _each([name], lambda _, part=part: part(found))[name]
        print(f"[{time.perf_counter() - begun:6.1f} s] {name}: {json.dumps(found[name], indent=1)}", flush=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _each(items: Sequence[Any], measure: Callable[[Any], Any]) -> dict[str, Any]:
    """{item: what was measured}; one that fails says so and leaves the others be."""
    found = {}
    for item in items:
        try:
            found[str(item)] = measure(item)
        except Exception as error:
            traceback.print_exc()
            found[str(item)] = f"failed: {error}"
    return found


def _precision(work: Work) -> str:
    """That of graphs and of compiled code. Many CPUs take seven times as long in bf16: too long to try the script."""
    return "bf16" if work.device.type == "cuda" else "fp32"


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"device": "cpu"}
    facts = torch.cuda.get_device_properties(device)
    return {"device": facts.name, "memory_bytes": facts.total_memory, "multiprocessors": facts.multi_processor_count}


def _ceiling(work: Work, size: int) -> dict[str, float]:
    """TFLOP/s of a square bf16 matrix product: what a training could reach at best."""
    a, b = (torch.randn(size, size, device=work.device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        work.wait()
        begun = time.perf_counter()
        for _ in range(10):
            a @ b
        work.wait()
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - begun) / 1e12)
    return {"tflops": best}


def _plain(data: Any, workers: int, work: Work) -> dict[str, Any]:
    return spread([plain(*data, workers, _shorter(work, 4))() for _ in range(2)])


def _shorter(work: Work, times: int) -> Work:
    return replace(work, steps=max(1, work.steps // times), warmup=max(1, work.warmup // times))


def _eager(data: Any, model: str, work: Work, found: dict[str, Any]) -> dict[str, Any]:
    """In each precision and memory layout images per second, the share of the (bf16) ceiling that they are, and memory."""
    mine = _shorter(replace(work, model=model), 4 if model == "resnet18" else 8)
    flops = _flops(mine)
    ceiling = found.get("ceiling")

    def way(name: str) -> dict[str, Any]:
        precision, layout = name.split(", ")
        measure = ours(*data, precision, mine, _planar if layout == "NCHW" else lambda model: None)
        if work.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        speeds = spread([measure() for _ in range(3)])
        share = speeds["median"] * flops / ceiling["tflops"] / 1e12 if isinstance(ceiling, dict) else None
        memory = torch.cuda.max_memory_allocated() if work.device.type == "cuda" else None
        return {"images_per_second": speeds, "share_of_ceiling": share, "device_memory_bytes": memory}

    ways = [f"{precision}, {layout}" for precision in PRECISIONS for layout in LAYOUTS]
    return {"flops_an_image": flops} | _each(ways, way)


def _planar(model: Classifier) -> None:
    """Weights and images in PyTorch's own layout, each channel a plane."""
    model.to(memory_format=torch.contiguous_format)
    model.register_forward_pre_hook(lambda model, images: (images[0].contiguous(),))


def _flops(work: Work) -> float:
    """Floating-point operations of a training step for one image, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    network = work.network()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(8, 3, SIZE, SIZE, device=work.device)).sum().backward()
    return counter.get_total_flops() / 8


def _speeds(data: Any, work: Work, change: Callable[[Classifier], Any]) -> dict[str, Any]:
    measure = ours(*data, _precision(work), work, change)
    return spread([measure() for _ in range(3)])


def _compiled(model: Classifier) -> None:
    model.forward = torch.compile(model.forward)


def _graphs(model: Classifier) -> None:
    """Forward and backward pass as CUDA graphs, for whole batches."""
    if model.device.type != "cuda":
        return
    sample = torch.zeros(BATCH, 3, SIZE, SIZE, device=model.device).to(memory_format=torch.channels_last)
    model.train()
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        torch.cuda.make_graphed_callables(model, (sample,))


def _sharing(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Images per second of several trainings at once on the device, each a process, all timed together."""
    command = [sys.executable, __file__, "--device", options.device, "--job", *(["--quick"] if options.quick else [])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    jobs = [subprocess.Popen(command, **pipes) for _ in range(count)]
    for job in jobs:
        job.stdout.readline()  # it has warmed up
    for job in jobs:
        job.stdin.write("go\n")
        job.stdin.flush()
    speeds = [float(job.communicate()[0]) for job in jobs]
    return {"sum": sum(speeds), "each": speeds}


def _job(work: Work) -> None:
    """Train, say so, and train again when told, several times; prints images per second."""
    measure = ours(*pictures(work.steps * BATCH), PAPER.split(", ")[0], work)
    measure()
    print("ready", flush=True)
    sys.stdin.readline()
    begun = time.perf_counter()
    measure(), measure(), measure()
    print(3 * (work.steps + work.warmup) * BATCH / (time.perf_counter() - begun))


def _cell(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from a stored backdoored model to the metrics of its purified one: two stages, by the warm worker."""
    with project_copy() as project, contextlib.chdir(project):
        os.environ |= environment(project)
        cell = Plan(project).cell(CELL.replace("paper/cifar10", "digits/digits") if options.quick else CELL)
        chain = cell.evaluation.chain().values()
        if not options.quick:
            _made_up_dataset(next(artifact for artifact in chain if artifact.stage == "dataset"))
        runtime = json.dumps({"device": options.device})
        worker = start_worker(Path("."), 1)
        last = [cell.evaluation.upstream["model"], cell.evaluation]
        for artifact in chain:
            if artifact not in last:
                _stage(artifact, runtime)
        seconds = []
        for _ in range(4):
            begun = time.perf_counter()
            for artifact in last:
                _stage(artifact, runtime)
            seconds.append(time.perf_counter() - begun)
            stages = {artifact.stage: read_json(Path(artifact.directory, RUN)) for artifact in last}
            for artifact in last:
                shutil.rmtree(artifact.directory)
        worker.stdin.close()
        worker.wait()
    keys = ("seconds", "peak_memory_bytes", "peak_device_memory_bytes")
    facts = {stage: {key: record.get(key) for key in keys} for stage, record in stages.items()}
    return {"seconds": spread(seconds[1:]), "stages": facts}


def _startup(device: str) -> Any:
    """Seconds from launching a stage, without a worker, to its first step, and where they go."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "startup.json"
        script = str(PROJECT / "benchmarks/startup.py")
        subprocess.run([sys.executable, script, "--repeats", "2", "--device", device, "--json", str(file)], check=True)
        return read_json(file)["result"]


def _stage(artifact: Artifact, runtime: str) -> None:
    if Path(artifact.product).exists():
        return
    arguments = ["stage", canonical(artifact.spec), "--output", artifact.directory, "--runtime", runtime]
    code = ask([*arguments, "--log", f"logs/{artifact.stage}.log"])
    if code is None:
        raise RuntimeError("no worker")
    if code:
        raise RuntimeError(Path(f"logs/{artifact.stage}.log").read_text())


def _made_up_dataset(artifact: Artifact) -> None:
    """CIFAR-10's shapes with random images, so that nothing has to be downloaded."""
    folder = Path(artifact.directory)
    folder.mkdir(parents=True)
    tensors = {}
    for part, count in (("train", 50_000), ("test", 10_000)):
        tensors[f"{part}_images"], tensors[f"{part}_labels"] = pictures(count)
    write_json(folder / "classes.json", [str(number) for number in range(10)])
    save_tensors(folder / "data.safetensors", tensors)
    complete(artifact)


def _table2(found: dict[str, Any]) -> dict[str, Any]:
    """Minutes for FST's whole Table 2 on this device, from the best of the measured ways."""
    images = TABLE2["models"] * TABLE2["epochs"] * TABLE2["images"]
    ways = {"one at a time": found["eager"]["resnet18"][PAPER]["images_per_second"]["median"]}
    if isinstance(found["sharing"], dict):
        counted = {count: value for count, value in found["sharing"].items() if isinstance(value, dict)}
        ways |= {f"{count} at a time": value["sum"] for count, value in counted.items()}
    best = max(ways, key=lambda name: ways[name])
    training = images / ways[best] / 60
    each = sum(value["seconds"]["median"] for value in found["defenses"].values()) / len(found["defenses"])
    purifying = TABLE2["purifications"] * each / 60
    minutes = {"training": training, "purifying, one at a time": purifying, "sum": training + purifying}
    return {"minutes": minutes, "trained": best}


if __name__ == "__main__":
    main()
