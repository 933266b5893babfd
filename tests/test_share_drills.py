"""Drills: what becomes of a team's artifacts when something fails while they are shared. Real DVC, made-up content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import ROOT, Project, lean, wait_until, with_tiny
from sharing import LAB, USER, Clone, WebFolder, Wire, make_up, s3_service, serving

pytestmark = pytest.mark.drill

TARGET = "reports/tiny/small.md"
MANY = "reports/tiny/many.md"
"""With heavy files enough, of a mebibyte each, that a transfer of all of them is killed in the middle."""
SIZE = 1 << 18
"""Bytes of a heavy file of which some get through and others do not."""
FOLDERS = 2
"""Into which all files of two users go, so that each writes where the other did."""


def author_in(base: Path, target: str = TARGET, size: int = SIZE, folders: int = 256, **variables: str) -> Clone:
    """A clone with everything behind a target, none of it pushed, and no remote."""
    project = with_tiny(lean(Project(base / "author")))
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, project.path)
    make_up(project.path, [target], size, folders)
    clone = Clone(project.path, **variables)
    clone.run("git", "init", "-q", "-b", "main")
    clone.run("dvc", "init", "-q")
    return clone


def reader_of(author: Clone, **variables: str) -> Clone:
    """A fresh clone."""
    author.commit("all")
    clone = Clone(author.folder.with_name("reader"), **variables)
    author.run("git", "clone", "-q", ".", str(clone.folder))
    return clone


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("results/**/*.safetensors")}


def objects(place: Path) -> dict[str, str]:
    """The objects of a cache or of a remote that is a folder, by the md5 that their name says: the md5 that they have."""
    found = (path for path in place.glob("files/md5/??/*") if len(path.name) == 30)
    return {path.parent.name + path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in found}


def whole(place: Path) -> set[str]:
    """The names of those objects that are what they are called."""
    return {name for name, md5 in objects(place).items() if name == md5}


def is_half_made(folder: Path) -> bool:
    """Whether there is an artifact that passes for complete, by its product, and lacks another file."""
    return any(
        name in os.listdir(path.parent) and not path.with_suffix("").exists()
        for name in ("model.safetensors", "poison.safetensors")
        for path in folder.glob("results/*/*/*.dvc")
    )


def killed(clone: Clone, *command: str, begun: Callable[[], object]) -> None:
    """A command of depoison, killed with all that it started as soon as `begun` holds."""
    process: subprocess.Popen[str] = clone.start(sys.executable, "-m", "depoison", *command)
    wait_until(lambda: begun() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL  # not over before


def test_a_push_or_pull_that_is_killed_leaves_nothing_half_made_and_the_next_completes(tmp_path):
    author, remote = author_in(tmp_path, MANY, 1 << 20), tmp_path / "remote"
    author.run("dvc", "remote", "add", "-q", "--default", "team", str(remote))
    made = content(author.folder)
    killed(author, "share", "push", MANY, begun=lambda: list(remote.glob("files/md5/??/*")))
    assert whole(remote) == objects(remote).keys() and len(whole(remote)) < len(made)
    author.depoison("share", "push", MANY)
    assert len(whole(remote)) == len(made)

    reader = reader_of(author)
    cache = reader.folder / ".dvc/cache"
    killed(reader, "share", "pull", "--models", MANY, begun=lambda: list(cache.glob("files/md5/??/*")))
    here = content(reader.folder)
    assert len(here) < len(made) and here.items() <= made.items() and not is_half_made(reader.folder)
    assert f"pulled {len(made) - len(here)} files" in reader.depoison("share", "pull", "--models", MANY)
    assert content(reader.folder) == made


@contextlib.contextmanager
def s3_remote(folder: Path) -> Iterator[tuple[str, list[str], Callable[[], int]]]:
    with s3_service() as (address, bucket):
        yield address, ["s3://team/depoison", "endpointurl"], lambda: len(list(bucket.objects.all()))


@contextlib.contextmanager
def web_remote(folder: Path) -> Iterator[tuple[str, list[str], Callable[[], int]]]:
    with serving(WebFolder(folder)) as server:
        yield server.address, ["", "url"], lambda: len(whole(folder))


@pytest.mark.parametrize("remote", [s3_remote, web_remote])
def test_a_remote_that_dies_in_the_middle_loses_nothing_and_the_next_completes(tmp_path, remote):
    author = author_in(tmp_path, **USER)
    made = content(author.folder)
    with remote(tmp_path / "remote") as (address, (url, option), stored), serving(Wire(address)) as wire:
        author.run("dvc", "remote", "add", "-q", "--default", "team", url or wire.address)
        author.run("dvc", "remote", "modify", "team", option, wire.address)
        wire.left = 5 * SIZE
        told = author.depoison("share", "push", TARGET, fails=True)
        assert (
            "more: not pushed; push again (dvc push: " in told
            and "Having any troubles" not in told
            and "Traceback" not in told
        )
        assert stored() < len(made)
        wire.left = float("inf")
        author.depoison("share", "push", TARGET)
        assert stored() == len(made)

        reader = reader_of(author, **USER)
        wire.left = 5 * SIZE
        told = reader.depoison("share", "pull", "--models", TARGET, fails=True)
        assert (
            "more: not fetched, and nothing says that the remote lacks them; ask again before you compute them ("
            in told
        )
        assert "anew" not in told and "Having any troubles" not in told and "Traceback" not in told
        here = content(reader.folder)
        assert len(here) < len(made) and here.items() <= made.items() and not is_half_made(reader.folder)
        wire.left = float("inf")
        assert f"pulled {len(made) - len(here)} files" in reader.depoison("share", "pull", "--models", TARGET)
        assert content(reader.folder) == made


# --- two users ---------------------------------------------------------------------------------------------------

needs_two_users = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root may be two users, by way of setpriv"
)


def clone_of_user(folder: Path, user: int) -> Clone:
    """A clone of a user's, with a home beside it."""
    home = folder.with_name(f"home-{folder.name}")
    for path in (folder, home):
        path.mkdir(exist_ok=True)
        os.chown(path, user, user)
    (home / ".gitconfig").write_text("[user]\nname = t\nemail = t@example.org\n[safe]\ndirectory = *\n")
    return Clone(folder, user, HOME=str(home), USER=folder.name)


