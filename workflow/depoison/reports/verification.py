"""What `depoison verify --recompute` found on a track: its file, which the track's page tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from depoison.artifacts import METRICS_FILE, Amount, Checksum, Percent
from depoison.errors import DepoisonError
from depoison.files import read_json, sha256_of, write_json
from depoison.papers.tables import DEFAULT_TRACK

Metrics = dict[str, Percent | None]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Recomputed(_Strict):
    """An evaluation that was made anew, from the backdoored model on.

    Attributes:
        evaluation: its directory.
        was, now: its metrics as they were recorded, and as they are now; these are empty where `error` says why.
    """

    evaluation: str
    was: Metrics
    now: Metrics
    error: str = ""

    def agrees(self, tolerance: float) -> bool:
        return self.difference is not None and self.difference <= tolerance

    def numbers(self, labels: Mapping[str, str]) -> list[tuple[str, str, str]]:
        """(metric, was, now), for people.

        Args:
            labels: of the metrics that are shown, by key.
        """
        both = [(label, self.was.get(metric), self.now.get(metric)) for metric, label in labels.items()]
        return [(label, _text(was), _text(now)) for label, was, now in both if (was, now) != (None, None)]

    @property
    def difference(self) -> float | None:
        """The largest of a metric, in percentage points; None where a metric is on one side only."""
        pairs = [(self.was.get(metric), self.now.get(metric)) for metric in self.was.keys() | self.now.keys()]
        if self.error or any((was is None) != (now is None) for was, now in pairs):
            return None
        return max((abs(was - now) for was, now in pairs if was is not None and now is not None), default=0.0)


class Verification(_Strict):
    """reports/[{track}/]verified.json; no part of any artifact.

    Attributes:
        targets: what was verified.
        when: UTC, when it ended.
        seed: of the draw.
        tolerance: in percentage points.
        device, threads, packages, commit: that made them anew.
        evaluations: those that the sample was drawn from, by directory, with the sha256 of their files then.
        cells: the sample.
    """

    targets: list[str]
    when: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")]
    seed: int
    tolerance: Amount
    device: str
    threads: int
    packages: dict[str, str]
    commit: str | None
    evaluations: dict[str, Checksum]
    cells: list[Recomputed]

    @property
    def agreeing(self) -> int:
        """How many cells are within the tolerance."""
        return sum(cell.agrees(self.tolerance) for cell in self.cells)

    @property
    def largest(self) -> float | None:
        """The largest difference that was found, in percentage points."""
        return max((cell.difference for cell in self.cells if cell.difference is not None), default=None)

    def changed(self) -> list[str]:
        """The evaluations that it was drawn from and that are others now, or gone."""
        return [directory for directory, sha256 in self.evaluations.items() if checksum_of(directory) != sha256]


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def checksum_of(directory: str) -> str | None:
    """Of an evaluation's file; None where it is not there."""
    path = Path(directory, METRICS_FILE)
    return sha256_of(path) if path.exists() else None


def path_of(track: str) -> Path:
    """Where the last verification of a track lies, beside its page."""
    return Path("reports", *([] if track == DEFAULT_TRACK else [track]), "verified.json")


def read_verification(track: str) -> Verification | None:
    """The last one of a track; None where there was none.

    Raises:
        DepoisonError: a file that is none.
    """
    if not (path := path_of(track)).exists():
        return None
    try:
        return Verification.model_validate(read_json(path))
    except ValidationError as error:
        fault = error.errors()[0]
        told = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        raise DepoisonError(f"{path}: no verification ({told}); delete it and run `depoison verify` again") from None


def write_verification(track: str, verification: Verification) -> Path:
    """Write it in place of the last one; returns where."""
    path = path_of(track)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, verification.model_dump())
    return path
