"""depoison: reproduce, cell by cell, what papers on purifying backdoored neural networks report.

In Python: `purify`, `poison` and `evaluate` (`depoison.api`), for networks and images of one's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depoison.api import Poisoned, Trigger, evaluate, poison, purify

__version__ = "0.1.0"
__all__ = ["Poisoned", "Trigger", "__version__", "evaluate", "poison", "purify"]


def __getattr__(name: str) -> Any:
    """What is of `depoison.api`, when somebody asks for it: the commands need no torch to start."""
    if name not in __all__:
        raise AttributeError(f"module 'depoison' has no attribute {name!r}")
    from depoison import api

    return getattr(api, name)
