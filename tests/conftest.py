"""Fixtures: copies of the project, in which tests may edit files, and commands that run there."""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import yaml
from hypothesis import settings

import forks
from depoison.files import locked
from depoison.plan.lock import SEEN, disagreement
from depoison.plan.metrics import metrics_of
from depoison.plan.plan import Plan
from depoison.plan.specs import chain_of
from depoison.reports.comparison import compare
from depoison.reports.kinds import artifacts
from depoison.reports.tables import Shown

settings.register_profile("few", deadline=None, derandomize=True, max_examples=25)
settings.register_profile("many", deadline=None, derandomize=True)
settings.load_profile("few")

# Each time, Python goes through all that tests hold on to, such as plans: a tenth of what they take.
gc.set_threshold(10_000, 20, 20)

# Else each command of DVC's leaves a process behind that reports it to DVC's makers.
os.environ["DVC_NO_ANALYTICS"] = "1"

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / ".pytest_cache/artifacts"
"""Artifacts that tests have made: what a spec says is made once for all tests, until the code changes.

Until any of it does, not only what the lock looks at: tests are there to see a fault in what publishes and records, too."""
PARTS = ("Snakefile", "workflow", "config", "profiles", "envs", "pyproject.toml")
TINY = {
    "summary": "for tests",
    "replace": {"datasets": {"*": "digits"}, "models": {"*": "resnet18"}},
    "datasets": {"digits": {"size": 8}},
    "models": {"resnet18": {"width": 8}},
    "training": {"epochs": 1, "batch_size": 128, "evaluate_every": 0, "precision": "fp32"},
    "tuning": {"epochs": 1, "batch_size": 64, "precision": "fp32"},
    "attacks": {
        "dfst": {
            "style_epochs": 1, "generator_width": 4, "generator_blocks": 1, "discriminator_width": 4, "rounds": 1,
            "round_epochs": 1, "injector_epochs": 1, "injector_width": 4,
        },
        "label-consistent": {"surrogate_steps": 1},
        "lira": {"trigger_epochs": 1, "generator_width": 4},
    },
    "defenses": {"ngf": {"epoch_batches": 2}, "nc": {"inversion_epochs": 1}},
}  # fmt: skip
SMALL = {
    "title": "Small",
    "caption": "Two attacks and two defenses",
    "dataset": "cifar10",
    "model": "resnet18",
    "axes": {
        "rows": [
            {"attack": "badnet", "label": "BadNet", "rates": [0.1]},
            {"attack": "blended", "label": "Blended", "rates": [0.1]},
        ],
        "columns": [{"defense": "none", "label": "No defense"}, {"defense": "lp", "label": "LP"}],
    },
    "metrics": {"show": ["c-acc", "asr"]},
    "summary": ["average"],
}

MANY = SMALL | {
    "title": "Many",
    "caption": "Three attacks and four defenses",
    "axes": {
        "rows": [
            {"attack": name, "label": name, "rates": [0.01, 0.005]}
            for name in ("badnet", "blended", "label-consistent")
        ],
        "columns": [{"defense": name, "label": name} for name in ("none", "lp", "fe-tuning", "ft", "ft-init")],
    },
}

WEIGHT = {
    "summary": "largest weight", "label": "Largest weight", "unit": "", "better": "lower", "decimals": 1, "from": "probe",
    "parameters": {"power": 2},
}  # fmt: skip
WEIGHT_CODE = '''"""For a test: the largest weight of a model, to a power."""

def largest_weight(model, labels, *, power):
    """The number; `labels` only to see that they are there."""
    assert len(labels)
    return max(float(p.abs().max()) for p in model.parameters()) ** power
'''

LONGEST = (
    "test_interruption",
    "test_errors",
    "test_plan",
    "test_figures",
    "test_share",
    "test_share_drills",
    "test_pipeline",
    "test_progress",
    "test_audit",
    "test_tables_fst",
    "test_html",
    "test_claims",
    "test_worker",
    "test_device",
)
"""Files that take longest, in that order: parallel processes start with them, so that none is left with one at the end."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compare code and lock once, not in each copy of the project, and forget what was made of other code."""
    disagreement(ROOT, [])
    if not hasattr(session.config, "workerinput"):
        for old in STORE.glob("*"):
            if old.name != forks.fingerprint():
                shutil.rmtree(old)


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


TABLE_9 = {
    ("ssba", "0.005"): ("sig", "0.05"), ("sig", "0.05"): ("sig", "0.01"), ("sig", "0.01"): ("sig", "0.005"),
    ("sig", "0.005"): ("label-consistent", "0.05"), ("label-consistent", "0.05"): ("label-consistent", "0.01"),
    ("label-consistent", "0.01"): ("label-consistent", "0.005"), ("label-consistent", "0.005"): None,
}  # fmt: skip
"""Labels of rows that FST's Table 9 prints a row too low, and what they are; None: the row is printed twice."""


WIDE = ("dataset", "model", "attack", "rate", "variant", "defense", "c_acc", "asr")


