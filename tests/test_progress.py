"""Estimates worked out by hand, what a terminal and a file show, and the logger in a real run."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import re
import struct
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snakemake_interface_logger_plugins.common import LogEvent

import forks
from conftest import ROOT, Project, cell, put_recorded, seldom, wait_until
from depoison.plan.plan import Plan
from depoison.running import display
from depoison.running.board import Board, item_of, records_below
from depoison.running.estimate import Estimate, Records, Remaining, Work, duration, estimate, work_of
from depoison.running.logs import LogFile, cause_in, course_in
from depoison.running.watch import all_being_made, being_made, missing
from depoison.stages.history import Progress
from snakemake_logger_plugin_depoison import LogHandler

TABLE = "reports/tiny/small.md"


def work(name: str, units: float = 1.0, computes: bool = True) -> Work:
    """Like all other work of a test, as little as work of a stage can be; of equal name: of one method."""
    return Work((f"{name} {units}", name, "stage"), units, computes)


def recorded(**seconds: list[float]) -> Records:
    records = Records()
    for name, all_seconds in seconds.items():
        for one in all_seconds:
            records.add(work(name), one)
    return records


# --- what one job takes ------------------------------------------------------------------------------------------


def test_a_job_takes_the_median_of_the_most_alike():
    records = recorded(fst=[10, 30, 20], ft=[100])
    assert records.predict(work("fst")) == 20
    assert records.predict(work("fst", units=3)) == 60  # of the same method, three times as much
    assert records.predict(work("nad")) == 25  # of any: the median of 10, 20, 30 and 100
    assert records.predict(Work(("other",), 1.0, True)) is None


def test_this_run_counts_more_than_what_was_before_and_corrects_it():
    records = recorded(fst=[10], ft=[100])
    records.observe(work("fst"), 30)  # three times as long as recorded
    assert records.slowdown == 3
    assert records.predict(work("fst")) == 30
    assert records.predict(work("ft")) == 300
    records.observe(work("ft"), 190)  # in sum, 220 s for what took 110
    assert records.slowdown == 2


def test_a_machine_that_becomes_slower_is_noticed():
    records = Records()
    for number in range(20):
        records.observe(work(f"method{number % 2}"), 10.0 if number < 12 else 30.0)
    # Of each method six times 10 s and four times 30 s: a median of 10 s, of which the last ten jobs took 2.6 on average.
    assert records.predict(work("method1")) == pytest.approx(10 * (2 * 10 + 8 * 30) / (10 * 10))
    assert records.predict(work("method1", computes=False)) == 10


def test_a_download_says_nothing_about_the_machine():
    records = recorded(fst=[10])
    records.add(work("cifar10", computes=False), 200)
    records.observe(work("cifar10", computes=False), 1)
    assert records.slowdown == 1


def test_each_job_takes_time_beside_its_stage():
    records = recorded(fst=[10])
    for beside in (0.5, 1.0, 9.0):
        records.observe(work("fst"), 10, beside)
    records.observe(work("fst"), 10, None)
    jobs = [Remaining(work("fst"), {"cores": 1})] * 4
    assert estimate(jobs, records, {"cores": 2}) == Estimate(2 * (10 + 1.0))


def test_works_of_a_plan_are_alike_as_far_as_they_are():
    plan = Plan(ROOT)

    def of(stage: str, **named: str) -> Work:
        chain = plan.cell(cell(**named)).evaluation.chain().values()
        spec = next(one.spec for one in chain if one.stage == stage)
        return work_of(spec, lambda directory: plan.artifacts[directory].spec)

    fst, other_seed = of("purify", defense="fst"), of("purify", defense="fst", seed=1)
    assert fst.keys[1:] == other_seed.keys[1:] or fst == other_seed  # another seed's split is alike
    assert fst == of("purify", defense="fst", attack="blended"), "the attack does not matter to a defense"
    longer = of("purify", defense="fst+epochs=32")
    assert longer.keys[0] != fst.keys[0] and longer.keys[1:] == fst.keys[1:]
    assert longer.units == 2 * fst.units
    assert of("purify", defense="ft").keys[2:] == fst.keys[2:] and of("purify", defense="ft").keys[1] != fst.keys[1]
    assert not set(fst.keys) & set(of("purify", defense="fst", model="resnet18+width=32").keys)
    assert not set(fst.keys) & set(of("purify", defense="fst", track="cifar10-cpu", dataset="cifar10").keys)
    train = of("train")
    assert train.keys[3] == fst.keys[3], "of a tuning, a training of that model says something"
    reserve = next(one.spec for one in plan.artifacts.values() if one.stage == "split")["parameters"]["reserve"]
    assert train.units / fst.units == pytest.approx(12 * (1 - reserve) / (16 * reserve))
    assert of("evaluate", defense="fst").keys == of("evaluate", defense="none").keys


# --- what the rest takes -----------------------------------------------------------------------------------------

FST, FT = recorded(fst=[10.0], ft=[40.0]), work("ft")


def test_independent_jobs_share_the_cores():
    jobs = [Remaining(work("fst"), {"cores": 1})] * 10
    assert estimate(jobs, FST, {"cores": 1}).seconds == 100
    assert estimate(jobs, FST, {"cores": 4}).seconds == 25
    assert estimate(jobs, FST, {"cores": 100}).seconds == 10, "no job is shorter than itself"
    assert estimate(jobs, FST, {}).seconds == 10


def test_the_scarcest_resource_counts():
    jobs = [Remaining(work("fst"), {"cores": 1, "gpu": 1})] * 6 + [Remaining(work("fst"), {"cores": 1, "gpu": 0})] * 6
    assert estimate(jobs, FST, {"cores": 8, "gpu": 2}).seconds == 30  # 6 x 10 s on 2 GPUs; 12 x 10 s on 8 cores are 15
    assert estimate(jobs, FST, {"cores": 2, "gpu": 2}).seconds == 60
    assert estimate(jobs, FST, {"cores": 8, "gpu": 0}).seconds == 15, "without a limit of GPUs"


def test_a_chain_takes_as_long_as_its_jobs_after_each_other():
    chain = [Remaining(FT), Remaining(work("fst"), after=(0,)), Remaining(work("fst"), after=(1,)), Remaining(FT)]
    assert estimate(chain, FST, {"cores": 64}).seconds == 60


def test_what_runs_takes_what_is_left_of_it():
    running = Remaining(work("fst"), {"cores": 1}, elapsed=4)
    assert estimate([running], FST, {"cores": 2}).seconds == 6
    assert estimate([replace(running, elapsed=400)], FST, {"cores": 2}).seconds == 0
    assert estimate([replace(running, left=77)], FST, {"cores": 2}).seconds == 77
    assert estimate([Remaining(Work(("unknown",), 1.0, True), left=77)], FST, {}) == Estimate(77)


def test_nothing_is_said_before_anything_is_known():
    unknown = Remaining(Work(("unknown",), 1.0, True), {"cores": 1})
    known = Remaining(work("fst"), {"cores": 1})
    assert str(estimate([unknown], FST, {"cores": 1})) == "–"
    assert str(estimate([unknown, unknown, known], FST, {"cores": 1})) == "–"
    assert str(estimate([unknown, known, known], FST, {"cores": 1})) == "> 20 s"
    assert str(estimate([Remaining(None), known], FST, {"cores": 1})) == "10 s", "tables take no time to speak of"
    assert estimate([], Records(), {"cores": 1}) == Estimate(0.0)


@st.composite
def remaining(draw: st.DrawFn) -> list[Remaining]:
    jobs: list[Remaining] = []
    for number in range(draw(st.integers(0, 12))):
        after = tuple(sorted(draw(st.sets(st.integers(0, number - 1), max_size=3)))) if number else ()
        kind = draw(st.sampled_from([work("fst"), work("ft", 3), work("nad"), Work(("unknown",), 1.0, True), None]))
        elapsed = draw(st.none() | st.floats(0, 100))
        left = draw(st.none() | st.floats(0, 100)) if elapsed is not None else None
        jobs.append(
            Remaining(kind, {"cores": draw(st.integers(1, 4)), "gpu": draw(st.integers(0, 1))}, elapsed, left, after)
        )
    return jobs


@given(remaining(), remaining(), st.integers(1, 8), st.integers(0, 4))
def test_more_work_never_lowers_the_estimate(jobs, more, cores, gpus):
    records, limits = recorded(fst=[10, 12], ft=[40]), {"cores": cores, "gpu": gpus}
    shifted = [replace(job, after=tuple(one + len(jobs) for one in job.after)) for job in more]
    less, all_of_it = estimate(jobs, records, limits), estimate(jobs + shifted, records, limits)
    if less.seconds is not None and all_of_it.seconds is not None:
        assert all_of_it.seconds >= less.seconds
    assert all_of_it.unknown >= less.unknown
    for place, job in enumerate(jobs):
        if job.elapsed is None and job.work and less.seconds is not None:
            double = replace(job, work=Work(job.work.keys[1:] or job.work.keys, 2 * job.work.units, True))
            if records.predict(double.work) and records.predict(double.work) >= records.predict(job.work):
                longer = estimate([*jobs[:place], double, *jobs[place + 1 :]], records, limits)
                assert longer.seconds >= less.seconds
    less_room = estimate(jobs, records, {"cores": 1, "gpu": min(1, gpus)})
    assert less.seconds is None or less_room.seconds >= less.seconds


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=30), st.integers(1, 8))
def test_no_schedule_is_shorter_and_a_greedy_one_is_not_much_longer(seconds, cores):
    records = recorded(**{f"job{number}": [one] for number, one in enumerate(seconds)})
    jobs = [Remaining(work(f"job{number}"), {"cores": 1}) for number in range(len(seconds))]
    found = estimate(jobs, records, {"cores": cores}).seconds
    free = [0.0] * cores
    for one in seconds:
        free[free.index(min(free))] += one
    assert found <= max(free) * (1 + 1e-9)
    assert max(free) <= sum(seconds) / cores + max(seconds) * (1 - 1 / cores) + 1e-6 <= 2 * found + 2e-6


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.2, "1 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3569, "59 min"),
        (3571, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (36_000, "10 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


# --- what lies in results/ and logs/ -----------------------------------------------------------------------------


def lp(attack: str = "badnet", seed: int = 0) -> str:
    return cell(track="tiny", attack=f"{attack}+rate=0.1", defense="lp", seed=seed)


def test_recorded_times_are_those_of_run_json(made, monkeypatch):
    monkeypatch.chdir(made.path)
    plan = made.plan()
    chain = plan.cell(lp(seed=1)).evaluation.chain()
    works = {a.stage: work_of(a.spec, lambda d: plan.artifacts[d].spec) for a in chain.values()}
    runs = {
        path.parent.name: json.loads(path.read_text())["seconds"] for path in made.path.glob("results/*/*/run.json")
    }
    records = records_below(Path("results"), works.values())
    for stage in ("train", "purify"):
        # The test's seed 1 has no artifact; seed 0 has one of each of two attacks.
        of_stage = [json.loads(p.read_text())["seconds"] for p in made.path.glob(f"results/{stage}/*/run.json")]
        assert len(of_stage) == 2
        badnet = [s for name, s in runs.items() if "badnet" in name and s in of_stage]
        expected = badnet[0] if stage == "train" else sum(of_stage) / 2
        assert records.predict(works[stage]) == pytest.approx(expected)
    (made / "results/train/half-0123456789").mkdir()
    next(iter(made.path.glob("results/purify/*/run.json"))).write_text("{")
    records_below(Path("results"), works.values())  # what is not whole is left out
    assert records_below(Path("nowhere"), works.values()).predict(works["train"]) is None


@pytest.fixture
def written(tmp_path):
    """Opens a log, to which the product's logger then writes; gives its path."""
    opened = []

    def written(name: str = "train.log", mode: str = "w") -> Path:
        opened.append(LogFile(tmp_path / name, mode))
        logging.getLogger("depoison").addHandler(opened[-1])
        return tmp_path / name

    logging.getLogger("depoison").setLevel("INFO")
    yield written
    for one in opened:
        logging.getLogger("depoison").removeHandler(one)
        one.close()


