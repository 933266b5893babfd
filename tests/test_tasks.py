"""Tasks: what is peculiar to images and to point clouds, and that nothing else knows both."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import small
from conftest import ROOT, cell
from depoison.attacks.badnet import BadNet
from depoison.attacks.base import NO_GOAL, Poisoning, Pool, stamped
from depoison.attacks.pointba_i import PointBAI
from depoison.attacks.pointba_o import PointBAO
from depoison.data import solids
from depoison.errors import DepoisonError
from depoison.plan.plan import Plan
from depoison.stages.inputs import Dataset
from depoison.stages.measure import Test
from depoison.tasks import misfit, task_of
from depoison.training.recipe import Recipe
from small import CPU, MEAN, STD, classes_of, network, pixels, setup_of

PLAN = Plan(ROOT)
IMAGES, POINTS = task_of("image"), task_of("points")
SMALL = {
    "width": 4, "centers1": 16, "centers2": 8, "radius1": 0.3, "radius2": 0.6, "neighbors1": 8, "neighbors2": 4,
    "dropout": 0.3,
}  # fmt: skip


def clouds(count: int, points: int = 30, seed: int = 0) -> Tensor:
    return torch.rand(count, points, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- what inputs are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "inputs", "fault"),
    [
        (IMAGES, pixels(2), None),
        (IMAGES, pixels(2).float(), "images are torch.float32 of (C H W) = (3, 8, 8); valid: torch.uint8 of (3, 8, 8)"),
        (
            IMAGES,
            pixels(2, channels=1),
            "images are torch.uint8 of (C H W) = (1, 8, 8); valid: torch.uint8 of (3, 8, 8)",
        ),
        (POINTS, clouds(2, 8), None),
        (POINTS, clouds(2, 9), "clouds are torch.float32 of (P D) = (9, 3); valid: torch.float32 of (8, 3)"),
    ],
)
def test_a_task_says_what_inputs_of_a_size_are(task, inputs, fault):
    assert misfit(task, inputs, 8) == fault


def test_a_network_takes_inputs_as_they_are_stored():
    spec = {"name": "resnet18", "version": 1, "parameters": {"width": 8}, "mean": MEAN, "std": STD}
    network = IMAGES.network(spec, classes=3, shape=(3, 8, 8), generator=torch.Generator()).eval()
    images = pixels(4)
    normalized = (images.double() / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.allclose(network(images), network.classifier(network.extractor(normalized.float())), atol=1e-5)
    spec = {"name": "pointnet2", "version": 1, "parameters": SMALL}
    network = POINTS.network(spec, classes=3, shape=(30, 3), generator=torch.Generator()).eval()
    assert torch.equal(network(clouds(4)), network.classifier(network.extractor(clouds(4))))
    assert len(network.head) == 1


# --- batches of clouds ---------------------------------------------------------------------------------------------


def batch_of(given: Tensor, seed: int = 0, **augmentation: float) -> Tensor:
    """All of these clouds, augmented, in their order."""
    plan = Recipe.of({"lr": 0.1, "epochs": 1, "batch_size": 64, **augmentation})
    source = POINTS.batches(given, torch.arange(len(given)), plan, CPU)
    draws = source.draw(plan, len(given), torch.Generator().manual_seed(seed))
    found, labels = source.batch(torch.arange(len(given)), draws, torch.Generator().manual_seed(seed + 1))
    assert labels.tolist() == list(range(len(given)))
    return found


def ordered(clouds: Tensor) -> Tensor:
    """Clouds with their points in the order of their first coordinates."""
    return torch.stack([cloud[cloud[:, 0].argsort()] for cloud in clouds])


def test_without_augmentation_only_the_order_of_the_points_changes():
    given = clouds(5)
    found = batch_of(given)
    assert not torch.equal(found, given)
    assert torch.equal(ordered(found), ordered(given))


def test_clouds_are_turned_about_the_upright_axis():
    given = clouds(200)
    found, again = batch_of(given, turn=180), batch_of(given)
    assert torch.allclose(found[:, :, 1], again[:, :, 1], atol=1e-6)
    assert torch.allclose(found.norm(dim=2), again.norm(dim=2), atol=1e-5)
    angle = torch.atan2(found[:, 0, 0], found[:, 0, 2]) - torch.atan2(again[:, 0, 0], again[:, 0, 2])
    angle = (angle + math.pi) % (2 * math.pi) - math.pi
    assert angle.min() < -2.8 and angle.max() > 2.8 and abs(angle.mean()) < 0.4


def test_clouds_are_scaled_and_shifted_each_by_a_number_of_its_own():
    given, plain = clouds(300), batch_of(clouds(300))
    found = batch_of(given, scale=1.25, shift=0.1)
    spread = (found - found.mean(1, keepdim=True)).norm(dim=(1, 2)) / (plain - plain.mean(1, keepdim=True)).norm(
        dim=(1, 2)
    )
    assert 0.8 - 1e-4 <= spread.min() < 0.82 and 1.23 < spread.max() <= 1.25 + 1e-4
    moved = found.mean(1) - spread[:, None] * plain.mean(1)
    assert 0.095 < moved.abs().max() <= 0.1 + 1e-4
    assert moved.abs().amax(0).min() > 0.09


def test_jitter_is_of_each_point_and_clipped():
    found = batch_of(clouds(100), jitter=0.01) - batch_of(clouds(100))
    assert abs(found.std() - 0.01) < 5e-4
    assert found.abs().max() <= 0.05 + 1e-5


def test_dropped_points_become_the_first_one():
    found, plain = batch_of(clouds(300), drop=0.875), batch_of(clouds(300))
    stays = (found == plain).all(2)
    assert torch.equal(found, torch.where(stays[:, :, None], plain, plain[:, :1].expand_as(plain)))
    dropped = 1 - stays.float().mean(1)
    assert dropped.min() < 0.1 and dropped.max() > 0.75 and abs(dropped.mean() - 0.4375 * 29 / 30) < 0.04


def test_a_batch_of_clouds_follows_from_its_seed():
    all_of_it = {"turn": 180, "scale": 1.25, "shift": 0.1, "jitter": 0.01, "drop": 0.5}
    assert torch.equal(batch_of(clouds(5), **all_of_it), batch_of(clouds(5), **all_of_it))
    assert not torch.equal(batch_of(clouds(5), **all_of_it), batch_of(clouds(5), seed=7, **all_of_it))


# --- PointBA -------------------------------------------------------------------------------------------------------


def test_the_orientation_trigger_turns_a_cloud():
    attack = PointBAO(axis="z", angle=90)
    given = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]])
    found = stamped(attack, given, attack.trigger(setup_of((2, 3))))
    assert torch.allclose(found, torch.tensor([[[-2.0, 1.0, 3.0], [-1.0, 0.0, 0.0]]]), atol=1e-6)
    assert found.dtype == torch.float32


def test_the_interaction_trigger_is_a_ball_in_the_place_of_the_last_points():
    attack = PointBAI(points=7, radius=0.05, center=0.5)
    given = clouds(3)
    found = stamped(attack, given, attack.trigger(setup_of((30, 3))))
    assert found.shape == given.shape and torch.equal(found[:, :23], given[:, :23])
    assert torch.allclose((found[:, 23:] - 0.5).norm(dim=2), torch.full((3, 7), 0.05), atol=1e-6)
    assert torch.equal(found[0, 23:], found[1, 23:])
    with pytest.raises(DepoisonError, match="a ball of 30 points leaves nothing of a cloud of 30"):
        PointBAI(points=30, radius=0.05, center=0.5).trigger(setup_of((30, 3)))


# --- planning ------------------------------------------------------------------------------------------------------


def on_solids(attack: str = "pointba-i", defense: str = "fst", model: str = "pointnet2") -> str:
    return cell(track="solids", dataset="solids", model=model, attack=attack, defense=defense)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (on_solids("badnet"), "BadNet is for the task image, and the task of Solids is points"),
        (on_solids(model="resnet18"), "ResNet-18 is for the task image, and the task of Solids is points"),
        (on_solids(defense="i-bau"), "I-BAU is for the task image, and the task of Solids is points"),
        (cell(attack="pointba-o"), "PointBA-O is for the task points, and the task of Digits is image"),
        (on_solids(defense="fst+crop=2"), "unknown hyper-parameter of fst 'crop'"),
        (cell(defense="fst+jitter=0.01"), "unknown hyper-parameter of fst 'jitter'"),
    ],
)
def test_what_is_of_another_task_is_refused_in_one_line(name, says):
    with pytest.raises(DepoisonError, match=says) as error:
        PLAN.cell(name)
    assert "\n" not in str(error.value)


def test_a_recipe_holds_only_what_its_task_knows():
    for name, other in ((on_solids(), "image"), (cell(), "points")):
        known = PLAN.configuration.tasks[other].recipe.keys()
        for artifact in PLAN.cell(name).evaluation.chain().values():
            assert not known & artifact.spec["parameters"].get("recipe", {}).keys()


def test_no_hyper_parameter_of_a_task_is_another_shared_one(project):
    project.set("config/tasks/points.yaml", "recipe", "lr", to={"type": "float", "help": "again"})
    with pytest.raises(
        DepoisonError, match=r"^config/tasks/points.yaml:\d+: 'lr' is another shared hyper-parameter, too$"
    ):
        project.plan()


def test_a_dataset_needs_a_task(project):
    project.edit("config/datasets/digits.yaml", lambda data: data.pop("task"))
    with pytest.raises(
        DepoisonError, match=r"^config/datasets/digits.yaml.*: a dataset needs a task; valid: image, points$"
    ):
        project.plan().cell(cell())


# --- a whole cell of clouds ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, float]]:
    """Makes a cell of a few clouds in a minute network, in this process; returns its metrics."""
    folder = tmp_path_factory.mktemp("clouds")
    overlay = folder / "few.yaml"
    overlay.write_text(
        json.dumps(
            {
                "datasets": {"solids": {"size": 64}},
                "models": {"pointnet2": SMALL},
                "training": {"epochs": 2},
                "tuning": {"epochs": 2},
            }
        )
    )
    plan = Plan(ROOT, [overlay])

    def make(name: str) -> dict[str, float]:
        patch, before = pytest.MonkeyPatch(), os.getcwd()
        with patch.context() as changed:
            changed.setattr(solids, "TRAIN", 10)
            changed.setattr(solids, "TEST", 4)
            os.chdir(folder)
            try:
                evaluation = plan.cell(name).evaluation
                small.make(evaluation, plan.configuration.config.runtime)
            finally:
                os.chdir(before)
        return json.loads((folder / evaluation.product).read_text())["metrics"]

    return make


@pytest.mark.parametrize("attack", ["pointba-i", "pointba-o"])
@pytest.mark.parametrize("defense", ["none", "lp", "ft", "fst", "anp"])
def test_defenses_of_images_purify_networks_of_clouds(attack, defense, made):
    found = made(on_solids(f"{attack}+rate=0.1", defense))
    assert all(0 <= found[key] <= 100 for key in ("c_acc", "asr", "lcr"))


# --- label maps ----------------------------------------------------------------------------------------------------


def test_a_source_specific_attack_poisons_its_victims_alone_and_is_measured_on_them():
    plan = Poisoning(rate=0.1, target=0, labels="source-specific", victim=2)
    labels = torch.tensor([0, 1, 2, 2, 0, 2, 1])
    assert plan.goals(labels, 3).tolist() == [NO_GOAL, NO_GOAL, 0, 0, NO_GOAL, 0, NO_GOAL]
    assert plan.wanted(labels, 3).tolist() == [False, False, True, True, False, True, False]
    pool, attack = Pool(pixels(60), torch.arange(60) % 3), BadNet(size=3, enlarge=True)
    overlay = attack.poison(pool, setup := setup_of(poisoning=plan), attack.trigger(setup))
    assert len(overlay.indices) == 6 and set(pool.labels[overlay.indices].tolist()) == {2}
    assert overlay.labels.tolist() == [0] * 6
    with pytest.raises(
        DepoisonError, match="victim 2, .* labels=source-specific poisons: 20 of 60; the maximum rate is 0.3333"
    ):
        attack.poison(pool, setup_of(poisoning=replace(plan, rate=0.5)), attack.trigger(setup))


def test_the_seed_does_not_decide_whether_a_source_specific_rate_of_the_victims_share_is_valid(caplog):
    """Of 60 samples of 90, of which each class has a third, a draw left 18 of the victim's, and 20 are asked for."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate((21, 21, 18))])
    plan, attack = Poisoning(rate=1 / 3, target=0, labels="source-specific", victim=2), BadNet(size=3, enlarge=True)
    pool = Pool(pixels(60), labels, training_labels=torch.arange(90) % 3)
    overlay = attack.poison(pool, setup := setup_of(poisoning=plan), attack.trigger(setup))
    assert overlay.indices.tolist() == list(range(42, 60))
    assert caplog.messages == ["20 images of the victim 2 are to be poisoned; the defender's draw left 18, and all are"]


