"""What holds for every geometric operation: no layout matters, nothing is changed in place, mistakes are named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl.data import augment
from rayssl.data.augment import center_crop, crop, flip, normalize, resize, resized_crop, rotated_crop, to_float
from tests.data.random_batches import assert_close, middle, random_bytes, random_images


def test_the_public_operations_are_sorted_and_exist() -> None:
    assert augment.__all__ == sorted(augment.__all__)
    assert all(hasattr(augment, name) for name in augment.__all__)


SEVERAL = torch.tensor([[2, 0]]).expand(6, -1)
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "to_float": to_float,
    "normalize": normalize,
    "resize": lambda images: resize(images, 18),
    "center_crop": lambda images: center_crop(images, 18),
    "crop": lambda images: crop(images, torch.arange(6), torch.arange(6) * 2, 18),
    "resized_crop": lambda images: resized_crop(images, torch.tensor([[1, 2, 30, 20]] * 6), 18),
    "flip": lambda images: flip(images, torch.arange(6) % 2 == 0),
    "rotated_crop": lambda images: rotated_crop(
        images, torch.arange(6) * 20.0, size=18, zoom=0.9, centers=middle(images)
    ),
    "several crops": lambda images: crop(images, torch.arange(6)[:, None] + torch.tensor([0, 3]), SEVERAL, 18),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_memory_layout_does_not_matter(name: str) -> None:
    images = random_images(6, 40, 40)
    expected = OPERATIONS[name](images)
    strided = torch.stack((images, images), dim=-1)[..., 0]
    repeated = images[:1].expand(6, -1, -1, -1)
    assert_close(OPERATIONS[name](images.contiguous(memory_format=torch.channels_last)), expected)
    assert_close(OPERATIONS[name](strided), expected)
    assert_close(OPERATIONS[name](repeated), OPERATIONS[name](repeated.contiguous()))


@pytest.mark.parametrize("name", ["to_float", "normalize", "crop", "flip"])
def test_channels_last_is_kept(name: str) -> None:
    images = random_images(6, 40, 40).contiguous(memory_format=torch.channels_last)
    assert OPERATIONS[name](images).is_contiguous(memory_format=torch.channels_last)
    as_bytes = random_bytes().contiguous(memory_format=torch.channels_last)
    assert to_float(as_bytes).is_contiguous(memory_format=torch.channels_last)
    assert flip(as_bytes, torch.arange(6) % 2 == 0).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_given_images_stay_as_they_were(name: str) -> None:
    images = random_images(6, 40, 40)
    before = images.clone()
    OPERATIONS[name](images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda images: to_float(images[0]), r"must be \(B, 3, H, W\), got \(3, 37, 52\)"),
        (lambda images: to_float(images.long()), "uint8 or floating point, got torch.int64"),
        (lambda images: normalize(images.byte()), "must be floating point .* got torch.uint8"),
        (lambda images: normalize(images, std=(0.1, 0.0, 0.1)), r"std above 0, got .*\(0.1, 0.0, 0.1\)"),
        (lambda images: resize(images, 0), "at least 1, got 0"),
        (lambda images: center_crop(images, 38), r"in \[1, 37\], the shorter side, got 38"),
        (lambda images: crop(images, torch.full((6,), 18), torch.zeros(6).long(), 20), r"tops .* in \[0, 17\], got 18"),
        (lambda images: crop(images, torch.zeros(6).long(), torch.zeros(5).long(), 20), r"lefts .* got \(5,\)"),
        (lambda images: resized_crop(images, torch.tensor([[8, 0, 30, 9]] * 6), 9), r"bottoms .* \[1, 37\], got 38"),
        (lambda images: resized_crop(images, torch.tensor([[0, -1, 9, 9]] * 6), 9), "at least 0, got -1"),
        (lambda images: resized_crop(images, torch.tensor([[0, 0, 9, 0]] * 6), 9), "at least 1, got 0"),
        (lambda images: flip(images, torch.zeros(6)), "must be bool, got torch.float32"),
        (lambda images: flip(images, torch.zeros(5).bool()), r"shape \(6,\), got \(5,\)"),
        (lambda images: turn(images, zoom=0.0), "above 0, got 0.0"),
        (lambda images: turn(images, padding="mirror"), "'zeros' or 'border', got 'mirror'"),
        (lambda images: turn(images, centers=torch.zeros(6)), r"shape \(6, 2\), got \(6,\)"),
        (lambda images: crop(images, SEVERAL, SEVERAL[:, :1], 9), r"lefts .* \(6, 2\), got \(6, 1\)"),
        (lambda images: crop(images, SEVERAL[:5], SEVERAL[:5], 9), r"tops .* \(6, 2\), got \(5, 2\)"),
    ],
)
def test_arguments_that_break_a_rule_are_named_with_their_value(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(random_images())


def turn(images: Tensor, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = {"size": 8, "zoom": 1.0, "centers": middle(images)} | changes
    return rotated_crop(images, torch.zeros(len(images)), **arguments)
