"""Peak memory of a purification, as the stage that purified recorded it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def memory(record: Mapping[str, Any]) -> float | None:
    """MiB: of the GPU if there was one, else of the process, which may have served other stages before."""
    size = record.get("peak_device_memory_bytes") or record.get("peak_memory_bytes")
    return size and size / 2**20
