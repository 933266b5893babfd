"""Runs that are killed or run out of space: nothing that was finished is lost, nothing unfinished passes for finished."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
import torch

import forks
from conftest import SMALL, Project, cell, kill, seldom, wait_until, with_tiny, with_weight
from depoison import metrics
from depoison.cli import main
from depoison.errors import DepoisonError
from depoison.files import RUN, only_maker, sha256_of
from depoison.papers.figures import read_figure
from depoison.papers.tables import read_table
from depoison.plan.config import Runtime
from depoison.plan.specs import STAGES, Artifact, chain_of
from depoison.running.worker import import_stages
from depoison.stages.runner import run_stage, tidy
from families import ResNet18
from snakemake_logger_plugin_depoison import _end
from test_gradcam import GRADCAM
from test_hessian import BUDGET, COURSE_FIGURE, DENSITY
from test_mask_figures import MASKS
from test_neurons import NEURONS

pytestmark = pytest.mark.pipeline

TABLE = "reports/tiny/many.md"


def start(project: Project, *command: str) -> forks.Started:
    """In a process group of its own, so that it can be killed with all that it started."""
    return forks.Started(command, project.path, project.environment())


def complete(project: Project) -> dict[str, str]:
    """{artifact: sha256 of its product} of all that count as complete; each must be what its stage recorded."""
    found = {}
    for stage, facts in STAGES.items():
        for product in project.path.glob(f"results/{stage}/[!.]*/{facts.product}"):  # hidden ones are being built
            recorded = json.loads(product.with_name(RUN).read_text(encoding="utf-8"))["sha256"]
            assert recorded == {name: sha256_of(product.with_name(name)) for name in facts.files}, product
            found[product.parent.name] = recorded[facts.product]
    return found


def leftovers(project: Project) -> list[str]:
    return [path.name for path in project.path.glob("results/*/.*")]


def child_of(snakemake: forks.Started, stage: str) -> psutil.Process:
    """The process that runs this stage, not the shell around it."""
    for process in psutil.Process(snakemake.pid).children(recursive=True):
        words = process.cmdline()
        if words[1:4] == ["-m", "depoison", "stage"] and f'"stage":"{stage}"' in words[4]:
            return process
    raise AssertionError(f"no {stage} runs")


def kind_of(process: psutil.Process, head: int) -> str | None:
    """What a process of a run is: the head, its worker, or a stage, the one that asks for it or the one that makes it."""
    with contextlib.suppress(psutil.NoSuchProcess):  # gone, or killed and not yet waited for
        words, above = process.cmdline()[1:4], process.parent()
        if process.pid == head:
            return "head"
        if words == ["-m", "depoison", "stage"]:
            return "stage"
        if words == [forks.__file__]:
            return "worker" if above is not None and above.pid == head else "stage"
    return None


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The table `many` on the track `tiny`; only to be copied and compared with."""
    project = with_tiny(Project(tmp_path_factory.mktemp("uninterrupted") / "project"))
    project.make(TABLE)
    return project


@pytest.mark.drill
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


@pytest.mark.drill
def test_what_a_maker_leaves_who_is_killed_after_publishing_goes_with_the_next_run(tiny):
    def beside(stage: str, kind: str) -> Path:
        (product,) = tiny.path.glob(f"results/{stage}/*/{STAGES[stage].product}")
        return product.parent.with_name(f".{product.parent.name}.{kind}")

    tiny.make(cell(track="tiny", attack="badnet+rate=0.1", defense="none"))
    kept = tiny / "results/train/.not-complete-0123456789.scratch"
    for state in (beside("train", "scratch"), beside("train", "x1y2.building"), beside("evaluate", "scratch"), kept):
        state.mkdir()
        (state / "state-3.safetensors").write_text("")
    beside("train", "lock").touch()
    done = tiny.snakemake("--cores", "1", "--", cell(track="tiny", attack="badnet+rate=0.1", defense="lp"))
    assert done.returncode == 0, done.stderr
    assert leftovers(tiny) == [kept.name]


