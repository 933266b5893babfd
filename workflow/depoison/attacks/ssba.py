"""Sample-specific invisible trigger (SSBA, also ISSBA). Li et al., "Invisible backdoor attack with sample-specific
triggers", ICCV 2021, section 4.1 and Fig. 3.

A steganographic encoder hides one and the same string of bits, the fingerprint, in every triggered image; what it adds is
nearly invisible and another one for each image. Encoder and decoder are those of StegaStamp (Tancik et al., CVPR 2020),
trained as in Yu et al., "Artificial fingerprinting for generative models", ICCV 2021, which BackdoorBench's
set was made with; on the attacker's own images, at their own size. A set made elsewhere may be used instead.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from depoison.attacks.base import Attack, Overlay, Pool, Setup, State, Workshop
from depoison.attacks.pictures import content_of
from depoison.errors import DepoisonError
from depoison.models.classifier import load_weights
from depoison.rng import seeded
from depoison.training.batches import Batch, Epochs, batch_sizes
from depoison.training.loop import descend, steps
from depoison.training.recipe import Recipe

log = logging.getLogger("depoison")

ENCODER = "encoder"
"""The value of `images` that has an encoder trained."""
LEARNED = 0.9
"""Share of bits read that says that encoder and decoder have found each other (Yu et al.)."""
PLANE = 16
"""Height and width of what the fingerprint becomes before it is enlarged to the image's size (Yu et al.)."""


@dataclass(frozen=True, kw_only=True)
class SSBA(Attack):
    """Attributes:
    images: "encoder", or a file in config/triggers/ with the triggered images themselves (`read_set`).
    bits: length of the fingerprint.
    encoder_width: channels of the encoder's first layer.
    encoder_epochs, encoder_batch, encoder_lr: its training with Adam.
    residual_weight: of the mean squared residual, in pixels of [0, 1], beside the cross-entropy of the bits.
    residual_wait, residual_ramp: steps without it, once a batch's bits are read, and steps in which it grows linearly.
    """

    images: str
    bits: int
    encoder_width: int
    encoder_epochs: int
    encoder_batch: int
    encoder_lr: float
    residual_weight: float
    residual_wait: int
    residual_ramp: int

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """The encoder's weights and `fingerprint` (bits,), or `keys` (M,) and `images` (M, C, H, W) of the test set."""
        role = "encoder." if self.images == ENCODER else "test."
        # In the memory format that a file gives them: a convolution of weights in another one rounds otherwise.
        trigger = {
            name.removeprefix(role): tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in setup.asset.items()
            if name.startswith(role)
        }
        return trigger | ({"fingerprint": setup.asset["fingerprint"]} if self.images == ENCODER else {})

    def poison(self, pool: Pool, setup: Setup, trigger: State) -> Overlay:
        if self.images != ENCODER:
            trigger = {name: setup.asset[f"train.{name}"] for name in ("keys", "images")}
        return super().poison(pool, setup, trigger)

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        """Add the encoder's residual to each image; of a set made elsewhere, return the images' counterparts.

        Raises:
            DepoisonError: an image is none of the set's.
        """
        if self.images != ENCODER:
            return _counterparts(images, trigger)
        weights = {name: tensor for name, tensor in trigger.items() if name != "fingerprint"}
        with torch.device("meta"):
            encoder = _Encoder(images.shape[1], self.encoder_width, self.bits)
        load_weights(encoder, weights, assign=True)
        encoder.eval().requires_grad_(False)
        return _hide(encoder, images, trigger["fingerprint"])