def test_a_course_is_what_a_stage_says_of_itself_beside_its_log(written, tmp_path, monkeypatch):
    row = {"epoch": 6, "epochs": 12, "loss": 0.5, "images_per_second": 410.4, "seconds_left": 88.0}
    log, progress = written(), Progress("train")
    assert course_in(log, since=0) is None, "it said nothing yet"
    progress(row | {"epoch": 5, "c_acc": 93.125, "asr": 99.9})
    progress(row)
    course = course_in(log, since=0)
    assert course.shown == ("epoch 6/12", "C-Acc 93.12", "ASR 99.90", "88 s left", "410 img/s")
    assert course.left == 88 and abs(course.when - time.time()) < 60
    assert "train epoch 6/12  loss 0.5000  410 img/s  88 s left" in log.read_text(), "in words, for people"
    progress.within(row | {"epoch": 7, "part": 0.1, "seconds_left": 160.0})
    assert course_in(log, since=0).left == 88, "no more often than the log hears of it"
    monkeypatch.setattr("depoison.stages.history.LOG_SECONDS", 0.0)
    progress.within(row | {"epoch": 7, "part": 0.5, "seconds_left": 150.0})
    assert course_in(log, since=0).shown[:2] == ("epoch 7/12", "C-Acc 93.12") and course_in(log, since=0).left == 150
    assert course_in(log, since=time.time() + 60) is None, "of a run before"
    beside, now = log.with_suffix(".json"), time.time()
    os.utime(beside, (now, now - 0.01))
    assert course_in(log, since=now) is not None, "the time of a file is that of the kernel's last tick"
    logging.getLogger("depoison").info("CUDA_VISIBLE_DEVICES=")
    assert course_in(log, since=0).left == 150, "other lines say nothing of it"
    assert course_in(tmp_path / "none.log", since=0) is None
    (tmp_path / "none.json").write_text('{"course": ')
    assert course_in(tmp_path / "none.log", since=0) is None
    written()
    assert course_in(log, since=0) is None, "a log that begins anew"


