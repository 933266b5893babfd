"""Defense effectiveness rating: what a defense removes of an attack against what it costs."""

from __future__ import annotations


def der(c_acc: float, asr: float, c_acc_before: float, asr_before: float) -> float:
    """(max(0, fall of ASR) - max(0, fall of C-Acc) + 1) / 2 with rates as fractions, in percent.

    Zhu et al., "Enhancing fine-tuning based backdoor defense with sharpness-aware minimization", ICCV 2023, section 4.1 and
    supplement. 100 is a defense that removes an ASR of 100% at no cost, 50 one that changes nothing.
    """
    return (max(0.0, asr_before - asr) - max(0.0, c_acc_before - c_acc) + 100.0) / 2