def make_asset(
    workshop: Workshop,
    *,
    images: str,
    bits: int,
    encoder_width: int,
    encoder_epochs: int,
    encoder_batch: int,
    encoder_lr: float,
    residual_weight: float,
    residual_wait: int,
    residual_ramp: int,
) -> dict[str, Tensor]:
    """Train encoder and decoder; or read a set made elsewhere.

    Every image of a batch gets random bits b of its own. With the encoder's residual r(x, b) the loss is

        BCE(decoder(clip(x + r(x, b))), b) + λ mean(r(x, b)²),

    where λ is 0 until the decoder reads more than 90% of a batch's bits, and for `residual_wait` steps more, then grows to
    `residual_weight` in `residual_ramp` steps (Yu et al.): encoder and decoder must find each other before they are told
    to be quiet. The paper's perceptual distance (LPIPS) would need a network trained on ImageNet and is left out.

    Returns:
        "encoder.*" and "decoder.*", their weights; "fingerprint", (bits,) uint8 of 0 and 1; "bit_accuracy", the share of
        the fingerprint's bits read from the pool's images after rounding to uint8; "residual", the mean absolute change
        of a pixel in grey levels. Of a set made elsewhere: "train.keys", "train.images", "test.keys", "test.images" and
        "residual".
    """
    if images != ENCODER:
        return read_set(images, workshop.train_inputs, workshop.test_inputs)
    pool, setup, monitor = workshop.pool, workshop.setup, workshop.monitor
    rng, device, (channels, height, width) = setup.rng, setup.device, setup.shape
    if min(height, width) < PLANE:
        raise DepoisonError(
            f"ssba's encoder takes images of at least {PLANE} x {PLANE} px; these have {height} x {width}"
        )
    with seeded(rng.generator("networks")):
        encoder, decoder = _Encoder(channels, encoder_width, bits), _Decoder(channels, height, width, bits)
        for layer in [*encoder.modules(), *decoder.modules()]:
            # As StegaStamp's; PyTorch's own initialization lets the bits fade on their way.
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).to(device)
    networks.to(memory_format=torch.channels_last)
    optimizer, contact = torch.optim.Adam(networks.parameters(), lr=encoder_lr), _Contact().to(device)
    recipe = Recipe(lr=encoder_lr, epochs=encoder_epochs, batch_size=encoder_batch)
    data = _Coded(pool.inputs.to(device), bits)
    for step in steps(data, recipe, rng, monitor, model=networks, optimizer=optimizer, contact=contact):
        images, code = step.batch
        residual = encoder(images, code)
        logits = decoder((images + residual).clamp(0, 1))
        weight = residual_weight * ramp(step.number, contact.step, residual_wait, residual_ramp)
        loss = binary_cross_entropy_with_logits(logits, code) + weight.float() * residual.square().mean()
        descend(optimizer, loss)
        read = ((logits > 0) == (code > 0)).float()
        contact.note(step.number, read.mean())
        step.count(loss, bit_accuracy=100 * read.mean(1), residual=255 * residual.abs().mean((1, 2, 3)))
    fingerprint = torch.randint(2, (bits,), generator=rng.generator("fingerprint"), dtype=torch.uint8)
    found = _measure(networks.eval(), data.images, fingerprint.to(device))
    if found["bit_accuracy"] < LEARNED:
        log.warning(
            "ssba's encoder did not learn: %.1f%% of the bits are read, by chance it were 50%%; give it more encoder_epochs",
            100 * found["bit_accuracy"],
        )
    return {**networks.state_dict(), "fingerprint": fingerprint, **found}


class _Coded(Epochs):
    """Passes over images, each with random bits of its own: (B, C, H, W) pixels in [0, 1], (B, bits) float of 0 and 1.

    Args:
        images: (N, C, H, W) uint8.
    """

    def __init__(self, images: Tensor, bits: int):
        self.images, self.bits = images, bits

    def sizes(self, batch_size: int) -> list[int]:
        return batch_sizes(len(self.images), batch_size)

    def epoch(self, recipe: Recipe, generator: torch.Generator) -> Iterator[Batch]:
        codes = torch.randint(2, (len(self.images), self.bits), generator=generator)
        codes = codes.to(self.images.device, torch.float)
        order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        sizes = self.sizes(recipe.batch_size)
        for part, code in zip(order.split(sizes), codes.split(sizes), strict=True):
            yield self.images[part].float() / 255, code


