"""How many parameters a defense changed, as the stage that purified recorded it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tuned_parameters(record: Mapping[str, Any]) -> float | None:
    """Entries of all parameter tensors of which an entry is another than in the backdoored model."""
    return record.get("tuned_parameters")