def test_a_cause_is_told_beside_the_log_not_read_from_it(written):
    log = written()
    logging.getLogger("depoison").error("2026-01-01 00:00:00 error: of another job's log, which this one quotes")
    assert cause_in(log) is None
    logging.getLogger("depoison").error("error: %s", "x", extra={"cause": "no images"})
    assert cause_in(log) == "no images" and cause_in(log, since=time.time() + 60) is None
    assert course_in(log, since=0) is None


def test_what_is_being_made_is_what_is_locked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results/train"
    folder.mkdir(parents=True)
    directory = "results/train/digits-badnet-0123456789"
    assert being_made(directory) is None
    lock = folder / ".digits-badnet-0123456789.lock"
    lock.touch()
    assert being_made(directory) is None, "what a killed maker left"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert abs(being_made(directory) - time.time()) < 60
        ((name, _),) = all_being_made(time.time())
        assert name == "train digits-badnet"
    assert all_being_made(time.time()) == []


def test_behind_what_is_there_nothing_is_missing(made, monkeypatch):
    monkeypatch.chdir(made.path)
    chain = made.plan().cell(lp()).evaluation.chain()
    wanted = chain[list(chain)[-1]]
    assert missing([wanted]) == []
    for one in chain.values():
        if one.stage in ("dataset", "evaluate", "purify"):
            Path(one.product).unlink()
    stages = [one.stage for one in missing([wanted])]
    assert stages == ["dataset", "purify", "evaluate", "evaluate"] or stages.count("dataset") == 1
    assert "train" not in stages and "poison" not in stages
    made_from = {one.directory: place for place, one in enumerate(missing([wanted]))}
    for one in missing([wanted]):
        assert all(
            made_from[up.directory] < made_from[one.directory]
            for up in one.upstream.values()
            if up.directory in made_from
        )


