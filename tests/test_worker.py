"""The warm worker: stages run in processes that it forks, and nobody can tell but by the time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conftest import Project, cell, wait_until
from depoison.plan.specs import canonical
from depoison.worker import ADDRESS, PREFIX, SUPPORTED

pytestmark = [pytest.mark.pipeline, pytest.mark.skipif(not SUPPORTED, reason="the worker needs pidfds")]

START = """
import os, sys
from pathlib import Path
from depoison.worker import start_worker
worker = start_worker(Path("."), 1)
print(os.environ["DEPOISON_WORKER"], worker.pid, flush=True)
sys.stdin.read()
worker.stdin.close()
worker.wait()
"""


class Warm:
    """A project, and a worker that an owner process holds."""

    def __init__(self, project: Project):
        self.project = project
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = project.environment()
        self.owner = subprocess.Popen([sys.executable, "-c", START], cwd=project.path, env=environment, **pipes)
        address, pid = self.owner.stdout.readline().split()
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


def alive(process: psutil.Process) -> bool:
    """Whether it runs. It may end, and be gone, between any two looks at it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


@pytest.fixture
def warm(made: Project) -> Iterator[Warm]:
    started = Warm(made)
    yield started
    here = str(made.path)
    for process in psutil.process_iter(["cwd"]):  # clients, the worker, what it forked
        if process.info["cwd"] == here:
            kill(process)
    started.owner.wait()


def stage(project: Project, pattern: str) -> tuple[Path, list[str]]:
    """A finished artifact's folder, relative, and the arguments that make it."""
    (folder,) = project.path.glob(pattern)
    spec = canonical(json.loads((folder / "spec.json").read_text()))
    relative = folder.relative_to(project.path)
    return relative, ["stage", spec, "--output", str(relative)]


def long_training(project: Project) -> list[str]:
    """The arguments of a training that nobody waits for."""
    artifact = project.plan().cell(cell(track="tiny", attack="badnet+epochs=5000+rate=0.1", defense="none")).evaluation
    trained = artifact.upstream["model"]
    return ["stage", canonical(trained.spec), "--output", trained.directory]


@pytest.mark.parametrize("pattern", ["results/train/*badnet*", "results/purify/*blended*", "results/poison/*badnet*"])
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
    assert warm.run("stage", "{}", "--output", "x") == (1, "depoison: error: stage: the spec has no stage\n")
    code, told = warm.run("stage")
    assert code == 2 and "usage:" in told


def test_the_death_of_a_client_is_the_death_of_its_stage(warm):
    client = warm.start(*long_training(warm.project))
    warm.wait_for_training()
    (process,) = warm.forked()
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_until(lambda: not alive(process))
    assert warm.run("stage", "{}", "--output", "x")[0] == 1  # the worker itself is well


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


def test_whoever_dies_while_asking_does_no_harm(warm):
    for sent in (b"", b"\0\0", b"\0\0\0\x09{}"):
        with socket.socket(socket.AF_UNIX) as rude:
            # Addresses are short: a path relative to this process would not be.
            with contextlib.chdir(warm.project.path):
                rude.connect(warm.environment[ADDRESS])
            rude.sendall(sent)
    assert warm.run("stage", "{}", "--output", "x")[0] == 1


def test_a_worker_outlives_its_owner_by_its_stages_only(warm):
    client = warm.start(*long_training(warm.project))
    warm.wait_for_training()
    os.kill(warm.owner.pid, signal.SIGKILL)
    warm.owner.wait()
    wait_until(lambda: not (warm.project / warm.environment[ADDRESS]).exists())
    assert warm.forked() and client.poll() is None
    client.kill()
    client.wait()
    wait_until(lambda: not alive(warm.worker))


def test_snakemake_leaves_no_worker_behind(tiny):
    done = tiny.snakemake("--cores", "2", "--", cell(track="tiny", attack="badnet+rate=0.1", defense="lp"))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: not list(tiny.path.glob(".snakemake/depoison/*.sock")))
    here = str(tiny.path)
    wait_until(lambda: not [p for p in psutil.process_iter(["cwd", "cmdline"]) if p.info["cwd"] == here])


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
    here = str(tiny.path)
    wait_until(lambda: not [p for p in psutil.process_iter(["cwd", "cmdline"]) if p.info["cwd"] == here])
    assert not list(tiny.path.glob("results/train/*/model.safetensors"))
