"""How a GPU would convolve: in TF32 where a stage's recipe says so, backward passes included, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import ROOT, Project, cell
from depoison.plan.config import Runtime
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.stages.runner import run_stage
from depoison.tasks._classification import predict
from depoison.tasks.image import ImageBatches
from depoison.training.loop import Monitor, convolutions, fit
from small import CPU, changed, classes_of, network, pixels, recipe, state_of

cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
NAMES = {torch.ops.aten.convolution: "forward", torch.ops.aten.convolution_backward: "backward"}


class Watch(TorchDispatchMode):
    """Notes at each convolution whether TF32 is allowed, and that it is not in matrix products."""

    def __init__(self):
        super().__init__()
        self.seen: dict[str, set[bool]] = {"forward": set(), "backward": set()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = NAMES.get(function.overloadpacket)
        if name and len(args[0]) > 1:  # of one image: whether a new network can take it, before training
            assert not products.allow_tf32
            self.seen[name].add(cudnn.allow_tf32)
        return function(*args, **(kwargs or {}))


@contextmanager
def watched(allowed: bool) -> Iterator[dict[str, set[bool]]]:
    """What `Watch` notes inside, where everything starts as `allowed` says and must end so."""
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32, products.allow_tf32 = allowed, allowed
    try:
        with Watch() as watch:
            yield watch.seen
        assert (cudnn.allow_tf32, products.allow_tf32) == (allowed, allowed)
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before


def both(*allowed: bool) -> dict[str, set[bool]]:
    return {"forward": set(allowed), "backward": set(allowed)}


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize(("precision", "inside"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_training_and_predicting(precision, inside, outside):
    plan = recipe(epochs=2, precision=precision)
    with watched(outside) as seen:
        fit(network(), ImageBatches(pixels(20), classes_of(20), plan, CPU), plan, Rng(0, "train"), Monitor())
    assert seen == both(inside)
    with watched(outside) as seen:
        predict(network(), pixels(4), precision)
    assert seen == {"forward": {inside}, "backward": set()}


def test_an_error_leaves_all_as_it_was():
    with pytest.raises(RuntimeError), watched(True), convolutions("fp32"):
        raise RuntimeError
    with watched(False), convolutions("tf32"), convolutions("fp32"):
        assert not cudnn.allow_tf32


def test_a_cpu_computes_tf32_as_fp32():
    found = []
    for precision in ("fp32", "tf32"):
        plan = recipe(epochs=2, batch_size=8, crop=1, momentum=0.9, precision=precision)
        data = ImageBatches(pixels(20), classes_of(20), plan, CPU)
        found.append(state_of(fit(network(), data, plan, Rng(0, "train"), Monitor())))
    assert not changed(*found)


@pytest.fixture
def stages(made: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes what a cell still needs, in this process; what was seen in each stage that was made."""
    monkeypatch.chdir(made.path)
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()

    def make(name: str) -> dict[str, dict[str, set[bool]]]:
        found = {}
        for artifact in made.plan().cell(name).evaluation.chain().values():
            if not (made / artifact.product).exists():
                with watched(True) as seen:
                    run_stage(artifact.spec, artifact.directory, Runtime())
                found[artifact.stage] = seen
        return found

    yield make
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


FORWARD = {"backward": set()}


DEFENSES = "fst", "ngf+retention=1", "anp+steps=1+select=defender", "i-bau"
TUNED_IN_FP32 = [(defense, "tf32", "fp32") for defense in DEFENSES]  # while all around is in TF32
TUNED_IN_TF32 = [(defense, "fp32", "tf32") for defense in DEFENSES]


@pytest.mark.parametrize(
    ("defense", "trained", "tuned"),
    [*TUNED_IN_FP32, TUNED_IN_TF32[0], *(pytest.param(*one, marks=pytest.mark.drill) for one in TUNED_IN_TF32[1:])],
)
def test_each_stage_follows_its_own_recipe(defense, trained, tuned, stages):
    attack = f"badnet+precision={trained}+rate=0.1+lr=0.05"
    before = stages(cell("tiny", attack=attack, defense="none"))
    assert before["train"] == both(trained == "tf32")
    assert before["evaluate"] == FORWARD | {"forward": {trained == "tf32"}}
    after = stages(cell("tiny", attack=attack, defense=f"{defense}+precision={tuned}"))
    assert after["purify"] == both(tuned == "tf32")
    assert after["evaluate"] == before["evaluate"]


def test_the_oracle_measures_as_the_evaluation_does(stages):
    attack, defense = "badnet+precision=fp32+rate=0.1", "anp+steps=1+precision=tf32"
    assert stages(cell("tiny", attack=attack, defense=defense))["purify"] == {
        "forward": {True, False},
        "backward": {True},
    }


def test_networks_of_attacks_stamp_in_fp32_whatever_the_training(stages):
    """The poisoned images and the triggered test images are made alike."""
    attack = "ssba+precision=tf32+rate=0.1+bits=4+encoder_epochs=1+encoder_batch=512"
    found = stages(cell("tiny", dataset="digits+size=16", attack=attack, defense="none"))
    assert found["poison"] == FORWARD | {"forward": {False}}
    assert found["train"] == {"forward": {False, True}, "backward": {True}}


def test_the_precision_of_the_tracks():
    plan = Plan(ROOT)
    for track, expected in (("paper", "tf32"), ("cifar10-cpu", "fp32"), ("digits", "fp32")):
        chain = plan.cell(cell(track, dataset="cifar10", attack="badnet", defense="fst")).evaluation.chain().values()
        computing = [a.spec["parameters"] for a in chain if a.stage in ("train", "purify", "evaluate")]
        found = [each.get("recipe", each).get("precision", "fp32") for each in computing]
        assert found == [expected] * 4  # two evaluations


@pytest.mark.parametrize(("key", "value", "papers"), [("precision", "bf16", True), ("epochs", 3, False)])
@pytest.mark.parametrize("section", ["training", "tuning"])
def test_a_track_with_another_precision_still_has_the_papers_setting(section, key, value, papers, project):
    project.set("config/tracks/paper.yaml", section, key, to=value)
    assert project.plan().configuration.track("paper").content.is_papers == papers
    assert not project.plan().configuration.track("digits").content.is_papers