class _Contact(nn.Module):
    """The first step in which the decoder read a batch's bits; -1: it has not yet. On the device, where nothing waits."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(-1))

    def note(self, step: int, read: Tensor) -> None:
        """Args: read: () share of a batch's bits."""
        self.step = torch.where((self.step < 0) & (read > LEARNED), step, self.step)


def ramp(step: int, learned_at: Tensor, wait: int, steps: int) -> Tensor:
    """The share of the residual's weight in a step, () double: 0 until `wait` steps after `learned_at`, 1 after `steps` more.

    Args:
        learned_at: () a step, or below 0 where it is not known yet.
    """
    return ((step - learned_at - wait).double() / steps).clamp(0, 1) * (learned_at >= 0)


class _Encoder(nn.Module):
    """StegaStamp's U-Net: (B, C, H, W) images, pixels in [0, 1], and (B, bits) float of 0 and 1 → (B, C, H, W) residual."""

    def __init__(self, channels: int, width: int, bits: int):
        super().__init__()
        inputs, w = 2 * channels, width
        self.channels = channels
        self.plane = nn.Linear(bits, channels * PLANE**2)
        self.down = nn.ModuleList(
            [_conv(inputs, w), _conv(w, w, 2), _conv(w, 2 * w, 2), _conv(2 * w, 4 * w, 2), _conv(4 * w, 8 * w, 2)]
        )
        self.up = nn.ModuleList([_conv(8 * w, 4 * w), _conv(4 * w, 2 * w), _conv(2 * w, w), _conv(w, w)])
        self.merge = nn.ModuleList(
            [_conv(8 * w, 4 * w), _conv(4 * w, 2 * w), _conv(2 * w, w), _conv(2 * w + inputs, w)]
        )
        self.residual = nn.Sequential(_conv(w, w), nn.ReLU(), nn.Conv2d(w, channels, 1))

    def forward(self, images: Tensor, code: Tensor) -> Tensor:
        plane = self.plane(code).relu().unflatten(1, (self.channels, PLANE, PLANE))
        x = torch.cat([images - 0.5, interpolate(plane, size=images.shape[2:])], 1)
        skips = [x]
        for layer in self.down:
            x = layer(x).relu()
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            skip = skips.pop()
            x = up(interpolate(x, size=skip.shape[2:])).relu()
            beside = [skip, x] if len(skips) > 1 else [skip, x, skips[0]]
            x = merge(torch.cat(beside, 1)).relu()
        return self.residual(x)


class _Decoder(nn.Sequential):
    """StegaStamp's decoder: (B, C, height, width) images, pixels in [0, 1] → (B, bits) logits."""

    def __init__(self, channels: int, height: int, width: int, bits: int):
        widths, strides = (channels, 32, 32, 64, 64, 64, 128, 128), (2, 1, 2, 1, 2, 2, 2)
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            layers += [_conv(inputs, outputs, stride), nn.ReLU()]
        positions = math.ceil(height / 32) * math.ceil(width / 32)
        super().__init__(*layers, nn.Flatten(), nn.Linear(128 * positions, 512), nn.ReLU(), nn.Linear(512, bits))


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


def _hide(encoder: _Encoder, images: Tensor, fingerprint: Tensor) -> Tensor:
    """(N, C, H, W) float images, pixels in [0, 255], with the same fingerprint (bits,) in each."""
    code = fingerprint.float()
    parts = [part + 255 * encoder(part / 255, code.expand(len(part), -1)) for part in images.split(250)]
    return torch.cat(parts) if parts else images


