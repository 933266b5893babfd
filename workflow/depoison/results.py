"""Cells and tables that were made, as objects: what a project's files show, in Python.

Both are of the project in the working directory, and read what is there; Snakemake makes it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depoison.artifacts import read_evaluation, read_record
from depoison.errors import DepoisonError
from depoison.papers import tables
from depoison.plan.cells import PREFIX
from depoison.plan.plan import CONFIG_FILE, Plan
from depoison.reports.tables import command, render

if TYPE_CHECKING:
    import pandas as pd

    from depoison.models.classifier import Classifier
    from depoison.plan.plan import Cell as PlannedCell
    from depoison.stages.inputs import Dataset


class Cell:
    """One cell: an attack and a defense on a dataset and a model, with one seed.

    Args:
        name: its path, `results/cells/…/s0.json`, or what of it follows `results/cells/`.

    Raises:
        DepoisonError: there is no project here, or no such cell can be.
    """

    def __init__(self, name: str):
        self.path = f"{PREFIX}{name.removeprefix(PREFIX).removesuffix('.json')}.json"
        self._plan = _plan()
        self._cell = self._plan.cell(self.path)

    def __repr__(self) -> str:
        return f"depoison.cell({self.path!r})"

    @property
    def made(self) -> bool:
        """Whether its evaluation is here."""
        return Path(self._cell.evaluation.product).exists()

    @property
    def metrics(self) -> dict[str, float | None]:
        """By key, in percent; None where there is nothing to measure. Of combined attacks also those of each, `asr@badnet`.

        Raises:
            DepoisonError: it was not made, or is not what was recorded.
        """
        return dict(self._evaluation().metrics)

    @property
    def record(self) -> dict[str, Any]:
        """How its model came about: seconds, device, memory, versions, commit.

        Raises:
            DepoisonError: as `metrics`.
        """
        self._evaluation()
        return read_record(self._cell.evaluation.upstream["model"].directory)

    def model(self) -> Classifier:
        """The model that was measured, on the CPU, in evaluation mode: (B, C, H, W) pixels in [0, 255] → (B, K) logits.

        Raises:
            DepoisonError: the model or its dataset is not here, such as in a clone that has only what git holds.
        """
        return model_of(self._plan, self._cell)[0]

    def to_pandas(self) -> pd.DataFrame:
        """One row: the parts of its name, and its metrics by key.

        Raises:
            DepoisonError: as `metrics`.
        """
        import pandas as pd

        name = self._cell.name
        parts = {key: str(getattr(name, key)) for key in ("track", "dataset", "model", "attack", "defense")}
        return pd.DataFrame([parts | {"seed": name.seed} | self.metrics])

    def _evaluation(self) -> Any:
        if not self.made:
            raise DepoisonError(f"{self.path} was not made; `{command(self._plan, self.path)}` makes it")
        return read_evaluation(self._cell.evaluation.product)


def model_of(plan: Plan, cell: PlannedCell) -> tuple[Classifier, Dataset]:
    """The model that was measured, as `Cell.model` has it, and its dataset.

    Raises:
        DepoisonError: as `Cell.model`.
    """
    from depoison.stages.inputs import read_dataset, read_model
    from depoison.stages.runner import import_own

    path, upstream = cell.name.path, cell.evaluation.upstream
    for role in ("dataset", "model"):
        if not Path(upstream[role].product).exists():
            raise DepoisonError(
                f"{upstream[role].product} is not here; `depoison share pull --models {path}` fetches it where "
                f"it was shared, `{command(plan, path)}` makes it"
            )
    import_own(upstream["model"].spec, upstream["model"].directory, plan.configuration.config.runtime)
    dataset = read_dataset(Path(upstream["dataset"].directory))
    return read_model(Path(upstream["model"].directory), dataset), dataset


class Table:
    """One table of a paper on a track, or all of them.

    Args:
        target: such as `reports/demo/overview.md`, with any suffix or none.

    Raises:
        DepoisonError: there is no project here, or no such table.
    """

    def __init__(self, target: str):
        self.target = tables.stem_of(target)
        self._plan = _plan()
        self._table = tables.read_report(self._plan, self.target)

    def __repr__(self) -> str:
        return f"depoison.table({self.target!r})"

    @property
    def cells(self) -> list[Cell]:
        """Its cells, made or not."""
        return [Cell(cell.name.path) for cell in self._table.cells()]

    def to_pandas(self) -> pd.DataFrame:
        """One row for each number: where it stands, ours with its interval, what is missing, the printed one, the difference.

        Raises:
            DepoisonError: an evaluation is not what was recorded.
        """
        import pandas as pd

        return pd.read_csv(io.StringIO(render(self._plan, self._table)[".csv"]))


def _plan() -> Plan:
    if not Path(CONFIG_FILE).exists():
        raise DepoisonError(f"{CONFIG_FILE}: missing; cells and tables are of the project in the working directory")
    return Plan()
