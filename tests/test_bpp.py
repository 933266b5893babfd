"""BppAttack: quantization and dithering pixel by pixel, and what of a batch is quantized, made noisy and left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from depoison.attacks.base import Fit, Poisoning, Pool, stamped
from depoison.attacks.bpp import Bpp, _QuantizedBatches, dithered, quantized
from depoison.rng import Rng
from depoison.tasks.image import ImageDraws
from depoison.training.loop import Monitor
from small import CPU, IMAGES, classes_of, network, pixels, recipe, setup_of


def attack_of(**changes) -> Bpp:
    return Bpp(**({"levels": 8, "dithering": True, "negative_rate": 0.25} | changes))


@pytest.mark.parametrize(
    ("levels", "given_", "expected"),
    [
        # Steps of 255 / 7, 36.43 gray levels; the first ends at 18.2, the fourth at 127.5.
        (8, [0, 18, 19, 54, 55, 127, 128, 236, 237, 255], [0, 0, 36, 36, 73, 109, 146, 219, 255, 255]),
        (2, [0, 127, 128, 255], [0, 0, 255, 255]),
        (3, [63, 64, 191, 192], [0, 128, 128, 255]),
        (32, [4, 5, 12, 13, 250, 251], [0, 8, 8, 16, 247, 255]),
    ],
)
def test_pixels_become_the_nearest_level_as_a_whole_number(levels, given_, expected):
    image = torch.tensor(given_, dtype=torch.uint8).view(1, 1, 1, -1)
    assert stamped(attack_of(levels=levels, dithering=False), image, {}).flatten().tolist() == expected


def test_dithering_by_hand():
    """Black: 100 of error. Right 143.75, white, -111.25; below 131.25 - 20.86, black, 110.39; last 106.25 - 34.77 + 48.30."""
    flat = torch.full((1, 1, 2, 2), 100, dtype=torch.uint8)
    assert stamped(attack_of(levels=2), flat, {}).tolist() == [[[[0, 255], [0, 0]]]]
    assert stamped(attack_of(levels=2, dithering=False), flat, {}).tolist() == [[[[0, 0], [0, 0]]]]


def loop(plane: np.ndarray, levels: int) -> np.ndarray:
    """Floyd and Steinberg's, pixel after pixel."""
    rows, columns = plane.shape
    found = [[float(value) for value in row] for row in plane]
    for y in range(rows):
        for x in range(columns):
            old = found[y][x]
            found[y][x] = min(max(round(old / 255 * (levels - 1)), 0), levels - 1) / (levels - 1) * 255
            for dy, dx, sixteenths in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if y + dy < rows and 0 <= x + dx < columns:
                    found[y + dy][x + dx] += (old - found[y][x]) * sixteenths / 16
    return np.array(found)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(2, 40), st.integers(0, 999))
def test_dithering_is_floyd_and_steinbergs_loop_pixel_for_pixel(height, width, levels, seed):
    images = pixels(2, 2, height, width, seed)
    found = dithered(images.double(), levels).numpy()
    assert all(np.array_equal(found[at], loop(images[at].numpy(), levels)) for at in np.ndindex(2, 2))


@given(st.integers(2, 255), st.integers(0, 99))
def test_dithering_keeps_to_the_levels_and_the_brightness(levels, seed):
    images = pixels(1, 1, 16, 16, seed).double()
    found, step = dithered(images, levels), 255 / (levels - 1)
    assert torch.equal(found, quantized(found, levels)) and 0 <= found.min() <= found.max() <= 255
    # Lost is what goes over the border: of half a step at most 10/16 in each row, and all in the last one.
    assert (found - images).sum().abs() <= step / 2 * (16 * 10 / 16 + 16)


def still(count: int) -> ImageDraws:
    """Draws that change nothing."""
    return ImageDraws(torch.zeros(count, 2, dtype=torch.int64), torch.zeros(count, dtype=torch.bool), None)


def batches_of(attack: Bpp, images: Tensor, labels: Tensor, poisoning: Poisoning) -> _QuantizedBatches:
    """What the model trains on."""
    seen = []
    untouched = torch.zeros(len(labels), dtype=torch.bool)
    fit = Fit(IMAGES, Pool(images, labels), untouched, recipe(), Rng(0, "train"), Monitor(), CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "__call__", lambda self, model, data: seen.append(data))
        assert attack.train(fit, network(), setup_of(poisoning=poisoning), {}) == {}
    return seen[0]


@pytest.mark.parametrize(
    ("labels", "rate", "negative_rate", "counts"),
    [
        ("all-to-one", 0.25, 0.25, (4, 4)),
        ("all-to-all", 0.25, 0.125, (4, 2)),
        ("all-to-one", 0.5, 0.0, (8, 0)),
        ("all-to-one", 0.75, 0.5, (12, 4)),  # as many as are left
    ],
)
@pytest.mark.parametrize("dithering", [True, False])
def test_a_batch_is_quantized_made_noisy_and_left_alone_in_its_parts(labels, rate, negative_rate, counts, dithering):
    images, own = pixels(16), classes_of(16)
    attack = attack_of(dithering=dithering, negative_rate=negative_rate)
    source = batches_of(attack, images, own, Poisoning(rate=rate, target=2, labels=labels))
    trigger = stamped(attack, images, {}).int()
    assert (trigger != images).flatten(1).any(1).all()
    for seed in range(5):
        index = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        found, targets = source.batch(index, still(16), torch.Generator().manual_seed(seed))
        first, end = counts[0], sum(counts)
        goals = (own + 1) % 3 if labels == "all-to-all" else torch.full((16,), 2)
        assert targets.tolist() == [*goals[index[:first]].tolist(), *own[index[first:]].tolist()]
        assert torch.equal(found[:first].int(), trigger[index[:first]])
        assert torch.equal(found[end:].int(), images[index[end:]].int())
        for at in range(first, end):
            i = int(index[at])
            noisy = [(images[i] + trigger[j] - images[j].int()).clamp(0, 255) for j in range(16)]
            matches = [j for j, one in enumerate(noisy) if torch.equal(found[at].int(), one)]
            assert len(matches) == 1 and matches != [i]  # of one other image


def test_other_images_noise_in_each_batch_from_its_generator_alone():
    source = batches_of(attack_of(), pixels(16), classes_of(16), Poisoning(rate=0.25, target=0))
    index = torch.arange(16)
    first, again, other = (source.batch(index, still(16), torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first[4:8], other[4:8])
