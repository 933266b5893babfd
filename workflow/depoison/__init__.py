"""depoison: reproduce, cell by cell, what papers on purifying backdoored neural networks report.

In Python: `purify`, `poison` and `evaluate` (`depoison.api`), for networks and images of one's own; `cell` and `table`
(`depoison.results`), for what a project made.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depoison.api import Poisoned, Trigger, evaluate, poison, purify
    from depoison.errors import DepoisonError
    from depoison.results import Cell as cell
    from depoison.results import Table as table

__version__ = "0.1.0"
PLACES = {
    "DepoisonError": "errors.DepoisonError",
    "Poisoned": "api.Poisoned",
    "Trigger": "api.Trigger",
    "cell": "results.Cell",
    "evaluate": "api.evaluate",
    "poison": "api.poison",
    "purify": "api.purify",
    "table": "results.Table",
}
__all__ = ["DepoisonError", "Poisoned", "Trigger", "__version__", "cell", "evaluate", "poison", "purify", "table"]


def __getattr__(name: str) -> Any:
    """What is offered here, when somebody asks for it: the commands need no torch to start."""
    if name not in PLACES:
        raise AttributeError(f"module 'depoison' has no attribute {name!r}")
    module, _, attribute = PLACES[name].partition(".")
    return getattr(importlib.import_module(f"depoison.{module}"), attribute)
