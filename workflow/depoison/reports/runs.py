"""The evaluations of a run, by cell: of a folder, of a track in it, or of a git revision."""

from __future__ import annotations

import io
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from depoison.artifacts import METRICS_FILE, evaluation_in, read_evaluation
from depoison.errors import DepoisonError
from depoison.files import read_json
from depoison.papers.figures import all_figures, read_figure
from depoison.papers.tables import all_tables, read_table
from depoison.plan.cells import PREFIX, CellName
from depoison.plan.plan import CONFIG_FILE, Plan

HELD = ("config", "workflow", "results", "reports")
"""What is read of a git revision."""


@dataclass(frozen=True)
class Run:
    """A cell that was computed.

    Attributes:
        evaluation: its directory; the same one means the same spec.
        metrics: in percent, those that it has.
        counts: of how many images each is; without those of which it is not known.
        model: sha256 of the model's bytes, "" where it is not known.
        device: that made the model, "" likewise.
    """

    evaluation: str
    metrics: Mapping[str, float]
    counts: Mapping[str, int]
    model: str = ""
    device: str = ""


@dataclass(frozen=True)
class Side:
    """One of two that are compared.

    Attributes:
        name: as it was asked for.
        what: a track, a folder or a revision, for people.
        track: where only its cells are meant.
        notes: what the reader should know of it.
    """

    name: str
    what: str
    track: str | None
    runs: Mapping[CellName, Run]
    notes: tuple[str, ...] = ()


def read_side(plan: Plan, name: str) -> Side:
    """A track of this project, a folder, or a git revision; the first of these that the name is.

    Raises:
        DepoisonError: none of them, one without evaluations, or a file that cannot be read.
    """
    if name in plan.configuration.names("track"):
        runs, notes = _runs(plan.root, plan)
        side = Side(name, f"track {name}", name, {cell: run for cell, run in runs.items() if cell.track == name}, notes)
    elif Path(name).is_dir():
        side = Side(name, f"folder {name}", None, *_runs(Path(name)))
    else:
        with _checked_out(plan.root, name, plan.configuration.names("track")) as (folder, commit):
            side = Side(name, f"git revision {name} ({commit})", None, *_runs(folder))
    if not side.runs:
        raise DepoisonError(f"{side.what}: holds no evaluation of a cell, below results/ or in reports/*.json")
    return side


@contextmanager
def _checked_out(root: Path, revision: str, tracks: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """A temporary folder with what a revision holds of the project, and the commit, shortened."""

    def git(*arguments: str) -> bytes:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
        if done.returncode:
            raise DepoisonError(done.stderr.decode(errors="replace").strip())
        return done.stdout

    try:
        commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
        prefix, top = git("rev-parse", "--show-prefix", "--show-toplevel").decode().splitlines()
    except (DepoisonError, FileNotFoundError) as error:
        told = f"{revision!r} is neither a track ({', '.join(tracks)}), nor a folder, nor a revision of this git repository"
        raise DepoisonError(f"{told} ({error})" if f"{error}" else told) from None
    tree, root = f"{commit}:{prefix}", Path(top)  # below the top git would look for the project's folder in itself
    held = set(git("ls-tree", "--name-only", "-z", tree).decode().split("\0"))
    with tempfile.TemporaryDirectory() as folder:
        if wanted := [name for name in HELD if name in held]:
            # Not tar: before Python 3.11.4 it has no filter against links and names that lead out of the folder.
            with zipfile.ZipFile(io.BytesIO(git("archive", "--format=zip", "-0", tree, "--", *wanted))) as archive:
                archive.extractall(folder)
        yield Path(folder), commit[:10]


def _runs(root: Path, plan: Plan | None = None) -> tuple[dict[CellName, Run], tuple[str, ...]]:
    """Every cell that was computed in a folder, and notes.

    A cell's numbers come from the evaluation that its configuration leads to, else from the one that its file names or from
    the file, else from a table.
    """
    runs: dict[CellName, Run] = {}
    notes: list[str] = []
    for path in sorted((root / "reports").glob("**/*.json")):
        content = read_json(path)
        for table in content if isinstance(content, list) else [content]:
            if isinstance(table, dict) and {"cells", "lines", "columns"} <= table.keys():
                for name, run in _of_table(root, table, path):
                    if run.metrics or name not in runs:
                        runs[name] = run
    for path in sorted((root / PREFIX).glob("**/s*.json")):
        view = evaluation_in(read_json(path), path)
        runs[CellName.parse(str(path.relative_to(root)))] = _run(root, str(view.get("evaluation", "")), view)
    if (root / CONFIG_FILE).exists() and (root / "results/evaluate").is_dir():
        try:
            planned = _planned(plan or Plan(root))
        except DepoisonError as error:
            planned = {}
            notes.append(f"its configuration cannot be planned, so only its cells' files and tables are read ({error})")
        read = cache(lambda directory: _run(root, directory))
        there = {directory for directory in planned.values() if (root / directory / METRICS_FILE).exists()}
        runs.update((name, read(directory)) for name, directory in planned.items() if directory in there)
    return runs, tuple(notes)


def _planned(plan: Plan) -> dict[CellName, str]:
    """The evaluation's directory of each cell of all tables and figures on all tracks."""
    found = [read_table(plan, target) for target in all_tables(plan)]
    found += [read_figure(plan, target) for target in all_figures(plan)]
    return {cell.name: cell.evaluation.directory for report in found for cell in report.cells()}


def _run(root: Path, directory: str, otherwise: Mapping[str, Any] | None = None) -> Run:
    """A run, from its evaluation.

    Args:
        otherwise: the content of what else tells the numbers, where the evaluation is not there.
    """
    product = root / directory / METRICS_FILE
    content = otherwise if otherwise and not product.exists() else read_evaluation(product).content
    metrics, counts, model = content["metrics"], content.get("denominators", {}), content.get("model") or {}
    return Run(
        directory,
        {metric: value for metric, value in metrics.items() if value is not None},
        {metric: count for metric, count in counts.items() if count},
        model.get("sha256", {}).get("model.safetensors", ""),
        model.get("device", ""),
    )


def _of_table(root: Path, table: dict[str, Any], path: Path) -> Iterator[tuple[CellName, Run]]:
    """A table's cells that were computed: from their evaluations where these are there, else from it, which has no counts."""
    try:
        for entry in table["cells"]:
            made = [cell for cell in entry["cells"] if cell not in entry["missing"]]
            # One value for each seed that was computed, unless a metric was not measured. Of a missing one the evaluation may
            # be there, and a probe not.
            seeds = {len(made): made, len(entry["cells"]): entry["cells"]}
            numbers = {m: dict(zip(seeds.get(len(of), ()), of, strict=False)) for m, of in entry["numbers"].items()}
            for cell, product in zip(entry["cells"], entry["evaluations"], strict=True):
                known = {metric: of.get(cell) for metric, of in numbers.items()}
                if cell in made or any(value is not None for value in known.values()):
                    content = evaluation_in({"metrics": known}, path)
                    yield CellName.parse(cell), _run(root, str(Path(product).parent), content)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DepoisonError(f"{path}: is no table of this project ({error!r})") from None
