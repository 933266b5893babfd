"""How each number came about, as the page holds it: every cell and every artifact once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from depoison.artifacts import read_record, read_rows
from depoison.files import RUN
from depoison.plan.config import CELLS_NAME
from depoison.plan.parameters import text_of
from depoison.plan.plan import Cell
from depoison.plan.specs import Artifact
from depoison.reports.numbers import Reader

POINTS = 60
"""As many points of a course are kept; of more, every second, third, … and the last."""

SHARED = ("recipe", "packages")
"""What most specs or records have in common; each is kept once, and elsewhere stands its number."""


class Records:
    """Collects cells and the artifacts behind them; `data` is what the page's script reads.

    A spec is the plan's, which is the file's, because an artifact's directory is a hash of it. What else is told about
    an artifact is what lies beside it: run.json and history.csv. Where a model's was not shared, its evaluation holds a copy
    of its run.json.
    """

    def __init__(self, read: Reader) -> None:
        self.read = read
        parts = ("cells", "artifacts", "settings", "epochs", *SHARED)
        self.data: dict[str, list[Any]] = {part: [] for part in parts}
        self._numbers: dict[Any, int] = {}
        self._copies: dict[str, dict[str, Any]] = {}

    def cell(self, cell: Cell) -> int:
        """The cell's number; it is added when it is new."""
        if (key := ("cells", cell.name)) in self._numbers:
            return self._numbers[key]
        behind = cell.evaluation.chain().values()
        for artifact in behind:
            if artifact.stage == "evaluate":
                model = dict(self._evaluation(artifact).get("model") or {})
                self._copies[model.pop("directory", "")] = model
        evaluation = self._evaluation(cell.evaluation)
        undefended = cell.evaluation.upstream.get("undefended")
        before = self._evaluation(undefended).get("metrics") if undefended else None
        chain = [self._artifact(artifact) for artifact in behind]
        return self._add("cells", key, {
            "name": cell.name.path, "seed": cell.name.seed, "chain": chain, "settings": self._settings(cell),
            **{part: evaluation[part] for part in ("metrics", "denominators") if part in evaluation},
            **({"before": before} if before else {}),
        })  # fmt: skip

    def _evaluation(self, artifact: Artifact) -> dict[str, Any]:
        """The content of its file; nothing where that is not there."""
        found = self.read.evaluation(artifact.product)
        return found.content if found else {}

    def _settings(self, cell: Cell) -> list[int]:
        """Of each kind of method, every value and who set it."""
        numbers = []
        for kind, settings in cell.settings.items():
            lines, choice = [], getattr(cell.name, kind)
            for key, history in settings.items():
                value, layer, place = history[-1]
                if key in dict(choice.overrides):  # which report was resolved first is no content of the page
                    layer, place = CELLS_NAME, ""
                lines.append((key, text_of(value), layer, str(place)))
            content = {"kind": kind, "name": choice.name, "values": lines}
            numbers.append(self._number("settings", repr(content), content))
        return numbers

    def _artifact(self, artifact: Artifact) -> int:
        if (key := ("artifacts", artifact.directory)) in self._numbers:
            return self._numbers[key]
        spec, directory = artifact.spec, Path(artifact.directory)
        parameters = dict(spec["parameters"])
        record = read_record(directory) if (directory / RUN).exists() else self._copies.get(artifact.directory)
        content = {
            "directory": artifact.directory, "stage": spec["stage"], "version": spec["version"], "seed": spec["seed"],
            "upstream": {role: self._artifact(each) for role, each in artifact.upstream.items()},
            "parameters": self._shared(parameters), "there": Path(artifact.product).exists(),
            "run": None if record is None else self._shared(record),
        }  # fmt: skip
        if history := read_history(directory / "history.csv"):
            # Most courses are of the same epochs.
            content["history"] = {
                column: [self._number("epochs", repr(epochs), epochs), values]
                for column, (epochs, values) in history.items()
            }
        return self._add("artifacts", key, content)

    def _shared(self, content: dict[str, Any]) -> dict[str, Any]:
        content = dict(content)
        for key in SHARED:
            if isinstance(content.get(key), dict):
                content |= {key: self._number(key, repr(sorted(content[key].items())), content[key])}
        return content

    def _number(self, part: str, key: str, content: Any) -> int:
        """The number of a content that may be there already."""
        found = self._numbers.get((part, key))
        return self._add(part, (part, key), content) if found is None else found

    def _add(self, part: str, key: Any, content: Any) -> int:
        self.data[part].append(content)
        self._numbers[key] = len(self.data[part]) - 1
        return self._numbers[key]


def read_history(path: Path) -> dict[str, list[Any]]:
    """The course of a training: by column its epochs and its values, as far as there are any.

    Raises:
        DepoisonError: a file that is no such course.
    """
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        columns = [name for name in file.readline().strip().split(",") if name not in ("epoch", "images_per_second")]
    rows = read_rows(path, {"epoch": int, **dict.fromkeys(columns, _measured)})
    found = {}
    for column in columns:
        points = [(row["epoch"], row[column]) for row in rows if row[column] is not None]
        step = -(-len(points) // POINTS)
        if points:
            found[column] = [list(axis) for axis in zip(*thinned(points, step), strict=True)]
    return found


def _measured(text: str) -> float | None:
    """To four digits; nothing where nothing was measured, or no finite number."""
    return float(f"{float(text):.4g}") if text and math.isfinite(float(text)) else None


def thinned(points: list[Any], step: int) -> list[Any]:
    """Every `step`-th point, counted from the last one back, so that this is among them; and the first."""
    kept = points[::-1][::step][::-1]
    return kept if kept[0] == points[0] else [points[0], *kept]
