"""Symbolic links below results/ are not followed by what writes there; results/ itself may be one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Project, cell
from depoison.errors import DepoisonError
from depoison.files import only_maker, refuse_links, write_bytes
from depoison.plan.config import Runtime
from depoison.stages.runner import run_stage


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder whose content is nobody's business."""
    folder = tmp_path / "elsewhere"
    (folder / "inner").mkdir(parents=True)
    for name in ("thesis.tex", "state-3.safetensors", "inner/state-4.safetensors"):
        (folder / name).write_text("mine")
    return folder


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in folder.rglob("*")}


@pytest.fixture
def lost(made: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact's folder, relative to the working directory, which lacks its product; its spec is beside it."""
    monkeypatch.chdir(made.path)
    (folder,) = Path("results/purify").glob("*badnet*")
    shutil.move(folder / "spec.json", "spec.json")
    shutil.rmtree(folder)
    return folder


PLACES: dict[str, Callable[[Path], Path]] = {
    "the folder": lambda folder: folder,
    "the stage": lambda folder: folder.parent,
    "the lock": lambda folder: folder.with_name(f".{folder.name}.lock"),
    "the lock, of a file": lambda folder: folder.with_name(f".{folder.name}.lock"),
    "the scratch folder": lambda folder: folder.with_name(f".{folder.name}.scratch"),
    "a folder that is being built": lambda folder: folder.with_name(f".{folder.name}.old.building"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_link_in_an_artifacts_place_is_named_and_not_followed(place, lost, elsewhere):
    link, before = PLACES[place](lost), content(elsewhere)
    if link.is_dir():
        shutil.rmtree(link)
    link.symlink_to(elsewhere / "thesis.tex" if "file" in place else elsewhere)
    told = rf"^{link}: is a symbolic link, and nothing is written where it leads; remove it"
    with pytest.raises(DepoisonError, match=told) as raised:
        run_stage(json.loads(Path("spec.json").read_text()), str(lost), Runtime())
    assert "\n" not in str(raised.value) and content(elsewhere) == before
    link.unlink()
    if place == "the stage":
        return
    run_stage(json.loads(Path("spec.json").read_text()), str(lost), Runtime())
    assert (lost / "model.safetensors").exists()
    assert [path.name for path in lost.parent.iterdir() if path.name.startswith(".")] == []


def test_a_dangling_link_makes_nothing(lost, tmp_path):
    lock = lost.with_name(f".{lost.name}.lock")
    lock.symlink_to(tmp_path / "new")
    with pytest.raises(DepoisonError, match="is a symbolic link"):
        run_stage(json.loads(Path("spec.json").read_text()), str(lost), Runtime())
    assert not (tmp_path / "new").exists()


def test_a_temporary_file_follows_no_link(elsewhere, tmp_path):
    (tmp_path / f".a.{os.getpid()}.partial").symlink_to(elsewhere / "thesis.tex")
    with pytest.raises(DepoisonError, match=r"\.partial: is a symbolic link"):
        write_bytes(tmp_path / "a", b"new")
    assert (elsewhere / "thesis.tex").read_text() == "mine" and not (tmp_path / "a").exists()


def test_a_link_in_a_files_place_is_replaced(elsewhere, tmp_path):
    (tmp_path / "a").symlink_to(elsewhere / "thesis.tex")
    write_bytes(tmp_path / "a", b"new")
    assert (elsewhere / "thesis.tex").read_text() == "mine"
    assert not (tmp_path / "a").is_symlink() and (tmp_path / "a").read_bytes() == b"new"


def test_a_reports_lock_follows_no_link(elsewhere, tmp_path):
    (tmp_path / ".table1.lock").symlink_to(elsewhere / "thesis.tex")
    with pytest.raises(DepoisonError, match=r"\.table1\.lock: is a symbolic link"), only_maker(tmp_path / "table1"):
        pass
    assert (elsewhere / "thesis.tex").read_text() == "mine"


def test_results_and_what_is_above_may_be_links(tmp_path, monkeypatch):
    (tmp_path / "disk/train").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    (tmp_path / "link").symlink_to("project")
    (tmp_path / "project/results").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/split").symlink_to("train")
    monkeypatch.chdir(tmp_path / "link")
    for allowed in ("results", "results/train", "results/train/a/b", "reports/fst"):
        refuse_links(Path(allowed))
    for refused in ("results/split", "results/split/a", "results/split/a/b"):
        with pytest.raises(DepoisonError, match="^results/split: is a symbolic link.*results/ itself may be one"):
            refuse_links(Path(refused))


@pytest.mark.drill
@pytest.mark.pipeline
def test_a_run_with_results_on_another_disk(tiny, tmp_path):
    (tmp_path / "disk").mkdir()
    (tiny / "results").symlink_to(tmp_path / "disk")
    target = cell(track="tiny", attack="badnet+rate=0.1", defense="none")
    done = tiny.snakemake("--cores", "2", "--", target)
    assert done.returncode == 0, done.stderr
    assert (tiny / "results").is_symlink() and (tmp_path / "disk" / target.removeprefix("results/")).exists()
    assert "Nothing to be done" in (again := tiny.snakemake("-n", "--", target)).stdout + again.stderr


@pytest.mark.pipeline
@pytest.mark.parametrize("command", ["snakemake", "depoison"])
@pytest.mark.parametrize("where", ["results/evaluate", "results/cells/tiny"])
def test_a_run_names_the_link_before_it_makes_anything_there(command, where, made, elsewhere):
    shutil.rmtree(made / where, ignore_errors=True)
    (made / where).parent.mkdir(parents=True, exist_ok=True)
    (made / where).symlink_to(elsewhere)
    target, before = cell(track="tiny", attack="badnet+rate=0.1", defense="lp"), content(elsewhere)
    done = made.snakemake("--cores", "1", "--", target) if command == "snakemake" else made.depoison("run", target)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if f"{where}: is a symbolic link" in line]
    assert told and content(elsewhere) == before, done.stderr
