"""Runs that are killed or run out of space: nothing that was finished is lost, nothing unfinished passes for finished."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from conftest import Project, cell, wait_until, with_tiny
from depoison.files import RUN, sha256_of
from depoison.plan.specs import STAGES

pytestmark = pytest.mark.pipeline

TABLE = "reports/tiny/many.md"


def start(project: Project, *command: str) -> subprocess.Popen[bytes]:
    """In a process group of its own, so that it can be killed with all that it started."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    return subprocess.Popen([sys.executable, "-m", *command], cwd=project.path, env=project.environment(), **quiet)


def complete(project: Project) -> dict[str, str]:
    """{artifact: sha256 of its product} of all that count as complete; each must be what its stage recorded."""
    found = {}
    for record in sorted(project.path.glob(f"results/*/*/{RUN}")):
        folder = record.parent
        stage = STAGES[folder.parent.name]
        recorded = json.loads(record.read_text(encoding="utf-8"))["sha256"]
        if (folder / stage.product).exists():
            assert recorded == {name: sha256_of(folder / name) for name in stage.files}, folder
            found[folder.name] = recorded[stage.product]
    products = [
        path
        for stage, facts in STAGES.items()
        for path in project.path.glob(f"results/{stage}/[!.]*/{facts.product}")  # hidden ones were being built
    ]
    assert len(products) == len(found), "a product without a record"
    return found


def leftovers(project: Project) -> list[str]:
    return [path.name for path in project.path.glob("results/*/.*")]


def child_of(snakemake: subprocess.Popen[bytes], stage: str) -> psutil.Process:
    """The process that runs this stage, not the shell around it."""
    for process in psutil.Process(snakemake.pid).children(recursive=True):
        words = process.cmdline()
        if words[1:4] == ["-m", "depoison", "stage"] and f'"stage":"{stage}"' in words[4]:
            return process
    raise AssertionError(f"no {stage} runs")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The table `many` on the track `tiny`; only to be copied and compared with."""
    project = with_tiny(Project(tmp_path_factory.mktemp("uninterrupted") / "project"))
    done = project.depoison("run", TABLE)
    assert done.returncode == 0, done.stderr
    return project


@pytest.mark.parametrize("stage", ["train", "purify"])
def test_a_killed_job_fails_the_run_and_the_next_resumes_it(stage, tiny):
    attack, defense = ("badnet+epochs=20", "none") if stage == "train" else ("badnet", "lp+epochs=40")
    target = cell(track="tiny", attack=f"{attack}+rate=0.1", defense=defense)
    tiny.set("config/config.yaml", "runtime", "save_seconds", to=0)
    run = start(tiny, "snakemake", "--cores", "1", "--", target)
    wait_until(lambda: any(tiny.path.glob(f"results/{stage}/.*.scratch/state.json")) or run.poll() is not None)
    assert run.poll() is None
    child_of(run, stage).send_signal(signal.SIGKILL)
    assert run.wait(60) != 0
    assert not list(tiny.path.glob(f"results/{stage}/*/model.safetensors"))
    done = tiny.snakemake("--cores", "1", "--", target)
    assert done.returncode == 0, done.stderr
    (log,) = tiny.path.glob(f"logs/{stage}/*.log")
    assert "resuming after epoch" in log.read_text(encoding="utf-8")
    assert complete(tiny) and leftovers(tiny) == []


def test_a_training_killed_at_20_random_moments_ends_with_the_same_bytes(tiny):
    tiny.set("config/config.yaml", "runtime", "save_seconds", to=0)
    target = cell(track="tiny", attack="badnet+epochs=80+rate=0.1", defense="none")
    moments, epochs = random.Random(20), [0]

    def saved() -> int:
        """The epoch from which the next run goes on."""
        states = [path.read_text(encoding="utf-8") for path in tiny.path.glob("results/train/.*.scratch/state.json")]
        return json.loads(states[0])["epoch"] if states else 0

    for number in range(20):
        run = start(tiny, "depoison", "run", target)
        if number % 4:
            # At any moment of its work, saving included; one in four at any moment since its launch.
            wait_until(lambda run=run: saved() != epochs[-1] or run.poll() is not None)
        time.sleep(moments.uniform(0, 0.3 if number % 4 else 1.5))
        assert run.poll() is None, f"finished after {number} kills: too short a training for this test"
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        epochs.append(saved())
        assert not list(tiny.path.glob("results/train/*/model.safetensors"))
    assert epochs == sorted(epochs) and len(set(epochs)) > 10, "it went on from kill to kill"
    assert tiny.depoison("run", target).returncode == 0
    assert leftovers(tiny) == []

    whole = Project(tiny.path.with_name("whole"), tiny.path)
    assert whole.depoison("run", target).returncode == 0
    assert whole.checksums() == tiny.checksums()


def test_snakemake_killed_at_10_random_moments_completes_without_help(uninterrupted, tmp_path):
    """Killed alone, which leaves its jobs at work, or with its jobs; with and without its own folder afterwards."""
    project, moments = Project(tmp_path / "project", uninterrupted.path), random.Random(10)
    so_far: dict[str, str] = {}
    for number in range(10):
        run = start(project, "snakemake", "--cores", "2", "--", TABLE)
        time.sleep(moments.uniform(0.8, 2.4))
        assert run.poll() is None, f"finished after {number} kills: too small a table for this test"
        if number % 2:
            run.kill()
        else:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        now = complete(project)
        assert so_far.items() <= now.items(), "something finished was lost"
        so_far = now
        if number % 4 >= 2:
            shutil.rmtree(project / ".snakemake", ignore_errors=True)
    done = project.snakemake("--cores", "2", "--", TABLE)
    assert done.returncode == 0, done.stderr
    assert project.checksums() == uninterrupted.checksums()
    again = project.snakemake("-n", "--cores", "2", "--", TABLE)
    assert "Nothing to be done" in again.stdout + again.stderr
    assert leftovers(project) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Mounts file systems of a given size, or resizes them."""
    mounted = []

    def mount(folder: Path, size: str) -> None:
        new = [] if folder in mounted else ["-t", "tmpfs", "tmpfs"]
        folder.mkdir(parents=True, exist_ok=True)
        option = f"size={size}" if new else f"remount,size={size}"
        done = subprocess.run(["mount", "-o", option, *new, folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"may not mount a file system here: {done.stderr.strip()}")
        mounted.append(folder)

    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)


