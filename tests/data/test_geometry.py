"""The geometric operations against torchvision, image by image."""

from typing import Literal

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from rayssl.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Draws,
    center_crop,
    crop,
    flip,
    normalize,
    resize,
    rotated_crop,
    to_float,
)
from tests.data.random_batches import HEIGHT, WIDTH, assert_close, middle, random_bytes, random_images


def test_to_float_equals_torchvision_and_passes_floats_through() -> None:
    images = random_bytes()
    assert_close(to_float(images), tv.to_dtype(images, torch.float32, scale=True), 1e-7)
    assert to_float(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).eq(1).all()
    floats = random_images()
    assert to_float(floats) is floats


def test_normalize_equals_torchvision() -> None:
    images = random_images()
    assert_close(normalize(images), tv.normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD)))
    assert_close(normalize(images, (0, 0.1, 0.2), (1, 2, 3)), tv.normalize(images, [0, 0.1, 0.2], [1, 2, 3]))


@pytest.mark.parametrize("size", [15, 37, 61])
@pytest.mark.parametrize("turned", [False, True])
def test_resize_equals_torchvision(size: int, turned: bool) -> None:
    images = random_images().mT if turned else random_images()
    assert_close(resize(images, size), tv.resize(images, [size], antialias=True))


@pytest.mark.parametrize("size", [20, 21, 37])
def test_center_crop_equals_torchvision(size: int) -> None:
    for images in (random_images(), random_bytes()):
        assert torch.equal(center_crop(images, size), tv.center_crop(images, [size]))


def test_crop_equals_slicing() -> None:
    draws = Draws(0, 0, 0, batch_size=6)
    for images in (random_images(), random_bytes()):
        tops, lefts = draws.integers(HEIGHT - 20 + 1), draws.integers(WIDTH - 20 + 1)
        expected = [
            image[:, top : top + 20, left : left + 20] for image, top, left in zip(images, tops, lefts, strict=True)
        ]
        assert torch.equal(crop(images, tops, lefts, 20), torch.stack(expected))


def test_several_crops_of_each_image_equal_slicing() -> None:
    draws = Draws(0, 0, 0, batch_size=6)
    for images in (random_images(), random_bytes()):
        tops, lefts = draws.integers(HEIGHT - 9 + 1, 4), draws.integers(WIDTH - 9 + 1, 4)
        result = crop(images, tops, lefts, 9)
        assert result.shape == (6, 4, 3, 9, 9)
        for sample in range(6):
            for top, left, square in zip(tops[sample], lefts[sample], result[sample], strict=True):
                assert torch.equal(square, images[sample, :, top : top + 9, left : left + 9])


def test_flip_mirrors_the_picked_images_only() -> None:
    mask = torch.tensor([True, False, True, True, False, False])
    channels_last = random_bytes().contiguous(memory_format=torch.channels_last)
    for images in (random_images(), random_bytes(), channels_last):
        expected = [tv.horizontal_flip(image) if picked else image for image, picked in zip(images, mask, strict=True)]
        assert torch.equal(flip(images, mask), torch.stack(expected))
        assert torch.equal(flip(images, ~mask).flip(3), flip(images, mask))
        assert torch.equal(flip(images, torch.zeros(6, dtype=torch.bool)), images)
        assert torch.equal(flip(images, torch.ones(6, dtype=torch.bool)), images.flip(3))


@pytest.mark.parametrize("size", [21, 37])
def test_rotated_crop_equals_torchvision(size: int) -> None:
    """The remainder is even on both sides, so that their central crop is central; the larger has black corners."""
    images = random_images(width=51)
    angles = torch.tensor([0.0, 30.0, -45.0, 90.0, 200.5, 359.0])
    rotated = torch.stack(
        [
            tv.rotate(image, angle.item(), interpolation=InterpolationMode.BILINEAR)
            for image, angle in zip(images, angles, strict=True)
        ]
    )
    result = rotated_crop(images, angles, size=size, zoom=1.0, centers=middle(images))
    assert_close(result, tv.center_crop(rotated, [size]), 2e-5)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, -1])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_quarter_turns_move_pixels_exactly(turns: int, padding: Literal["zeros", "border"]) -> None:
    images = random_images(3, 32, 32)
    result = rotated_crop(
        images, torch.full((3,), 90.0 * turns), size=32, zoom=1.0, centers=middle(images), padding=padding
    )
    assert_close(result, images.rot90(turns, dims=(2, 3)))


@pytest.mark.parametrize("zoom", [2, 3])
def test_magnifying_without_rotation_equals_resizing(zoom: int) -> None:
    images = random_images(3, 20, 20)
    result = rotated_crop(
        images, torch.zeros(3), size=20 * zoom, zoom=float(zoom), centers=middle(images), padding="border"
    )
    assert_close(result, tv.resize(images, [20 * zoom]))


def test_rotated_crop_moves_to_the_asked_point() -> None:
    """A window around the centre of pixel (10, 30) of an unrotated image is a slice; outside there is black."""
    images = to_float(random_bytes(2))
    centers = torch.tensor([[10.5, 30.5], [0.5, 0.5]])
    result = rotated_crop(images, torch.zeros(2), size=5, zoom=1.0, centers=centers)
    assert_close(result[0], images[0, :, 8:13, 28:33])
    assert_close(result[1, :, 2:, 2:], images[1, :, :3, :3])
    assert result[1, :, :2].abs().max() < 1e-5


def test_rotation_is_counter_clockwise() -> None:
    """A light at the right edge moves to the top."""
    images = torch.zeros(1, 3, 9, 9)
    images[:, :, 4, 8] = 1
    result = rotated_crop(images, torch.tensor([90.0]), size=9, zoom=1.0, centers=middle(images))
    assert result[0, 0].argmax().item() == 4
