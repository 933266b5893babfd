"""The warm worker: stages run in processes that it forks, and nobody can tell but by the time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import forks
from conftest import Project, cell, kill, seldom, wait_until
from depoison.plan.specs import canonical
from depoison.running.worker import ADDRESS, PREFIX, SUPPORTED, parse
from test_own_methods import MINE, MY_CELL, YAML, purified, put

pytestmark = [pytest.mark.pipeline, pytest.mark.skipif(not SUPPORTED, reason="the worker needs pidfds")]

START = """
import os, signal, sys
from pathlib import Path
from depoison.running.worker import start_worker
os.umask(int(sys.argv[1], 8))
worker = start_worker(Path("."), 1)
print(os.environ["DEPOISON_WORKER"], worker.pid, flush=True)
signal.pause()
"""


class Warm:
    """A project, and a worker that an owner process holds.

    Args:
        how: the owner's umask, where owner and worker are forks that have no more to import; or "processes", as in a run.
    """

    def __init__(self, project: Project, how: str = "022"):
        self.project = project
        environment = project.environment()
        script, told = project / "owner.py", project / "told"
        script.write_text(START)
        told.touch()
        if how == "processes":
            with told.open("w") as out:
                command = [sys.executable, "owner.py", "022"]
                self.owner = subprocess.Popen(command, cwd=project.path, env=environment, stdout=out).pid
        else:
            self.owner = forks.Started(["owner.py", how], project.path, environment, told).pid
        wait_until(lambda: told.read_text().endswith("\n"))
        address, pid = told.read_text().split()
        self.worker = psutil.Process(int(pid))
        self.environment = environment | {ADDRESS: address, PREFIX: sys.prefix}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "depoison", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.project.path, env=self.environment, **pipes)

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def wait_for_training(self) -> None:
        """Until a training has begun. (That the worker has a child does not say so: imports start processes, too.)"""
        wait_until(lambda: list(self.project.path.glob("results/train/.*.building")))

    def forked(self) -> list[psutil.Process]:
        return [child for child in self.worker.children() if alive(child)]

    def connect(self) -> socket.socket:
        """A connection of no client of ours."""
        connection = socket.socket(socket.AF_UNIX)
        # Addresses are short: a path relative to this process would not be.
        with contextlib.chdir(self.project.path):
            connection.connect(self.environment[ADDRESS])
        return connection

    def folder(self) -> Path:
        return (self.project / self.environment[ADDRESS]).parent


def alive(process: psutil.Process) -> bool:
    """Whether it runs. It may end, and be gone, between any two looks at it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture
def warm(request: pytest.FixtureRequest, made: Project) -> Iterator[Warm]:
    started = Warm(made, getattr(request, "param", "022"))
    yield started
    for process in made.at_work():
        kill(process)


def stage(project: Project, pattern: str) -> tuple[Path, list[str]]:
    """A finished artifact's folder, relative, and the arguments that make it."""
    (folder,) = project.path.glob(pattern)
    spec = canonical(json.loads((folder / "spec.json").read_text()))
    relative = folder.relative_to(project.path)
    return relative, ["stage", spec, "--output", str(relative)]


def test_an_edited_method_of_ones_own_is_never_the_one_that_an_earlier_stage_of_the_worker_imported(warm):
    put(warm.project, defenses__mine__py=MINE, defenses__mine__yaml=YAML)
    for factor in ("share", "0.125"):
        put(warm.project, defenses__mine__py=MINE.replace("*= share", f"*= {factor}"))
        artifact = warm.project.plan().cell(MY_CELL).evaluation.upstream["model"]
        code, told = warm.run("stage", canonical(artifact.spec), "--output", artifact.directory)
        assert code == 0 and not warm.forked(), told
        assert purified(warm.project) == pytest.approx(0.5 if factor == "share" else 0.125)


def long_training(project: Project) -> list[str]:
    """The arguments of a training that nobody waits for."""
    artifact = project.plan().cell(cell(track="tiny", attack="badnet+epochs=5000+rate=0.1", defense="none")).evaluation
    trained = artifact.upstream["model"]
    return ["stage", canonical(trained.spec), "--output", trained.directory]


