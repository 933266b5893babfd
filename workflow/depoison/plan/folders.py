"""Folders of images: whether they are there, how many classes they have, and whether they are what was read from them."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from depoison.errors import DepoisonError
from depoison.files import corrupted, read_json
from depoison.plan.specs import Artifact

LISTING = "listing.json"
"""What the folder held when a dataset was read from it, beside the artifact; no part of it, and true on this machine only."""

SOURCE = "imagefolder"
PARTS = {SOURCE: ("train", "test"), "imagenet": ("train", "val")}
"""Sources that read folders of images, and what their training and test part are called there."""
OWN = (*PARTS, "arrays")
"""Sources of a user's own files, which are known by where they lie."""


def parts_of(root: Path, source: str = SOURCE) -> tuple[str, ...]:
    """Those of a source's PARTS that a folder of images has; ("",) where its classes lie in it themselves."""
    return tuple(part for part in PARTS[source] if (root / part).is_dir()) or ("",)


def classes_of(root: Path) -> int | None:
    """How many classes a folder of images has; None where it is not there, or is none."""
    return sum(entry.is_dir() for entry in _entries(root / parts_of(root)[0])) or None


def listing_of(root: Path, source: str) -> dict[str, str]:
    """By class folder, such as train/cat, a hash of the names, sizes and times of its files; of one file, its own as ""."""
    if root.is_file():
        return {"": _hash_of([(root.name, root.stat())])}
    found = {}
    for part in parts_of(root, source):
        for folder in (entry for entry in _entries(root / part) if entry.is_dir()):
            files = sorted((entry.name, entry.stat()) for entry in _entries(Path(folder.path)) if entry.is_file())
            found[f"{part}/{folder.name}".lstrip("/")] = _hash_of(files)
    return found


def _hash_of(files: list[tuple[str, os.stat_result]]) -> str:
    text = "".join(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n" for name, stat in files)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []


def require_root(dataset: Artifact, root: str) -> None:
    """See that what a dataset is to be read from is there.

    Raises:
        DepoisonError: it is not.
    """
    parameters, folder = dataset.spec["parameters"], Path(root).expanduser()
    parts = () if parameters["options"].get("test") else PARTS.get(parameters["source"], ())
    layout = f"; expected {' and '.join(f'{part}/<class>/*' for part in parts)} below it" if parts else ""
    for path in (folder, *(folder / part for part in parts)):
        if not path.exists():
            raise DepoisonError(
                f"{path}: no such folder or file; {root} is the root of dataset {parameters['name']}{layout}"
            )


def require_unchanged(dataset: Artifact, root: str) -> str:
    """See that a folder of images is what it was when the dataset was read from it.

    Returns:
        A line for the user where the folder is gone; "" otherwise.

    Raises:
        DepoisonError: names, sizes or times of its files changed.
    """
    path, folder = Path(dataset.directory, LISTING), Path(root).expanduser()
    parameters = dataset.spec["parameters"]
    if parameters.get("root") is None or not path.exists() or not Path(dataset.product).exists():
        return ""  # known by its content, read on another machine, or not read yet
    if not folder.exists():
        read = time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
        return f"{root}: not there any more; dataset {parameters['name']} is what was read from it on {read}"
    before = read_json(path)
    if not isinstance(before, dict):
        raise corrupted(path, "no listing")
    now = listing_of(folder, parameters["source"])
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise DepoisonError(
            f"{Path(root, changed[0])}{more}: changed since {dataset.directory} was read from there; put it back, or give "
            f"dataset {parameters['name']} a `checksum` (after any text the run says which), which makes it another set, "
            f"or, if only times changed, delete {path}"
        )
    return ""
