"""Geometry of batches: scaling, cutting, mirroring and rotating, and pixels as floats. See `rayssl.data.augment`."""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rayssl.data.arguments import change_where, check_images, check_mask, check_range, check_shape, check_size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_float(images: Tensor) -> Tensor:
    """Images as floats: uint8 becomes float32 in [0, 1], floats are returned as they are.

    Args:
        images: (B, 3, H, W), uint8 or floating point; the memory format is kept.

    Raises:
        ValueError: If the shape or the dtype is another.
    """
    check_images("to_float", images)
    return images if images.is_floating_point() else images.to(torch.float32).div_(255)


def normalize(
    images: Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Subtract a mean and divide by a standard deviation, each per channel; the result leaves [0, 1].

    Args:
        images: Float (B, 3, H, W) in [0, 1].
        mean: Of each channel.
        std: Of each channel, above 0.
        out: Where to write the result, in the images' shape; may be the images themselves. None: fresh memory.

    Raises:
        ValueError: If there are not three of each, a deviation is not positive, or the images are not float
            (B, 3, H, W).
    """
    check_images("normalize", images, floats=True)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"normalize: mean and std must be three numbers, std above 0, got {mean} and {std}")
    # x / std - mean / std, in one pass over the images.
    factors = torch.tensor([1 / deviation for deviation in std], dtype=images.dtype)
    shifts = torch.tensor(
        [-center / deviation for center, deviation in zip(mean, std, strict=True)], dtype=images.dtype
    )
    factors, shifts = (numbers.to(images.device, non_blocking=True)[:, None, None] for numbers in (factors, shifts))
    return torch.addcmul(shifts, images, factors, out=out)


def resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resize of the shorter side to `size`; the longer keeps the aspect, rounded down.

    Args:
        images: (B, 3, H, W), uint8 or float in [0, 1].
        size: Pixels of the shorter side.

    Returns:
        Float in [0, 1], equal to torchvision's `resize(images, size, antialias=True)` of the float images.

    Raises:
        ValueError: If the size is below 1 or the images have the wrong shape or dtype.
    """
    images = to_float(images)
    check_size("resize", size)
    height, width = images.shape[-2:]
    shorter, longer = min(height, width), max(height, width)
    if shorter == size:
        return images
    scaled = int(size * longer / shorter)
    target = (size, scaled) if height <= width else (scaled, size)
    return F.interpolate(images, size=target, mode="bilinear", align_corners=False, antialias=True)


def center_crop(images: Tensor, size: int) -> Tensor:
    """The square of `size` pixels in the middle, a view of the images; (B, 3, size, size).

    Raises:
        ValueError: If the square does not fit, or the images have the wrong shape or dtype.
    """
    check_images("center_crop", images)
    height, width = images.shape[-2:]
    check_size("center_crop", size, at_most=min(height, width))
    # Half to even, as torchvision rounds when an odd number of pixels is left over.
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def crop(images: Tensor, tops: Tensor, lefts: Tensor, size: int) -> Tensor:
    """A square of `size` pixels from each image, at its own place, or several of them.

    Args:
        images: (B, 3, H, W), uint8 or float.
        tops: First row of each square, int64 (B,) or, for K squares of each image, (B, K), in [0, H - size].
        lefts: First column of each square, in the same shape, in [0, W - size].
        size: Side of the squares in pixels.

    Returns:
        (B, 3, size, size), or (B, K, 3, size, size), in the dtype and memory format of the images.

    Raises:
        ValueError: If a square does not fit or a shape is wrong.
    """
    check_images("crop", images)
    count, _, height, width = images.shape
    check_size("crop", size, at_most=min(height, width))
    check_shape("crop", "tops", tops, (count, *tops.shape[1:2]))
    check_shape("crop", "lefts", lefts, tuple(tops.shape))
    check_range("crop", "tops", tops, 0, height - size)
    check_range("crop", "lefts", lefts, 0, width - size)
    return _windows(images, tops, lefts, size)


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror left and right the images that the mask, bool (B,), picks; uint8 or float, the dtype is kept.

    Raises:
        ValueError: If the mask is not bool (B,), or the images have the wrong shape or dtype.
    """
    check_images("flip", images)
    rows = images.permute(0, 2, 3, 1)
    if images.device.type == "cpu" and images.dtype == torch.uint8 and rows.is_contiguous():
        check_mask("flip", mask, len(images))
        return _flip_bytes(rows.numpy(), mask.tolist())
    return change_where("flip", images, mask, lambda chosen: chosen.flip(3))


def rotated_crop(
    images: Tensor,
    angles: Tensor,
    *,
    size: int,
    zoom: float,
    centers: Tensor,
    padding: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """Rotate each image about a point, magnify it and take the square around that point, in one bilinear sampling.

    Every angle passes through the same sampling, also multiples of 90 degrees. There is no antialiasing: for a zoom
    well below 1, `resize` first.

    Args:
        images: (B, 3, H, W), uint8 or float in [0, 1].
        angles: Degrees counter-clockwise, float (B,).
        size: Side of the result in pixels.
        zoom: Output pixels for one source pixel, above 0.
        centers: The points y, x in source pixels, float (B, 2). Pixel (i, j) has its centre at (i + 0.5, j + 0.5),
            so the image has its own at (H / 2, W / 2).
        padding: What lies outside the image: black, or its nearest pixel.

    Returns:
        Float (B, 3, size, size).

    Raises:
        ValueError: If the size or the zoom is not positive, the padding is unknown or a shape is wrong.
    """
    images = to_float(images)
    count, _, height, width = images.shape
    check_size("rotated_crop", size)
    if not zoom > 0:
        raise ValueError(f"rotated_crop: zoom must be above 0, got {zoom}")
    if padding not in ("zeros", "border"):
        raise ValueError(f"rotated_crop: padding must be 'zeros' or 'border', got {padding!r}")
    check_shape("rotated_crop", "angles", angles, (count,))
    check_shape("rotated_crop", "centers", centers, (count, 2))

    # In double precision, so that a quarter turn is one; only B numbers each. Seen from the image's centre, where
    # grid_sample's coordinates are 0 (its edges are at -1 and 1), numbers are small and round less.
    radians = torch.deg2rad(angles.double())
    center_y, center_x = centers.double().unbind(dim=1)
    numbers = torch.stack((radians.cos() / zoom, radians.sin() / zoom, center_y - height / 2, center_x - width / 2))
    numbers = numbers.to(images.device, images.dtype, non_blocking=True)
    cosines, sines, shift_y, shift_x = numbers[:, :, None, None]
    right = torch.arange(size, device=images.device, dtype=images.dtype) - (size - 1) / 2
    down = right[:, None]
    x = (right * cosines - down * sines + shift_x) * (2 / width)
    y = (right * sines + down * cosines + shift_y) * (2 / height)
    grid = torch.stack((x, y), dim=-1)  # (B, size, size, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _flip_bytes(pictures: np.ndarray, mask: list[bool]) -> Tensor:
    """`flip` of pictures (B, H, W, 3), one at a time: a tenth of the time of torch's, which moves byte by byte."""
    flipped = np.empty_like(pictures)
    for source, target, picked in zip(pictures, flipped, mask, strict=True):
        if picked:
            cv2.flip(source, 1, dst=target)
        else:
            target[...] = source
    return torch.from_numpy(flipped).permute(0, 3, 1, 2)


def _windows(images: Tensor, tops: Tensor, lefts: Tensor, size: int) -> Tensor:
    """The squares at tops and lefts, (B, ...), of each image: (B, ..., 3, size, size)."""
    # A view of every possible window; indexing it copies only the wanted ones, in whole rows of pixels.
    windows = images.unfold(2, size, 1).unfold(3, size, 1)  # (B, 3, H - size + 1, W - size + 1, size, size)
    batch = torch.arange(len(images), device=images.device).view(-1, *[1] * (tops.ndim - 1))
    tops, lefts = (numbers.to(images.device, non_blocking=True) for numbers in (tops, lefts))
    return windows[batch, :, tops, lefts]
