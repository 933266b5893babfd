"""Leasing GPUs, with pretend devices: each job is a process, as it is in a run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, cell
from depoison.errors import DepoisonError
from depoison.gpu import SCHEDULED, VISIBLE, devices, lease, remarks

JOB = """
import json, logging, os, sys, time
from depoison.gpu import lease

def tell(event, held):
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    line = json.dumps({"job": os.getpid(), "user": os.getuid(), "event": event, "held": held, "visible": visible})
    os.write(log, (line + "\\n").encode())

count, share, seconds, umask, user = (float(word) for word in sys.argv[2:])
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.umask(int(umask))
if user != os.getuid():
    os.setgroups([]), os.setgid(int(user)), os.setuid(int(user))
logging.basicConfig(format="%(message)s")
with lease(int(count), int(share)) as held:
    tell("in", held)
    time.sleep(seconds)
    tell("out", held)
"""


class Jobs:
    """Starts jobs and reads what they tell, in order of time."""

    def __init__(self, folder: Path):
        self.folder, self.log, self.running = folder, folder / "log", []

    def start(
        self,
        count: int,
        share: int = 1,
        seconds: float = 0.05,
        umask: int = 0o022,
        user: int | None = None,
        **variables: str,
    ) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if k not in (VISIBLE, *SCHEDULED)}
        environment |= {"PYTHONPATH": str(ROOT / "workflow"), "TMPDIR": str(self.folder)} | variables
        numbers = (count, share, seconds, umask, os.getuid() if user is None else user)
        arguments = [str(self.log), *map(str, numbers)]
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

    def told(self) -> set[str]:
        """The lines that jobs said, each of them at most once."""
        said = [job.stderr.read().decode().splitlines() for job in self.running]
        assert all(len(lines) == len(set(lines)) for lines in said), said
        return {line for lines in said for line in lines}

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


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A device that nobody frees is waited for without end: a test of it fails."""

    def late(*_: Any) -> None:
        raise TimeoutError("a lease that is waited for and not freed")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(180)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    started = Jobs(tmp_path)
    yield started
    for job in started.running:
        job.kill()
        job.wait()


@pytest.fixture
def users(jobs: Jobs) -> Iterator[Jobs]:
    """Jobs of several users, in a folder that all of them can reach and write."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o1777)
        jobs.folder = Path(folder)
        yield jobs


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


# Several users


SOMEBODY, NOBODY = 65533, 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in (folder, *folder.iterdir())}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_all_users_may_lease_whatever_the_first_ones_umask(umask, jobs):
    jobs.start(1, umask=umask, DEPOISON_DEVICES="0")
    jobs.finish()
    assert modes(jobs.folder / "depoison-devices") == {"depoison-devices": 0o1777, "0.0.lock": 0o444}


@as_root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_users_exclude_each_other(umask, users):
    for number in range(8):
        users.start(1, seconds=0.1, umask=umask, user=(0, SOMEBODY, NOBODY)[number % 3], DEPOISON_DEVICES="0")
    assert [event["event"] for event in users.finish()] == ["in", "out"] * 8
    assert users.told() == set()


@pytest.mark.drill
@as_root
def test_of_three_users_jobs_that_are_killed_and_others_no_device_has_two_holders(users, capsys):
    moments, killed = random.Random(3), 0

    def holding() -> list[dict[str, Any]]:
        events = users.events()
        return [one for one in events if [e["job"] for e in events].count(one["job"]) == 1 and one["held"]]

    for number in range(60):
        users.start(
            moments.choice((1, 1, 2)),
            seconds=moments.uniform(0, 0.5),
            umask=moments.choice((0o000, 0o022, 0o077)),
            user=moments.choice((0, SOMEBODY, NOBODY)),
            DEPOISON_DEVICES="0,1,2,3",
        )
        if number % 4 == 3:
            users.wait_for(lambda _: holding(), 60)
            victim = moments.choice(holding())
            os.kill(victim["job"], signal.SIGSTOP)  # so that it says no more
            if victim in holding():
                with users.log.open("a") as log:
                    log.write(json.dumps(victim | {"event": "out"}) + "\n")
                killed += 1
            (job,) = (one for one in users.running if one.pid == victim["job"])
            users.running.remove(job)
            job.kill()
            job.wait()
    held = list(holders(users.finish()))
    assert held[-1] == {} and max(max(now.values(), default=0) for now in held) == 1
    assert max(len(now) for now in held) == 4 and killed > 5
    assert users.told() == set()
    with capsys.disabled():
        print(f"\n{len(held) // 2} leases of three users, {killed} of them ended by SIGKILL")


def a_link(place: Path) -> None:
    (place.parent / "theirs").mkdir()
    place.symlink_to("theirs")


def a_file(place: Path) -> None:
    place.write_text("mine")


def a_locked_folder(place: Path) -> None:
    place.mkdir(mode=0o700)


def a_readable_folder(place: Path) -> None:
    place.mkdir(mode=0o755)


def a_locked_file(place: Path) -> None:
    place.mkdir()
    place.chmod(0o1777)
    (place / "0.0.lock").touch(mode=0o600)


def a_linked_file(place: Path) -> None:
    place.mkdir()
    place.chmod(0o1777)
    (place.parent / "thesis.tex").write_text("mine")
    (place / "0.0.lock").symlink_to("../thesis.tex")


OBSTACLES = {
    a_link: "depoison-devices: is a symbolic link",
    a_file: "depoison-devices: Not a directory",
    a_locked_folder: "depoison-devices: Permission denied",
    a_readable_folder: "depoison-devices/0.0.lock: Permission denied",
    a_locked_file: "depoison-devices/0.0.lock: Permission denied",
    a_linked_file: "depoison-devices/0.0.lock: is a symbolic link",
}


def there(folder: Path) -> dict[str, tuple[int, int, bytes | None]]:
    """Modes, owners and contents."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode, path.lstat().st_uid, path.read_bytes() if path.is_file() else None
        )
        for path in folder.rglob("*")
    }  # fmt: skip


