"""Weights that somebody brings: their file, and which of its tensors is which of a network's."""

from __future__ import annotations

import difflib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from depoison.errors import DepoisonError

COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches, which older files lack and no prediction asks for."""
SHORTCUTS = ("shortcut", "downsample")
"""What a block's projection may be a module of."""
DEEPEST = 8
"""How deep dictionaries of a file may nest."""

State = Mapping[str, Tensor]
Leaves = dict[str, str]
"""A module's tensors: their names by what they are, such as weight."""


def read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts of a file, each by where it lies in it, such as "model" or "best.net"; one alone by "".

    Args:
        path: .safetensors, or what `torch.save` wrote (.pt, .pth, .tar, …): read without running any code of it.

    Raises:
        DepoisonError: not there, not of this form, a pickle that asks for more than tensors and plain values, or without a
            state dict.
    """
    if not path.is_file():
        raise DepoisonError(f"{path}: no such file of weights")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _loaded(path)
    except DepoisonError:
        raise
    except Exception as error:  # whatever a reader makes of bytes that somebody else wrote
        raise DepoisonError(f"{path}: no file of weights that can be read ({_line(error)[:200]})") from None
    found = dict(_states_in(content))
    if not found:
        what = f"holds a {type(content).__name__} without tensors by name"
        raise DepoisonError(f"{path}: {what}; valid: a state dict, alone or below a key")
    return found


def _loaded(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        # torch says at length what else one could do; what it refuses comes last.
        said = _line(error).rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0]
        wanted = re.search(r"(?:GLOBAL|class|function|type) ([\w.]+)", said)
        raise DepoisonError(
            f"{path}: refused, as to load it may run code: {f'it wants {wanted[1]}' if wanted else said[:80]}"
            "; valid: tensors alone, as torch.save(model.state_dict(), …) or safetensors write them"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _states_in(content: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if any("." in name or name in ("weight", "bias") for name in tensors):
        yield key, tensors
    for name, value in content.items():
        yield from _states_in(value, f"{key}.{name}".lstrip("."), depth + 1)


def renamed(state: State, rename: Mapping[str, str | None]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict whose names are changed.

    Args:
        rename: by pattern (a regular expression, found anywhere in a name), what stands in its place; None leaves the tensor
            out.

    Returns:
        The tensors by their new names, and the old names by the new.

    Raises:
        DepoisonError: a pattern or what replaces it is none, or two tensors get one name.
    """
    found, old = {}, {}
    for name, tensor in state.items():
        new: str | None = name
        for pattern, replacement in rename.items():
            try:
                if new is not None and re.search(pattern, new):
                    new = None if replacement is None else re.sub(pattern, replacement, new)
            except (re.error, IndexError) as error:
                raise DepoisonError(
                    f"rename: {pattern!r}: {replacement!r} is no replacement by pattern ({error})"
                ) from None
        if new is None:
            continue
        if new in found:
            raise DepoisonError(f"rename: {old[new]} and {name} both become {new}")
        found[new], old[new] = tensor, name
    return found, old


class Misfit(DepoisonError):
    """Weights are not those of a network.

    Attributes:
        faults: one for each tensor that is missing, superfluous or of another shape, with its name and what the nearest name
            is looked for among.
    """

    def __init__(self, own: State, given: State):
        super().__init__()
        self.faults = _faults(own, given)

    @property
    def lines(self) -> list[str]:
        """The faults in words."""
        return self._told(len(self.faults))

    def _told(self, count: int) -> list[str]:
        return [f"{fault}{_near(name, among)}" for fault, name, among in self.faults[:count]]

    def __str__(self) -> str:
        return f"weights of another network: {'; '.join(self._told(3))}" + f"; and {len(self.faults) - 3} more" * (
            len(self.faults) > 3
        )


def matched(own: State, given: State) -> dict[str, str]:
    """Which of the given tensors is which of a network's own.

    By name where names agree, but for what a wrapper such as DataParallel puts before all of them. Otherwise module by
    module: in the order of both, which is that of the layers; or, as some files sort names, among modules of equal shapes in
    the order of numbers, where modules of one block are of one block on the other side. The alphabet says nothing of which
    layer comes first (`_numbered`).

    Returns:
        By name of its own the name given; a counter of batches may have none.

    Raises:
        Misfit: they are those of another network, or it cannot be told.
    """
    ours, theirs = _modules(own), _modules(given)
    signed = {name: _signature(own, leaves) for name, leaves in ours.items()}
    signatures = {name: _signature(given, leaves) for name, leaves in theirs.items()}
    for pairs in _pairings(signed, signatures, by_name(given)):
        fits = len(pairs) == len(ours) == len(theirs) and all(signed[a] == signatures[b] for a, b in pairs)
        if fits:
            return {own: theirs[b][leaf] for a, b in pairs for leaf, own in ours[a].items() if leaf in theirs[b]}
    raise Misfit(own, given)


