"""The installed package: with its configuration, and a working folder from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from depoison.errors import DepoisonError
from depoison.project import PARTS, lay_out, own_project


def content(folder: Path) -> dict[str, bytes]:
    """Each file below a folder, less what Python makes beside code."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if not {"__pycache__", ".ruff_cache"} & {*path.parts}
        and not any(part.endswith(".egg-info") for part in path.parts)
    }


def test_a_working_folder_is_what_the_package_is(tmp_path):
    assert own_project() == ROOT
    lay_out(tmp_path / "new")
    for part in PARTS:
        there, here = tmp_path / "new" / part, ROOT / part
        assert content(there) == content(here) if here.is_dir() else there.read_bytes() == here.read_bytes()
    with pytest.raises(DepoisonError, match=r"new: is not empty; valid: a new folder, or an empty one$"):
        lay_out(tmp_path / "new")


@pytest.mark.drill
def test_an_installed_package_lays_out_a_folder_that_snakemake_runs_in(tmp_path):
    """Installed beside nothing of the clone, from a wheel as `pip install .` makes it."""
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    pip = (sys.executable, "-m", "pip", "--quiet")
    subprocess.run([*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheel"], check=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "installed", wheel], check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}

    def run(*words: str, within: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=within, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    work = tmp_path / "work"
    assert f"next: cd {work} && snakemake -n" in run("depoison", "init", str(work), within=tmp_path)
    assert (
        run("depoison", "check", within=work).startswith("valid: ")
        and not (work / "workflow/depoison/_project").exists()
    )
    assert "Nothing to be done" not in (told := run("snakemake", "-n", "--", "reports/demo/overview.md", within=work))
    assert "purify" in told
    code = (
        "import depoison, torch; print(depoison.poison(torch.zeros(40, 3, 8, 8), [0, 1] * 20, rate=0.1).changed.sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "tensor(4)\n", done.stderr