@as_root
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_another_user_made_is_left_alone_and_keeps_nobody_from_leasing(obstacle, users):
    obstacle(users.folder / "depoison-devices")
    before = there(users.folder)
    for user in (SOMEBODY, NOBODY, SOMEBODY, NOBODY):
        users.start(1, seconds=0.2, user=user, umask=0o077, DEPOISON_DEVICES="0")
    events = users.finish()
    for user in (SOMEBODY, NOBODY):  # each among his own jobs
        assert [event["event"] for event in events if event["user"] == user] == ["in", "out"] * 2
        own = users.folder / f"depoison-{user}-devices"
        assert modes(own) == {own.name: 0o700, "0.0.lock": 0o444} and own.stat().st_uid == user
    assert before.items() <= there(users.folder).items()
    expected = f"{users.folder}/{OBSTACLES[obstacle]}; GPUs are leased among your own jobs alone, in {users.folder}"
    assert users.told() == {f"{expected}/depoison-{user}-devices" for user in (SOMEBODY, NOBODY)}


@pytest.mark.parametrize("obstacle", [a_link, a_file, a_linked_file])
def test_a_link_is_not_followed_whoever_made_it(obstacle, jobs):
    obstacle(jobs.folder / "depoison-devices")
    before = there(jobs.folder)
    jobs.start(1, DEPOISON_DEVICES="0")
    jobs.finish()
    assert before.items() <= there(jobs.folder).items() and len(jobs.told()) == 1


@as_root
def test_where_a_user_has_no_place_for_his_leases_he_is_told_what_to_do(users):
    a_locked_folder(users.folder / "depoison-devices")
    a_locked_folder(own := users.folder / f"depoison-{SOMEBODY}-devices")
    own.chmod(0o1777)
    job = users.start(1, user=SOMEBODY, DEPOISON_DEVICES="0")
    told = job.communicate(timeout=60)[1].decode().splitlines()[-1]
    assert job.returncode == 1 and not users.events()
    assert told.endswith(f"{own}: belongs to another user; remove it, or set TMPDIR to a folder of your own")


def test_the_name_of_a_schedulers_job_leads_nowhere_else(jobs):
    jobs.start(1, **{VISIBLE: "0", "SLURM_JOB_ID": "/../../x/7"})
    jobs.finish()
    assert (jobs.folder / "depoison-devices-_______x_7/0.0.lock").exists()


def test_before_the_first_job_a_run_can_say_what_is_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("DEPOISON_DEVICES", "0,1")
    monkeypatch.delenv(VISIBLE, raising=False)
    assert remarks(2) == []
    shutil.rmtree(tmp_path / "depoison-devices")
    a_linked_file(tmp_path / "depoison-devices")
    (line,) = remarks(2)
    assert line.startswith(f"{tmp_path}/depoison-devices/0.0.lock: is a symbolic link; ")


@pytest.mark.drill
@pytest.mark.pipeline
def test_a_run_says_before_its_first_job_that_its_leases_count_for_its_user_alone(made, tmp_path):
    a_link(tmp_path / "depoison-devices")
    target = cell(track="tiny", attack="badnet+rate=0.1", defense="lp+lr=0.1")
    done = made.snakemake("--cores", "1", "--", target, DEPOISON_DEVICES="0", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("/depoison-devices: is a symbolic link; GPUs are leased among your own jobs alone, in ") == 1
    )
    assert list((tmp_path / "theirs").iterdir()) == []