def by_name(state: State) -> bool:
    """Whether tensors are in the order of their names, as safetensors has those of a type, and not in that of the layers."""
    names = defaultdict(list)
    for name, tensor in state.items():
        names[tensor.dtype].append(name)
    return all(of == sorted(of) for of in names.values())


def _pairings(ours: Mapping[str, Any], theirs: Mapping[str, Any], by_name: bool) -> Iterator[list[tuple[str, str]]]:
    """Ways to pair modules, by what they are called on both sides, the surest first.

    Args:
        ours, theirs: by module, in order, what it may be recognized by.
        by_name: whether theirs are in the order of their names.
    """
    wrapped = len({name.partition(".")[0] for name in theirs}) == 1 and all("." in name for name in theirs)
    plain = {name.partition(".")[2] if wrapped else name: name for name in theirs}
    for names in ({name: name for name in theirs}, plain):
        yield [(name, names[name]) for name in ours if name in names]
    natural = sorted(theirs, key=_natural)
    in_order = [*zip(ours, natural if by_name else theirs, strict=False)]
    if not by_name or _numbered(in_order, theirs):
        yield in_order
    waiting = defaultdict(list)
    for name in reversed(natural):
        waiting[theirs[name]].append(name)
    pairs = [(name, waiting[ours[name]].pop()) for name in sorted(ours, key=_natural) if waiting[ours[name]]]
    turned = [(b, a) for a, b in pairs]
    if _in_blocks(pairs) and _in_blocks(turned) and _numbered(pairs, theirs) and _numbered(turned, ours):
        yield pairs


def _numbered(pairs: list[tuple[str, str]], signatures: Mapping[str, Any]) -> bool:
    """Whether numbers tell apart the modules, on the right, that are alike in a block, but for those called as on the left.

    Args:
        signatures: of the modules on the right.
    """
    kinds: dict[Any, list[str]] = defaultdict(list)
    for here, there in pairs:
        if here.rpartition(".")[2] != there.rpartition(".")[2]:
            kinds[_block(there), signatures[there]].append(re.sub(r"\d+", "#", there))
    return all(len(set(names)) == 1 for names in kinds.values())


def _in_blocks(pairs: list[tuple[str, str]]) -> bool:
    """Whether modules of one block, on the left, are of one block on the right; what lies on top is of none."""
    found = defaultdict(set)
    for here, there in pairs:
        found[_block(here)].add(_block(there))
    return all(len(blocks) == 1 for block, blocks in found.items() if "." in block)


def _block(module: str) -> str:
    above, _, last = module.rpartition(".")[0].rpartition(".")
    return above if last in SHORTCUTS else f"{above}.{last}".lstrip(".")


def _modules(state: State) -> dict[str, Leaves]:
    found: dict[str, Leaves] = defaultdict(dict)
    for name in state:
        module, _, leaf = name.rpartition(".")
        found[module][leaf] = name
    return dict(found)


def _signature(state: State, leaves: Leaves) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((leaf, tuple(state[name].shape)) for leaf, name in leaves.items() if leaf != COUNTER))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|[^\d.]+", name)]


def _faults(own: State, given: State) -> list[tuple[str, str, State]]:
    """As `Misfit` has them: what differs where the modules of both are laid side by side, like ones beside each other.

    Alike are modules of the same tensors, if that way all are, else those of the same shapes.
    """
    ours, theirs = _modules(own), _modules(given)
    shapes = [[_signature(state, leaves) for leaves in of.values()] for state, of in ((own, ours), (given, theirs))]
    if Counter(shapes[0]) == Counter(shapes[1]):
        return [("which of its tensors is which cannot be told; say it by `rename`", "", {})]
    kinds = [[tuple((leaf, len(shape)) for leaf, shape in signature) for signature in side] for side in shapes]
    a, b = kinds if kinds[0] == kinds[1] else shapes
    sides, found = ([*ours], [*theirs]), []
    for _, i, j, k, end in difflib.SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes():
        for here, there in zip_longest(sides[0][i:j], sides[1][k:end]):
            found += _differing(own, given, ours.get(here, {}), theirs.get(there, {}))
    return found


def _differing(own: State, given: State, ours: Leaves, theirs: Leaves) -> Iterator[tuple[str, str, State]]:
    """The faults of a module."""
    for leaf in dict.fromkeys((*ours, *theirs)):
        if leaf == COUNTER:
            continue
        if leaf not in theirs:
            yield f"{ours[leaf]} is missing", ours[leaf], given
        elif leaf not in ours:
            yield f"{theirs[leaf]} is superfluous", theirs[leaf], own
        elif (has := given[theirs[leaf]].shape) != (wants := own[ours[leaf]].shape):
            yield f"{theirs[leaf]} is {[*has]}, and {ours[leaf]} is {[*wants]}", "", {}


def _near(name: str, others: State) -> str:
    found = difflib.get_close_matches(name, others, n=1, cutoff=0.3)
    return f" (nearest: {found[0]})" if found else ""
