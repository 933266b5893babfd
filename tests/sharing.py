"""Clones of the project that share through a real DVC, and artifacts made up for them."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from conftest import job_counts
from depoison.files import RUN, SPEC, sha256_of, write_json
from depoison.plan.plan import Plan
from depoison.plan.specs import STAGES, Artifact, chain_of
from depoison.share import artifacts, heavy_files

REPORT = "reports/tiny/small.md"


class Clone:
    """A working copy in which commands run with its own code."""

    def __init__(self, folder: Path, **variables: str):
        self.folder = folder
        ours = {"PYTHONPATH": str(folder / "workflow"), "OMP_NUM_THREADS": "1"}
        self.environment = os.environ | ours | variables

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command in a process group of its own."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, start_new_session=True, **pipes)

    def run(self, *command: str, fails: bool = False) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, output
        return output

    def depoison(self, *arguments: str, fails: bool = False) -> str:
        return self.run(sys.executable, "-m", "depoison", *arguments, fails=fails)

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
        """Give every file a random modification time in the past."""
        for path in self.folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and ".git" not in path.parts:
                moment = random.Random(str(path)).uniform(1e9, 1.6e9)
                os.utime(path, (moment, moment))


def make_up(project: Path, targets: Iterable[str], size: int) -> None:
    """Everything that targets are made from: right names, records and checksums, heavy files of `size` random bytes."""
    with contextlib.chdir(project):
        for artifact in chain_of(artifacts(Plan(project), targets)).values():
            _make_up(artifact, size)


def _make_up(artifact: Artifact, size: int) -> None:
    folder, heavy = Path(artifact.directory), heavy_files(artifact)
    folder.mkdir(parents=True)
    for name in STAGES[artifact.stage].files:
        (folder / name).write_bytes(os.urandom(size) if folder / name in heavy else b"{}")
    write_json(folder / SPEC, artifact.spec)
    sums = {name: sha256_of(folder / name) for name in STAGES[artifact.stage].files}
    write_json(folder / RUN, {"sha256": sums, "seconds": 1.0})
