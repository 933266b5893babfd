"""A warm worker: it has imported torch once, and forks a process for every stage, which so pays nothing for starting.

Snakemake starts one for the length of a run on this machine. A `depoison` that a rule calls hands its work over, with its
environment and its files 0 to 2, and waits; where there is no worker it works itself. A stage is a process either way:
its memory, its device and its death are its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from depoison.plan.specs import STAGES

ADDRESS = "DEPOISON_WORKER"
"""Environment variable: the path of the worker's socket, relative to the working directory."""

PREFIX = "DEPOISON_WORKER_PREFIX"
"""Environment variable: where the worker's Python lies; jobs in another environment, such as conda's, are not for it."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

SUPPORTED = hasattr(os, "pidfd_open") and hasattr(socket, "send_fds")


def start_worker(folder: Path, threads: int) -> subprocess.Popen[bytes] | None:
    """Start a worker that lives as long as this process, and tell this process's children of it.

    Args:
        folder: for its socket, relative to the working directory: addresses of sockets must be short.
        threads: of a stage; numerical libraries ask for their number once, when they are loaded.

    Returns:
        The worker, whose standard input must stay open; None where the system lacks what it takes.
    """
    if not SUPPORTED:
        return None
    path = folder / f"worker-{os.getpid()}.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        # Ctrl-C reaches the clients, and with them their stages: the worker is deaf to it from its first moment on.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            # Its standard input tells the worker of our end, however we end.
            worker = subprocess.Popen(
                [sys.executable, "-m", "depoison", "worker", str(path), str(listener.fileno())], stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()], env=os.environ | dict.fromkeys(THREADS, str(threads)),
            )  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, before)
    os.environ |= {ADDRESS: str(path), PREFIX: sys.prefix}
    return worker


def ask(arguments: Sequence[str]) -> int | None:
    """Let the worker run `depoison` with these arguments.

    Returns:
        The exit code; None if there is no worker for this Python, or if it died: then it is for the caller to do.
    """
    if ADDRESS not in os.environ or os.environ.get(PREFIX) != sys.prefix or not SUPPORTED:
        return None
    environment = {name: value for name, value in os.environ.items() if name != ADDRESS}
    request = json.dumps({"arguments": list(arguments), "environment": environment, "cwd": os.getcwd()}).encode()
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[ADDRESS])
        socket.send_fds(connection, [len(request).to_bytes(4)], [0, 1, 2])
        connection.sendall(request)
        answer = connection.recv(1)
        if answer:
            return answer[0]
    return None


def serve(path: Path, listening: int, main: Callable[[list[str]], int]) -> None:
    """Serve until standard input ends and every stage has ended.

    Args:
        listening: descriptor of the listening socket.
        main: the command line, called in the forked process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for stage in STAGES:
            importlib.import_module(f"depoison.stages.{stage}")
    except Exception:  # each client meets it itself, and has a log to tell it in
        path.unlink(missing_ok=True)
        return
    selector, listener = selectors.DefaultSelector(), socket.socket(fileno=listening)
    processes: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: process, client
    waiting: dict[socket.socket, int] = {}  # clients: their processes
    selector.register(sys.stdin, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    alive = True
    while alive or processes:
        for key, _ in selector.select():
            # What an earlier event of the same round ended is no longer in any of these.
            if key.fileobj is sys.stdin:
                alive = False
                selector.unregister(sys.stdin)
                selector.unregister(listener)
                listener.close()
                path.unlink(missing_ok=True)
            elif key.fileobj is listener and alive:
                client, _ = listener.accept()
                try:
                    process = _fork(client, main, [listener, selector, *waiting])
                except (OSError, ValueError):  # it died while it asked
                    client.close()
                    continue
                watch = os.pidfd_open(process)
                processes[watch], waiting[client] = (process, client), process
                selector.register(watch, selectors.EVENT_READ)
                selector.register(client, selectors.EVENT_READ)
            elif key.fileobj in waiting:
                # The client was killed, and so is its stage.
                os.kill(waiting.pop(key.fileobj), signal.SIGKILL)
                selector.unregister(key.fileobj)
            elif key.fileobj in processes:
                process, client = processes.pop(key.fileobj)
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                if waiting.pop(client, None):
                    selector.unregister(client)
                    with contextlib.suppress(OSError):
                        client.send(bytes([code if code >= 0 else 128 - code]))
                client.close()


def _fork(client: socket.socket, main: Callable[[list[str]], int], inherited: Sequence[Any]) -> int:
    """Fork the process that does what a client asks for.

    Args:
        inherited: closed there; a client learns of the worker's death by the end of its connection, which no other process
            may hold.

    Raises:
        OSError, ValueError: no request, or no process.
    """
    size, files, _, _ = socket.recv_fds(client, 4, 3)
    try:
        with client.makefile("rb") as stream:
            request = json.loads(stream.read(int.from_bytes(size)))
        process = os.fork()
        if not process:
            os._exit(_work(request, files, [*inherited, client], main))
        return process
    finally:
        for file in files:
            os.close(file)


def _work(
    request: dict[str, Any], files: Sequence[int], inherited: Sequence[Any], main: Callable[[list[str]], int]
) -> int:
    """In the forked process: become what the client would be; returns the exit code."""
    code = 1
    try:
        for one in inherited:
            one.close()
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        random.seed()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        code = main(request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code
