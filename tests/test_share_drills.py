"""Drills: what becomes of a team's artifacts when something dies while they are shared. Real DVC, made-up content."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT, Project, wait_until, with_tiny
from sharing import Clone, make_up

pytestmark = pytest.mark.drill

TARGET = "reports/tiny/many.md"
SIZE = 1 << 21
"""Bytes of a heavy file: enough that a transfer of all of them is caught in the middle."""


@pytest.fixture
def author(tmp_path) -> Clone:
    """A clone with everything behind a table, none of it pushed, and a folder beside it as remote."""
    project = with_tiny(Project(tmp_path / "author"))
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, project.path)
    make_up(project.path, [TARGET], SIZE)
    clone = Clone(project.path)
    clone.run("git", "init", "-q", "-b", "main")
    clone.run("dvc", "init", "-q")
    clone.run("dvc", "remote", "add", "-q", "--default", "team", str(tmp_path / "remote"))
    return clone


def reader_of(author: Clone) -> Clone:
    """A fresh clone."""
    author.commit("all")
    clone = Clone(author.folder.with_name("reader"))
    author.run("git", "clone", "-q", ".", str(clone.folder))
    return clone


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("results/**/*.safetensors")}


def objects(place: Path) -> dict[str, str]:
    """The objects of a cache or of a remote that is a folder, by the md5 that their name says: the md5 that they have."""
    found = (path for path in place.glob("files/md5/??/*") if len(path.name) == 30)
    return {path.parent.name + path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in found}


def killed(clone: Clone, *command: str, begun: Callable[[], object]) -> None:
    """A command of depoison, killed with all that it started as soon as `begun` holds."""
    process: subprocess.Popen[str] = clone.start(sys.executable, "-m", "depoison", *command)
    wait_until(lambda: begun() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL  # not over before


def test_a_push_or_pull_that_is_killed_leaves_nothing_half_made_and_the_next_completes(author):
    remote, made = author.folder.with_name("remote"), content(author.folder)
    killed(author, "share", "push", TARGET, begun=lambda: list(remote.glob("files/md5/??/*")))
    half = objects(remote)
    assert len(half) < len(made) and all(name == md5 for name, md5 in half.items())
    author.depoison("share", "push", TARGET)
    assert len(objects(remote)) == len(made) and all(name == md5 for name, md5 in objects(remote).items())

    reader = reader_of(author)
    cache = reader.folder / ".dvc/cache"
    killed(reader, "share", "pull", "--models", TARGET, begun=lambda: list(cache.glob("files/md5/??/*")))
    here = content(reader.folder)
    assert len(here) < len(made) and here.items() <= made.items()
    assert f"pulled {len(made) - len(here)} files" in reader.depoison("share", "pull", "--models", TARGET)
    assert content(reader.folder) == made
