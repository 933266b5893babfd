"""Fast smooth fine-tuning (f-SFT): what SFT minimizes (`fisher`), over the singular values of each weight matrix alone.

Section 5.1, Eq. 7: a weight matrix theta = U diag(sigma) V^T becomes U diag(ReLU(sigma + delta)) V^T. Only delta, the
spectral shift, learns; U and V stay. The matrices u_i v_i^T are orthonormal, so delta are coordinates of the weights along
the directions in which they may move, and F of delta is F of theta along these.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, relu

from depoison.defenses.fisher import smooth
from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.models.masks import plain


def f_sft(
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    eta_f: float,
    eta_r: float,
    fisher: str,
    trace_every: int,
    trace_images: int | None,
) -> Classifier:
    """Purify `model` by fine-tuning the singular values of its convolutions' and linear layers' weights; see `smooth`.

    Biases and BatchNorm's weights and biases stay; its running statistics follow the data, as in all tuning.
    """
    tuned = copy.deepcopy(model).requires_grad_(False)
    layers = factor(tuned)
    tuned.train()
    smooth(
        tuned, clean, tune, eta_f=eta_f, eta_r=eta_r, fisher=fisher, trace_every=trace_every, trace_images=trace_images
    )
    tune.monitor.facts["tuned_parameters"] = sum(layer.shift.numel() for layer in layers.values())
    return plain(tuned, model)


class Spectral(nn.Module):
    """A convolution or a linear layer of weight U diag(ReLU(sigma + shift)) V^T, of which the shift alone learns.

    A kernel is a matrix of (outputs, inputs x height x width). It is applied factor by factor, U as a 1 x 1 convolution: the
    whole is then never put together, nor is its gradient, which is as large for each sample as it is.

    Attributes:
        shift, sigma: (R,) delta, and the singular values, in descending order.
        left: (outputs, R) U.
        right: (R, inputs, …) V^T, in the shape of a weight.
    """

    left: Tensor
    sigma: Tensor
    right: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear):
        super().__init__()
        weight = layer.weight.detach()
        left, sigma, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        self.layer, self.shift = layer, nn.Parameter(torch.zeros_like(sigma))
        self.register_buffer("left", left.contiguous())
        self.register_buffer("sigma", sigma)
        self.register_buffer("right", torch.empty_like(weight[: len(sigma)]).copy_(right.view(-1, *weight.shape[1:])))

    @property
    def values(self) -> Tensor:
        """(R,) the singular values as they are now."""
        return relu(self.sigma + self.shift)

    @property
    def weight(self) -> Tensor:
        """The whole weight, also for a module that reads it instead of calling its layer (attention)."""
        return ((self.left * self.values) @ self.right.flatten(1)).view_as(self.layer.weight)

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return linear(linear(x, self.right) * self.values, self.left, self.bias)
        if self.layer.groups > 1:  # rows of V^T reach over the inputs of one group, and each group has them all
            return self.layer._conv_forward(x, self.weight, self.bias)
        inner = self.layer._conv_forward(x, self.right, None) * self.values[:, None, None]
        return conv2d(inner, self.left[:, :, None, None], self.bias)


def factor(model: nn.Module) -> dict[str, Spectral]:
    """Put a `Spectral` in the place of each convolution and linear layer of a model, and return them by name."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    factored = {name: Spectral(layer) for name, layer in layers.items()}
    for name, layer in factored.items():
        model.set_submodule(name, layer)
    return factored