@pytest.mark.parametrize(
    "pattern", ["results/purify/*blended*", *seldom("results/train/*badnet*", "results/poison/*badnet*")]
)
def test_a_stage_makes_the_same_bytes_in_a_forked_process(pattern, warm):
    folder, arguments = stage(warm.project, pattern)
    before = warm.project.checksums(f"{folder}/*.safetensors")
    shutil.rmtree(warm.project / str(folder))
    seen: list[int] = []
    process = warm.start(*arguments)
    while process.poll() is None:
        seen += [child.pid for child in warm.forked()]
        time.sleep(0.005)
    assert process.wait() == 0 and seen, process.stderr.read()
    assert before and warm.project.checksums(f"{folder}/*.safetensors") == before


def test_errors_and_exit_codes_arrive(warm):
    assert warm.run(*NONSENSE) == (1, "depoison: error: stage: the spec has no stage\n")
    code, told = warm.run("stage")
    assert code == 2 and "usage:" in told


def test_the_death_of_a_client_is_the_death_of_its_stage(warm):
    client = warm.start(*long_training(warm.project))
    warm.wait_for_training()
    (process,) = warm.forked()
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_until(lambda: not alive(process))
    assert warm.run(*NONSENSE)[0] == 1  # the worker itself is well


@pytest.mark.drill
def test_the_death_of_the_worker_is_heard_at_once_by_every_client(warm):
    """Also while a process that it forked for another client lives on."""
    folder, arguments = stage(warm.project, "results/train/*badnet*")
    first = warm.start(*long_training(warm.project))
    warm.wait_for_training()
    (orphan,) = warm.forked()
    shutil.rmtree(warm.project / str(folder))
    second = warm.start(*arguments)
    wait_until(lambda: len(warm.forked()) == 2 or second.poll() is not None)
    try:
        for process in [warm.worker, *(p for p in warm.forked() if p.pid != orphan.pid)]:
            kill(process)
        assert second.wait(60) == 0 and first.poll() is None and orphan.is_running()
        assert (warm.project / str(folder) / "model.safetensors").exists()
    finally:
        kill(orphan)
        first.kill()
        first.wait()


@pytest.mark.drill
def test_a_client_whose_worker_dies_does_the_work_itself(warm):
    folder, arguments = stage(warm.project, "results/train/*badnet*")
    before = warm.project.checksums(f"{folder}/*.safetensors")
    shutil.rmtree(warm.project / str(folder))
    client = warm.start(*arguments)
    wait_until(lambda: warm.forked() or client.poll() is not None)
    for process in [warm.worker, *warm.forked()]:
        kill(process)
    assert client.wait(60) == 0
    assert warm.project.checksums(f"{folder}/*.safetensors") == before


def test_another_environments_python_does_its_own_work(warm):
    warm.environment[PREFIX] = "/somewhere/else"
    client = warm.start(*long_training(warm.project))
    warm.wait_for_training()
    assert warm.forked() == [] and client.poll() is None
    client.kill()
    client.wait()


NONSENSE = ["stage", "{}", "--output", "x"]
"""A stage that ends at once, and with 1."""


@pytest.mark.parametrize("warm", ["000", *seldom("022", "077")], indirect=True)
def test_the_socket_is_closed_to_others_whatever_the_umask(warm):
    path = warm.project / warm.environment[ADDRESS]
    assert path.is_socket() and stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert path.parent.is_dir() and stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
    assert warm.run(*NONSENSE) == (1, "depoison: error: stage: the spec has no stage\n")


def encoded(stage: Any, environment: Any) -> bytes:
    text = json.dumps([stage, environment]).encode()
    return len(text).to_bytes(4) + text


NAMED = dict.fromkeys(("spec", "output", "runtime", "root", "log"), "")
RUDE = {
    "nothing": b"",
    "no size": b"\0\0",
    "no more than a part": b"\0\0\0\x09{}",
    "too much": b"\xff\xff\xff\xff" + b"[" * 100,
    "no JSON": b"\0\0\0\x02{]",
    "a tower": (200_000).to_bytes(4) + b"[" * 200_000,
    "a command line": (45).to_bytes(4) + b'{"arguments": ["lock"], "environment": {}}   ',
    "another command": encoded(NAMED | {"command": "lock"}, {}),
    "a part of a stage": encoded({"spec": "{}"}, {}),
    "a number": encoded(NAMED | {"output": 3}, {}),
    "no name": encoded(NAMED, {"": "x"}),
    "a name that is none": encoded(NAMED, {"a=b": "x"}),
    "a NUL": encoded(NAMED, {"a": "\0"}),
}