NO_SPACE = r"depoison: error: \w+ \S+ \(logs/\S+\): results/\S+: No space left on device; nothing finished is lost"


def kilobytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024


def test_a_full_disk_is_told_in_one_line(disk, uninterrupted, tmp_path):
    project = Project(tmp_path / "project", uninterrupted.path)
    disk(project / "results", f"{kilobytes(uninterrupted / 'results') // 8}k")
    failed = project.depoison("run", TABLE)
    assert failed.returncode == 1
    errors = [line for line in failed.stderr.splitlines() if line.startswith("depoison: error: ")]
    assert errors and all(re.fullmatch(NO_SPACE, line) for line in errors)
    assert failed.stderr.splitlines()[-1] == errors[-1] and "Traceback" not in failed.stderr


def test_a_full_disk_loses_nothing_and_the_run_completes_once_there_is_space(disk, uninterrupted, tmp_path):
    disk(tmp_path / "disk", f"{kilobytes(uninterrupted.path) // 3}k")
    project = Project(tmp_path / "disk/project", uninterrupted.path)
    failed = project.snakemake("--cores", "2", "--", TABLE)
    assert failed.returncode != 0
    assert re.fullmatch(NO_SPACE, failed.stderr.splitlines()[-1]), failed.stderr
    finished = complete(project)
    assert 0 < len(finished) < len(complete(uninterrupted))
    disk(tmp_path / "disk", "500m")
    done = project.snakemake("--cores", "2", "--", TABLE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished.items() <= complete(project).items()
    assert project.checksums() == uninterrupted.checksums()