@pytest.mark.parametrize("victim", ["", "+victim=0"])
def test_a_source_specific_attack_needs_a_victim(victim):
    with pytest.raises(DepoisonError, match="labels=source-specific needs a victim, a label that is not the target$"):
        PLAN.cell(cell(attack=f"badnet+labels=source-specific{victim}"))


@pytest.mark.parametrize("attack", ["wanet", "input-aware", "bpp", "lira", "badnet&wanet"])
def test_an_attack_that_changes_batches_of_all_classes_is_not_source_specific(attack):
    told = (
        "changes batches of all classes, so it cannot be source-specific; valid: labels=all-to-one, labels=all-to-all$"
    )
    with pytest.raises(DepoisonError, match=told):
        PLAN.cell(cell(attack=f"{attack}+labels=source-specific+victim=2"))
    assert PLAN.cell(cell(attack="composite")) and PLAN.cell(cell(attack=f"{attack}+labels=all-to-all"))


def test_what_is_predicted_is_the_tasks_to_say(monkeypatch):
    """A task whose predictions are no likeliest classes is measured by its own."""
    dataset = Dataset(pixels(4), classes_of(4), pixels(6), classes_of(6), ["a", "b", "c"], IMAGES)
    monkeypatch.setattr(
        type(IMAGES), "predict", staticmethod(lambda model, inputs, precision: torch.full((len(inputs),), 2))
    )
    test = Test.make(dataset, None, None, {})
    clean, _ = test.predictions(network())
    assert clean.tolist() == [2] * 6
