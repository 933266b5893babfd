"""Fine-pruning on a network whose activations and accuracies are known, and its tuning against a second one by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from depoison.defenses.fp import fp, mean_activations, read_channels
from depoison.defenses.tuning import Candidates, Labeled, Tuner, hold_out
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.models.layers import GlobalAverage
from depoison.rng import Rng
from depoison.stages.purify import pick
from depoison.tasks.image import ImageClassifier
from depoison.training.loop import Monitor
from small import IMAGES, changed, classes_of, close, network, pixels, recipe, state_of, tune_by_hand

COUNTS = (30, 50, 5, 15)
"""Of the images of four classes; the class of an image is the channel that is white."""
DETECTOR = (4, 0, 5, 1)
"""The channel that answers to each class; channels 2 and 3 never answer."""
ORDER = [2, 3, 5, 1, 4, 0]
"""From 0, 0, 5, 15, 30 to 50% of the images."""


def tuner(**changes) -> Tuner:
    return Tuner(recipe(**({"epochs": 3, "momentum": 0.9} | changes)), Rng(0, "purify"), Monitor(), IMAGES)


def known() -> tuple[Classifier, Labeled]:
    """Logit c is the mean of its channel; without it an image of class c is taken for one of class 1."""
    convolution, head = nn.Conv2d(4, 6, 1, bias=False), nn.Linear(6, 4)
    with torch.no_grad():
        convolution.weight.fill_(-1)
        head.weight.zero_()
        head.weight[0, [2, 3]] = 1
        head.bias.copy_(torch.tensor([0, 0.2, 0, 0]))
        for c, channel in enumerate(DETECTOR):
            convolution.weight[channel] = 0
            convolution.weight[channel, c] = 1
            head.weight[c, channel] = 1
    labels = torch.tensor([c for c, count in enumerate(COUNTS) for _ in range(count)])
    images = torch.zeros(len(labels), 4, 2, 2, dtype=torch.uint8)
    images[torch.arange(len(labels)), labels] = 255
    model = ImageClassifier(nn.Sequential(convolution, nn.ReLU(), GlobalAverage()), head, (0.0,) * 4, (1.0,) * 4).eval()
    return model, Labeled(images, labels)


def accuracy(model: Classifier, data: Labeled) -> float:
    return 100 * (model(data.inputs).argmax(1) == data.labels).double().mean().item()


def test_channels_go_in_the_order_of_their_mean_activation():
    model, data = known()
    assert mean_activations(model, data, tuner()).tolist() == pytest.approx([0.5, 0.15, 0, 0, 0.3, 0.05])
    candidates = fp(model, data, tuner(), step=1 / 6, max_drop=10.0, select="oracle")
    assert candidates.values == (0, 1, 2, 3, 4, 5)
    for count in candidates.values:
        weight = candidates.model(count).head[0].weight
        assert [channel for channel in ORDER if not weight[:, channel].any()] == ORDER[:count]


@pytest.mark.parametrize(
    ("step", "counts"), [(0.01, (0, 1, 2, 3, 4, 5)), (0.17, (0, 2, 4)), (0.5, (0, 3)), (0.9, (0,)), (1.0, (0,))]
)
def test_at_a_time_go_as_many_channels_as_the_step_says_and_at_least_one(step, counts):
    assert fp(*known(), tuner(), step=step, max_drop=10.0, select="oracle").values == counts


@pytest.mark.parametrize(
    ("max_drop", "count"), [(0, 2), (4.9, 2), (5, 3), (19.9, 3), (20, 4), (49, 4), (51, 5), (100, 5)]
)
def test_pruning_stops_before_it_costs_more_than_it_may(max_drop, count):
    """Accuracy is 100, 100, 100, 95, 80 and 50%."""
    model, data = known()
    candidates = fp(model, data, tuner(lr=1e-6), step=0.01, max_drop=max_drop, select="oracle")
    found, selection = pick(candidates, model, lambda of: {"c_acc": accuracy(of, data)})
    assert (selection["chosen"], selection["before"]) == (count, 100)
    expected = [100, 100, 100, 95, 80, 50][: count + 2]  # one too many is looked at
    assert [row["c_acc"] for row in selection["sweep"]] == pytest.approx(expected)
    assert [channel for channel in ORDER if not found.head[0].weight[:, channel].any()] == ORDER[:count]


def test_a_fall_is_in_percent_of_the_backdoored_models_accuracy():
    model, data = known()
    wrong = Labeled(data.inputs, data.labels.clone())
    wrong.labels[:25] = 3  # of class 0: 75% remain, and 5 points are 6.7% of them
    for max_drop, count in ((6.6, 2), (6.7, 3)):
        candidates = fp(model, data, tuner(), step=0.01, max_drop=max_drop, select="oracle")
        chosen = pick(candidates, model, lambda of: {"c_acc": accuracy(of, wrong), "asr": 0.0})[1]["chosen"]
        assert chosen == count


@pytest.mark.parametrize("stops", [True, False])
def test_an_accuracy_that_comes_back_is_not_seen_by_what_stops(stops):
    model, accuracies = network(), {0: 90.0, 1: 88.0, 2: 70.0, 3: 89.0}
    tried: list[float] = []
    candidates = Candidates("count", (0, 1, 2, 3), lambda value: tried.append(value) or model, 5.0, stops=stops)
    rows, allowed = candidates.sweep(90.0, lambda _: {"acc": accuracies[int(tried[-1])]}, "acc")
    assert tried == ([0, 1, 2] if stops else [0, 1, 2, 3]) and len(rows) == len(tried)
    assert [row["count"] for row in allowed] == ([0, 1] if stops else [0, 1, 3])


def test_the_oracle_that_stops_takes_the_strongest_pruning_and_no_other_of_lower_asr():
    model = network()
    asr = iter([100.0, 3.0, 60.0])
    candidates = Candidates("count", (0, 1), lambda value: model, 5.0, stops=True)
    assert pick(candidates, model, lambda _: {"c_acc": 90.0, "asr": next(asr)})[1]["chosen"] == 1


def test_the_defender_stops_by_images_that_the_order_does_not_follow_from_and_tunes_on_all(monkeypatch):
    model, data = known()
    data = Labeled(data.inputs.repeat(3, 1, 1, 1), data.labels.repeat(3))
    tune, tuned_on, called = tuner(), [], Tuner.__call__
    monkeypatch.setattr(
        Tuner, "__call__", lambda self, of, clean, **hooks: tuned_on.append(clean) or called(self, of, clean, **hooks)
    )
    found = fp(model, data, tune, step=0.01, max_drop=10.0, select="defender")
    held_out, rest = hold_out(data, tune.rng)
    assert (len(held_out.labels), len(rest.labels)) == (60, 240) and tuned_on == [data]
    both = torch.cat([held_out.labels, rest.labels])
    assert Counter(both.tolist()) == Counter(data.labels.tolist())

    seen = Counter(rest.labels.tolist())  # by hand: channels by how often their class is in the rest, then who is left
    order = sorted(range(6), key=lambda channel: (seen[DETECTOR.index(channel)] if channel in DETECTOR else 0, channel))
    here, facts, accuracies = Counter(held_out.labels.tolist()), tune.monitor.facts["selection"], []
    for count in range(6):
        gone = [DETECTOR.index(channel) for channel in order[:count] if channel in DETECTOR]
        accuracies.append(100 * (1 - sum(here[c] for c in gone if c != 1) / 60))
    chosen = max(count for count in range(6) if all(100 - acc <= 10 for acc in accuracies[: count + 1]))
    assert (facts["by"], facts["chosen"], facts["held_out_images"]) == ("defender", chosen, 60)
    sweep = [row["held_out_acc"] for row in facts["sweep"]]
    assert sweep == pytest.approx(accuracies[: chosen + 2])
    assert [channel for channel in order if not found.head[0].weight[:, channel].any()] == order[:chosen]


def first_channels(model: Classifier, count: int) -> list[int]:
    """The least active channels of `small.network`, of 4 inputs each."""
    with torch.no_grad():
        maps = model.extractor[:3](model.prepared(DATA.inputs.double()))
    return maps.mean((0, 2, 3)).argsort()[:count].tolist()


DATA = Labeled(pixels(12), classes_of(12))


@pytest.mark.parametrize("layers", [1, 3])
def test_tuning_is_sgd_after_each_step_of_which_pruned_channels_are_dead(layers):
    model = network(layers=layers)
    before, first = state_of(model), f"classifier.{'0.' if layers == 3 else ''}weight"
    candidates = fp(model, DATA, tuner(weight_decay=0.1), step=0.25, max_drop=10.0, select="oracle")
    found = candidates.chosen(2)
    gone = first_channels(network(layers=layers).double(), 2)
    inputs = [4 * channel + position for channel in gone for position in range(4)]

    def kill(state: dict[str, Tensor]) -> None:
        state[first][:, inputs] = 0

    by_hand = tune_by_hand(
        candidates.model(2), [(DATA.inputs, DATA.labels, 0.1)] * 3, momentum=0.9, weight_decay=0.1, after=kill
    )
    assert close(state_of(found), by_hand) and not changed(before, state_of(model))
    logits = found(DATA.inputs)
    with torch.no_grad():
        for channel in range(4):
            kept = found.extractor[0].weight[channel].clone()
            found.extractor[0].weight[channel] = 3 * kept + 5
            assert torch.equal(found(DATA.inputs), logits) == (channel in gone)
            found.extractor[0].weight[channel] = kept


def test_a_network_without_convolutions_or_that_mixes_their_channels_is_refused():
    flat = ImageClassifier(nn.Flatten(), nn.Linear(192, 3), (0.5,) * 3, (0.25,) * 3).eval()
    with pytest.raises(DepoisonError, match=r"^fp: the model has no convolutions, whose channels .* prunes$"):
        fp(flat, DATA, tuner(), step=0.01, max_drop=10.0, select="defender")
    mixed = network()
    mixed.extractor.append(nn.Linear(16, 16))
    with pytest.raises(
        DepoisonError, match=r"^fp: the classifier does not read the 4 channels of extractor\.2 one by one; valid"
    ):
        fp(mixed, DATA, tuner(), step=0.01, max_drop=10.0, select="oracle")
    assert read_channels(network(), DATA.inputs[:1]) == 4


def test_fine_pruning_without_a_step_that_is_allowed_is_fine_tuning():
    model = network()
    found = fp(model, DATA, tuner(), step=1.0, max_drop=0.0, select="oracle").chosen(0)
    assert close(state_of(found), tune_by_hand(model, [(DATA.inputs, DATA.labels, 0.1)] * 3, momentum=0.9))