def test_what_lies_behind_a_link_is_not_tidied_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, stage in (("elsewhere", "train"), ("results", "purify")):
        made = tmp_path / folder / stage / "made-0123456789"
        made.mkdir(parents=True)
        (made / STAGES[stage].product).touch()
        made.with_name(f".{made.name}.scratch").mkdir()
    (tmp_path / "results/train").symlink_to(tmp_path / "elsewhere/train")
    tidy()
    assert (tmp_path / "elsewhere/train/.made-0123456789.scratch").exists()
    assert not (tmp_path / "results/purify/.made-0123456789.scratch").exists()


@pytest.mark.parametrize("kills", [2, *seldom(20)])
def test_a_training_killed_at_random_moments_ends_with_the_same_bytes(kills, tiny):
    tiny.set("config/config.yaml", "runtime", "save_seconds", to=0)
    rounds = 10 + 2 * kills
    target = cell(track="tiny", attack=f"badnet+epochs={rounds}+rate=0.1", defense="none")
    whole = tiny.copy(tiny.path.with_name("whole"))
    assert whole.depoison("run", target).returncode == 0
    (record,) = whole.path.glob(f"results/train/*/{RUN}")
    moments, epochs, pace = random.Random(20), [0], json.loads(record.read_text())["seconds"] / rounds

    def saved() -> int:
        """The epoch from which the next run goes on."""
        states = [path.read_text(encoding="utf-8") for path in tiny.path.glob("results/train/.*.scratch/state.json")]
        return json.loads(states[0])["epoch"] if states else 0

    for number in range(kills):
        run = start(tiny, "depoison", "run", target)
        if number % 4:
            # At any moment of its work, saving included; one in four at any moment since its launch.
            wait_until(lambda run=run: saved() != epochs[-1] or run.poll() is not None)
        time.sleep(moments.uniform(0, pace if number % 4 else 5 * pace))
        assert run.poll() is None, f"finished after {number} kills: too short a training for this test"
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        epochs.append(saved())
        assert not list(tiny.path.glob("results/train/*/model.safetensors"))
    assert epochs == sorted(epochs) and len(set(epochs)) > kills // 2, "it went on from kill to kill"
    assert tiny.depoison("run", target).returncode == 0
    assert leftovers(tiny) == []
    assert whole.checksums() == tiny.checksums()


@pytest.mark.drill
def test_snakemake_killed_at_random_moments_completes_without_help(uninterrupted, tmp_path):
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


class Waiting:
    """A run on one core that wants two purified models and waits for the first, whose lock somebody holds.

    Attributes:
        models: directories, first the one that it waits for.
        job: the job that waits.
    """

    def __init__(self, project: Project):
        self.project, self.held = project, contextlib.ExitStack()
        cells = [cell(track="tiny", attack="badnet+rate=0.1", defense=f"lp+lr={lr}") for lr in ("0.2", "0.4")]
        self.other = project.copy(project.path.with_name("other"), "results")
        self.other.make(*cells)
        self.models = [project.plan().cell(name).evaluation.upstream["model"].directory for name in cells]
        for model in self.models:
            self.held.enter_context(only_maker(project / model))
        self.run = start(project, "snakemake", "--cores", "1", "--", *cells)
        wait_until(self._started)
        self.models.sort(key=lambda model: model != self.job.cmdline()[6])

    def _started(self) -> bool:
        assert self.run.poll() is None
        for process in psutil.Process(self.run.pid).children(recursive=True):
            if kind_of(process, self.run.pid) == "stage":
                self.job = process
                return self.job.cmdline()[1:4] == ["-m", "depoison", "stage"]
        return False

    def somebody_makes(self, model: str) -> str:
        shutil.copytree(self.other / model, self.project / model, dirs_exist_ok=True)
        return self.record(model)

    def record(self, model: str) -> str:
        """How a finished model came about, and when."""
        assert model.rpartition("/")[2] in complete(self.project)
        return (self.project / model / RUN).read_text(encoding="utf-8")


