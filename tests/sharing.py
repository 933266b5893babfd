"""Clones of the project that share through a real DVC, artifacts made up for them, and remotes that fail."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, BaseServer, ThreadingTCPServer
from typing import Any, TypeVar

import boto3
from moto.server import ThreadedMotoServer

import forks
from conftest import job_counts
from depoison.files import RUN, SPEC, sha256_of, write_json
from depoison.plan.lock import SEEN
from depoison.plan.plan import Plan
from depoison.plan.specs import STAGES, Artifact, chain_of
from depoison.reports.kinds import artifacts
from depoison.running.share import heavy_files

REPORT = "reports/tiny/small.md"
LAB = 4000
"""A group of all users but root."""
FORKED_DVC = Path(__file__).with_name("forked_dvc.py")


class Clone:
    """A working copy in which commands run with its own code.

    Attributes:
        user: the number of whoever calls commands, without a name, who may read all that root may, so also a Python that
            lies with root; 0: who we are.
        prefix: what a process of that user's is called through.
    """

    def __init__(self, folder: Path, user: int = 0, **variables: str):
        self.folder, self.user = folder, user
        read_all = "-all,+dac_read_search"
        who = [f"--reuid={user}", f"--regid={user}", f"--groups={LAB},{user}"]
        self.prefix = ["setpriv", *who, f"--inh-caps={read_all}", f"--ambient-caps={read_all}"] if user else []
        ours = {"PYTHONPATH": str(folder / "workflow"), "OMP_NUM_THREADS": "1"}
        self.environment = os.environ | ours | variables

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command in a process group of its own."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        called = [*self.prefix, *command]
        return subprocess.Popen(called, cwd=self.folder, env=self.environment, start_new_session=True, **pipes)

    def run(self, *command: str, fails: bool = False) -> str:
        ours = command[0] in forks.COMMANDS
        if ours and not self.user and forks.does(self.folder / "workflow"):
            through = [] if command[0] == "snakemake" else [str(FORKED_DVC)]
            done = forks.run([*through, *command], self.folder, self.environment)
        else:
            called = [*self.prefix, *([sys.executable, "-m"] if ours else []), *command]
            done = subprocess.run(called, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, output
        return output

    def depoison(self, *arguments: str, fails: bool = False) -> str:
        return self.run("depoison", *arguments, fails=fails)

    def jobs(self, *arguments: str) -> dict[str, int]:
        """What a dry run would do: {rule: count}; empty for nothing."""
        return job_counts(self.planned(*arguments))

    def planned(self, *arguments: str) -> str:
        return self.run("snakemake", "-n", "--cores", "2", *arguments, "--", REPORT)

    def heavy(self) -> dict[str, bool]:
        """Whether each published file is here."""
        pointers = sorted(self.folder.glob("results/**/*.dvc"))
        return {str(path.relative_to(self.folder)): path.with_suffix("").exists() for path in pointers}

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.commit_staged(message)

    def commit_staged(self, message: str) -> None:
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message)

    def scramble(self) -> None:
        """Give every file a random modification time in the past, which is the same in each clone."""
        for path in self.folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and ".git" not in path.parts:
                moment = random.Random(str(path.relative_to(self.folder))).uniform(1e9, 1.6e9)
                os.utime(path, (moment, moment))

    def scramble_as(self, other: Clone) -> None:
        """`scramble`, as another clone of the same code was, whose comparison of code and lock then holds here, too."""
        self.scramble()
        (self.folder / SEEN).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(other.folder / SEEN, self.folder / SEEN)


def make_up(project: Path, targets: Iterable[str], size: int, folders: int = 256) -> None:
    """Everything that targets are made from: right names, records and checksums, heavy files of `size` random bytes.

    Args:
        folders: how many of DVC's, which go by the first byte of a file's md5, the files are at most for.
    """
    with contextlib.chdir(project):
        for artifact in chain_of(artifacts(Plan(project), targets)).values():
            if not Path(artifact.directory).exists():
                _make_up(artifact, size, folders)


def _make_up(artifact: Artifact, size: int, folders: int) -> None:
    folder, heavy = Path(artifact.directory), heavy_files(artifact)
    folder.mkdir(parents=True)
    for name in STAGES[artifact.stage].files:
        content = b"{}"
        if folder / name in heavy:
            while hashlib.md5(content := os.urandom(size)).digest()[0] >= folders:
                pass
        (folder / name).write_bytes(content)
    write_json(folder / SPEC, artifact.spec)
    sums = {name: sha256_of(folder / name) for name in STAGES[artifact.stage].files}
    write_json(folder / RUN, {"sha256": sums, "seconds": 1.0})


# --- remotes -----------------------------------------------------------------------------------------------------

USER = {
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",  # of what fails
}
"""What the environment of those holds who use `s3_service`."""


@contextlib.contextmanager
def s3_service() -> Iterator[tuple[str, Any]]:
    """An S3 service on this machine: its address, and its bucket `team`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    session = boto3.Session(USER["AWS_ACCESS_KEY_ID"], USER["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")
    bucket = session.resource("s3", endpoint_url=address).Bucket("team")
    bucket.create()
    try:
        yield address, bucket
    finally:
        server.stop()


Server = TypeVar("Server", bound=BaseServer)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class WebFolder(ThreadingHTTPServer):
    """A folder over HTTP. It takes uploads as they come: one that is cut off leaves a part of the file under its name.

    Attributes:
        status: what it answers to everything; None: what there is.
    """

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _WebRequest)
        self.folder = folder
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.status: int | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever is cut off is not our error."""


class _WebRequest(BaseHTTPRequestHandler):
    server: WebFolder

    @property
    def file(self) -> Path:
        return self.server.folder / self.path.lstrip("/")

    def do_GET(self) -> None:
        if self.server.status or not self.file.is_file():
            self.send_error(self.server.status or 404)
            return
        content = self.file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        if self.server.status:
            self.send_error(self.server.status)
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("wb") as file:
            while size := int(self.rfile.readline(), 16):  # of a chunk
                while size and (piece := self.rfile.read1(min(size, 1 << 16))):
                    file.write(piece)
                    file.flush()
                    size -= len(piece)
                self.rfile.readline()
        self.rfile.readline()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class Wire(ThreadingTCPServer):
    """The way to a service on this machine, which breaks.

    Attributes:
        left: bytes that it still carries before it does, in both directions together.
    """

    daemon_threads = True

    def __init__(self, address: str):
        super().__init__(("127.0.0.1", 0), _Carried)
        self.port = int(address.rpartition(":")[2])
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.left = float("inf")


class _Carried(BaseRequestHandler):
    server: Wire

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as other:
            back = threading.Thread(target=self._carry, args=(other, self.request), daemon=True)
            back.start()
            self._carry(self.request, other)
            back.join()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self.server.left > 0 and (piece := source.recv(1 << 16)):
                self.server.left -= len(piece)
                sink.sendall(piece)
            if self.server.left > 0:
                sink.shutdown(socket.SHUT_WR)
            else:
                source.shutdown(socket.SHUT_RDWR)
                sink.shutdown(socket.SHUT_RDWR)
