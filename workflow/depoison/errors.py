"""The one exception that users see: a single line that names what is at fault and what is valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DepoisonError(Exception):
    """Bad input or a broken artifact. The message is one line; the command line prints it and exits with 1."""


def unknown(what: str, name: str, known: Iterable[str], where: str = "") -> DepoisonError:
    """An error for `name`, which is none of `known`, that suggests the nearest one.

    Args:
        what: the kind of thing, such as "defense" or "hyper-parameter of fst".
        where: the file, key or cell that holds the name; put before the message.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return DepoisonError(
        f"{where + ': ' if where else ''}unknown {what} {name!r}; {hint}valid: {', '.join(known) or 'none'}"
    )