def long(*lines: str) -> str:
    """A published CSV, from a line for each cell: its dataset, model, attack, rate, variant, defense, C-Acc, ASR and DER."""
    found = ["dataset,model,attack,defense,metric,value"]
    for line in lines:
        dataset, model, attack, rate, variant, defense, *numbers = line.split(",")
        name = "+".join([attack, *[f"rate={rate}"] * bool(rate), *[variant] * bool(variant)])
        found += [
            f"{dataset},{model},{name},{defense},{metric},{number}"
            for metric, number in zip(("c-acc", "asr", "der"), numbers, strict=False)
            if number
        ]
    return "\n".join(found) + "\n"


def printed_lines(name: str) -> list[dict[str, str]]:
    """The numbers of a published CSV of FST by cell (`WIDE`), without the package; of Table 9 as corrected, here by hand."""
    with (ROOT / f"config/papers/fst/published/{name}.csv").open(encoding="utf-8", newline="") as file:
        numbers = list(csv.DictReader(file))
    moved = TABLE_9 if name == "table9" else {}
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for number in numbers:
        attack, *values = number["attack"].split("+")
        by_key = dict(value.split("=") for value in values)
        rate = by_key.pop("rate", "")
        variant = "".join(f"{key}={value}" for key, value in by_key.items())
        if (now := moved.get((attack, rate), (attack, rate))) is None:
            continue
        place = (number["dataset"], number["model"], now[0], "" if variant else now[1], variant, number["defense"])
        line = found.setdefault(place, dict(zip(WIDE, place, strict=False)) | {"c_acc": "", "asr": ""})
        line[number["metric"].replace("-", "_")] = number["value"]
    return list(found.values())


def lines_of(table: Any) -> list[Any]:
    """The lines of a table, of what is there now."""
    return Shown(table, metrics_of(ROOT)).lines()


def comparisons_of(table: Any) -> list[Any]:
    """The paired differences of a table, of what is there now, each by the metric's key."""
    shown = Shown(table, metrics_of(ROOT))
    found = compare(table, shown.read, shown.attack, shown.before)
    return [replace(one, differences={metric.key: of for metric, of in one.differences.items()}) for one in found]


def by_part(table: Any, line: Any) -> list[dict[str, Any]]:
    """The numbers of a line, by column and then by metric."""
    return [{line.numbers[j].metric: line.numbers[j] for j in at} for at in table.heads]


def cell(
    track="digits", dataset="digits", model="resnet18", attack="badnet", defense="fst", seed: int | str = 0
) -> str:
    return f"results/cells/{track}/{dataset}/{model}/{attack}/{defense}/s{seed}.json"


OF_TASK = {
    "image": {"dataset": "digits", "model": "resnet18", "attack": "badnet", "defense": "fst"},
    "points": {"dataset": "solids", "model": "pointnet2", "attack": "pointba-o", "defense": "fst"},
}
"""What goes with a method of a task in `cell`."""


def seldom(*values: Any) -> list[Any]:
    """Parameters of tests that `make test` leaves to `make test-full`."""
    return [pytest.param(value, marks=pytest.mark.drill) for value in values]


def wait_until(holds: Callable[[], object], seconds: float = 120) -> None:
    """Returns as soon as `holds` does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def put_recorded(path: Path | str, content: Any, **more: Any) -> None:
    """A file of an artifact as its stage leaves it, with its checksum in the record beside it.

    Args:
        content: bytes, text, or what becomes JSON.
        more: what else the record says.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    run = path.with_name("run.json")
    record = (json.loads(run.read_text()) if run.exists() else {"sha256": {}}) | more
    record["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    run.write_text(json.dumps(record))


def job_counts(told: str) -> dict[str, int]:
    """How many jobs of each rule Snakemake says that it ran, or with -n would run."""
    if "Job stats:" not in told:
        assert "Nothing to be done" in told, told
        return {}
    table = told.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


@functools.cache
def _without_caches() -> Path:
    """What there is to copy of the project, without what Python has compiled."""
    clean = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, clean)
    for part in (*PARTS, str(SEEN.parent)):
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, clean / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / part, clean / part)
    return clean


