"""Specs, fingerprints and paths: an artifact is a pure function of its spec, and its path is that spec's fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from depoison.errors import DepoisonError
from depoison.plan.cells import AND


@dataclass(frozen=True)
class Stage:
    """What makes one kind of artifact.

    Attributes:
        version: raised when the stage's code changes what it makes; part of every spec.
        product: the file whose presence means that the artifact is complete.
        files: every file that the stage leaves beside spec.json and run.json, the product last.
    """

    version: int
    files: tuple[str, ...]

    @property
    def product(self) -> str:
        return self.files[-1]


STAGES: dict[str, Stage] = {
    "dataset": Stage(2, ("classes.json", "data.safetensors")),
    "split": Stage(1, ("split.safetensors",)),
    "asset": Stage(1, ("asset.safetensors",)),
    "poison": Stage(2, ("trigger.safetensors", "poison.safetensors")),
    "train": Stage(2, ("trigger.safetensors", "triggered.safetensors", "history.csv", "model.safetensors")),
    "adopt": Stage(1, ("names.json", "trigger.safetensors", "triggered.safetensors", "model.safetensors")),
    "purify": Stage(1, ("history.csv", "model.safetensors")),
    "evaluate": Stage(3, ("metrics.json",)),
    "probe": Stage(1, ("value.json",)),
    "embedding": Stage(1, ("embedding.csv",)),
    "hessian": Stage(1, ("hessian.json",)),
    "examples": Stage(1, ("examples.safetensors",)),
    "gradcam": Stage(1, ("gradcam.safetensors",)),
    "neurons": Stage(1, ("neurons.csv",)),
    "course": Stage(1, ("course.csv",)),
    "masks": Stage(1, ("masks.csv",)),
}


def computes(stage: str, upstream: Iterable[str]) -> bool:
    """Whether a stage uses a GPU where there is one; poisoning does with a network that the attack made."""
    return stage not in ("dataset", "split", "poison", "adopt", "examples", "masks") or (
        stage == "poison" and any(role.startswith(asset_of()) for role in upstream)
    )


def asset_of(part: str = "") -> str:
    """The role of what an attack made, in the spec of a poisoned set.

    Args:
        part: which of those that are combined.
    """
    return f"asset {part}".strip()


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """First 10 hex digits of the sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Artifact:
    """A spec and where its product lies.

    Attributes:
        spec: {stage, version, upstream, parameters, seed}; `upstream` holds the directories of the artifacts it is
            made from, so that the fingerprint is recursive.
        directory: results/<stage>/<readable name>-<fingerprint>, relative to the working directory.
        upstream: the artifacts behind spec["upstream"], by role.
    """

    spec: dict[str, Any]
    directory: str
    upstream: dict[str, Artifact]

    @property
    def stage(self) -> str:
        return self.spec["stage"]

    @property
    def product(self) -> str:
        """Path of the file whose presence means that the artifact is complete."""
        return f"{self.directory}/{STAGES[self.stage].product}"

    def chain(self) -> dict[str, Artifact]:
        """This artifact and all that it is made from, by directory, upstream first."""
        return chain_of([self])


def unique(artifacts: Iterable[Artifact]) -> list[Artifact]:
    """Each of these artifacts once, in their order."""
    return list({artifact.directory: artifact for artifact in artifacts}.values())


def chain_of(artifacts: Iterable[Artifact], known: dict[str, Artifact] | None = None) -> dict[str, Artifact]:
    """These artifacts and all that they are made from, by directory, each once, upstream first.

    Args:
        known: what they are added to.
    """
    found = {} if known is None else known

    def walk(artifact: Artifact) -> None:
        if artifact.directory not in found:
            for upstream in artifact.upstream.values():
                walk(upstream)
            found[artifact.directory] = artifact

    for artifact in artifacts:
        walk(artifact)
    return found


def directory_of(spec: dict[str, Any]) -> str:
    """The directory that belongs to a spec; a pure function of it.

    Raises:
        DepoisonError: it is no spec.
    """
    try:
        if "/" in (name := _readable_name(spec)):
            raise ValueError(f"{name!r} is no name")
        return f"results/{spec['stage']}/{name}-{fingerprint(spec)}"
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise DepoisonError(f"no spec of an artifact ({error!r})") from None


def make_artifact(
    stage: str, upstream: dict[str, Artifact], parameters: dict[str, Any], seed: int | None = None
) -> Artifact:
    """The artifact of a stage with these parameters, made from these artifacts."""
    spec = {
        "stage": stage,
        "version": STAGES[stage].version,
        "upstream": {role: artifact.directory for role, artifact in sorted(upstream.items())},
        "parameters": parameters,
        "seed": seed,
    }
    return Artifact(spec, directory_of(spec), dict(sorted(upstream.items())))


def _readable_name(spec: dict[str, Any]) -> str:
    """For people only; the fingerprint is what tells artifacts apart. Derived from the spec, so that equal specs agree."""

    def name_of(role: str) -> str:
        return spec["upstream"][role].rsplit("/", 1)[1][: -len("-0123456789")]

    parameters = spec["parameters"]
    match spec["stage"]:
        case "dataset":
            return parameters["name"]
        case "split":
            return f"{name_of('dataset')}-s{spec['seed']}"
        case "asset":
            return f"{name_of('dataset')}-{parameters['attack']['name']}-s{spec['seed']}"
        case "poison":
            poisoning = parameters["poisoning"]
            rate = f"-{poisoning['rate']:g}" if poisoning else ""
            attack = parameters["attack"]["name"].replace(AND, "-")  # no folder of ours needs quotes in a shell
            return f"{name_of('dataset')}-{attack}{rate}-s{spec['seed']}"
        case "train":
            return f"{name_of('poison')}-{parameters['model']['name']}"
        case "adopt":
            return f"{name_of('dataset')}-{parameters['name']}-{parameters['model']['name']}"
        case "purify" | "neurons":
            start = (
                name_of("model")
                if "model" in spec["upstream"]
                else f"{name_of('poison')}-{parameters['model']['name']}"
            )
            return f"{start}-{parameters['defense']['name']}"
        case "course":
            defense = parameters.get("defense")
            return name_of("backdoored") + (f"-{defense['name']}" if defense else "")
        case "examples":
            return name_of("poison")
        case _:
            return name_of("model")
