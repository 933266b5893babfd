"""Numbers of images on a track's own dataset: what a paper's poisoning rate becomes, and which tuning set is too large."""

from __future__ import annotations

from typing import Any

from depoison.errors import DepoisonError
from depoison.plan.cells import Choice
from depoison.plan.config import OWN
from depoison.plan.parameters import text_of
from depoison.plan.plan import Plan, values_of

DIGITS = 6
"""Of a rate, after the point: below a million images that is less than half of one."""


def scaled(plan: Plan, track: str, attack: Choice, paper: str, *, printed: str, dataset: str, model: str) -> Choice:
    """An attack of a paper's table or figure with the rate at which this track poisons as many images.

    The number is the rate's part of the attacker's pool, which is the training set without the defender's reserve. It is
    capped as the track says. A rate that the user's own configuration sets is his, and stays.

    Args:
        paper: as the names of its cells have it.
        printed: the dataset in the paper.
        dataset, model: in the place of the paper's on this track.

    Raises:
        DepoisonError: a dataset's file does not say how many training images it has.
    """
    configuration = plan.configuration
    scaling = configuration.track(track).content.poisoning
    if scaling.scale == "rate" or dataset == printed or "rate" not in configuration.parameters("attack", attack.name):
        return attack

    def pool(name: str) -> int:
        loaded = configuration.method("dataset", name)
        if (total := loaded.content.train_samples) is None:
            raise DepoisonError(
                f"{loaded.document.path}: track {track} keeps the number of poisoned images, which needs 'train_samples', "
                "how many training images the dataset has"
            )
        values = _values(plan, name, model=model, track=track, paper=paper, where=loaded.document.path)
        return total - round(values["reserve"] * total)

    overrides = dict(attack.overrides)
    found = plan.settings(
        "attack", attack, dataset=dataset, model=model, track=track, paper=paper, where=f"track {track}"
    )["rate"][-1]
    if found.layer == OWN:
        return attack
    clean = configuration.clean_label(attack.name)
    cap = min(scaling.cap, scaling.clean_label_cap) if clean else scaling.cap
    here = pool(dataset)
    rate = min(max(1, round(found.value * pool(printed))), int(cap * here)) / here
    overrides["rate"] = text_of(round(rate, DIGITS))
    scaled_by = configuration.track(track).document.place("poisoning")
    origins = {key: (layer, place) for key, layer, place in attack.origins}
    layer, place = origins.get("rate", (f"track {track}", ""))
    origins["rate"] = layer, f"{place} scaled by {scaled_by}" if place else scaled_by
    return Choice(
        attack.name, tuple(sorted(overrides.items())), tuple((key, *origin) for key, origin in origins.items())
    )


def too_many(plan: Plan, track: str, defense: Choice, paper: str, *, printed: str, dataset: str, model: str) -> str:
    """Where a defense is to be tuned on more images than are reserved of this track's dataset, a sentence; otherwise "".

    Args:
        as `scaled`.
    """
    count = dict(defense.overrides).get("tuning_images", "none")
    if dataset == printed or count == "none":
        return ""
    where = plan.configuration.track(track).document.path
    values = _values(plan, dataset, model=model, track=track, paper=paper, where=where)
    reserved = plan.reserved(dataset, values)
    if reserved is None or int(count) <= reserved:
        return ""
    return f"{count} images are more than the {reserved} of {plan.label('dataset', dataset)} that are reserved"


def _values(plan: Plan, dataset: str, **of: str) -> dict[str, Any]:
    """The hyper-parameters of a dataset as cells have them that say nothing of it."""
    return values_of(plan.settings("dataset", Choice(dataset), dataset=dataset, **of))