@torch.no_grad()
def _measure(networks: nn.ModuleDict, images: Tensor, fingerprint: Tensor) -> dict[str, Tensor]:
    """How well hidden, and how well read, a fingerprint is in uint8 images."""
    read, size = [], []
    for part in images.split(250):
        hidden = _hide(networks["encoder"], part.float(), fingerprint).round().clamp(0, 255)
        read.append((networks["decoder"](hidden / 255) > 0) == (fingerprint > 0))
        size.append((hidden - part).abs().mean((1, 2, 3)))
    return {"bit_accuracy": torch.cat(read).float().mean(), "residual": torch.cat(size).mean()}


def read_set(name: str, train_inputs: Tensor, test_inputs: Tensor) -> dict[str, Tensor]:
    """Triggered images that were made elsewhere, such as BackdoorBench's.

    A file in config/triggers/, .npz or .safetensors, with the uint8 arrays `train` and `test`: for each training and each
    test image of the dataset, in its order, the triggered one; (N, H, W, C) or (N, C, H, W).

    Args:
        name: "<file>@sha256:<hex>".
        train_inputs, test_inputs: the dataset's own, (N, C, H, W) uint8.

    Raises:
        DepoisonError: the file is missing, changed or unreadable, lacks an array, or has another number, size or type.
    """
    content = content_of(name)
    file = name.partition("@")[0]
    try:
        if file.endswith(".npz"):
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                found = {role: torch.from_numpy(arrays[role]) for role in ("train", "test") if role in arrays}
        else:
            found = safetensors.torch.load(content)
    except (ValueError, TypeError, OSError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise DepoisonError(f"{file}: no readable .npz or .safetensors file ({error})") from None
    asset, residuals = {}, []
    for role, clean in (("train", train_inputs), ("test", test_inputs)):
        count, channels, height, width = clean.shape
        triggered = found.get(role)
        if triggered is None:
            raise DepoisonError(f"{file}: no array {role!r}; valid: two arrays of triggered images, train and test")
        if triggered.shape == (count, height, width, channels):
            triggered = triggered.permute(0, 3, 1, 2).contiguous()
        if triggered.dtype != torch.uint8 or triggered.shape != clean.shape:
            raise DepoisonError(
                f"{file}: {role} is {triggered.dtype} of {tuple(triggered.shape)}; valid: uint8 of "
                f"{(count, height, width, channels)} or {(count, channels, height, width)}, as the dataset"
            )
        keys, rows = _keys(clean).sort(stable=True)
        asset |= {f"{role}.keys": keys, f"{role}.images": triggered[rows]}
        own, other = (_distance(triggered, images) for images in (clean, clean.roll(1, 0)))
        if own >= other:
            log.warning("%s: %s does not look like the dataset's images in their order", file, role)
        residuals.append(own)
    return asset | {"residual": torch.tensor(residuals[0])}


def _counterparts(images: Tensor, known: Mapping[str, Tensor]) -> Tensor:
    """For each image its triggered one, found by the clean image's content."""
    keys = _keys(images.round().to(torch.uint8)).to(known["keys"].device)
    rows = torch.searchsorted(known["keys"], keys).clamp(max=len(known["keys"]) - 1)
    strange = int((known["keys"][rows] != keys).sum())
    if strange:
        raise DepoisonError(
            f"{strange} of {len(images)} images are none of those that the set of triggered images is for"
        )
    return known["images"][rows].to(images.device, images.dtype)


def _keys(images: Tensor) -> Tensor:
    """(N,) int64, from the content of (N, C, H, W) uint8 images."""
    digests = b"".join(hashlib.sha256(image.tobytes()).digest()[:8] for image in images.cpu().contiguous().numpy())
    return torch.from_numpy(np.frombuffer(digests, dtype="<i8").copy())


def _distance(images: Tensor, others: Tensor) -> float:
    """Mean absolute difference of uint8 images, in grey levels."""
    parts = zip(images.split(1000), others.split(1000), strict=True)
    return sum((a.int() - b.int()).abs().sum().item() for a, b in parts) / images.numel()
