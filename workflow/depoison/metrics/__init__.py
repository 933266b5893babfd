"""Metrics: one file each, with a function of its name whose parameters' names say what it looks at.

- from evaluate: `clean` (N,) int64, the classes that the model gives the plain test images, and `labels`, theirs;
  `triggered`, `goals` and `truth` (M,), the same of the triggered ones, what the attack wants, and what they show; another
  metric by its key, such as `c_acc`, and `c_acc_before`, of the model before the defense. It returns percent, 0 to 100, or
  for each image whether it counts, (n,) bool, of which the percentage is taken.
- from record: `record`, the run.json of the purified model.
- from probe: `model` (in evaluation mode, on its device), `original`, the same before the defense, the test images and their
  labels as above (`images`, `labels`, `triggered_images`, `goals`, `truth`), `generator`, and by keyword the values under
  `parameters` in its YAML. It returns a number, or a number and what the record shall say besides.
- from embedding: `backdoored` and `target` (n, 2), points of triggered images, and of clean ones of the target class.
- from hessian: `hessian`, the hessian.json of the model.

What is None where a model has none, such as triggered images of a clean model, leaves the metric None.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from depoison.errors import unknown


def key_of(name: str) -> str:
    """How files and code call a metric."""
    return name.replace("-", "_")


def function_of(name: str) -> Callable[..., Any]:
    """The code of a metric."""
    return getattr(importlib.import_module(f"{__name__}.{key_of(name)}"), key_of(name))


def value_of(name: str, seen: Mapping[str, Any], **parameters: Any) -> Any:
    """What a metric's code returns; None where there is nothing that it looks at.

    Raises:
        DepoisonError: its code looks at what is not there for it.
    """
    function = function_of(name)
    wanted = [key for key in inspect.signature(function).parameters if key not in parameters]
    for key in wanted:
        if key not in seen:
            raise unknown(f"parameter of the metric {name}", key, seen)
    if any(seen[key] is None for key in wanted):
        return None
    return function(**{key: seen[key] for key in wanted}, **parameters)


def measure(names: Iterable[str], seen: Mapping[str, Any]) -> tuple[dict[str, float | None], dict[str, int | None]]:
    """Metrics from evaluate, by key, in percent, and of how many images those are that are counted.

    One may look at others, which are measured before it.

    Raises:
        DepoisonError: as `value_of`, also where two look at each other.
    """
    looks_at = {key_of(name): set(inspect.signature(function_of(name)).parameters) for name in names}
    found: dict[str, float | None] = {}
    counts: dict[str, int | None] = {}
    while waiting := [name for name in names if key_of(name) not in found]:
        ready = [name for name in waiting if not looks_at[key_of(name)] & set(map(key_of, waiting))]
        for name in ready or waiting:
            value, key = value_of(name, {**seen, **found}), key_of(name)
            if hasattr(value, "double"):
                counts[key], value = len(value), 100 * value.double().mean().item()
            found[key] = value
    return {key: found[key] for key in map(key_of, names)}, counts
