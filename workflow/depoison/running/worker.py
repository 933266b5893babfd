"""A warm worker: it has imported torch once, and forks a process for every stage, which so pays nothing for starting.

Snakemake starts one for the length of a run on this machine. A `depoison stage` that a rule calls hands its stage over, with
its environment and its files 0 to 2, and waits; where there is no worker it works itself. A stage is a process either way:
its memory, its device and its death are its own.

A worker does stages and nothing else, for the user whose it is: its socket is closed to others, and worker and client ask
the kernel who the other one is.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
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

SUPPORTED = hasattr(os, "pidfd_open") and hasattr(socket, "send_fds") and hasattr(socket, "SO_PEERCRED")

LONGEST = 8 * 2**20
"""Bytes of a request; Linux gives a process at most 6 MiB of arguments and environment."""

PATIENCE = 5.0
"""Seconds in which a client that began its request must end it: it sends all at once."""

ARGUMENTS = ("spec", "output", "runtime", "root", "log")
"""What a request names: the arguments of `depoison stage`, each a text, the last two empty where there is none."""


def start_worker(folder: Path, threads: int) -> subprocess.Popen[bytes] | None:
    """Start a worker that lives as long as this process, and tell this process's children of it.

    Args:
        folder: for its socket, relative to the working directory: addresses of sockets must be short.
        threads: of a stage; numerical libraries ask for their number once, when they are loaded.

    Returns:
        The worker, whose standard input must stay open; None where the system, or the file system, lacks what it takes.
    """
    if not SUPPORTED:
        return None
    # A new folder, whatever was there before, that nobody else may enter.
    path = folder / Path(tempfile.mkdtemp(prefix="worker-", dir=folder)).name / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        with contextlib.suppress(OSError):
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(64)
        if not _private(path):
            remove(path)
            return None
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


def remove(path: Path) -> None:
    """Remove a worker's socket with its folder, where they are ours to remove."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def _private(path: Path) -> bool:
    """Whether this is a socket in a folder, neither behind a link, both this user's and closed to all others."""
    try:
        folder, file = path.parent.lstat(), path.lstat()
    except OSError:
        return False
    ours = all(one.st_uid == os.geteuid() and not one.st_mode & 0o077 for one in (folder, file))
    return ours and stat.S_ISDIR(folder.st_mode) and stat.S_ISSOCK(file.st_mode)


def _same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end, be it the one that listens, is this user's."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user == os.geteuid()


def ask(stage: dict[str, str]) -> int | None:
    """Let the worker run a stage.

    Args:
        stage: ARGUMENTS, by name.

    Returns:
        The exit code; None if there is no worker for this Python and user, or if it died: then it is for the caller to do.
    """
    if ADDRESS not in os.environ or os.environ.get(PREFIX) != sys.prefix or not SUPPORTED:
        return None
    environment = {name: value for name, value in os.environ.items() if name != ADDRESS}
    request = json.dumps([stage, environment]).encode()
    if len(request) > LONGEST or not _private(Path(os.environ[ADDRESS])):
        return None
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[ADDRESS])
        if not _same_user(connection):
            return None
        socket.send_fds(connection, [len(request).to_bytes(4)], [0, 1, 2])
        connection.sendall(request)
        answer = connection.recv(1)
        if answer:
            return answer[0]
    return None


def import_stages() -> None:
    """Import what stages need, torch's part included that it imports with its first optimizer: a second and more."""
    gc.disable()  # none of it is garbage: looking for some is a quarter of the time
    try:
        for stage in STAGES:
            importlib.import_module(f"depoison.stages.{stage}")
        importlib.import_module("torch._dynamo")
    finally:
        gc.enable()


def serve(path: Path, listening: int, run: Callable[[dict[str, str]], int]) -> None:
    """Serve until standard input ends and every stage has ended.

    Args:
        listening: descriptor of the listening socket.
        run: what `depoison stage` does, to its exit code; called in the forked process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import_stages()
    except Exception:  # each client meets it itself, and has a log to tell it in
        remove(path)
        return
    selector, listener = selectors.DefaultSelector(), socket.socket(fileno=listening)
    asking: set[socket.socket] = set()  # clients of which nothing is known yet
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
                remove(path)
            elif key.fileobj is listener and alive:
                client, _ = listener.accept()
                if _same_user(client):
                    asking.add(client)
                    selector.register(client, selectors.EVENT_READ)
                else:
                    client.close()
            elif key.fileobj in asking:
                client = key.fileobj
                asking.remove(client)
                try:
                    process = _fork(client, run, [listener, selector, *asking, *waiting])
                except (OSError, ValueError):  # no request, such as of one that died while it asked; or no process
                    selector.unregister(client)
                    client.close()
                    continue
                watch = os.pidfd_open(process)
                processes[watch], waiting[client] = (process, client), process
                selector.register(watch, selectors.EVENT_READ)
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


def _fork(client: socket.socket, run: Callable[[dict[str, str]], int], inherited: Sequence[Any]) -> int:
    """Fork the process that does what a client asks for.

    Args:
        inherited: closed there; a client learns of the worker's death by the end of its connection, which no other process
            may hold.

    Raises:
        OSError, ValueError: no request, or no process.
    """
    client.settimeout(PATIENCE)
    size, files, _, _ = socket.recv_fds(client, 4, 3)
    try:
        if len(size) < 4 or int.from_bytes(size) > LONGEST or len(files) != 3:
            raise ValueError("no request")
        with client.makefile("rb") as stream:
            stage, environment = parse(stream.read(int.from_bytes(size)))
        process = os.fork()
        if not process:
            os._exit(_work(stage, environment, files, [*inherited, client], run))
        return process
    finally:
        for file in files:
            os.close(file)


def parse(request: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """The stage, by ARGUMENTS, and the environment of a request.

    Raises:
        ValueError: anything but what `ask` sends.
    """
    try:
        stage, environment = json.loads(request)
        text = "".join([*stage.values(), *environment, *environment.values()])
        os.fsencode(text)
    except (AttributeError, RecursionError, TypeError) as error:
        raise ValueError("no request") from error
    if stage.keys() != set(ARGUMENTS) or "\0" in text or any(not name or "=" in name for name in environment):
        raise ValueError("no request")
    return stage, environment


def _work(
    stage: dict[str, str],
    environment: dict[str, str],
    files: Sequence[int],
    inherited: Sequence[Any],
    run: Callable[[dict[str, str]], int],
) -> int:
    """In the forked process: become what the client would be; returns the exit code."""
    code = 1
    try:
        gc.freeze()  # garbage is looked for among what the stage makes: the worker's own stays in memory that is shared
        for one in inherited:
            one.close()
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        random.seed()
        os.environ.clear()
        os.environ.update(environment)
        code = run(stage)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code
