"""LIRA. Doan, Lao, Zhao and Li, "LIRA: learnable, imperceptible and robust backdoor attacks", ICCV 2021, section 3.

A generator g makes the trigger of an image from the image itself: T(x) = x + ε g(x), cut off at black and white, where no
value of g is above 1. The attacker controls training. In the first stage g and the classifier f learn in turns (Algorithm 1):
on each batch a copy of g takes a step towards

    L(f(T'(x)), η(y))

against f as it is, then f takes one towards α L(f(x), y) + (1 - α) L(f(T(x)), η(y)) against g, which becomes its copy after
each epoch. In the second stage g stays as it is, with a smaller ε, and f is tuned on the same loss.

As in the released code, images are augmented before they are triggered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from depoison.attacks.base import Attack, Fit, Setup, State
from depoison.attacks.batches import whole
from depoison.attacks.translators import UNet, drawn, finished, weights
from depoison.models.classifier import Classifier
from depoison.training.loop import autocast, descend, prepare, sgd


@dataclass(frozen=True, kw_only=True)
class Lira(Attack):
    """Attributes:
    eps, final_eps: the largest change of a pixel in [0, 1], in the first stage, and in the second and afterwards.
    alpha: weight of the loss on clean images; that on triggered ones has the rest.
    portion: images of a batch that the classifier sees triggered, too, as a fraction; None: the poisoning rate.
    classifier: what the second stage starts from: "tuned", the classifier of the first, or "new".
    trigger_epochs: of the first stage, at the recipe's learning rate; its own epochs are of the second.
    generator_lr: of its Adam.
    generator_width: channels of its first layers.
    """

    poisons_data = False
    learns_trigger = True

    eps: float
    final_eps: float
    alpha: float
    portion: float | None
    classifier: str
    trigger_epochs: int
    generator_lr: float
    generator_width: int

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        shape = tuple(images.shape[1:])
        generator = finished(lambda: UNet(shape, self.generator_width), trigger, "generator")
        with torch.no_grad():
            return 255 * put(images / 255, generator, self.final_eps)

    def train(self, fit: Fit, model: Classifier, setup: Setup, trigger: State) -> State:
        at_first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        first = fit.part("trigger", epochs=self.trigger_epochs, schedule="constant", weight_decay=0.0)
        generator, copy = (
            drawn(lambda: UNet(setup.shape, self.generator_width), fit.rng).to(setup.device) for _ in range(2)
        )
        generator.eval().requires_grad_(False)
        self._learn(first, model, setup, generator, copy.train())
        if self.classifier == "new":
            model.load_state_dict(at_first)
        self._learn(fit.part("classifier"), model, setup, generator)
        model.eval()
        return {**trigger, **weights(generator, "generator")}

    def _learn(
        self, fit: Fit, model: Classifier, setup: Setup, generator: nn.Module, copy: nn.Module | None = None
    ) -> None:
        """A stage: train the classifier, and with a copy the generator, in place."""
        assert setup.poisoning is not None
        portion = setup.poisoning.rate if self.portion is None else self.portion
        eps = self.final_eps if copy is None else self.eps
        optimizer, carried = sgd(prepare(model), fit.recipe), {}
        if copy is not None:
            adam = torch.optim.Adam(copy.parameters(), lr=self.generator_lr, fused=True)
            carried = {"generator": generator, "copy": copy, "adam": adam}
        for step in fit.steps(fit.batches(), model=model, optimizer=optimizer, **carried):
            images, labels = step.batch
            images, goals = images.float() / 255, setup.poisoning.goals(labels, setup.classes)
            if copy is not None:
                with autocast(setup.device, fit.recipe.precision):
                    logits = model(255 * put(images, copy, eps)).float()
                descend(adam, cross_entropy(logits, goals))
            count = whole(portion * len(images), fit.rng.generator("counts", step.number))
            with torch.no_grad(), autocast(setup.device, fit.recipe.precision):
                triggered = put(images[:count], generator, eps)
            # In one pass, as BatchNorm needs two images, and a part of a batch may be one or none.
            with autocast(setup.device, fit.recipe.precision):
                logits = model(255 * torch.cat([images, triggered])).float()
            clean, backdoored = logits.split([len(images), count])
            loss = self.alpha * cross_entropy(clean, labels)
            if count:
                loss = loss + (1 - self.alpha) * cross_entropy(backdoored, goals[:count])
            descend(optimizer, loss)
            if copy is not None and step.last:
                generator.load_state_dict(copy.state_dict())
            step.count(loss, clean)


def put(images: Tensor, generator: nn.Module, eps: float) -> Tensor:
    """(B, C, H, W) images in [0, 1] with a change of at most `eps`, in [0, 1]."""
    if not len(images):
        return images
    return (images + eps * generator(images).float()).clamp(0, 1)
