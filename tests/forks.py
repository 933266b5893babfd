"""`python -m` of depoison, snakemake and dvc in forks of a server that has imported what they need: a second less each.

    python tests/forks.py

reads requests. A fork is a process as any other, with its own folder, environment, files and exit code, and what it does to
its modules nobody else sees. But they are the server's: who changed one of them in a copy starts a process of its own; what
the server has not imported, such as a method, a fork imports from the copy. The warm worker that Snakemake starts is a fork,
too, which saves importing torch for each run (`Spare`).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import Any

import depoison

COMMANDS = "depoison", "snakemake", "dvc"
CODE = Path(depoison.__file__).parents[1]
SELDOM = "__main__", "snakemake", "models", "attacks", "defenses", "data"
"""Parts of the package that a command imports where it needs them."""
OTHERS = (
    *("snakemake.cli", "snakemake.report.html_reporter", "smart_open", "dvc.cli.parser", "dvc.data_cloud", "dvc.scm"),
    *("sklearn.datasets", "matplotlib.backends.backend_agg", "torch._dynamo", "torchvision"),
)
"""What else commands and stages import, of which torch's own with its first optimizer."""
SECONDS = 3600
"""After which a command is killed."""
ONE_AT_A_TIME = threading.Lock()


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What `python -m COMMAND` (or of a script, `python COMMAND`) does in this folder and environment."""
    with NamedTemporaryFile("r") as out, NamedTemporaryFile("r") as err:
        code = _ask("run", command, str(folder), dict(environment), os.devnull, out.name, err.name)
        return subprocess.CompletedProcess(command, code, out.read(), err.read())


def on_a_terminal(command: Sequence[str], folder: Path, environment: Mapping[str, str], terminal: str) -> int:
    """The same on a terminal that is its own; returns the exit code."""
    return _ask("run", command, str(folder), dict(environment), *[terminal] * 3)


class Started:
    """The same, not waited for: what of `subprocess.Popen` tests need. What it says is read from a file, or by nobody."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], out: Path | str = os.devnull
    ):
        self.pid = _ask("start", command, str(folder), dict(environment), os.devnull, str(out), os.devnull)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask("poll", self.pid)
        return self.returncode

    def wait(self, timeout: float = SECONDS) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, f"{self.pid} goes on"
            time.sleep(0.01)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _ask(*request: object) -> Any:
    with ONE_AT_A_TIME:
        server, _ = _server()
        print(json.dumps(request), file=server.stdin, flush=True)
        return json.loads(server.stdout.readline())


def is_ours(code: Path) -> bool:
    """Whether a copy of the code is what we have."""
    return _texts(code) == _our_texts()


def does(code: Path) -> bool:
    """Whether a fork does what a process of a copy's own code would: of that, what the server has imported is the same."""
    ours = _our_texts()
    return all((code / file).is_file() and (code / file).read_bytes() == ours[file] for file in _server()[1])


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
def _server() -> tuple[subprocess.Popen[str], list[Path]]:
    """The server, and which files of the code it has imported."""
    environment = os.environ | {"PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, __file__], env=environment, start_new_session=True, **pipes)
    atexit.register(server.communicate)  # the end of its input is the server's
    return server, [Path(file) for file in json.loads(server.stdout.readline())]


def _serve() -> None:
    gc.disable()  # there is none to find among imports
    found = (module.name for module in pkgutil.walk_packages(depoison.__path__, "depoison."))
    for name in (*(name for name in found if name.split(".")[1] not in SELDOM), *OTHERS):
        importlib.import_module(name)
    files = (Path(file) for module in sys.modules.values() if (file := vars(module).get("__file__")))
    print(json.dumps([str(file.relative_to(CODE)) for file in files if file.is_relative_to(CODE)]), flush=True)
    _our_texts()
    for one in list(weakref.finalize._registry):
        one.atexit = False  # such as what takes torch apart, in each fork, at its end
    gc.freeze()  # memory that no fork writes to, as it looks for garbage, stays shared
    gc.enable()
    if sys.platform == "linux":
        _collapse()
    started: dict[int, int | None] = {}
    for line in sys.stdin:
        started |= {process: _ended(process, os.WNOHANG) for process, code in started.items() if code is None}
        asked, *rest = json.loads(line)
        if asked == "poll":
            answer = started[rest[0]]
        elif not (process := os.fork()):
            os._exit(_work(*rest))
        elif asked == "start":
            answer, started[process] = process, None
        else:
            answer = _ended(process)
        print(json.dumps(answer), flush=True)


def _collapse() -> None:
    """Move memory to pages of 2 MiB, where the kernel will: a fork copies, and frees, the list of all pages."""
    libc, (size, collapse) = ctypes.CDLL(None), (1 << 21, 25)  # MADV_COLLAPSE
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, _, _, inode, *_ = line.split()
        begin, end = (int(address, 16) for address in span.split("-"))
        begin = -(-begin // size) * size
        if rights.startswith("rw") and inode == "0" and end - begin >= size:
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), collapse)


