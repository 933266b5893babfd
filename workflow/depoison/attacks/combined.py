"""Combined attacks: several backdoors in one model, each with its own trigger. SFT (Karim et al., 2024), appendix A.6.7.

"Each of these attacks has an equal share in the poison data." Here the attacker's pool is dealt at random into as many equal
parts as there are attacks, and each of them knows its part alone: there it poisons as it would a whole pool, or makes its own
batches (WaNet). So no sample has two triggers. Label map, target and recipe are one for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from depoison.attacks import base
from depoison.attacks.base import Attack, Fit, Overlay, Pool, Setup, State
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.training.batches import BatchSource, Epochs, MixedBatches


def attack_of(attack: Mapping[str, Any]) -> Attack | None:
    """The attack of a spec: {name, version, parameters}, or {name, parts} of combined ones; None for a clean model."""
    if "parts" not in attack:
        return base.make(attack)
    made = {part["name"]: base.make(part) for part in attack["parts"]}
    return Combined(attacks={name: one for name, one in made.items() if one is not None})


@dataclass(frozen=True, kw_only=True)
class Combined(Attack):
    """Attributes: attacks: by name, in the order in which they are dealt to."""

    attacks: Mapping[str, Attack]

    def parts(self, trigger: State) -> list[tuple[Attack, State]]:
        return [(attack, _of(name, trigger)) for name, attack in self.attacks.items()]

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """name.*: the tensors of each attack."""
        found: dict[str, Tensor] = {}
        for name, attack in self.attacks.items():
            found |= _named(name, base.trigger_of(attack, setup.of(name)))
        return found

    def poison(self, pool: Pool, setup: Setup, trigger: State) -> Overlay:
        """Each attack its part of the pool: in all as many samples as the rate says, and of each as many, or one less.

        Raises:
            DepoisonError: as the attack that it names does.
        """
        assert setup.poisoning is not None
        count, overlays, parts = setup.poisoning.count(len(pool.labels)), [], {}
        for i, (name, attack, where) in enumerate(self._deal(len(pool.labels), setup)):
            share = (count + len(self.attacks) - 1 - i) // len(self.attacks)
            told = replace(setup.of(name), poisoning=replace(setup.poisoning, rate=share / len(where)))
            try:
                overlay = base.overlay_of(attack, pool.part(where), told, _of(name, trigger))
            except DepoisonError as error:
                raise DepoisonError(f"{name}, of its {len(where)} samples: {error}") from None
            overlays.append(replace(overlay, indices=where[overlay.indices]))
            parts[name] = len(overlay.indices) - overlay.covers
        indices, order = torch.cat([overlay.indices for overlay in overlays]).sort()
        inputs, labels = (torch.cat([getattr(one, key) for one in overlays])[order] for key in ("inputs", "labels"))
        return Overlay(indices, inputs, labels, sum(overlay.covers for overlay in overlays), parts)

    def train(self, fit: Fit, model: Classifier, setup: Setup, trigger: State) -> State:
        """On one mixture: of the batches that attacks make of their parts, and the rest of the pool.

        An attack's `train` is called around that of the next one, the last one's around the training: each ends after that.

        Raises:
            DepoisonError: an attack does not train by `fit`, or on batches that are drawn sample by sample.
        """
        dealt = self._deal(len(fit.pool.labels), setup)
        own = [one for one in dealt if type(one[1]).train is not Attack.train]
        found, trained = dict(trigger), []

        def along(sources: Sequence[BatchSource]) -> None:
            if len(sources) == len(own):
                fit(model, _mixed(fit, sources, [where for *_, where in own]) if own else None)
                trained.append(True)
                return
            name, attack, where = own[len(sources)]
            of_part = {"pool": fit.pool.part(where), "poisoned": fit.poisoned[where]}
            share = _Share(**vars(fit) | of_part, name=name, go_on=lambda data: along([*sources, data]))
            found.update(_named(name, base.trained(attack, share, model, setup.of(name), _of(name, trigger))))
            if not trained:
                share.refuse()

        along([])
        return found

    def _deal(self, count: int, setup: Setup) -> list[tuple[str, Attack, Tensor]]:
        """Each attack with its part of a pool, (n,) int64, sorted; the same in every stage."""
        order = torch.randperm(count, generator=Rng(setup.rng.seed, "combined").generator("deal"))
        turns = enumerate(self.attacks.items())
        return [(name, attack, order[i :: len(self.attacks)].sort().values) for i, (name, attack) in turns]


@dataclass(frozen=True)
class _Share(Fit):
    """The training as one attack knows it: what it would train on goes into the mixture."""

    name: str
    go_on: Callable[[BatchSource], None]

    def __call__(self, model: Classifier, data: Epochs | None = None) -> None:
        source = self.batches() if data is None else data
        if not hasattr(source, "batch"):
            self.refuse()
        self.go_on(source)

    def steps(self, *_: Any, **__: Any) -> NoReturn:
        self.refuse()

    def refuse(self) -> NoReturn:
        raise DepoisonError(f"{self.name} trains the model in a loop of its own, so it cannot be combined with others")


def _mixed(fit: Fit, sources: Sequence[BatchSource], parts: Sequence[Tensor]) -> MixedBatches:
    """Sources of parts of the pool, and its other samples as they are."""
    rest = (~torch.isin(torch.arange(len(fit.pool.labels)), torch.cat([*parts]))).nonzero()[:, 0]
    if not len(rest):
        return MixedBatches(sources, parts)
    return MixedBatches([*sources, replace(fit, pool=fit.pool.part(rest)).batches()], [*parts, rest])


def _named(name: str, tensors: State) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def _of(name: str, tensors: State) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