# --- the board ---------------------------------------------------------------------------------------------------


@pytest.fixture
def board(tiny, monkeypatch):
    monkeypatch.chdir(tiny.path)
    chain = tiny.plan().cell(lp()).evaluation.chain().values()
    return Board({one.directory: item_of(one, uses={"cores": 1}) for one in missing([*chain])}, {"cores": 2})


@pytest.mark.parametrize("width", [20, 40, 60, 79, 120, 200])
@pytest.mark.parametrize("height", [2, 3, 12])
def test_a_board_fits(board, width, height):
    for key in board.items:
        board.started(key, board.began)
        log = board.items[key].log
        log.parent.mkdir(parents=True, exist_ok=True)
        course = {"epoch": 7, "epochs": 12, "images_per_second": 410.0, "seconds_left": 750.0}
        course["measured"] = {"C-Acc": 93.12, "ASR": 100.0}
        log.with_suffix(".json").write_text(json.dumps({"course": course}))
    lines = board.lines(width, height, board.began + 5)
    assert len(lines) <= height and max(map(len, lines)) <= width
    assert lines[0].lstrip("━─ ").startswith("0/7 jobs")
    if width >= 60:
        assert "0/2 cells" in lines[0] and "ETA" in lines[0]
        assert height == 2 or "epoch 7/12" in lines[1]
    if height < 8 and width >= 40:
        assert lines[-1].strip().startswith(f"and {7 - (height - 2)} more")


