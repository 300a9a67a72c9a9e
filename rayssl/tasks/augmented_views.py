"""Randomly augmented views of pictures: T1, T2 and T3 of PSL (section 3.3.3), each with all that the one before has."""

import torch
from pydantic import Field
from torch import Tensor

from rayssl.data.augment import (
    Draws,
    blur_kernel_size,
    color_jitter,
    draw_color_jitter,
    draw_resized_crop,
    flip,
    gaussian_blur,
    grayscale,
    normalize,
    resized_crop,
    sobel,
    to_float,
)
from rayssl.data.buffers import Buffers
from rayssl.data.loaders import Batch
from rayssl.data.opencv_views import ViewParameters, is_faster, make_views
from rayssl.schema import Config

_JITTER_PROBABILITY = 0.8
_BLUR_SIGMAS = (0.1, 2.0)
_RATIO = (3 / 4, 4 / 3)


class AugmentationLevel(Config):
    """How much two views of a picture differ. As it is: T1, a random resized crop and a flip.

    T2 adds color_strength and gray; T3 adds blur and sobel (PSL, Table 2).
    """

    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    """Smallest part of the picture's area that a view shows (SimCLR: .08; MoCo v2: .2)."""
    color_strength: float = Field(default=0.0, ge=0, le=2.5)
    """Of the colour jitter, which 8 of 10 views get: brightness, contrast, saturation .8 and hue .2 times this (SimCLR:
    1; MoCo v2: .5; small pictures: .5); 0: none."""
    gray: float = Field(default=0.0, ge=0, le=1)
    """Share of the views without colour (both: .2)."""
    blur: float = Field(default=0.0, ge=0, le=1)
    """Share of the blurred views (both: .5), Gaussian, sigma .1 to 2 px, in a kernel of a tenth of the side."""
    sobel: float = Field(default=0.0, ge=0, le=1)
    """Share of the views that show only the size of the gradient, in three channels (PSL: .2)."""


def augmented_view(
    images: Tensor,
    draws: Draws,
    level: AugmentationLevel,
    *,
    image_size: int,
    num_views: int = 1,
    buffers: Buffers | None = None,
) -> Tensor:
    """Make random views of each picture: on bytes where that is faster (see `opencv_views`), else on the whole batch.

    The random numbers are the same either way, and so are the views but for rounding to levels of 255.

    Args:
        images: uint8 windows, (N, 3, W, W).
        draws: The step's random numbers; a second call with the same ones gives another view.
        level: How much is changed.
        image_size: Side of the views, in pixels.
        num_views: Views of each picture.
        buffers: Memory that large views on the CPU may use again; None: fresh memory.

    Returns:
        Normalised float views, (num_views * N, 3, image_size, image_size): all first ones, then all second ones.
    """
    height, width = images.shape[-2:]
    parameters = [_draw_parameters(draws, level, height, width) for _ in range(num_views)]
    if is_faster(images, image_size):
        return make_views(images, parameters, size=image_size, buffers=buffers)
    whole = to_float(images).contiguous()  # once for all views; a view of each channel's rows is then free
    views = [_whole_batch(whole, each, image_size) for each in parameters]
    return views[0] if num_views == 1 else torch.cat(views)


def two_views(batch: Batch, level: AugmentationLevel, *, image_size: int, buffers: Buffers) -> Tensor:
    """Two random views of each picture, as `augmented_view` gives them: (2N, 3, image_size, image_size)."""
    return augmented_view(batch.images, batch.draws, level, image_size=image_size, num_views=2, buffers=buffers)


def _draw_parameters(draws: Draws, level: AugmentationLevel, height: int, width: int) -> ViewParameters:
    """Random numbers for one view of each picture. Their order is a part of every recipe's result."""
    boxes = draw_resized_crop(draws, height, width, scale=(level.smallest_crop, 1.0), ratio=_RATIO)
    flips = draws.chance(0.5)
    jitter = gray = blur = None
    if level.color_strength:
        strength = 0.8 * level.color_strength
        jitter = draw_color_jitter(
            draws,
            brightness=strength,
            contrast=strength,
            saturation=strength,
            hue=0.2 * level.color_strength,
            probability=_JITTER_PROBABILITY,
        )
    if level.gray:
        gray = draws.chance(level.gray)
    if level.blur:
        blur = draws.uniform(*_BLUR_SIGMAS), draws.chance(level.blur)
    return ViewParameters(boxes, flips, jitter, gray, blur, draws.chance(level.sobel) if level.sobel else None)


def _whole_batch(images: Tensor, parameters: ViewParameters, image_size: int) -> Tensor:
    """One view of each picture by operations on the whole batch, where it lies."""
    views = flip(resized_crop(images, parameters.boxes, image_size), parameters.flips)
    if parameters.jitter is not None:
        factors, order, mask = parameters.jitter
        views = color_jitter(views, factors, order=order, mask=mask)
    if parameters.gray is not None:
        views = grayscale(views, parameters.gray)
    if parameters.blur is not None:
        sigmas, mask = parameters.blur
        views = gaussian_blur(views, sigmas, kernel_size=blur_kernel_size(image_size), mask=mask)
    if parameters.sobel is not None:
        views = sobel(views, parameters.sobel)
    return normalize(views)