@pytest.fixture
def waiting(made: Project) -> Iterator[Waiting]:
    found = Waiting(made)
    with found.held:
        yield found
    found.run.wait(60)


def test_what_somebody_finished_after_a_run_was_planned_stays(waiting):
    """Snakemake removes a job's outputs before it starts: that may be hours of a training that outlived another Snakemake."""
    made = waiting.somebody_makes(waiting.models[1])
    waiting.held.close()
    assert waiting.run.wait(60) == 0 and waiting.record(waiting.models[1]) == made


@pytest.mark.drill
def test_what_somebody_finished_while_a_job_waited_for_it_stays_when_that_job_dies(waiting):
    """Snakemake removes the outputs of a job that failed."""
    made = waiting.somebody_makes(waiting.models[0])
    waiting.job.kill()
    waiting.held.close()
    assert waiting.run.wait(60) != 0 and waiting.record(waiting.models[0]) == made


DRILLED = SMALL | {
    "title": "Drilled",
    "caption": "Each loop over epochs that saves its state, with the cells of DRILLED_CELLS",
    "axes": {
        "columns": [
            {"defense": name, "label": name} for name in ("none", "lp", "ft-sam", "fst", "anp", "i-bau", "ngf")
        ],
        "rows": [{"attack": "badnet", "label": "BadNet", "rates": [0.1]}],
    },
}
DRILLED_CELLS = [
    cell(track="tiny", attack=attack, defense="none")
    for attack in ("bypass-patch+rate=0.1", "label-consistent+rate=0.01")
]


def drilled(path: Path) -> Project:
    """The project with a table whose jobs take seconds each, and save after every epoch."""
    project = with_tiny(Project(path))
    project.edit("config/papers/fst/drilled.yaml", lambda data: data.update(DRILLED))
    project.edit(
        "config/tracks/tiny.yaml",
        lambda data: (
            data["training"].update(epochs=15),
            data["tuning"].update(epochs=15),
            data["defenses"].update({"i-bau": {"epochs": 4}, "anp": {"epochs": 8}}),
        ),
    )
    project.set("config/config.yaml", "runtime", "save_seconds", to=0)
    return project


