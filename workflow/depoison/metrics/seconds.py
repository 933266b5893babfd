"""Purification time, as the stage that purified recorded it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def seconds(record: Mapping[str, Any]) -> float | None:
    """Wall-clock seconds, with reading the model and the data."""
    return record.get("seconds")
