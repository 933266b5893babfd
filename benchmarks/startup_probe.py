"""Runs `depoison` as `python -m depoison` would, and says at its first optimizer step where the time went.

Started by startup.py, which passes the moment of the launch in the environment. Nothing of the package is changed: its
functions are wrapped as their modules are imported. Each moment counts for the innermost part that is under way.
"""

# ruff: noqa: E402 - the clock starts before anything else is imported
from __future__ import annotations

import time

BEGUN = time.perf_counter()

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import runpy
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

START, COMMAND, TORCH, COMPILER, STAGE, READ, BUILD, OTHER, STEP = PARTS = (
    "interpreter",
    "import: command line, configuration",
    "import: torch",
    "import: torch's compiler",
    "import: stage, attack, defense",
    "read inputs",
    "build the model",
    "other work before training",
    "set up training, first step",
)


class Done(BaseException):
    """The first step is over; unwinds the stage, which then removes its unfinished files."""


class Clock:
    """Adds time to the part on top of a stack."""

    def __init__(self, launched: float, begun: float):
        self.seconds = dict.fromkeys(PARTS, 0.0) | {START: begun - launched}
        self.stack, self.moment = [COMMAND], begun

    def tick(self) -> None:
        now = time.perf_counter()
        self.seconds[self.stack[-1]] += now - self.moment
        self.moment = now

    def inside(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted for `part`."""

        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            self.tick()
            self.stack.append(part)
            try:
                return function(*arguments, **keywords)
            finally:
                self.tick()
                self.stack.pop()

        return timed


CLOCK = Clock(float(os.environ["DEPOISON_LAUNCHED"]), BEGUN)

IMPORTS = {
    "torch": TORCH,
    "torch._dynamo": COMPILER,
    "torch._inductor": COMPILER,
    "depoison.stages.train": STAGE,
    "depoison.stages.purify": STAGE,
}
"""Modules whose import is a part of its own, with all that they import."""

FUNCTIONS = {
    "depoison.files": {"load_tensors": READ, "read_json": READ},
    "depoison.models.classifier": {"build": BUILD},
    "depoison.attacks.base": {"make": STAGE},
    "depoison.stages.train": {"run": OTHER},
    "depoison.stages.purify": {"run": OTHER},
    "depoison.training.loop": {"fit": STEP},
}
"""Functions by module, and the part that they are; wrapped before another module takes them from there."""


class Finder(importlib.abc.MetaPathFinder):
    """Finds modules as Python does, and times or changes those that are listed above."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in IMPORTS and name not in FUNCTIONS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module
        timed = CLOCK.inside(IMPORTS[name], execute) if name in IMPORTS else execute

        def exec_module(module: ModuleType) -> None:
            timed(module)
            for function, part in FUNCTIONS.get(name, {}).items():
                setattr(module, function, CLOCK.inside(part, getattr(module, function)))
            if name == "torch":
                module.optim.SGD.step = stopping(module.optim.SGD.step)

        spec.loader.exec_module = exec_module
        return spec


def stopping(step: Callable[..., Any]) -> Callable[..., Any]:
    """An optimizer's step that ends the run."""

    @functools.wraps(step)
    def last(*arguments: Any, **keywords: Any) -> None:
        step(*arguments, **keywords)
        CLOCK.tick()
        raise Done

    return last


if __name__ == "__main__":
    sys.meta_path.insert(0, Finder())
    try:
        runpy.run_module("depoison", run_name="__main__", alter_sys=True)
    except Done:
        print(json.dumps(CLOCK.seconds))