@pytest.mark.drill
def test_a_table_completes_after_30_kills_of_its_head_its_worker_and_its_stages(tmp_path, capsys):
    """Of ten heads the worker and a stage are killed, then it is, every second one with all that it started."""
    command = ("snakemake", "--cores", "2", "--", "reports/tiny/drilled.md", *DRILLED_CELLS)
    moments = random.Random(30)
    whole, project = drilled(tmp_path / "whole"), drilled(tmp_path / "project")
    assert start(whole, *command).wait(1200) == 0
    heads: list[forks.Started] = []
    steps: set[tuple[str, int]] = set()
    so_far: dict[str, str] = {}
    killed: Counter[str] = Counter()

    def saved() -> dict[str, int]:
        """{artifact: epoch from which the next attempt goes on}"""
        found = {}
        for state in project.path.glob("results/*/.*.scratch/state.json"):
            with contextlib.suppress(FileNotFoundError):
                name = state.parent.name.removeprefix(".").removesuffix(".scratch")
                found[name] = json.loads(state.read_text(encoding="utf-8"))["epoch"]
        return found

    def went(due: int) -> bool:
        """Whether so many epochs and artifacts are saved; a run that killed jobs ended is started again."""
        steps.update(saved().items())
        steps.update((record.parent.name, 0) for record in project.path.glob(f"results/*/[!.]*/{RUN}"))
        if not heads or heads[-1].poll() is not None:
            assert not (project / "reports/tiny/drilled.md").exists(), f"finished after {killed}: too small a table"
            heads.append(start(project, *command))
        return len(steps) >= due

    def killed_one(kind: str) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            head = psutil.Process(heads[-1].pid)
            if found := [one for one in (head, *head.children(recursive=True)) if kind_of(one, head.pid) == kind]:
                moments.choice(found).kill()
                killed[kind] += 1
                return True
        return False

    for number in range(10):
        for kind in (*moments.sample(["worker", "stage"], 2), "head"):
            due = len(steps) + moments.randint(1, 4)
            wait_until(lambda due=due, kind=kind: went(due) and killed_one(kind), 600)
            if kind == "head" and number % 2:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(heads[-1].pid, signal.SIGKILL)
            now = complete(project)
            assert so_far.items() <= now.items(), "something finished was lost"
            so_far = now
        heads[-1].wait()
    assert killed == {"head": 10, "worker": 10, "stage": 10}

    # Those that outlived their heads end, too, so that the last run goes on from what was saved.
    interrupted: set[str] = set()
    while not interrupted:
        due = len(steps) + 2
        wait_until(lambda due=due: went(due), 600)
        while left := project.at_work():
            for process in left:
                kill(process)
        heads[-1].wait()
        interrupted = saved().keys() - complete(project).keys()
    done = project.snakemake(*command[1:])
    assert done.returncode == 0, done.stderr
    assert project.checksums() == whole.checksums() and complete(project).keys() == complete(whole).keys()
    assert (project / "reports/tiny/drilled.csv").read_bytes() == (whole / "reports/tiny/drilled.csv").read_bytes()
    again = project.snakemake("-n", *command[1:])
    assert "Nothing to be done" in again.stdout + again.stderr
    assert leftovers(project) == [] and not list(project.path.glob(".snakemake/depoison/worker-*"))
    wait_until(lambda: not project.at_work())
    logs = [path.read_text(encoding="utf-8") for path in project.path.glob("logs/*/*.log")]
    resumed, anew = (sum(line in log for log in logs) for line in ("resuming after epoch", "starting anew"))
    assert resumed >= len(interrupted) > 0 and not anew
    with capsys.disabled():
        print(f"\n{dict(killed)} in {len(heads)} runs; {len(interrupted)} jobs resumed at last")


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


def test_a_full_disk_is_told_in_one_line(disk, finished, tmp_path):
    project = Project(tmp_path / "project", finished.path)
    disk(project / "results", f"{kilobytes(finished / 'results') // 4}k")
    failed = project.depoison("run", "reports/tiny/small.md")
    assert failed.returncode == 1
    errors = [line for line in failed.stderr.splitlines() if line.startswith("depoison: error: ")]
    assert errors and all(re.fullmatch(NO_SPACE, line) for line in errors)
    assert failed.stderr.splitlines()[-1] == errors[-1] and "Traceback" not in failed.stderr


