"""Where the project is that the package belongs to: its clone, or what an installed package brings."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree, ignore_patterns

from depoison.errors import DepoisonError

PACKAGE = Path(__file__).resolve().parent
PARTS = ("Snakefile", "config", "profiles", "envs", "workflow")


def own_project() -> Path:
    """The folder with the package's own configuration.

    Raises:
        DepoisonError: the package was copied without it.
    """
    for folder in (PACKAGE / "_project", PACKAGE.parents[1]):
        if (folder / "config/config.yaml").exists():
            return folder
    raise DepoisonError(f"{PACKAGE}: the package is here without its configuration; install it whole")


def lay_out(folder: Path) -> list[str]:
    """Make a working folder: what Snakemake runs in.

    Returns:
        What lies in it now.

    Raises:
        DepoisonError: something is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DepoisonError(f"{folder}: is not empty; valid: a new folder, or an empty one")
    source = own_project()
    ignored = ignore_patterns("__pycache__", "*.egg-info", "_project")
    for part in PARTS:
        if (source / part).is_dir():
            copytree(source / part, folder / part, ignore=ignored)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / part).write_bytes((source / part).read_bytes())
    copytree(PACKAGE, folder / "workflow/depoison", ignore=ignored, dirs_exist_ok=True)
    return [*PARTS]
