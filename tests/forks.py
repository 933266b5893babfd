"""`python -m` of depoison, snakemake and dvc in forks of a server that has imported what they need: a second less each.

    python tests/forks.py

reads requests. A fork is a process as any other, with its own folder, environment, files and exit code, and what it does to
its modules nobody else sees. But they are the server's: who wants a copy's own code starts a process of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile

import depoison

COMMANDS = "depoison", "snakemake", "dvc"
CODE = Path(depoison.__file__).parents[1]
SELDOM = "__main__", "snakemake", "models", "attacks", "defenses", "data"
"""Parts of the package that a command imports where it needs them."""
OTHERS = "snakemake.cli", "dvc.cli", "dvc.repo"
SECONDS = 3600
"""After which a command is killed."""
ONE_AT_A_TIME = threading.Lock()


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What `python -m COMMAND` does in this folder and environment."""
    with ONE_AT_A_TIME, NamedTemporaryFile("r") as out, NamedTemporaryFile("r") as err:
        server = _server()
        print(json.dumps([command, str(folder), dict(environment), out.name, err.name]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, code, out.read(), err.read())


def is_ours(code: Path) -> bool:
    """Whether a copy of the code is what the server has imported."""
    return _texts(code) == _our_texts()


def fingerprint() -> str:
    """Of the code, and of what else an artifact's numbers hang on, on one machine."""
    packages = [sys.version, *(f"{name} {version(name)}" for name in ("torch", "torchvision", "numpy", "scikit-learn"))]
    return hashlib.sha256(repr([packages, sorted(_our_texts().items())]).encode()).hexdigest()[:16]


def _texts(code: Path) -> dict[Path, bytes]:
    return {path.relative_to(code): path.read_bytes() for path in code.rglob("*.py")}


@functools.cache
def _our_texts() -> dict[Path, bytes]:
    return _texts(CODE)


@functools.cache
def _server() -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, __file__], env=environment, start_new_session=True, **pipes)
    atexit.register(server.communicate)  # the end of its input is the server's
    return server


def _serve() -> None:
    found = (module.name for module in pkgutil.walk_packages(depoison.__path__, "depoison."))
    for name in (*(name for name in found if name.split(".")[1] not in SELDOM), *OTHERS):
        importlib.import_module(name)
    for line in sys.stdin:
        process = os.fork()
        if not process:
            os._exit(_work(*json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def _work(command: list[str], folder: str, environment: dict[str, str], *files: str) -> int:
    """In the fork: become the command; returns its exit code."""
    signal.alarm(SECONDS)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for target, (name, flags) in enumerate([(os.devnull, os.O_RDONLY), *((name, os.O_WRONLY) for name in files)]):
        os.dup2(os.open(name, flags), target)
    sys.path[0] = folder
    sys.argv = command
    code: object = 1
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    # As Python ends, but that it does not free a gigabyte piece by piece.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    _serve()