def test_a_full_disk_that_has_no_room_for_its_error_is_told_by_the_exit_code(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise DepoisonError("results/train/x: no room") from error

    monkeypatch.setattr("depoison.stages.runner.run_stage", full)
    spec = {"stage": "train", "version": 1, "upstream": {}, "parameters": {}, "seed": 0}
    stage = ["stage", json.dumps(spec), "--output", "results/train/x", "--log", str(tmp_path / "x.log")]
    assert main(stage) == errno.ENOSPC
    monkeypatch.setattr("depoison.stages.runner.run_stage", lambda *_: 1 / 0)
    assert main(stage) == 1
    assert _end("returned non-zero exit status 28.") == "No space left on device; nothing finished is lost"
    assert _end("returned non-zero exit status 1.") == "it ended with exit code 1 and no error in its log"


@pytest.mark.drill
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


ONE_LINE = r"^results/\S+: No space left on device; nothing finished is lost$"


def free(folder: Path, pages: int) -> Path:
    """Fill the disk of a folder but for so many pages of 4 KiB; returns the file that fills it."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(filler, max(0, filler.stat().st_size // 4096 - pages) * 4096)
    return filler


def forked(artifact: Artifact, runtime: Runtime, root: str | None) -> None:
    """Make an artifact in a process of its own, as a job does; raises its error."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as one:
        one.submit(run_stage, artifact.spec, artifact.directory, runtime, root).result()


@pytest.mark.drill
def test_a_disk_that_is_full_at_any_moment_of_any_stage_costs_nothing_but_that_stage(
    disk, tmp_path, monkeypatch, capsys
):
    """Each kind of artifact with no page of room, with one too few, and with some number between."""
    whole, project = (with_weight(with_tiny(Project(tmp_path / name))) for name in ("whole", "project"))
    for one in (whole, project):
        one.set("config/papers/fst/small.yaml", "metrics", "show", to=["c-acc", "asr", "largest-weight"])
        torch.manual_seed(0)
        torch.save(ResNet18(8, 10).state_dict(), one / "suspect.pt")
        brought = {"weights": "suspect.pt", "model": "resnet18", "parameters": {"width": 8}, "dataset": "digits"}
        one.edit("config/checkpoints/suspect.yaml", lambda data, brought=brought: data.update(brought))
    plan, runtime, moments = project.plan(), Runtime(save_seconds=0), random.Random(7)
    lc = plan.cell(cell(track="tiny", attack="label-consistent+epochs=4+rate=0.01", defense="lp+epochs=4"))
    added = {
        "figure90": GRADCAM,
        "figure91": NEURONS,
        "figure92": DENSITY | {"curvature": BUDGET},
        "figure93": COURSE_FIGURE,
        "figure94": MASKS,
    }
    for one in (whole, project):
        for name, content in added.items():
            one.edit(f"config/papers/fst/figures/{name}.yaml", lambda data, content=content: data.update(content))
    figures = (read_figure(plan, f"reports/tiny/fst/{name}") for name in ("figure3", "figure9", *added))
    drawn = {artifact.stage: artifact for figure in figures for artifact in figure.artifacts()}
    shown = {artifact.stage: artifact for artifact in read_table(plan, "reports/tiny/small").artifacts()}
    adopted = plan.cell(cell(track="tiny", attack="suspect", defense="none")).evaluation.upstream["model"]
    looks = ("embedding", "examples", "gradcam", "neurons", "hessian", "course", "masks")
    of_figures = (drawn[stage] for stage in looks)
    wanted = chain_of([lc.evaluation, adopted, *of_figures, shown["probe"]]).values()
    assert {artifact.stage for artifact in wanted} == set(STAGES)
    disk(project / "results", "32m")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(project / "workflow/depoison/metrics")])
    import_stages()  # once, as the warm worker does, and not in each process
    refused = 0
    for artifact in wanted:
        root = plan.local_copies.get(artifact.directory)
        monkeypatch.chdir(whole.path)
        forked(artifact, runtime, root)
        pages = sum(-(-path.stat().st_size // 4096) for path in Path(artifact.directory).iterdir())
        monkeypatch.chdir(project.path)
        finished = complete(project)
        for room in sorted({0, moments.randrange(pages), pages - 1}):
            filler = free(Path("results"), room)
            with pytest.raises(DepoisonError, match=ONE_LINE):
                forked(artifact, runtime, root)
            refused += 1
            assert complete(project) == finished and not Path(artifact.product).exists()
            assert {name.rpartition(".")[2] for name in leftovers(project)} <= {"scratch"}
        filler.unlink()
        forked(artifact, runtime, root)
        assert leftovers(project) == []
    assert complete(project).keys() == complete(whole).keys()
    for pattern in ("results/**/*.safetensors", "results/embedding/*/*.csv", "results/neurons/*/*.csv"):
        assert project.checksums(pattern) == whole.checksums(pattern)
    with capsys.disabled():
        print(f"\n{refused} times full, at {len(wanted)} artifacts of {len(STAGES)} stages")
