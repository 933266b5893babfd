"""C-Acc, ASR, LCR and DER against counts by hand, and how predictions are made."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from depoison.artifacts import load_tensors
from depoison.attacks.base import Attack, Poisoning
from depoison.errors import DepoisonError
from depoison.files import read_json
from depoison.metrics import measure
from depoison.metrics.der import der
from depoison.models.classifier import Classifier
from depoison.stages.inputs import Dataset, read_dataset, read_model
from depoison.stages.measure import Test
from depoison.tasks import NO_LABEL
from depoison.tasks._classification import predict
from small import IMAGES, forward_by_hand, network, pixels, state_of


class Reader(nn.Module):
    """Predicts the class that the upper left pixel names; counts the images it was shown."""

    def __init__(self, classes: int):
        super().__init__()
        self.classes, self.shown, self.calls = classes, 0, 0
        self.device = torch.device("cpu")

    def forward(self, images):
        self.shown, self.calls = self.shown + len(images), self.calls + 1
        return nn.functional.one_hot(images[:, 0, 0, 0].long(), self.classes).float()


class Switch(Attack):
    """Puts the second pixel, times the trigger, in the place of the first."""

    def stamp(self, images, trigger):
        images = images.clone()
        images[:, :, 0, 0] = images[:, :, 0, 1] * trigger["factor"]
        return images


def test_set(labels: list[int], clean: list[int], triggered: list[int]) -> Dataset:
    """Test images that `Reader` predicts as `clean`, and with `Switch`'s trigger as `triggered`."""
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.tensor(clean), torch.tensor(triggered)
    nothing = torch.zeros(0, dtype=torch.int64)
    return Dataset(images[:0], nothing, images, torch.tensor(labels), ["a", "b", "c"], IMAGES)


test_set.__test__ = False

LABELS = [0, 0, 1, 1, 2, 2, 2, 1]
CLEAN = [0, 1, 1, 1, 2, 2, 0, 1]  # 6 of 8
TRIGGERED = [1, 2, 0, 2, 0, 1, 2, 0]
TRIGGER = {"factor": torch.ones(())}


def measured(target: int, labels: str) -> tuple[Test, dict[str, float]]:
    poisoning = Poisoning(rate=0.1, target=target, labels=labels)
    test = Test.make(test_set(LABELS, CLEAN, TRIGGERED), Switch(), poisoning, TRIGGER)
    return test, test.measure(Reader(3), "fp32")


def test_all_to_one_rates_leave_out_images_of_the_target_class():
    test, found = measured(0, "all-to-one")
    assert test.kept.tolist() == [2, 3, 4, 5, 6, 7]
    # Of their predictions 0, 2, 0, 1, 2, 0 three are the target, and one is the label, the fifth.
    assert found == pytest.approx({"c_acc": 75.0, "asr": 50.0, "lcr": 100 / 6})


def test_all_to_one_rates_follow_the_target():
    test, found = measured(2, "all-to-one")
    assert test.kept.tolist() == [0, 1, 2, 3, 7]
    # Predictions 1, 2, 0, 2, 0 of labels 0, 0, 1, 1, 1.
    assert found == pytest.approx({"c_acc": 75.0, "asr": 40.0, "lcr": 0.0})


def test_all_to_all_rates_count_every_image():
    test, found = measured(0, "all-to-all")
    assert test.kept.tolist() == list(range(8))
    # Goals 1, 1, 2, 2, 0, 0, 0, 2 against predictions 1, 2, 0, 2, 0, 1, 2, 0: the first, fourth and fifth.
    assert found == pytest.approx({"c_acc": 75.0, "asr": 37.5, "lcr": 12.5})


def test_clean_model_has_a_clean_accuracy_only():
    test = Test.make(test_set(LABELS, CLEAN, TRIGGERED), None, None, {})
    model = Reader(3)
    assert len(test.triggered) == 0 and test.measure(model, "fp32") == {"c_acc": 75.0}
    assert model.calls == 1  # never a batch of no image


def test_trigger_is_put_on_the_kept_images_as_bytes_and_the_test_set_stays_clean():
    dataset = test_set(LABELS, CLEAN, [200] * 8)
    before = dataset.test_inputs.clone()
    poisoning = Poisoning(rate=0.1, target=0, labels="all-to-one")
    test = Test.make(dataset, Switch(), poisoning, {"factor": torch.tensor(1.2)})
    assert test.triggered.dtype == torch.uint8 and test.triggered[:, 0, 0, 0].tolist() == [240] * 6
    assert torch.equal(dataset.test_inputs, before)
    brighter = Test.make(dataset, Switch(), poisoning, {"factor": torch.tensor(1.5)})
    assert brighter.triggered[:, 0, 0, 0].tolist() == [255] * 6