def give(folder: Path, user: int) -> None:
    """Make all that is in a folder a user's."""
    for path in folder.rglob("*"):
        os.chown(path, user, user, follow_symlinks=False)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """As pytest's, and open to all users."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def lab(open_path) -> tuple[Clone, Clone, Callable[..., None]]:
    """Two users, one of whom has made what is behind a table; and what does as the manual says about users of one machine."""
    ada, bob = clone_of_user(open_path / "ada", 4001), clone_of_user(open_path / "bob", 4002)
    shutil.copytree(author_in(open_path, size=1000, folders=FOLDERS).folder, ada.folder, dirs_exist_ok=True)
    give(ada.folder, 4001)
    text = (ROOT / "docs/sharing.md").read_text(encoding="utf-8").split("## Several users of one machine")[1]
    lines = [line.partition("#")[0].strip() for line in text.split("```")[1].strip().splitlines()]
    lines = [line.replace("/data/", f"{open_path}/").replace("chgrp lab", f"chgrp {LAB}") for line in lines]

    def follow(clone: Clone, once: bool, without: str = "nothing") -> None:
        for line in lines:
            if once != ("--local" in line) and without not in line:
                (clone if line.startswith("dvc") else Clone(open_path)).run(*shlex.split(line))

    return ada, bob, follow


def cells(seed: int) -> list[str]:
    """Of the table's attacks and defenses, with another seed."""
    return [
        f"results/cells/tiny/digits/resnet18/{attack}+rate=0.1/{defense}/s{seed}.json"
        for attack in ("badnet", "blended")
        for defense in ("none", "lp")
    ]


@needs_two_users
def test_two_users_of_one_machine_share_a_cache_and_a_folder(lab, open_path):
    ada, bob, follow = lab
    follow(ada, once=True)
    follow(ada, once=False)
    ada.depoison("share", "push", TARGET)
    ada.commit("all")
    bob.run("git", "clone", "-q", str(ada.folder), ".")
    follow(bob, once=False)
    bob.depoison("share", "pull", "--models", TARGET)
    assert content(bob.folder) == content(ada.folder)

    # Each makes more, and both push at once, also into folders that the other made.
    pushes = []
    for clone, user, seed in ((ada, 4001, 1), (bob, 4002, 2)):
        make_up(clone.folder, cells(seed), 1000, FOLDERS)
        give(clone.folder, user)
        pushes.append(clone.start(sys.executable, "-m", "depoison", "share", "push", *cells(seed)))
    told = [push.communicate()[0] for push in pushes]
    assert [push.returncode for push in pushes] == [0, 0], told
    for clone in (ada, bob):
        clone.commit("more")
    for clone, other, seed in ((ada, bob, 2), (bob, ada, 1)):
        clone.run("git", "pull", "-q", "--no-rebase", "--no-edit", str(other.folder), "main")
        clone.depoison("share", "pull", "--models", *cells(seed))
    assert content(bob.folder) == content(ada.folder)
    for place in (open_path / "dvc-cache", open_path / "dvc-remote"):
        assert whole(place) == objects(place).keys() and len(whole(place)) == len(content(ada.folder))


@needs_two_users
@pytest.mark.parametrize("without", ["cache.shared", "team shared"])
def test_users_who_are_closed_out_are_told_why(lab, open_path, without):
    ada, bob, follow = lab
    follow(ada, once=True, without=without)
    follow(ada, once=False, without=without)
    ada.depoison("share", "push", TARGET)
    ada.commit("all")
    bob.run("git", "clone", "-q", str(ada.folder), ".")
    follow(bob, once=False, without=without)
    make_up(bob.folder, cells(2), 1000, FOLDERS)
    give(bob.folder, 4002)
    told = bob.depoison("share", "push", *cells(2), fails=True)
    (error,) = (line for line in told.splitlines() if "error" in line)
    assert (
        f"Permission denied: '{open_path}" in error and "; where several users share it, see docs/sharing.md" in error
    )
    assert "Having any troubles" not in told and "Traceback" not in told
    for place in (open_path / "dvc-cache", open_path / "dvc-remote"):
        assert whole(place) == objects(place).keys()
