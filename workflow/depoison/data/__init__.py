"""Dataset sources: one module each, with one function `load(*, root, cache, size, ...) -> Samples`.

Adding a source is adding a file: `my_set.py` becomes the source `my-set`. Modules that start with an underscore, and
`dataset` and `download`, are shared code. Importing this package imports neither torch nor any source.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depoison.errors import DepoisonError, returned, unknown

if TYPE_CHECKING:
    from depoison.data.dataset import Samples

_SHARED = {"dataset", "download"}

SOURCES: dict[str, str] = {
    module.name.replace("_", "-"): f"{__name__}.{module.name}"
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith("_") and module.name not in _SHARED
}


def load(source: str, *, root: str | Path | None, cache: str | Path, size: int, **options: Any) -> Samples:
    """Load the set `source` and validate it, but for what its task says of its inputs.

    Args:
        source: a key of SOURCES.
        root: a local copy or the user's own files, only read; None: what is bundled, made or downloaded.
        cache: folder for downloads, made when needed.
        size: how large an input is: height and width of an image, points of a cloud.
        options: the source's own keywords.

    Returns:
        What its module says, train and test.

    Raises:
        DepoisonError: unknown source or option, invalid size, or whatever is wrong with the files.
    """
    where = _module_of(source)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise DepoisonError(f"dataset source {source}: size is {size!r}; valid: a whole number, at least 1")
    module = importlib.import_module(where)
    known = set(inspect.signature(module.load).parameters) - {"root", "cache", "size"}
    for option in options:
        if option not in known:
            raise unknown(f"option of dataset source {source}", option, known)
    data = module.load(
        root=None if root is None else Path(root).expanduser(), cache=Path(cache).expanduser(), size=size, **options
    )
    if not isinstance(data, importlib.import_module(f"{__name__}.dataset").Samples):
        raise returned(module.load, f"source {source}", data, "Samples")
    try:
        data.validate()
    except DepoisonError as error:
        raise DepoisonError(f"{os.path.relpath(module.__file__)}: {error}") from None
    return data


def _module_of(source: str) -> str:
    """The name of a source's module: one of SOURCES, or a user's own.

    Raises:
        DepoisonError: there is none.
    """
    stem = source.replace("-", "_")
    if source not in SOURCES and (stem[:1] == "_" or stem in _SHARED or find_spec(f"{__name__}.{stem}") is None):
        raise unknown("dataset source", source, SOURCES)
    return f"{__name__}.{stem}"