def test_a_test_set_without_an_image_to_trigger_is_refused():
    poisoning = Poisoning(rate=0.1, target=1, labels="all-to-one")
    with pytest.raises(DepoisonError, match="all 3 test images have the label that the attack wants"):
        Test.make(test_set([1, 1, 1], [1, 1, 1], [0, 0, 0]), Switch(), poisoning, TRIGGER)


def test_the_triggered_test_set_is_made_once_and_stored_beside_the_trigger(finished, monkeypatch):
    plan = finished.plan()
    cell = plan.cell("results/cells/tiny/digits/resnet18/badnet+rate=0.1/lp/s0.json")
    evaluation = cell.evaluation
    monkeypatch.chdir(finished.path)
    backdoored, dataset = (Path(evaluation.upstream[role].directory) for role in ("backdoored", "dataset"))
    data, trigger = load_tensors(dataset / "data.safetensors"), load_tensors(backdoored / "trigger.safetensors")
    stored = load_tensors(backdoored / "triggered.safetensors")
    kept = (data["test_labels"] != 0).nonzero()[:, 0]  # the target class is 0
    assert torch.equal(stored["kept"], kept) and stored["goals"].tolist() == [0] * len(kept)
    expected = data["test_inputs"][kept].clone()
    size = trigger["pattern"].shape[1]
    expected[:, :, -size:, -size:] = trigger["pattern"].to(torch.uint8)
    assert torch.equal(stored["images"], expected)

    monkeypatch.setattr(Attack, "stamp", lambda *arguments: pytest.fail("stamped again"))
    test, model = Test.of(backdoored, read_dataset(dataset)), Path(evaluation.upstream["model"].directory)
    measured = test.measure(read_model(model, read_dataset(dataset)), "fp32")
    recorded = read_json(Path(evaluation.product))["metrics"]
    assert measured == {name: recorded[name] for name in ("c_acc", "asr", "lcr")}


def test_measuring_shows_each_image_once():
    test, model = measured(0, "all-to-one")[0], Reader(3)
    test.measure(model, "fp32")
    assert model.shown == 8 + 6


RATES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50)


@settings(deadline=None, max_examples=50)
@given(RATES)
def test_rates_are_percent_of_the_images_where_two_labels_agree(pairs):
    first, second = (torch.tensor(values) for values in zip(*pairs, strict=True))
    agree = Fraction(100 * sum(a == b for a, b in pairs), len(pairs))
    seen = {"clean": first, "labels": second, "triggered": first, "goals": second, "truth": second}
    found, counts = measure(("lcr", "asr", "c-acc"), seen)
    assert found == pytest.approx(dict.fromkeys(("lcr", "asr", "c_acc"), float(agree)), abs=1e-9)
    assert counts == dict.fromkeys(("lcr", "asr", "c_acc"), len(pairs)) and list(found) == ["lcr", "asr", "c_acc"]


def test_a_metric_looks_at_others_whatever_the_order():
    labels = torch.tensor([0, 1, 2, 3])
    seen = {"clean": labels, "labels": labels, "triggered": labels + 1, "goals": labels, "truth": labels}
    before = {f"{key}_before": value for key, value in {"c_acc": 100.0, "asr": 80.0, "der": None}.items()}
    found, counts = measure(("der", "asr", "c-acc"), seen | before)
    assert found == {"der": 90.0, "asr": 0.0, "c_acc": 100.0} and counts == {"asr": 4, "c_acc": 4}
    assert measure(("der", "asr", "c-acc"), seen | before | {"asr_before": None})[0]["der"] is None
    clean = seen | before | dict.fromkeys(("triggered", "goals", "truth"))
    assert measure(("der", "asr", "c-acc"), clean) == ({"der": None, "asr": None, "c_acc": 100.0}, {"c_acc": 4})
    with pytest.raises(DepoisonError, match="unknown parameter of the metric asr 'triggered'; .*valid: clean, labels"):
        measure(("asr",), {"clean": labels, "labels": labels})


# DER


