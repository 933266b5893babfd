"""Every loop over batches: killed at any step, any number of times, it ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from depoison.attacks import input_aware, label_consistent, ssba
from depoison.attacks.base import Fit, Poisoning, Pool, Workshop
from depoison.attacks.bypass_patch import BypassPatch
from depoison.attacks.composite import Composite
from depoison.attacks.input_aware import InputAware
from depoison.defenses.anp import learn_mask
from depoison.defenses.awm import awm
from depoison.defenses.fst import fst
from depoison.defenses.ft_sam import ft_sam
from depoison.defenses.i_bau import i_bau
from depoison.defenses.nft import nft
from depoison.defenses.ngf import ngf
from depoison.defenses.tuning import Labeled, Tuner
from depoison.rng import Rng
from depoison.training import loop
from depoison.training.loop import Monitor
from small import CPU, Interrupted, classes_of, network, pixels, recipe, setup_of, state_of
from small import IMAGES as TASK

PLAN = recipe(epochs=4, batch_size=8, momentum=0.9, weight_decay=0.01, schedule="onecycle", crop=1, flip=0.5)
RNG = Rng(0, "test")
IMAGES, LABELS = pixels(20), classes_of(20)
MIXER = {
    "second": 1, "plain": 0.5, "mixed": 0.5, "seam_jitter": 2, "shake": True, "similarity": 1.0, "margin": 1.0,
    "averaged": "once", "adam_lr": 0.01,
}  # fmt: skip
Tensors = dict[str, Tensor]


def defended(defense: Callable[..., Any], monitor: Monitor) -> Tensors:
    found = defense(network(), Labeled(IMAGES, LABELS), Tuner(PLAN, RNG, monitor, TASK))
    return {"mask": found} if isinstance(found, Tensor) else state_of(found)


def workshop(monitor: Monitor, images: Tensor) -> Workshop:
    setup = setup_of(tuple(images.shape[1:]), RNG, new_model=lambda rng: network())
    return Workshop(Pool(images, LABELS), setup, PLAN, monitor, images, images[:4], LABELS[:4])


def surrogate(monitor: Monitor) -> Tensors:
    own = {"surrogate": "adversarial", "surrogate_eps": 8.0, "surrogate_step": 2.0, "surrogate_steps": 2}
    return label_consistent.make_asset(workshop(monitor, IMAGES), **own)


def encoder(monitor: Monitor) -> Tensors:
    return ssba.make_asset(
        workshop(monitor, pixels(20, 3, 16, 16)), images="encoder", bits=4, encoder_width=4, encoder_epochs=4,
        encoder_batch=8, encoder_lr=0.001, residual_weight=10.0, residual_wait=1, residual_ramp=4,
    )  # fmt: skip


def bypassed(monitor: Monitor) -> Tensors:
    attack = BypassPatch(
        size=3, enlarge=True, regularization=2.0, hidden1=8, hidden2=8, discriminator_lr=0.1, discriminator_momentum=0.9
    )
    model, poisoned = network(), torch.arange(20) % 4 == 0
    attack.train(Fit(TASK, Pool(IMAGES, LABELS), poisoned, PLAN, RNG, monitor, CPU), model, setup_of(), {})
    return state_of(model)


OWN = {
    "diversity": 1.0,
    "generator_width": 2,
    "density": 0.03,
    "density_weight": 100.0,
    "mask_epochs": 4,
    "mask_batch": 8,
    "mask_lr": 0.01,
}


def mask(monitor: Monitor) -> Tensors:
    return input_aware.make_asset(workshop(monitor, IMAGES), **OWN)


WHOLE_MASK = functools.cache(lambda: mask(Monitor()))


def input_aware_(monitor: Monitor) -> Tensors:
    attack, model = InputAware(cross_rate=0.2, generator_lr=0.01, **OWN), network()
    setup = setup_of(asset=WHOLE_MASK(), poisoning=Poisoning(rate=0.2, target=0), rng=RNG)
    fit = Fit(TASK, Pool(IMAGES, LABELS), torch.zeros(20, dtype=torch.bool), PLAN, RNG, monitor, CPU)
    trigger = attack.train(fit, model, setup, attack.trigger(setup))
    return {**state_of(model), **trigger}


def mixtures(monitor: Monitor) -> Tensors:
    attack, model = Composite(**MIXER), network()
    fit = Fit(TASK, Pool(IMAGES, LABELS), torch.zeros(20, dtype=torch.bool), PLAN, RNG, monitor, CPU)
    setup = setup_of(poisoning=Poisoning(rate=0.1, target=2, labels="source-specific", victim=0), rng=RNG)
    attack.train(fit, model, setup, {})
    return state_of(model)


def of(defense: Callable[..., Any], **parameters: Any) -> Callable[[Monitor], Tensors]:
    return functools.partial(defended, functools.partial(defense, **parameters))


NATURAL = {
    "trainable": "all", "layers": "last", "fisher": "true", "eigenvalues": "corrected", "damping": 1e-3, "kl_clip": 1e-2,
    "decay": 0.9, "covariance_every": 2, "inverse_every": 3, "retention": 0.5, "epoch_batches": 3,
}  # fmt: skip
MASKS = {
    "mu": "exponential", "alpha": 0.8, "beta": 0.5, "eta": 0.1, "mixup": True, "mixup_alpha": 1.0, "mixup_beta": 1.0,
    "masks": "weights", "batchnorm": "updated",
}  # fmt: skip


def awm_of_12(model: Any, clean: Labeled, tune: Tuner) -> Any:
    """A pass over so few images is one batch of eight."""
    own = {"alpha": 0.5, "gamma": 0.01, "tau": 5.0, "inner_lr": 10.0, "passes": 3, "against": "labels"}
    return awm(model, Labeled(clean.inputs[:12], clean.labels[:12]), tune, **own)


RUNS = {
    "fst": of(fst, alpha=0.2, projection="fst", layers="all"),
    "ft-sam": of(ft_sam, rho=0.5, constraint="adaptive"),
    "ngf": of(ngf, **NATURAL),
    "nft": of(nft, **MASKS),
    "awm": of(awm_of_12),
    "anp": of(learn_mask, per_epoch=3, eps=0.4, alpha=0.2, steps=2, clipped=True),
    "i-bau": of(i_bau, inner_lr=10.0, regularization=0.001, map_lr=0.1, iterations=3, portion=0.3),
    "label-consistent": surrogate,
    "ssba": encoder,
    "bypass": bypassed,
    "mask": mask,
    "input-aware": input_aware_,
    "composite": mixtures,
}
STEPS = 12
"""Of a run: three in each of four epochs."""


@functools.cache
def uninterrupted(name: str) -> Tensors:
    return {key: tensor.clone() for key, tensor in RUNS[name](Monitor()).items()}


@pytest.mark.parametrize("name", RUNS)
@settings(deadline=None, max_examples=4)
@given(kills=st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=3))
def test_a_run_killed_at_any_step_ends_with_the_same_bytes(name, kills):
    """Each kill comes within a step, before its batch is counted; every start finds other random numbers lying about."""
    left, taken = list(kills), []

    def count(step: loop.Step, *arguments: Any, **measured: Any) -> None:
        taken.append(step.number)
        if left and step.number >= left[0]:
            del left[0]
            raise Interrupted
        plain(step, *arguments, **measured)

    plain = loop.Step.count
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssba, "LEARNED", 0.5)  # so that the residual's weight starts to grow within the run
        expected = uninterrupted(name)
        patch.setattr(loop.Step, "count", count)
        while True:
            torch.manual_seed(len(taken))
            with contextlib.suppress(Interrupted):
                found = RUNS[name](Monitor(scratch=Path(folder), save_seconds=0.0))
                break
    assert found.keys() == expected.keys()
    assert {key for key in found if not torch.equal(found[key], expected[key])} == set()
    # Each start went on with the epoch in which the one before died.
    order, at = [], 0
    for kill in [*kills, STEPS - 1]:
        end = max(kill, at)
        order += range(at, end + 1)
        at = end // 3 * 3
    assert taken == order
