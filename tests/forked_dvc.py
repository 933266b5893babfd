"""A command of depoison's or DVC's whose own calls of DVC are forks, too: a second less each.

    python tests/forked_dvc.py COMMAND ...

is for a fork of `forks`, which has imported them.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import Any


class Dvc:
    """Stands for `subprocess` where depoison calls DVC: a process that was forked while there was one thread forks them."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        if not (process := os.fork()):
            self.ours.close()
            os._exit(_serve(theirs))
        theirs.close()
        self.answers = self.ours.makefile()
        atexit.register(lambda: (self.ours.shutdown(socket.SHUT_RDWR), os.waitpid(process, 0)))

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        with NamedTemporaryFile("r") as out, NamedTemporaryFile("r") as err:
            self.ours.sendall(json.dumps([command[1:], out.name, err.name]).encode() + b"\n")
            code = int(self.answers.readline())
            return subprocess.CompletedProcess(command, code, out.read(), err.read())


def _serve(asked: socket.socket) -> int:
    """In the fork, until whoever could ask has ended."""
    sys.path.append(str(Path(__file__).parent))
    import forks

    for line in asked.makefile():
        arguments, *files = json.loads(line)
        process = os.fork()
        if not process:
            os._exit(forks._work(["dvc", *arguments], os.getcwd(), dict(os.environ), os.devnull, *files))
        asked.sendall(b"%d\n" % forks._ended(process))
    return 0


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "depoison":
        sys.modules["depoison.running.store"].subprocess = SimpleNamespace(run=Dvc().run)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