def test_whoever_asks_for_anything_but_a_stage_gets_no_answer_and_does_no_harm(warm):
    before, answers = warm.project.checksums("**/*"), set()
    asked = [(sent, [0, 1, 2]) for sent in RUDE.values()] + [(encoded(NAMED, {}), [])]  # the last one without files
    for sent, files in asked:
        with warm.connect() as rude, contextlib.suppress(ConnectionError):
            socket.send_fds(rude, [sent[:4] or b" "], files)
            rude.sendall(sent[4:])
            rude.shutdown(socket.SHUT_WR)
            answers.add(rude.recv(1))
    assert answers <= {b""}
    assert warm.run(*NONSENSE)[0] == 1 and alive(warm.worker)
    assert warm.project.checksums("**/*") == before


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.just(NAMED) | st.just({"PATH": "/bin"}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@example(json.dumps([NAMED, {"A": "\udc80"}]).encode())
@example(json.dumps([NAMED, {"A": "\ud800"}]).encode())
def test_any_request_is_a_stage_or_refused(content):
    try:
        stage, environment = parse(content)
    except ValueError:
        return
    assert stage.keys() == NAMED.keys() and all(isinstance(text, str) for text in stage.values())
    for name, value in environment.items():
        assert name and b"=" not in os.fsencode(name) and b"\0" not in os.fsencode(name + value)


def test_whoever_asks_for_nothing_keeps_nobody_waiting(warm):
    with contextlib.ExitStack() as silent:
        for _ in range(20):  # times PATIENCE is more than a client's timeout here
            silent.enter_context(warm.connect())
        assert warm.run(*NONSENSE)[0] == 1


@pytest.mark.drill
def test_whoever_stops_in_the_middle_is_dropped(warm):
    with warm.connect() as rude:
        socket.send_fds(rude, [b"\0\0\0\x09"], [0, 1, 2])
        assert warm.run(*NONSENSE)[0] == 1
        assert rude.recv(1) == b""


def test_nothing_but_a_stage_is_handed_over(warm):
    warm.worker.suspend()  # what it would be asked for would wait
    assert warm.run("explain", cell(track="tiny", attack="badnet+rate=0.1", defense="lp"))[0] == 0
    assert warm.run("--debug", *NONSENSE)[0] == 1
    client = warm.start(*NONSENSE)
    time.sleep(1)
    assert client.poll() is None
    warm.worker.resume()
    assert client.wait(60) == 1


def open_to_others(folder: Path) -> None:
    folder.chmod(0o755)


def behind_a_link(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.symlink_to("moved")


def socket_behind_a_link(folder: Path) -> None:
    (folder / "socket").rename(folder / "moved")
    (folder / "socket").symlink_to("moved")


def socket_open_to_others(folder: Path) -> None:
    (folder / "socket").chmod(0o666)


@pytest.mark.parametrize(
    "change", [open_to_others, *seldom(behind_a_link, socket_behind_a_link, socket_open_to_others)]
)
def test_a_socket_that_others_may_have_made_is_given_nothing(change, warm):
    change(warm.folder())
    warm.worker.suspend()
    assert warm.run(*NONSENSE)[0] == 1  # without it


SOMEBODY = 65533

AS_SOMEBODY = """
import os, socket, sys
os.setgroups([]), os.setgid(int(sys.argv[1])), os.setuid(int(sys.argv[1]))
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")


def somebody(project: Project, code: str, *arguments: str, **pipes: Any) -> subprocess.Popen[str]:
    """A Python process of another user, in the project's folder."""
    command = [sys.executable, "-I", "-c", AS_SOMEBODY + code, str(SOMEBODY), *arguments]
    return subprocess.Popen(command, cwd=project.path, text=True, stdout=subprocess.PIPE, **pipes)


CALL = """
try:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[2])
        socket.send_fds(connection, [len(sys.argv[3]).to_bytes(4)], [0, 1, 2])
        connection.sendall(sys.argv[3].encode())
        print(connection.recv(1))
except OSError as error:
    print(error.strerror)
"""


UNANSWERED = {"b''", "Broken pipe", "Connection reset by peer"}


@as_root
@pytest.mark.parametrize(
    ("modes", "answers"),
    [((0o700, 0o600), {"Permission denied"}), ((0o777, 0o666), UNANSWERED)],
    ids=["closed", "open"],
)
def test_another_user_is_given_nothing_also_where_the_socket_is_open(modes, answers, warm):
    warm.folder().chmod(modes[0])
    (warm.project / warm.environment[ADDRESS]).chmod(modes[1])
    _, spec, _, output = stage(warm.project, "results/split/*")[1]
    asked = json.dumps([NAMED | {"spec": spec, "output": output, "runtime": "{}", "log": "theirs.log"}, {}])
    done = somebody(warm.project, CALL, warm.environment[ADDRESS], asked)
    assert done.communicate(timeout=60)[0].strip() in answers
    assert not (warm.project / "theirs.log").exists() and warm.forked() == []


@pytest.mark.drill
@as_root
def test_stages_are_made_as_ever_while_the_worker_is_beset(warm, capsys):
    """By what is no request, by connections that say nothing, and by another user."""
    before = warm.project.checksums()
    patterns = ("split/*", "poison/*badnet*", "train/*blended*", "purify/*badnet*")
    work = [stage(warm.project, f"results/{pattern}") for pattern in patterns] * 3
    silent = [warm.connect() for _ in range(50)]
    insults, seen, moments = 0, set(), random.Random(5)
    asked = json.dumps([NAMED, {}])
    for folder, arguments in work:
        shutil.rmtree(warm.project / str(folder))
        process, theirs = warm.start(*arguments), somebody(warm.project, CALL, warm.environment[ADDRESS], asked)
        while process.poll() is None:
            seen.update(one.pid for one in warm.forked())
            with warm.connect() as rude, contextlib.suppress(ConnectionError):
                sent = moments.choice(list(RUDE.values()))
                socket.send_fds(rude, [sent[:4] or b" "], [0, 1, 2])
                rude.sendall(sent[4:])
            insults += 1
        assert process.returncode == 0, process.stderr.read()
        assert theirs.communicate()[0] == "Permission denied\n"
    for connection in silent:
        connection.close()
    assert warm.project.checksums() == before and alive(warm.worker)
    assert len(seen) >= len(work) // 2, "the worker made them"
    with capsys.disabled():
        print(f"\n{len(work)} stages made, {len(seen)} seen in the worker, among {insults} insults")


LISTEN = """
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[2])
    listener.listen(1)
    print("ready", flush=True)
    connection, _ = listener.accept()
    print(connection.recv(100))
"""


@as_root
def test_another_users_socket_is_given_nothing(warm):
    """Also one that was made to look like ours: the kernel says who listens."""
    path = warm.project / warm.environment[ADDRESS]
    path.unlink()
    path.parent.chmod(0o777)
    theirs = somebody(warm.project, LISTEN, warm.environment[ADDRESS])
    assert theirs.stdout.readline() == "ready\n"
    os.chown(path, 0, 0)
    path.chmod(0o600)
    path.parent.chmod(0o700)
    assert warm.run(*NONSENSE)[0] == 1
    assert theirs.communicate(timeout=60)[0] == "b''\n"


@pytest.mark.parametrize("warm", ["processes"], indirect=True)
def test_a_worker_outlives_its_owner_by_its_stages_only(warm):
    client = warm.start(*long_training(warm.project))
    warm.wait_for_training()
    os.kill(warm.owner, signal.SIGKILL)
    wait_until(lambda: not warm.folder().exists())
    assert warm.forked() and client.poll() is None
    client.kill()
    client.wait()
    wait_until(lambda: not alive(warm.worker))


@pytest.mark.drill
def test_snakemake_leaves_no_worker_behind(tiny):
    done = tiny.snakemake("--cores", "2", "--", cell(track="tiny", attack="badnet+rate=0.1", defense="lp"))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: not list(tiny.path.glob(".snakemake/depoison/worker-*")))
    wait_until(lambda: not tiny.at_work())


@pytest.mark.drill
def test_ctrl_c_ends_all_that_a_run_started(tiny):
    target = cell(track="tiny", attack="badnet+epochs=5000+rate=0.1", defense="none")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--", target]
    run = subprocess.Popen(
        command, cwd=tiny.path, env=tiny.environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: list(tiny.path.glob("results/train/.*.building")) or run.poll() is not None)
    os.killpg(run.pid, signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode != 0 and "Traceback" not in told
    wait_until(lambda: not tiny.at_work())
    assert not list(tiny.path.glob("results/train/*/model.safetensors"))