def test_a_board_counts(board):
    now = board.began
    *_, last = board.items
    first = next(iter(board.items))
    board.started(first, now)
    assert board.finished(first, now + 2.5) == "[1/7] dataset digits  2.5 s  ETA –"
    board.started(last, now)
    board.lost(last)
    assert "1 failed" in board.lines(100, 5, now)[0] and "1/7 jobs" in board.lines(100, 5, now)[0]
    board.started(last, now)  # again
    assert "failed" not in board.lines(100, 5, now)[0]
    put_recorded(Path(last) / "metrics.json", {"metrics": {"c_acc": 93.126, "asr": None}})
    assert board.finished(last, now + 200).startswith(
        "[2/7] evaluate digits-badnet-0.1-s0-resnet18-lp  3 min  C-Acc 93.13"
    )
    assert "1/2 cells" in board.lines(100, 5, now)[0]


def test_a_board_keeps_what_stages_remarked_for_the_end(board):
    first, second, *_ = board.items
    for key, record in ((first, {"seconds": 2.0, "warnings": ["2 files left out"]}), (second, {"seconds": 1.0})):
        Path(key).mkdir(parents=True)
        (Path(key) / "run.json").write_text(json.dumps(record | {"sha256": {}}))
        board.started(key, board.began)
        board.finished(key, board.began + 3)
    assert board.remarks == ["dataset digits: 2 files left out"]


def test_what_hangs_on_a_failed_job_is_not_waited_for(board):
    for key in board.items:
        board.records.add(board._work(key), 100.0)
    trained = next(key for key in board.items if "/train/" in key)
    board.started(trained, board.began)
    board.lost(trained, "made to fail")
    assert board.eta(board.began).seconds == pytest.approx(100 * 3)  # dataset, split and poison
    assert board.lacking()[0] == "7 of 7 jobs are not done: 1 failed, 6 need what those make; what was made is kept"
    assert str(board.failed[trained]).endswith(".log): made to fail")


def test_an_estimate_counts_down_between_the_times_that_it_is_worked_out(board):
    for key in board.items:
        board.records.add(board._work(key), 100.0)
    first = board.eta(board.began)
    assert first.seconds == pytest.approx(100 * 6)  # the chain; 7 x 100 s on two cores are less
    board._again = board.began + 1000
    assert board.eta(board.began + 10).seconds == pytest.approx(590)


def test_a_queued_job_runs_from_the_moment_that_its_log_is_there(board):
    queued = Board({key: replace(item, uses={"jobs": 1}) for key, item in board.items.items()}, queue=True)
    first, second, *_ = queued.items
    now = time.time()
    for key in (first, second):
        log = queued.items[key].log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        os.utime(log, (now - 100, now - 100))  # of an attempt before
        queued.started(key, now - 50)
    assert [line.split()[-1] for line in queued.lines(100, 12, now)[1:]] == ["queued", "queued"]
    queued.items[second].log.touch()
    assert queued.lines(100, 12, now + 5)[1].endswith("queued")
    assert queued.lines(100, 12, now + 8)[2].endswith("3 s")