def _ended(process: int, options: int = 0) -> int | None:
    """The exit code of a fork, as `subprocess` has it; None if it goes on."""
    ended, status = os.waitpid(process, options)
    return os.waitstatus_to_exitcode(status) if ended else None


def _work(command: list[str], folder: str, environment: dict[str, str], *files: str) -> int:
    """In the fork: become the command; returns its exit code."""
    signal.alarm(SECONDS)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background, and inherited
    os.setsid()  # so that a terminal becomes its own
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for target, name in enumerate(files):
        os.dup2(os.open(name, os.O_WRONLY if target else os.O_RDONLY), target)
    sys.path[0] = folder
    if (code := Path(folder, "workflow")).is_dir() and not is_ours(code):
        sys.path[:] = [str(code) if place == str(CODE) else place for place in sys.path]
        for name, module in sys.modules.items():
            if name.partition(".")[0] == "depoison" and hasattr(module, "__path__"):
                module.__path__ = [str(code / Path(place).relative_to(CODE)) for place in module.__path__]
    if command[0] not in ("depoison", "dvc"):
        importlib.import_module("depoison.running.worker").subprocess = SimpleNamespace(
            PIPE=subprocess.PIPE, Popen=Spare()
        )
    sys.argv = command
    code: object = 1
    try:
        if command[0].endswith(".py"):
            runpy.run_path(command[0], run_name="__main__")
        else:
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


class Spare:
    """Stands for `subprocess.Popen` where Snakemake starts its worker: a fork, of when there was one thread, becomes it."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            self.ours.close()
            os._exit(self._become(theirs))
        theirs.close()

    def _become(self, asked: socket.socket) -> int:
        """In the fork: wait for what `__call__` sends, or until whoever could call it has ended."""
        message, files, _, _ = socket.recv_fds(asked, 1 << 20, 2)
        asked.close()
        if not message:
            return 0
        path, environment = json.loads(message)
        os.dup2(files[0], 0)
        os.environ.clear()
        os.environ.update(environment)
        return importlib.import_module("depoison.cli").main(["worker", path, str(files[1])])

    def __call__(self, command: list[str], *, env: Mapping[str, str], pass_fds: list[int], **more: Any) -> Any:
        *_, path, _ = command
        if env["OMP_NUM_THREADS"] != "1":  # which libraries ask for once, when they are loaded
            return subprocess.Popen(command, env=env, pass_fds=pass_fds, **more)
        reads, writes = os.pipe()
        socket.send_fds(self.ours, [json.dumps([path, dict(env)]).encode()], [reads, *pass_fds])
        os.close(reads)
        return SimpleNamespace(stdin=os.fdopen(writes, "wb"), pid=self.pid)


if __name__ == "__main__":
    _serve()
