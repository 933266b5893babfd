"""JSON schemas of the configuration's files, generated from the models that validate them."""

from __future__ import annotations

import json
from pathlib import Path

from depoison.plan.claims import ClaimsFile
from depoison.plan.config import Config, Method, Paper, SharedFile, Track
from depoison.plan.figures import AnyFigureFile
from depoison.plan.published import CorrectionsFile
from depoison.plan.tables import TableFile

MODELS = {
    "config": Config,
    "shared": SharedFile,
    "method": Method,
    "track": Track,
    "paper": Paper,
    "table": TableFile,
    "figure": AnyFigureFile,
    "claims": ClaimsFile,
    "corrections": CorrectionsFile,
}


def schemas() -> dict[str, str]:
    """File name → text."""
    texts = {name: json.dumps(model.model_json_schema(), indent=1, sort_keys=True) for name, model in MODELS.items()}
    return {f"{name}.schema.json": text + "\n" for name, text in texts.items()}


def write_schemas(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in schemas().items():
        (folder / name).write_text(text, encoding="utf-8")
