"""What is measured: C-Acc, ASR, LCR and DER, in percent."""

from __future__ import annotations

import torch
from torch import Tensor

from depoison.models.classifier import Classifier
from depoison.training.loop import autocast

NO_LABEL = -1
"""A prediction that is neither any image's label nor any attack's goal."""


@torch.no_grad()
def predict(model: Classifier, images: Tensor, precision: str = "fp32", batch_size: int = 250) -> Tensor:
    """Predicted labels, (N,) int64 on the CPU, of (N, C, H, W) uint8 images; each part's mode is restored.

    An output that is no number predicts `NO_LABEL`: a model that diverged fails, whatever class argmax would name.
    """
    device, modes = model.mean.device, [(part, part.training) for part in model.modules()]
    model.eval()
    with autocast(device, precision):
        found = [_labels(model(batch.to(device))).cpu() for batch in images.split(batch_size)]
    for part, training in modes:
        part.training = training
    return torch.cat(found)


def _labels(logits: Tensor) -> Tensor:
    return logits.argmax(1).where(logits.isfinite().all(1), NO_LABEL)


def clean_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """C-Acc: percent of clean test images that are classified as their label."""
    return 100 * (predictions == labels).double().mean().item()


def attack_success_rate(predictions: Tensor, goals: Tensor) -> float:
    """ASR: percent of triggered images that are classified as the attack wants.

    Args:
        predictions, goals: (M,) of the images that count, those whose label is not already the goal.
    """
    return 100 * (predictions == goals).double().mean().item()


def label_correction_rate(predictions: Tensor, labels: Tensor) -> float:
    """LCR (also RA): percent of the same triggered images that are classified as their true label."""
    return 100 * (predictions == labels).double().mean().item()


def defense_effectiveness_rating(c_acc: float, asr: float, c_acc_before: float, asr_before: float) -> float:
    """DER: (max(0, fall of ASR) - max(0, fall of C-Acc) + 1) / 2 with rates as fractions, in percent.

    Zhu et al., "Enhancing fine-tuning based backdoor defense with sharpness-aware minimization", ICCV 2023, section 4.1.
    100 is a defense that removes an ASR of 100% at no cost, 50 one that changes nothing.
    """
    return (max(0.0, asr_before - asr) - max(0.0, c_acc_before - c_acc) + 100.0) / 2
