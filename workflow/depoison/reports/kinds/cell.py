"""The file of a single cell: a view of its evaluation, with the whole chain behind it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from depoison.artifacts import METRICS_FILE, read_evaluation
from depoison.errors import DepoisonError
from depoison.files import json_text, read_json
from depoison.plan.cells import PREFIX
from depoison.plan.config import OWN
from depoison.plan.plan import Cell, Plan
from depoison.plan.specs import Artifact
from depoison.reports.kinds import Report


class CellReport(Report):
    """Where its file holds what another configuration made, the plan notes it."""

    what = "a cell"
    name = ".+"
    suffixes = ("",)
    path = f"{PREFIX}{{name}}"

    def __init__(self, plan: Plan, target: str, partial: bool = False):
        super().__init__(plan, target, partial)
        self.target, self.cell = target, plan.cell(target)
        if line := held_by_another(self.cell):
            plan.notes[f"held {target}"] = line

    def artifacts(self) -> list[Artifact]:
        return [self.cell.evaluation]

    def refuse_missing(self) -> None:
        """Whoever reads the evaluation does."""

    def render(self) -> dict[str, bytes]:
        return {"": render_cell(self.cell).encode()}

    def holds(self) -> bool | None:
        return cell_is_its_evaluations(Path(self.target))


def configuration_of(cell: Cell) -> dict[str, dict[str, Any]]:
    """What the user's own configuration sets of a cell: {"mine.yaml": {"defense alpha": 0.05}}.

    Files go by their names, so that the same file in two places makes the same cell; for that reason a dataset's local
    copy is left out. Whatever makes other numbers is in the specs anyway.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind, settings in cell.settings.items():
        for key, history in settings.items():
            if history[-1].layer == OWN and key != "root":
                file = Path(re.sub(r":\d+$", "", history[-1].place)).name
                found.setdefault(file, {})[f"{kind} {key}"] = history[-1].value
    return found


def render_cell(cell: Cell) -> str:
    """The text of results/cells/…/s<seed>.json; `made_from` is the checksum of the evaluation."""
    return _text(Path(cell.name.path), cell.evaluation.directory, configuration_of(cell))


def _text(path: Path, directory: str, configuration: Any) -> str:
    evaluation = read_evaluation(Path(directory, METRICS_FILE))
    view = {
        "cell": str(path),
        "made_from": evaluation.sha256,
        "evaluation": directory,
        "configuration": configuration,
    }
    return json_text(view | evaluation.content, path)


def cell_is_its_evaluations(path: Path) -> bool | None:
    """Whether a cell's file is what was written of the evaluation that it names, under whatever configuration.

    None where that is not there.

    Raises:
        DepoisonError: the evaluation cannot be read.
    """
    with contextlib.suppress(KeyError, TypeError):
        held = read_json(path)
        product = Path(held["evaluation"], METRICS_FILE)
        if not product.exists():
            return None
        return path.read_bytes() == _text(path, held["evaluation"], held["configuration"]).encode()
    return False


def held_by_another(cell: Cell) -> str | None:
    """A line where the cell's file holds what another configuration made of it; it is written anew for this one."""
    path = Path(cell.name.path)
    with contextlib.suppress(DepoisonError, KeyError, TypeError, AttributeError):  # none that we wrote
        held = read_json(path)
        if held["evaluation"] != cell.evaluation.directory and held["configuration"] != configuration_of(cell):
            return (
                f"{path}: held {_words(held['configuration'])}; it is made anew with {_words(configuration_of(cell))}"
            )
    return None


def _words(configuration: dict[str, dict[str, Any]]) -> str:
    values = [
        f"{name}={value} of {file}" for file, values in sorted(configuration.items()) for name, value in values.items()
    ]
    return ", ".join(values) or "nothing of your own"
