"""What the benchmarks share: facts about the machine, and results as an aligned table and as JSON."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "asimd", "bf16", "sve")
"""CPU flags that decide how fast convolutions are, in fp32 and in bf16."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    found.add_argument("--repeats", type=int, default=5, help="measurements of each kind")
    found.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(project: Path = PROJECT) -> dict[str, str]:
    """The environment of a child process: a project's package, wherever its working directory is, and our commands."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": str(project / "workflow"), "PATH": path}


@contextlib.contextmanager
def project_copy() -> Iterator[Path]:
    """A copy of the project in a temporary folder, without anything that was made."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        for name in ("config", "envs", "profiles", "workflow"):
            shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Snakefile", ".gitignore", ".dvcignore"):
            shutil.copy(PROJECT / name, copy)
        yield copy


def machine(threads: int) -> dict[str, Any]:
    """The machine and the versions that a result depends on; imports none of the packages."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [line.partition(":") for line in info.splitlines()]
    found = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    flags = found.get("flags", found.get("Features", "")).split()
    packages = {}
    for name in ("torch", "torchvision", "snakemake"):
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    build = importlib.util.find_spec("torch")
    if build and build.origin:
        # Says which build it is, such as +cpu; the package's metadata may not.
        text = Path(build.origin).with_name("version.py").read_text()
        packages["torch"] = re.search(r"__version__ = '(.+)'", text)[1]
    return {
        "cpu": found.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **packages,
        "threads": threads,
        "load_1min": round(os.getloadavg()[0], 2),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest of some measurements, and all of them."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": list(values)}


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An aligned table; the first column to the left, the others to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *padded[1:]]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def report(options: argparse.Namespace, facts: dict[str, Any], shown: str, result: dict[str, Any]) -> None:
    """Print the machine and the table; write everything as JSON where asked for."""
    print(", ".join(f"{key} {' '.join(value) if isinstance(value, list) else value}" for key, value in facts.items()))
    print(shown)
    if options.json:
        asked = {key: value for key, value in vars(options).items() if key != "json"}
        content = {"machine": facts, "options": asked, "result": result}
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