class Project:
    """A copy of the project."""

    def __init__(self, path: Path, source: Path | None = None, parts: tuple[str, ...] = PARTS):
        self.path, source, clean = path, source or _without_caches(), source is None
        (path / SEEN).parent.mkdir(parents=True)
        there = [part for part in map(Path, parts) if (source / part).exists()]
        for folder in dict.fromkeys(part.parent for part in there):
            (path / folder).mkdir(parents=True, exist_ok=True)
            below = [str(source / part) for part in there if part.parent == folder]
            subprocess.run(["cp", "-RLp", *below, str(path / folder)], check=True)  # two thirds of what shutil takes
        if (source / SEEN).exists():
            shutil.copy2(source / SEEN, path / SEEN)
        for cache in [] if clean else [*(path / "workflow").rglob("__pycache__")]:
            shutil.rmtree(cache)

    def copy(self, path: Path, *more: str) -> Project:
        """Another copy, with what was made in this one below `more`, such as results."""
        return Project(path, self.path, PARTS + more)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def edit(self, file: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a YAML file."""
        path = self.path / file
        data = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader) if path.exists() else {}
        change(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False), encoding="utf-8")

    def set(self, file: str, *keys: str, to: Any) -> None:
        """Set one value of a YAML file."""

        def change(data: dict[str, Any]) -> None:
            for key in keys[:-1]:
                data = data.setdefault(key, {})
            data[keys[-1]] = to

        self.edit(file, change)

    def plan(self, *configfiles: str) -> Plan:
        return Plan(self.path, configfiles)

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        binaries = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
        ours = {"PATH": binaries, "PYTHONPATH": str(self.path / "workflow"), "PYTHONDONTWRITEBYTECODE": "1"}
        return kept | ours | {"OMP_NUM_THREADS": "1", "DEPOISON_DEVICES": ""} | variables

    def at_work(self) -> list[psutil.Process]:
        """Processes whose working folder it is: heads, clients, the worker and what it forked."""
        return [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(self.path)]

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment(**variables)
        return subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, timeout=1200, check=False
        )

    def depoison(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.python("depoison", *arguments, **variables)

    def snakemake(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.python("snakemake", *arguments, **variables)

    def python(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`python -m COMMAND`, or a script; in a fork, unless the forks' server has imported what was changed in the copy."""
        if forks.does(self.path / "workflow"):
            return forks.run(command, self.path, self.environment(**variables))
        script = command[0].endswith(".py")
        return self.run(sys.executable, *([] if script else ["-m"]), *command, **variables)

    def make(self, *targets: str) -> None:
        """Make cells and reports, with artifacts that a test made before, of the same code; see `STORE`."""
        assert forks.is_ours(self.path / "workflow")
        with contextlib.chdir(self.path):
            wanted = chain_of(artifacts(Plan("."), targets)).values()
        store = STORE / forks.fingerprint()
        store.mkdir(parents=True, exist_ok=True)
        with locked(store / "lock"):
            for one in wanted:
                if (store / one.product).exists() and not (self / one.product).exists():
                    shutil.copytree(store / one.directory, self / one.directory)
            done = self.depoison("run", *targets)
            assert done.returncode == 0, done.stderr
            for one in wanted:
                if (self / one.product).exists() and not (store / one.product).exists():
                    shutil.rmtree(store / "partial", ignore_errors=True)
                    copy = shutil.copytree(self / one.directory, store / "partial")
                    (store / one.directory).parent.mkdir(parents=True, exist_ok=True)
                    copy.rename(store / one.directory)

    def checksums(self, pattern: str = "results/**/*.safetensors") -> dict[str, str]:
        files = sorted(path for path in self.path.glob(pattern) if path.is_file())
        return {str(f.relative_to(self.path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def with_tiny(project: Project) -> Project:
    """The track `tiny` and the tables `small` and `many`: each stage takes as long as importing torch does."""
    project.edit("config/tracks/tiny.yaml", lambda data: data.update(TINY))
    project.edit("config/papers/fst/small.yaml", lambda data: data.update(SMALL))
    project.edit("config/papers/fst/many.yaml", lambda data: data.update(MANY))
    return project


def with_weight(project: Project) -> Project:
    """The project with a metric that a test brings."""
    project.edit("config/metrics/largest-weight.yaml", lambda data: data.update(WEIGHT))
    (project / "workflow/depoison/metrics/largest_weight.py").write_text(WEIGHT_CODE)
    return project


P = TypeVar("P", Project, Path)
LEAN = (
    *(f"papers/fst/{name}" for name in ("paper.yaml", "table2.yaml", "figures/figure6.yaml", "published/table2.csv")),
    *("tracks/digits.yaml", "tracks/paper.yaml"),
)


def lean(project: P) -> P:
    """The project, or its folder, with a table and a figure of FST on two tracks, and what a test brought: few cells."""
    for folder in ("papers", "tracks"):
        for file in (ROOT / "config" / folder).rglob("*.*"):
            if (name := str(file.relative_to(ROOT / "config"))) not in LEAN:
                (project / "config" / name).unlink(missing_ok=True)
    for paper in (project / "config/papers").iterdir():
        if not any(path.is_file() for path in paper.rglob("*")):
            shutil.rmtree(paper)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The project as it is."""
    return Project(tmp_path / "project")


@pytest.fixture
def tiny(project: Project) -> Project:
    """The project with the track `tiny` and the table `small`."""
    return with_tiny(project)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The table `small` on the track `tiny`, made without Snakemake; only to be copied."""
    made = with_tiny(Project(tmp_path_factory.mktemp("finished") / "project"))
    made.make("reports/tiny/small.md")
    return made


@pytest.fixture
def made(finished: Project, tmp_path: Path) -> Project:
    """A copy of `finished`."""
    return finished.copy(tmp_path / "made", "results", "reports")
