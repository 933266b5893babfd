"""The trace of the loss's Hessian, which is the sum of its eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def hessian_trace(hessian: Mapping[str, Any]) -> float:
    """By Hutchinson's estimator."""
    return hessian["trace"]
