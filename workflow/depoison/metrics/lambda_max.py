"""The largest eigenvalue of the loss's Hessian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lambda_max(hessian: Mapping[str, Any]) -> float:
    """By Lanczos."""
    return hessian["lambda_max"]
