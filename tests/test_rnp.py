"""RNP against its three parts, found a second time by hand, and what moves in which of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import small
from depoison.defenses import rnp as module
from depoison.defenses.pruning import pruned
from depoison.defenses.rnp import recover, rnp, unlearn
from depoison.defenses.tuning import Candidates, Labeled, Tuner
from depoison.errors import DepoisonError
from depoison.training import loop
from depoison.training.loop import Monitor
from small import (
    changed,
    classes_of,
    close,
    drawn,
    forward_by_hand,
    interrupted,
    network,
    pixels,
    state_of,
    tune_by_hand,
)

DATA = Labeled(pixels(20), classes_of(20))
OWN = {
    "unlearned": 0.0, "alpha": 0.2, "recover_epochs": 2, "recover_lr": 2.0, "thresholds": [0.5, 0.9], "select": "oracle",
    "max_drop": 10.0,
}  # fmt: skip
WEIGHT = "extractor.1.weight"
EPOCHS = 3


def tuner(monitor: Monitor | None = None, **changes) -> Tuner:
    own = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "epochs": EPOCHS, "batch_size": 8}
    return small.tuner(monitor, **(own | changes))


def recovered_by_hand(state: dict[str, Tensor], part: Tuner) -> list[Tensor]:
    """The masks after each step, in float64."""
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    mask, velocity, found = torch.ones(4).double(), torch.zeros(4).double(), []
    for epoch in range(2):
        for images, labels in drawn(DATA, part, "epoch", epoch):
            mask.requires_grad_(True)
            logits, _ = forward_by_hand(state | {WEIGHT: mask * state[WEIGHT]}, images)
            loss = (logits.exp().sum(1).log() - logits[torch.arange(len(labels)), labels]).mean()
            velocity = 0.9 * velocity + 0.2 * torch.autograd.grad(loss, mask)[0]
            mask = (mask.detach() - 2.0 * velocity).clamp(0, 1)
            found.append(mask)
    return found


def test_unlearning_climbs_the_loss_with_all_weights():
    part, model = tuner().part("unlearn"), network()
    before = state_of(model)
    found = unlearn(model, DATA, part, 0.0)
    batches = [(*batch, -0.05) for epoch in range(EPOCHS) for batch in drawn(DATA, part, "epoch", epoch)]
    expected = tune_by_hand(network(), batches, momentum=0.9, weight_decay=-0.01)
    assert close(state_of(found), expected, 1e-3) and changed(before, state_of(found)) == before.keys() - {
        "mean",
        "std",
    }
    losses = [row["loss"] for row in part.monitor.history]
    assert losses == sorted(losses) and losses[-1] > 1.4 * losses[0]
    assert not changed(before, state_of(model))


def test_recovering_moves_masks_alone_and_ends_each_step_in_0_and_1(monkeypatch):
    after, plain, masks = [], loop.Step.count, []

    def put(*arguments, **options):
        masks[:] = put_masks(*arguments, **options)
        return masks[:]

    def count(step, *given, **measured):
        after.append(torch.cat([mask.detach().clone() for mask in masks]))
        plain(step, *given, **measured)

    model, put_masks = unlearn(network(), DATA, tuner().part("unlearn"), 0.0), module.put_masks
    monkeypatch.setattr(module, "put_masks", put)
    monkeypatch.setattr(loop.Step, "count", count)
    part = tuner().part("recover", epochs=2, lr=2.0, weight_decay=0.0)
    before = {name: tensor for name, tensor in state_of(model).items() if name != WEIGHT}
    expected = recovered_by_hand(state_of(model), part)
    found = recover(model, DATA, part, 0.2)
    assert len(after) == 6 and all(
        torch.allclose(mask.double(), by_hand, atol=1e-4) for mask, by_hand in zip(after, expected, strict=True)
    )
    assert torch.equal(found, after[-1]) and all(0 <= mask.min() <= mask.max() <= 1 for mask in after)
    assert min(mask.min() for mask in after) == 0 and len(set(found.tolist())) > 1, "the bounds act"
    moved = changed(before, {name: tensor for name, tensor in state_of(model).items() if name in before})
    assert {name.rpartition(".")[2] for name in moved} == {"running_mean", "running_var", "num_batches_tracked"}


def test_what_is_pruned_is_the_backdoored_model_by_the_masks_of_the_unlearned_one():
    tune, model = tuner(), network()
    candidates = rnp(model, DATA, tune, **OWN)
    assert isinstance(candidates, Candidates) and candidates.values == (0.5, 0.9)
    part = tuner().part("recover", epochs=2, lr=2.0, weight_decay=0.0)
    forgetful = unlearn(network(), DATA, tuner().part("unlearn"), 0.0)
    mask = recovered_by_hand(state_of(forgetful), part)[-1]
    assert 0 < (mask <= 0.5).sum() < 4
    for threshold in candidates.values:
        found = state_of(candidates.model(threshold))
        kept = torch.where(mask <= threshold, 0.0, state_of(model)[WEIGHT].double())
        assert torch.equal(found[WEIGHT].double(), kept) and changed(state_of(network()), found) == {WEIGHT}
        assert not changed(found, state_of(pruned(network(), mask, threshold)))
    assert [row["epoch"] for row in tune.monitor.history] == [1, 2, 3, 4, 5]
    assert tune.monitor.facts["unlearned"].keys() == {"epoch", "train_acc"}


def test_the_unlearning_ends_after_the_epoch_that_is_enough():
    known, accuracies = Labeled(DATA.inputs, network().train()(DATA.inputs).argmax(1)), []
    for enough in (0.0, 50.0, 100.0):
        tune = tuner(epochs=9, lr=0.02)
        rnp(network(), known, tune, **(OWN | {"unlearned": enough}))
        rows = tune.monitor.history[:-2]
        accuracies.append([row["train_acc"] for row in rows])
        assert tune.monitor.facts["unlearned"] == {"epoch": len(rows), "train_acc": rows[-1]["train_acc"]}
        # Either enough, and no epoch before was, or all of them.
        assert all(row["train_acc"] > enough for row in rows[:-1])
        assert rows[-1]["train_acc"] <= enough or len(rows) == 9
        assert rows[-1]["epochs"] == len(rows)
    assert len(accuracies[2]) == 1 < len(accuracies[1]) < 9
    assert accuracies[0][: len(accuracies[1])] == accuracies[1]


@pytest.mark.parametrize("stops", [[1], [2, 3], [1, 1, 2]])
def test_interrupted_in_either_loop_it_ends_with_the_same_bytes(stops, tmp_path):
    own = OWN | {"select": "fixed", "thresholds": [0.6], "unlearned": 30.0}
    expected = state_of(rnp(network(), DATA, tuner(epochs=9), **own))
    found, reported = interrupted(
        lambda monitor: rnp(network(), DATA, tuner(monitor, epochs=9), **own), tmp_path, stops
    )
    assert not changed(expected, state_of(found)) and len(reported) > len(stops)


def test_what_the_defender_holds_out_is_neither_unlearned_nor_recovered_from(monkeypatch):
    seen, plain = [], Tuner.batches

    def batches(tune, model, clean):
        seen.append(len(clean.labels))
        return plain(tune, model, clean)

    monkeypatch.setattr(Tuner, "batches", batches)
    tune = tuner()
    rnp(network(), DATA, tune, **(OWN | {"select": "defender", "max_drop": 100.0}))
    assert seen == [16, 16] and tune.monitor.facts["selection"]["held_out_images"] == 4
    assert tune.monitor.facts["selection"]["chosen"] == 0.9, "the strongest that is allowed"


def test_what_it_cannot_do_is_refused():
    with pytest.raises(
        DepoisonError, match="^rnp: the model has no BatchNorm layers, whose channels are what RNP prunes$"
    ):
        rnp(network(batchnorm=False), DATA, tuner(), **OWN)
    with pytest.raises(DepoisonError, match="^rnp: select=fixed takes one threshold, and thresholds has 2$"):
        rnp(network(), DATA, tuner(), **(OWN | {"select": "fixed"}))
