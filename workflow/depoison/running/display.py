"""Who shows a run while it goes on, and that somebody ended it: of the process that Snakemake runs in."""

from __future__ import annotations

import os
from typing import Any, Protocol

from depoison.errors import INTERRUPTED
from depoison.running.board import Board


class Display(Protocol):
    """Shows a run while it goes on (the logger plugin)."""

    def begin(self, board: Board) -> None: ...


current: Display | None = None
"""Of this process, where there is one."""

interrupted = False
"""Whether somebody pressed Ctrl-C: what fails from then on is no news."""


def stop(*_: Any) -> None:
    """On Ctrl-C in Snakemake: say so in one line, whatever it is doing; it ends its jobs as after a KeyboardInterrupt."""
    global interrupted
    if not interrupted:
        interrupted = True
        os.write(2, f"depoison: {INTERRUPTED}\n".encode())
    raise SystemExit(130)
