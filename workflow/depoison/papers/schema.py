"""JSON schemas of the configuration's files, generated from the models that validate them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union

from pydantic import Field, RootModel

from depoison.papers import kinds
from depoison.papers.audit import AuditFile
from depoison.papers.claims import ClaimsFile
from depoison.papers.published import CorrectionsFile
from depoison.papers.tables import TableFile
from depoison.plan.config import KINDS, Checkpoint, Config, Method, Paper, SharedFile, TaskFile, Track
from depoison.plan.metrics import Metric

FOLDER = ".schemas"
"""In no commit: editors find it by .vscode/settings.json."""


class Described(NamedTuple):
    """A model, and the files that it describes, below config/."""

    model: Any
    files: tuple[str, ...]
    own: bool = False
    """Whether it describes files of the same names below methods/, too."""

    @property
    def paths(self) -> list[str]:
        """Of the files, below the project's folder."""
        return [f"{top}/{file}" for top in ("config", "methods")[: 1 + self.own] for file in self.files]


def _any_figure() -> Any:
    """A figure of any kind."""
    files = tuple(kinds.kind_of(name, "").File for name in kinds.names())
    return RootModel[Annotated[Union[files], Field(discriminator="kind")]]  # noqa: UP007 - of a tuple


SCHEMAS = {
    "config": Described(Config, ("config.yaml",)),
    "shared": Described(SharedFile, ("shared.yaml",)),
    "task": Described(TaskFile, ("tasks/*.yaml",)),
    "method": Described(Method, tuple(f"{folder}/*.yaml" for folder in KINDS.values()), own=True),
    "metric": Described(Metric, ("metrics/*.yaml",), own=True),
    "audit": Described(AuditFile, ("audit.yaml",)),
    "checkpoint": Described(Checkpoint, ("checkpoints/*.yaml",)),
    "track": Described(Track, ("tracks/*.yaml",)),
    "paper": Described(Paper, ("papers/*/paper.yaml",)),
    "table": Described(TableFile, ("papers/*/table*.yaml", "papers/*/overview.yaml")),
    "figure": Described(_any_figure(), ("papers/*/figures/*.yaml",)),
    "claims": Described(ClaimsFile, ("papers/*/claims.yaml",)),
    "corrections": Described(CorrectionsFile, ("papers/*/published/corrections/*.yaml",)),
}


def schemas() -> dict[str, str]:
    """File name → text."""
    texts = {
        name: json.dumps(each.model.model_json_schema(), indent=1, sort_keys=True) for name, each in SCHEMAS.items()
    }
    return {f"{name}.schema.json": text + "\n" for name, text in texts.items()}


def write_schemas(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in schemas().items():
        (folder / name).write_text(text, encoding="utf-8")
