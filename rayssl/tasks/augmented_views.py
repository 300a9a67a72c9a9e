"""Randomly augmented views of pictures: T1, T2 and T3 of PSL (section 3.3.3), each with all that the one before has."""

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
)
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


def augmented_view(images: Tensor, draws: Draws, level: AugmentationLevel, *, image_size: int) -> Tensor:
    """Make one random view of each picture.

    Args:
        images: uint8 windows, (N, 3, W, W).
        draws: The step's random numbers; a second call with the same ones gives another view.
        level: How much is changed.
        image_size: Side of the views, in pixels.

    Returns:
        Normalised float views, (N, 3, image_size, image_size).
    """
    height, width = images.shape[-2:]
    boxes = draw_resized_crop(draws, height, width, scale=(level.smallest_crop, 1.0), ratio=_RATIO)
    views = flip(resized_crop(images, boxes, image_size), draws.chance(0.5))
    if level.color_strength:
        strength = 0.8 * level.color_strength
        factors, order, mask = draw_color_jitter(
            draws,
            brightness=strength,
            contrast=strength,
            saturation=strength,
            hue=0.2 * level.color_strength,
            probability=_JITTER_PROBABILITY,
        )
        views = color_jitter(views, factors, order=order, mask=mask)
    if level.gray:
        views = grayscale(views, draws.chance(level.gray))
    if level.blur:
        sigmas = draws.uniform(*_BLUR_SIGMAS)
        views = gaussian_blur(views, sigmas, kernel_size=blur_kernel_size(image_size), mask=draws.chance(level.blur))
    if level.sobel:
        views = sobel(views, draws.chance(level.sobel))
    return normalize(views)