# --- real runs ---------------------------------------------------------------------------------------------------


def on_a_terminal(
    project: Project, *command: str, columns: int = 80, keys: bytes = b"", at: str = "", **variables: str
):
    """`python -m COMMAND` on a terminal, in a fork; returns its exit code and all that it wrote there.

    Args:
        keys: typed as soon as the terminal shows `at`.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    before = termios.tcgetattr(follower)
    environment = project.environment(TERM="xterm-256color", **variables)
    code = ThreadPoolExecutor(1).submit(forks.on_a_terminal, command, project.path, environment, os.ttyname(follower))
    written = b""
    os.set_blocking(leader, False)

    def read() -> bool:
        nonlocal written, keys
        try:
            written += os.read(leader, 65536)
        except BlockingIOError:
            return code.done()
        if keys and at.encode() in written:
            os.write(leader, keys)
            keys = b""
        return False

    try:
        wait_until(read)
        assert termios.tcgetattr(follower) == before
    finally:
        os.close(leader)  # by which what still runs there ends
        os.close(follower)
    return code.result(), written.decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.pipeline
def test_a_file_gets_a_line_for_each_job_and_no_control_characters(made):
    for path in made.path.glob("results/evaluate/*/metrics.json"):
        path.unlink()
    done = made.snakemake("--cores", "2", TABLE)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", done.stderr + done.stdout)
    lines = [line for line in done.stderr.splitlines() if re.match(r"\[\d+/\d+\] ", line)]
    # The four evaluations' recorded times went with them only if their folders did.
    for number, line in enumerate(lines[:4], 1):
        assert re.fullmatch(
            rf"\[{number}/5\] evaluate digits-\S+  \d+\.\d s  C-Acc [\d.]+  ASR [\d.]+  ETA \d+ s", line
        )
    assert re.fullmatch(r"\[5/5\] reports/tiny/small\.md  \d+\.\d s", lines[4]) and len(lines) == 5
    assert "Job stats:" in done.stderr and "rule evaluate:" not in done.stderr
    (log,) = made.path.glob(".snakemake/log/*.log")
    assert log.read_text().count("rule evaluate:") == 4, "Snakemake's own log is complete"


@pytest.mark.pipeline
@pytest.mark.drill
def test_a_terminal_tells_a_cause_once_and_last_and_is_left_clean(made):
    for path in made.path.glob("results/evaluate/*/metrics.json"):
        path.unlink()
    module = made / "workflow/depoison/models/resnet18.py"
    crash = 'import sys\nprint("a line on stderr " + "x" * 100, file=sys.stderr)\nraise RuntimeError("made to fail")\n'
    module.write_text(module.read_text() + crash)
    command = ("snakemake", "--cores", "1", TABLE)
    code, shown = on_a_terminal(made, *command, columns=60, NO_COLOR="1", DEPOISON_WORKER="")
    text = plain(shown)
    assert code == 1
    assert "a line on stderr " + "x" * 100 + "\r\n" in text, "what other processes say is in one piece"
    assert "0/5 jobs" in text and "2 failed" in text
    first, second, third, fourth = text.splitlines()[-4:]
    assert first == "depoison: 5 of 5 jobs are not done: 2 failed, 3 need what those make; what was made is kept"
    assert second == f"depoison: not made: {TABLE}, which lacks 4 of 4 results"
    cause = r"RuntimeError: made to fail \(workflow/depoison/models/resnet18\.py, line \d+\)"
    for line in (third, fourth):
        assert re.fullmatch(rf"depoison: error: evaluate digits-\S+ \(logs/evaluate/\S+\.log\): {cause}", line)
    assert text.count("made to fail") == 2
    assert "\x1b[?25l" not in shown, "the cursor stays"
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown), "NO_COLOR"
    assert all("Traceback" in log.read_text() for log in made.path.glob("logs/evaluate/*.log")), "where to look further"


@pytest.mark.pipeline
@pytest.mark.parametrize(
    "command", [("snakemake", "--cores", "2"), *seldom(("depoison", "run"))], ids=["snakemake", "run"]
)
def test_ctrl_c_says_one_line_and_leaves_the_terminal_clean(command, tiny):
    tiny.set("config/tracks/tiny.yaml", "training", to={"epochs": 500, "batch_size": 32, "precision": "fp32"})
    code, shown = on_a_terminal(tiny, *command, TABLE, keys=b"\x03", at="/500")
    text = plain(shown)
    assert code == 130
    assert re.search(r"epoch \d+/500", text)
    _, told, after = text.partition("depoison: interrupted: what is finished is kept")
    assert told and "error:" not in text and "failed" not in text and "Traceback" not in text
    if command[0] == "snakemake":
        assert "\x1b[2K" in shown.rpartition("/4 cells")[2], "the board is wiped"
    assert not [line for line in after.splitlines()[1:] if line and not re.match(r"[━─]+ |  train ", line)]
    assert not list(tiny.path.glob("results/train/*/model.safetensors"))
    assert list(tiny.path.glob("results/poison/*/poison.safetensors")), "what was finished"


def test_a_job_that_hears_ctrl_c_before_its_head_is_no_failure(monkeypatch):
    monkeypatch.setattr(display, "interrupted", False)
    handler = LogHandler.__new__(LogHandler)
    handler._ends, handler._lost = {}, lambda *_: "failed"
    said = "Command 'set -euo pipefail; depoison stage --log logs/train/a.log' returned non-zero exit status 130."
    ended = SimpleNamespace(event=LogEvent.ERROR, exception="RuleException", getMessage=lambda: said)
    lost = SimpleNamespace(event=LogEvent.JOB_ERROR, jobid=1, log=["logs/train/a.log"], rule_msg="", getMessage=str)
    heard = threading.Timer(0.1, monkeypatch.setattr, (display, "interrupted", True))
    heard.start()
    assert [handler._told(Board({}), record) for record in (ended, lost)] == ["", ""]
    heard.join()


@pytest.mark.pipeline
@pytest.mark.parametrize("asked", [["-n"], *seldom(["--quiet", "progress"], ["--verbose"])])
def test_what_was_asked_of_snakemake_itself_is_its_own(asked, made):
    for path in made.path.glob("results/evaluate/*/metrics.json"):
        path.unlink()
    default = made.copy(made.path.with_name("default"), "results", "reports")
    default.edit("profiles/default/config.yaml", lambda profile: profile.pop("logger"))

    def said(project: Project) -> list[str]:
        done = project.snakemake("--cores", "1", *asked, "--", TABLE)
        assert done.returncode == 0
        text = (done.stdout + done.stderr).replace(str(project.path), "")
        lines = (re.sub(r"[0-9a-f-]{36}|[\d:.,]+|\b\w{3} \w{3} ", "", line).split() for line in text.splitlines())
        return sorted(" ".join(sorted(words)) for words in lines)  # Snakemake lists inputs in any order

    ours, its = said(made), said(default)
    if "--verbose" not in asked:
        assert ours == its
    assert not [line for line in ours if "ETA" in line]


@pytest.mark.pipeline
def test_another_terminal_can_watch(made):
    before = made.depoison("progress", TABLE)
    assert before.returncode == 0, before.stderr
    assert "12/12 jobs  4/4 cells" in before.stderr
    for path in made.path.glob("results/purify/*/model.safetensors"):
        path.unlink()
    for path in made.path.glob("results/evaluate/*-lp-*/metrics.json"):
        path.unlink()
    during = made.depoison("progress", TABLE)
    assert "8/12 jobs  2/4 cells" in during.stderr and not re.search(r"[\x00-\x08\x0b-\x1f]", during.stderr)
    assert made.depoison("progress").stderr == "nothing is being made\n"
    assert "unknown" in made.depoison("progress", "reports/tiny/nothing.md").stderr


def test_without_snakemake_there_is_an_estimate_too(made):
    for path in made.path.glob("results/evaluate/*-lp-*/metrics.json"):
        path.unlink()
    done = made.depoison("run", TABLE)
    assert done.returncode == 0
    assert re.search(r"^depoison: \[1/2\] results/evaluate/\S+  ETA \d+ s$", done.stderr, re.MULTILINE)