@pytest.mark.parametrize(
    ("c_acc", "asr", "c_acc_before", "asr_before", "expected"),
    [
        (94.0, 0.0, 94.0, 100.0, 100.0),  # all of the backdoor at no cost
        (94.0, 100.0, 94.0, 100.0, 50.0),  # nothing changed
        (95.5, 100.0, 94.0, 100.0, 50.0),  # a gain of C-Acc is no merit
        (94.0, 60.0, 94.0, 50.0, 50.0),  # a rise of ASR is no more than a failure
        (90.0, 60.0, 94.0, 50.0, 48.0),  # but a fall of C-Acc is a cost: (0 - 4 + 100) / 2
        (0.0, 100.0, 100.0, 100.0, 0.0),
        (90.0, 20.0, 94.0, 80.0, 78.0),  # (60 - 4 + 100) / 2
        (95.0, 20.0, 94.0, 80.0, 80.0),  # (60 - 0 + 100) / 2
        (92.15, 1.98, 94.50, 50.20, 72.935),  # (48.22 - 2.35 + 100) / 2
    ],
)
def test_der_by_hand(c_acc, asr, c_acc_before, asr_before, expected):
    assert der(c_acc, asr, c_acc_before, asr_before) == pytest.approx(expected, abs=1e-9)


PERCENT = st.integers(0, 10_000).map(lambda n: Fraction(n, 100))


@settings(deadline=None, max_examples=80)
@given(PERCENT, PERCENT, PERCENT, PERCENT)
def test_der_is_the_formula_over_fractions(c_acc, asr, c_acc_before, asr_before):
    fall_of_asr, fall_of_c_acc = (asr_before - asr) / 100, (c_acc_before - c_acc) / 100
    expected = (max(Fraction(0), fall_of_asr) - max(Fraction(0), fall_of_c_acc) + 1) / 2
    found = der(float(c_acc), float(asr), float(c_acc_before), float(asr_before))
    assert found == pytest.approx(float(100 * expected), abs=1e-9) and 0 <= found <= 100


# Predictions


def undecided(images: torch.Tensor) -> Classifier:
    """A network whose logits are 0 on average, so that it predicts each class for some images."""
    model = network(5)
    state = {name: tensor.double() for name, tensor in state_of(model).items()}
    with torch.no_grad():
        model.classifier.bias -= forward_by_hand(state, images, "running")[0].mean(0)
    return model


def test_predictions_are_the_largest_logits_with_running_statistics():
    images = pixels(40)
    model = undecided(images)
    state = {name: tensor.double() for name, tensor in state_of(model).items()}
    running, batch = (forward_by_hand(state, images, kind)[0].argmax(1) for kind in ("running", "batch"))
    model.train()
    found = predict(model, images)
    assert found.dtype == torch.int64 and torch.equal(found, running) and not torch.equal(found, batch)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_are_failures_and_not_the_target_class(bad):
    """argmax would name the first class that is no number: 0, every paper's target."""

    class Broken(Reader):
        def forward(self, images):
            logits = super().forward(images)
            logits[images[:, 0, 0, 0] != 1] = bad
            return logits

    dataset = test_set(LABELS, CLEAN, [0] * 8)
    assert predict(Broken(3), dataset.test_inputs).tolist() == [NO_LABEL if c != 1 else 1 for c in CLEAN]
    found = Test.make(dataset, Switch(), Poisoning(rate=0.1, target=0, labels="all-to-one"), TRIGGER).measure(
        Broken(3), "fp32"
    )
    assert found == {"c_acc": 100 * 3 / 8, "asr": 0.0, "lcr": 0.0}


@pytest.mark.parametrize("batch_size", [1, 7, 39, 1000])
def test_predictions_do_not_depend_on_the_batch_size(batch_size):
    images = pixels(40)
    model = undecided(images).train()
    assert len(set(predict(model, images).tolist())) >= 3
    assert torch.equal(predict(model, images, batch_size=batch_size), predict(model, images, batch_size=40))


@pytest.mark.parametrize("training", [True, False])
def test_predicting_restores_the_mode_and_changes_nothing(training):
    model = network().train(training)
    before = state_of(model)
    predict(model, pixels(10))
    assert {module.training for module in model.modules()} == {training}
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())
    assert torch.is_grad_enabled() and model(pixels(2)).requires_grad


def test_predicting_restores_the_mode_of_each_part():
    model = network().train()
    model.extractor.eval()
    predict(model, pixels(4))
    assert model.classifier.training and not any(module.training for module in model.extractor.modules())


def test_predicting_in_bf16_rounds_logits():
    class Precision(nn.Module):
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.layer, self.kinds = nn.Linear(4, 2), []

        def forward(self, images):
            found = self.layer(images.float().flatten(1))
            self.kinds.append(found.dtype)
            return found

    model, images = Precision(), torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    predict(model, images, "fp32")
    predict(model, images, "bf16")
    assert model.kinds == [torch.float32, torch.bfloat16]


def test_predictions_keep_the_order_of_the_images():
    values = np.random.default_rng(0).integers(0, 7, 2500)
    images = torch.zeros(2500, 1, 1, 1, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.from_numpy(values)
    assert predict(Reader(7), images).tolist() == values.tolist()
