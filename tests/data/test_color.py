"""Photometric operations against torchvision, image by image, and closed forms."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from rayssl.data.augment import Draws
from rayssl.data.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    blur_kernel_size,
    color_jitter,
    draw_color_jitter,
    gaussian_blur,
    grayscale,
    sobel,
)

MASK = torch.tensor([True, False, True, True, False, True])
EVERY = torch.ones(6, dtype=torch.bool)


def random_images(count: int = 6, height: int = 21, width: int = 34) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def coloured_images() -> Tensor:
    """Random images whose first row has the pure, mixed, black, white and grey colours, where hues have their edges."""
    images = random_images()
    corners = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=3))).T  # (3, 27)
    images[:, :, 0, :27] = corners
    return images


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def image_by_image(function: Callable[..., Tensor], images: Tensor, values: Tensor) -> Tensor:
    return torch.stack([function(image, value.item()) for image, value in zip(images, values, strict=True)])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (adjust_brightness, tv.adjust_brightness),
        (adjust_contrast, tv.adjust_contrast),
        (adjust_saturation, tv.adjust_saturation),
    ],
)
def test_adjustments_equal_torchvision(ours: Callable[..., Tensor], theirs: Callable[..., Tensor]) -> None:
    images, factors = coloured_images(), torch.tensor([0.0, 0.3, 0.8, 1.0, 1.4, 3.0])
    assert_close(ours(images, factors), image_by_image(theirs, images, factors))


def test_hue_equals_torchvision() -> None:
    images, shifts = coloured_images(), torch.tensor([-0.5, -0.21, 0.0, 0.07, 1 / 3, 0.5])
    assert_close(adjust_hue(images, shifts), image_by_image(tv.adjust_hue, images, shifts), 1e-4)


def test_a_third_of_the_colour_circle_turns_red_into_green() -> None:
    red = torch.tensor([1.0, 0.2, 0.2]).view(1, 3, 1, 1)
    green = torch.tensor([0.2, 1.0, 0.2]).view(1, 3, 1, 1)
    assert_close(adjust_hue(red, torch.tensor([1 / 3])), green, 1e-6)
    assert_close(adjust_hue(green, torch.tensor([-1 / 3])), red, 1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_color_jitter_equals_torchvision_in_that_order_on_the_picked_samples(order: tuple[int, ...]) -> None:
    images = coloured_images()
    factors, _, _ = draw_color_jitter(
        Draws(0, 0, 0, batch_size=6), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, probability=1.0
    )
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    expected = images
    for operation in order:
        expected = image_by_image(steps[operation], expected, factors[:, operation])
    result = color_jitter(images, factors, order=order, mask=MASK)
    assert_close(result[MASK], expected[MASK], 1e-4)
    assert torch.equal(result[~MASK], images[~MASK])


def test_jitter_is_drawn_from_the_ranges_of_torchvision() -> None:
    strengths = {"brightness": 0.4, "contrast": 1.6, "saturation": 0.0, "hue": 0.1}
    factors, order, mask = draw_color_jitter(Draws(0, 0, 0, batch_size=4000), **strengths, probability=0.8)
    reference = v2.ColorJitter(**strengths)
    ranges = (reference.brightness, reference.contrast, reference.saturation or (1.0, 1.0), reference.hue)
    for drawn, (low, high) in zip(factors.T, ranges, strict=True):
        assert drawn.min().item() == pytest.approx(low, abs=0.01)
        assert drawn.max().item() == pytest.approx(high, abs=0.01)
        assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=0.03)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert mask.float().mean().item() == pytest.approx(0.8, abs=0.03)


def test_jitter_of_all_ranks_is_the_jitter_of_a_single_worker() -> None:
    def draw(rank: int, world_size: int) -> tuple[Tensor, Tensor, Tensor]:
        draws = Draws(5, 1, 2, batch_size=8, rank=rank, world_size=world_size)
        return draw_color_jitter(draws, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, probability=0.5)

    factors, order, mask = draw(0, 1)
    ranks = [draw(0, 2), draw(1, 2)]
    assert torch.equal(torch.cat([rank[0] for rank in ranks]), factors)
    assert all(torch.equal(rank[1], order) for rank in ranks)
    assert torch.equal(torch.cat([rank[2] for rank in ranks]), mask)


def test_grayscale_equals_torchvision_on_the_picked_samples() -> None:
    images = coloured_images()
    result = grayscale(images, MASK)
    assert_close(result[MASK], tv.rgb_to_grayscale(images, num_output_channels=3)[MASK])
    assert torch.equal(result[~MASK], images[~MASK])


@pytest.mark.parametrize("kernel_size", [1, 3, 9, 23])
def test_gaussian_blur_equals_torchvision_on_the_picked_samples(kernel_size: int) -> None:
    images, sigmas = random_images(), torch.tensor([0.1, 0.4, 0.9, 1.3, 1.7, 2.0])
    expected = image_by_image(lambda image, sigma: tv.gaussian_blur(image, [kernel_size] * 2, [sigma]), images, sigmas)
    assert_close(gaussian_blur(images, sigmas, kernel_size=kernel_size, mask=EVERY), expected)
    partly = gaussian_blur(images, sigmas, kernel_size=kernel_size, mask=MASK)
    assert_close(partly[MASK], expected[MASK])
    assert torch.equal(partly[~MASK], images[~MASK])


@pytest.mark.parametrize(("side", "expected"), [(224, 23), (96, 9), (84, 9), (64, 7), (32, 3), (8, 3)])
def test_the_blur_kernel_is_the_odd_number_nearest_to_a_tenth_of_the_side(side: int, expected: int) -> None:
    assert blur_kernel_size(side) == expected


def test_sobel_equals_scipy_on_the_picked_samples() -> None:
    images = random_images()
    expected = torch.empty_like(images)
    # Plane by plane: scipy smooths along every axis that it is given.
    for plane, target in zip(images.double().flatten(0, 1).numpy(), expected.flatten(0, 1), strict=True):
        across, down = (scipy.ndimage.sobel(plane, axis=axis, mode="nearest") for axis in (1, 0))
        target.copy_(torch.from_numpy(np.hypot(across, down) / np.sqrt(20)))
    result = sobel(images, MASK)
    assert_close(result[MASK], expected[MASK])
    assert torch.equal(result[~MASK], images[~MASK])


def test_the_largest_sobel_response_of_all_neighbourhoods_is_one() -> None:
    """The squared gradient is convex in the pixels, so its largest value has all of them black or white."""
    neighbourhoods = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).view(-1, 1, 3, 3)
    images = neighbourhoods.expand(-1, 3, -1, -1)
    response = sobel(images, torch.ones(len(images), dtype=torch.bool))
    assert response[:, :, 1, 1].max().item() == pytest.approx(1.0, abs=1e-6)
    assert response.max().item() <= 1.0 + 1e-6


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness": lambda images: adjust_brightness(images, torch.arange(6) * 0.3),
    "contrast": lambda images: adjust_contrast(images, torch.arange(6) * 0.3),
    "saturation": lambda images: adjust_saturation(images, torch.arange(6) * 0.3),
    "hue": lambda images: adjust_hue(images, torch.arange(6) * 0.1),
    "color_jitter": lambda images: color_jitter(images, torch.full((6, 4), 0.4), order=(3, 0, 2, 1), mask=MASK),
    "grayscale": lambda images: grayscale(images, MASK),
    "gaussian_blur": lambda images: gaussian_blur(images, torch.arange(1, 7) * 0.3, kernel_size=5, mask=MASK),
    "gaussian_blur of all": lambda images: gaussian_blur(images, torch.arange(1, 7) * 0.3, kernel_size=5, mask=EVERY),
    "sobel": lambda images: sobel(images, MASK),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_neither_the_memory_layout_nor_the_other_samples_matter(name: str) -> None:
    images = random_images()
    before, expected = images.clone(), OPERATIONS[name](images)
    assert torch.equal(images, before)
    assert_close(OPERATIONS[name](images.contiguous(memory_format=torch.channels_last)), expected)
    assert_close(OPERATIONS[name](torch.stack((images, images), dim=-1)[..., 0]), expected)
    repeated = images[:1].expand(6, -1, -1, -1)
    assert_close(OPERATIONS[name](repeated)[0], expected[0])


@pytest.mark.parametrize("name", ["color_jitter", "gaussian_blur", "sobel"])
def test_an_empty_mask_leaves_the_images(name: str) -> None:
    images, none = random_images(), torch.zeros(6, dtype=torch.bool)
    calls = {
        "color_jitter": lambda: color_jitter(images, torch.zeros(6, 4), order=range(4), mask=none),
        "gaussian_blur": lambda: gaussian_blur(images, torch.ones(6), kernel_size=3, mask=none),
        "sobel": lambda: sobel(images, none),
    }
    assert torch.equal(calls[name](), images)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda images: adjust_brightness(images.byte(), torch.ones(6)), "floating point .* got torch.uint8"),
        (lambda images: adjust_contrast(images, torch.full((6,), -0.5)), "at least 0.0, got -0.5"),
        (lambda images: adjust_saturation(images, torch.ones(5)), r"shape \(6,\), got \(5,\)"),
        (lambda images: adjust_hue(images, torch.full((6,), 0.75)), r"in \[-0.5, 0.5\], got 0.75"),
        (lambda images: adjust_brightness(images, torch.full((6,), torch.nan)), "at least 0.0, got nan"),
        (
            lambda images: color_jitter(images, torch.ones(6, 4), order=(0, 1, 1, 3), mask=EVERY),
            r"permutation .* got \[0, 1, 1, 3\]",
        ),
        (lambda images: color_jitter(images, torch.ones(6, 3), order=range(4), mask=EVERY), r"got \(6, 3\)"),
        (lambda images: grayscale(images, torch.ones(6)), "mask must be bool, got torch.float32"),
        (lambda images: gaussian_blur(images, torch.ones(6), kernel_size=4, mask=EVERY), "odd .* got 4"),
        (lambda images: gaussian_blur(images, torch.ones(6), kernel_size=43, mask=EVERY), "shorter side, 21, got 43"),
        (lambda images: gaussian_blur(images, torch.zeros(6), kernel_size=3, mask=EVERY), "sigmas .* got 0.0"),
        (lambda images: sobel(images[:, :1], EVERY), r"must be \(B, 3, H, W\), got \(6, 1, 21, 34\)"),
    ],
)
def test_arguments_that_break_a_rule_are_named_with_their_value(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(random_images())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"brightness": -0.1}, "at least 0, got .-0.1"),
        ({"hue": 0.6}, r"hue must be in \[0, 0.5\], got 0.6"),
        ({"probability": 2.0}, r"in \[0, 1\], got 2.0"),
    ],
)
def test_impossible_strengths_are_refused(change: dict[str, float], message: str) -> None:
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "probability": 0.8} | change
    with pytest.raises(ValueError, match=message):
        draw_color_jitter(Draws(0, 0, 0, batch_size=4), **strengths)
