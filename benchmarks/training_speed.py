"""Images per second of the training loop, against a plain loop that trains the same network the usual way.

The plain loop is what the papers' code bases do: a DataLoader that crops, mirrors and normalizes one PIL image at a
time, fp32, NCHW, SGD without fusion. Both take turns in one process on the same images, labels, batch size and threads.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from common import cores, machine, parser, report, spread, table
from loops import BATCH, Measure, Work, ours, pictures, plain


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images, labels = pictures(max(options.steps, options.warmup) * BATCH)
    facts, rows, result = machine(options.threads), [], {}
    header: list[str] = []
    for model in options.models:
        work = Work(model, options.width, options.steps, options.warmup, torch.device("cpu"))
        loops: dict[str, Measure] = {
            f"plain fp32, {n} workers": plain(images, labels, n, work) for n in options.workers
        }
        references = list(loops)
        loops |= {f"depoison {precision}": ours(images, labels, precision, work) for precision in ("bf16", "fp32")}
        speeds: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(options.repeats):
            for name, measure in loops.items():
                speeds[name].append(measure())
        result[model] = {}
        for name, values in speeds.items():
            ratios = {
                reference: statistics.median(v / r for v, r in zip(values, speeds[reference], strict=True))
                for reference in references
            }
            result[model][name] = {"images_per_second": spread(values), "ratio": ratios}
            numbers = (statistics.median(values), min(values), max(values))
            rows.append([f"{model}, {name}", *(f"{n:.1f}" for n in numbers), *(f"{r:.2f}" for r in ratios.values())])
        header = ["loop", "img/s", "min", "max", *(f"× {reference}" for reference in references)]
    report(options, facts, table(header, rows), result)


def _options() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=10, help="steps of a measurement")
    arguments.add_argument("--warmup", type=int, default=2, help="steps before each measurement that do not count")
    arguments.add_argument("--models", nargs="+", default=["resnet18"], help="models of config/models/")
    arguments.add_argument("--width", type=int, help="their width (or growth); None: as the model's file says")
    arguments.add_argument("--threads", type=int, default=cores(), help="of torch; DataLoader workers come on top")
    arguments.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="one plain loop for each number")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
