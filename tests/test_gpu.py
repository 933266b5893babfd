"""Leasing GPUs, with pretend devices: each job is a process, as it is in a run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from depoison.errors import DepoisonError
from depoison.gpu import SCHEDULED, VISIBLE, devices, lease

JOB = """
import json, os, sys, time
from depoison.gpu import lease

def tell(event, held):
    line = json.dumps({"job": os.getpid(), "event": event, "held": held, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")})
    os.write(log, (line + "\\n").encode())

count, share, seconds = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
with lease(count, share) as held:
    tell("in", held)
    time.sleep(seconds)
    tell("out", held)
"""


class Jobs:
    """Starts jobs and reads what they tell, in order of time."""

    def __init__(self, folder: Path):
        self.folder, self.log, self.running = folder, folder / "log", []

    def start(self, count: int, share: int = 1, seconds: float = 0.05, **variables: str) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if k not in (VISIBLE, *SCHEDULED)}
        environment |= {"PYTHONPATH": str(ROOT / "workflow"), "TMPDIR": str(self.folder)} | variables
        arguments = [str(self.log), str(count), str(share), str(seconds)]
        job = subprocess.Popen([sys.executable, "-c", JOB, *arguments], env=environment, stderr=subprocess.PIPE)
        self.running.append(job)
        return job

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def wait_for(self, holds: Callable[[list[dict[str, Any]]], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not holds(self.events()):
            assert time.monotonic() < end, self.events()
            time.sleep(0.01)

    def finish(self) -> list[dict[str, Any]]:
        assert [job.wait(60) for job in self.running] == [0] * len(self.running)
        return self.events()


def holders(events: list[dict[str, Any]]) -> Iterator[Counter[str]]:
    """How many jobs hold each device, after each event."""
    now: Counter[str] = Counter()
    for event in events:
        for device in event["held"]:
            now[device] += 1 if event["event"] == "in" else -1
        yield +now


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    started = Jobs(tmp_path)
    yield started
    for job in started.running:
        job.kill()
        job.wait()


def test_a_device_has_one_holder_and_none_is_idle(jobs):
    for number in range(24):
        jobs.start(2 if number % 3 == 0 else 1, seconds=0.1, DEPOISON_DEVICES="0,1,2,3")
    held = list(holders(jobs.finish()))
    assert len(held) == 48 and held[-1] == {}
    assert max(max(now.values(), default=0) for now in held) == 1
    assert max(len(now) for now in held) == 4
    assert set().union(*held) == {"0", "1", "2", "3"}


def test_jobs_that_need_all_devices_take_turns(jobs):
    for _ in range(4):
        jobs.start(2, DEPOISON_DEVICES="0,1")
    assert [event["event"] for event in jobs.finish()] == ["in", "out"] * 4


def test_the_death_of_a_job_frees_its_device(jobs):
    victim = jobs.start(1, seconds=600, DEPOISON_DEVICES="0")
    jobs.wait_for(lambda events: len(events) == 1)
    jobs.start(1, DEPOISON_DEVICES="0")
    time.sleep(0.3)
    assert len(jobs.events()) == 1
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    jobs.running.remove(victim)
    jobs.wait_for(lambda events: len(events) == 3, 5)
    assert [event["event"] for event in jobs.finish()] == ["in", "in", "out"]


def test_jobs_may_share_a_device(jobs):
    for _ in range(5):
        jobs.start(1, share=2, seconds=0.3, DEPOISON_DEVICES="GPU-4e:1")
    held = list(holders(jobs.finish()))
    assert max(now["GPU-4e:1"] for now in held) == 2


def test_jobs_of_a_scheduler_count_their_devices_from_0_each(jobs):
    """With cgroups every allocation calls its first device 0: two of them must not wait for each other."""
    for number in range(2):
        jobs.start(1, seconds=0.5, **{VISIBLE: "0", "SLURM_JOB_ID": str(number)})
    assert [event["event"] for event in jobs.finish()] == ["in", "in", "out", "out"]


def test_tasks_of_one_allocation_share_its_devices_as_elsewhere(jobs):
    for _ in range(3):
        jobs.start(1, **{VISIBLE: "0", "SLURM_JOB_ID": "7"})
    assert [event["event"] for event in jobs.finish()] == ["in", "out"] * 3


def test_a_job_shares_with_others_and_never_with_itself(jobs):
    jobs.start(2, share=2, DEPOISON_DEVICES="0,1")
    first, _ = jobs.finish()
    assert sorted(first["held"]) == ["0", "1"]


@pytest.mark.parametrize(
    ("count", "variables", "pool"),
    [
        (1, {VISIBLE: "4,7", "DEPOISON_DEVICES": "0,1"}, {"4", "7"}),
        (2, {VISIBLE: "4,7"}, {"4", "7"}),
        (1, {VISIBLE: "GPU-8932f937"}, {"GPU-8932f937"}),
        (0, {VISIBLE: "4,7"}, set()),
        (0, {"DEPOISON_DEVICES": "0,1"}, set()),
    ],
)
def test_a_job_sees_what_it_holds_out_of_what_it_was_given(count, variables, pool, jobs):
    jobs.start(count, **variables)
    for event in jobs.finish():
        assert len(event["held"]) == count and set(event["held"]) <= pool
        assert event["visible"] == ",".join(event["held"])


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({VISIBLE: "0,2"}, ["0", "2"]),
        ({VISIBLE: ""}, []),
        ({VISIBLE: "-1"}, []),
        ({VISIBLE: "1", "DEPOISON_DEVICES": "0,1"}, ["1"]),
        ({"DEPOISON_DEVICES": "0,1"}, ["0", "1"]),
        ({"DEPOISON_DEVICES": ""}, []),
    ],
)
def test_which_devices_there_are(variables, expected, monkeypatch):
    monkeypatch.delenv(VISIBLE, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert devices() == expected


def test_a_lease_inside_another_is_a_part_of_it(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("DEPOISON_DEVICES", "0,1,2")
    monkeypatch.delenv(VISIBLE, raising=False)
    with lease(2) as outer:
        for count in (1, 0, 2):
            with lease(count) as inner:
                assert inner == outer[:count] and os.environ[VISIBLE] == ",".join(inner)
            assert os.environ[VISIBLE] == ",".join(outer)
        with pytest.raises(DepoisonError, match="asks for 3"), lease(3):
            pass
    with lease(3) as after:
        assert len(after) == 3


@pytest.mark.parametrize("before", [None, "0,1"])
def test_afterwards_all_is_as_before(before, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("DEPOISON_DEVICES", "0,1")
    monkeypatch.setenv(VISIBLE, before) if before else monkeypatch.delenv(VISIBLE, raising=False)
    for count in (0, 1, 2):
        with contextlib.suppress(ZeroDivisionError), lease(count) as held:
            assert os.environ[VISIBLE].split(",") == (held or [""]) and len(held) == count
            raise ZeroDivisionError
        assert os.environ.get(VISIBLE) == before


@pytest.mark.parametrize(("pool", "words"), [("0", "has 1"), ("", "has none")])
def test_more_devices_than_there_are(pool, words, monkeypatch):
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setenv("DEPOISON_DEVICES", pool)
    with pytest.raises(DepoisonError, match=f"2 GPUs.*{words}.*runtime.device"), lease(2):
        pass


def test_other_users_may_lease_too(jobs):
    jobs.start(1, DEPOISON_DEVICES="0")
    jobs.finish()
    (folder,) = (path for path in jobs.folder.iterdir() if path.is_dir())
    assert folder.stat().st_mode & 0o777 == 0o777
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())
