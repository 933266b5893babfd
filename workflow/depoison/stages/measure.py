"""Measuring a model on the test set, clean and triggered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from depoison.attacks.base import Attack, Poisoning
from depoison.evaluation.metrics import attack_success_rate, clean_accuracy, label_correction_rate, predict
from depoison.files import load_tensors
from depoison.models.classifier import Classifier
from depoison.stages.inputs import Dataset, read_attack, read_spec


class Test:
    """The test set and its triggered part: only images whose label is not already what the attack wants.

    Attributes:
        triggered: (M, C, H, W) uint8; None for a clean model.
        kept: (M,) int64 indices into the test set; M is the denominator of ASR and LCR.
    """

    __test__ = False  # not a test of pytest's

    def __init__(
        self, dataset: Dataset, attack: Attack | None, poisoning: Poisoning | None, trigger: Mapping[str, Tensor]
    ):
        self.images, self.labels = dataset.test_images, dataset.test_labels
        self.triggered: Tensor | None = None
        if attack is not None and poisoning is not None:
            goals = poisoning.goals(self.labels, len(dataset.classes))
            self.kept = (goals != self.labels).nonzero()[:, 0]
            self.goals = goals[self.kept]
            self.triggered = attack.stamp(self.images[self.kept], trigger)

    @classmethod
    def of(cls, backdoored: Path, dataset: Dataset) -> Test:
        """The test set for the attack behind a train artifact."""
        attack, poisoning = read_attack(Path(read_spec(backdoored)["upstream"]["poison"]))
        return cls(dataset, attack, poisoning, load_tensors(backdoored / "trigger.safetensors"))

    def measure(self, model: Classifier, precision: str) -> dict[str, float]:
        """{"c_acc"} and, where there is an attack, {"asr", "lcr"}, in percent."""
        found = {"c_acc": clean_accuracy(predict(model, self.images, precision), self.labels)}
        if self.triggered is not None:
            predictions = predict(model, self.triggered, precision)
            found["asr"] = attack_success_rate(predictions, self.goals)
            found["lcr"] = label_correction_rate(predictions, self.labels[self.kept])
        return found
