"""The profile `slurm` on a real SLURM of one machine with four pretend GPUs.

Needs root, and slurm-wlm and munge from Debian; `make test-cluster` installs them and runs this. The configuration stands in
/etc/slurm while it runs, because Snakemake's plugin takes SLURM's variables out of the environment.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from conftest import ROOT, Project, cell, wait_until, with_tiny

pytestmark = pytest.mark.cluster

ETC, LAB = Path("/etc/slurm"), Path("/var/tmp/depoison-slurm")
OURS = "ClusterName=depoison-test"
CONFIGURATION = {
    "slurm.conf": f"""{OURS}
SlurmctldHost={{host}}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={LAB}/state
SlurmdSpoolDir={LAB}/spool
SlurmctldPidFile={LAB}/slurmctld.pid
SlurmdPidFile={LAB}/slurmd.pid
SlurmctldLogFile={LAB}/slurmctld.log
SlurmdLogFile={LAB}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
MinJobAge=600
KillWait=5
SchedulerParameters=sched_interval=1,bf_interval=1
GresTypes=gpu
NodeName={{host}} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:4 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""",
    "gres.conf": f"AutoDetect=off\nNodeName={{host}} Name=gpu File={LAB}/dev/nvidia[0-3]\n",
    "cgroup.conf": "CgroupAutomount=no\nConstrainCores=no\nConstrainDevices=no\nConstrainRAMSpace=no\n",
}
# What a test adds to the profile: no accounting database here, and no patience.
OPTIONS = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2", "--slurm-no-account"]
TRAINED = cell(track="tiny", attack="badnet+epochs=40+rate=0.1", defense="none")


def shell(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A controller and a node that serve jobs."""
    settings = ETC / "slurm.conf"
    assert not settings.exists() or OURS in settings.read_text(), "this machine belongs to a cluster: not touching it"
    shutil.rmtree(LAB, ignore_errors=True)
    for folder in (ETC, LAB / "state", LAB / "spool", LAB / "dev", Path("/run/munge")):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):  # only a character device makes SLURM set CUDA_VISIBLE_DEVICES
        os.mknod(LAB / f"dev/nvidia{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    for name, text in CONFIGURATION.items():
        (ETC / name).write_text(text.format(host=socket.gethostname().split(".")[0]))
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["pkill", "-x", "slurmctld|slurmd|munged"], check=False)
    shell("runuser", "-u", "munge", "--", "munged", "--force")
    shell("slurmctld")
    shell("slurmd")
    try:
        wait_until(lambda: "idle" in shell("sinfo", "-h", "-o", "%T"))
        yield
    finally:
        subprocess.run(["scancel", "--user", "root"], check=False)
        subprocess.run(["pkill", "-x", "slurmctld|slurmd|munged"], check=False)
        for name in CONFIGURATION:
            (ETC / name).unlink()


@pytest.fixture
def lab(tmp_path: Path, cluster: None) -> Project:
    return with_tiny(Project(tmp_path / "project"))


def command(*arguments: str) -> list[str]:
    return ["snakemake", "--profile", "profiles/slurm", *OPTIONS, "--", *arguments]


def environment(project: Project) -> dict[str, str]:
    made = project.environment()
    del made["DEPOISON_DEVICES"]
    return made | {"PYTHONPATH": f"{project.path / 'workflow'}:{ROOT / '.venv/cluster'}"}


@contextlib.contextmanager
def running(project: Project, target: str) -> Iterator[subprocess.Popen[str]]:
    out = (project / "head.log").open("w")
    run = subprocess.Popen(
        command(target), cwd=project.path, env=environment(project), stdout=out, stderr=out, text=True
    )
    try:
        yield run
    finally:
        run.kill()
        run.wait()
        out.close()


def finished(run: subprocess.Popen[str], project: Project) -> None:
    assert run.wait(500) == 0, (project / "head.log").read_text()


def spans(project: Project, stage: str) -> list[tuple[datetime, datetime, str]]:
    """(begin, end, CUDA_VISIBLE_DEVICES) of every job of a stage, from its log."""
    found = []
    for path in project.path.glob(f"logs/{stage}/*.log"):
        lines = [line.split(" ", 2) for line in path.read_text().splitlines()]
        moments = [datetime.strptime(f"{day} {clock}", "%Y-%m-%d %H:%M:%S,%f") for day, clock, _ in lines]
        leased = [text.partition("=")[2] for _, _, text in lines if text.startswith("CUDA_VISIBLE_DEVICES=")]
        found.append((moments[0], moments[-1], ",".join(leased)))
    return found


def test_a_table_gets_its_gpus_from_slurm(lab):
    """One attack, of which one model waits for four defenses and an evaluation at once."""
    row = {"attack": "badnet", "label": "BadNet", "rates": [0.01]}
    lab.set("config/papers/fst/many.yaml", "axes", "rows", to=[row])
    target = "reports/tiny/many.md"
    with running(lab, target) as run:
        finished(run, lab)
    assert (lab / target).exists()
    assert {devices for stage in ("dataset", "split", "poison") for *_, devices in spans(lab, stage)} == {""}
    with_gpu = [span for stage in ("train", "purify", "evaluate") for span in spans(lab, stage)]
    assert {devices for *_, devices in with_gpu} == {"0", "1", "2", "3"}
    at_once = [
        (one, other) for one, other in itertools.combinations(with_gpu, 2) if one[0] < other[1] and other[0] < one[1]
    ]
    assert at_once and all(one[2] != other[2] for one, other in at_once)
    again = subprocess.run(command(target), cwd=lab.path, env=environment(lab), capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.fixture(scope="module")
def checksums(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a cell's chain is that nothing interrupted."""
    whole = with_tiny(Project(tmp_path_factory.mktemp("whole") / "project"))
    assert whole.depoison("run", TRAINED).returncode == 0
    return whole.checksums()


@pytest.mark.parametrize("blow", [["scancel"], ["scontrol", "requeue"]], ids=["cancelled", "requeued"])
def test_a_job_that_slurm_ends_goes_on_where_it_was(blow, lab, checksums):
    """Cancelled, Snakemake submits it again; requeued, as after a preemption or a lost node, SLURM starts it again."""
    lab.set("config/config.yaml", "runtime", "save_seconds", to=0)
    before = lab.snakemake("--cores", "2", "--until", "poison", "--", TRAINED)  # here: each job of SLURM's costs 25 s
    assert before.returncode == 0, before.stderr
    with running(lab, TRAINED) as run:
        wait_until(lambda: any(lab.path.glob("results/train/.*.scratch/state.json")) or run.poll() is not None)
        (job,) = re.findall(r"^(\d+) .*train", shell("squeue", "-h", "-o", "%i %k"), re.MULTILINE)
        granted = shell("scontrol", "show", "job", job)
        assert (
            "TimeLimit=08:00:00" in granted and "TresPerJob=gres:gpu:1" in granted and "MinMemoryNode=16000M" in granted
        )
        shell(*blow, job)
        finished(run, lab)
    (log,) = lab.path.glob("logs/train/*.log")
    assert "resuming after epoch" in log.read_text() and lab.checksums() == checksums
