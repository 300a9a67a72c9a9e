"""Augmentation of whole batches: the public place of all operations and of the random numbers that steer them.

`draws.py` has the random numbers of a step, `geometry.py` where pixels come from, `boxes.py` the random resized crop,
`color.py` what is done to their values. Every operation is a pure function of a batch and of parameters per sample, and
runs where the images lie: a training step augments its whole batch on its device, without a loop over images.
Parameters may stay on the CPU, where `Draws` makes them; there their values are checked, on another device only their
shapes. Crops and flips keep the dtype; what interpolates gives float32 in [0, 1].

The order of use: draw the parameters; `crop` or `flip` the uint8 windows, so that as few bytes as possible
move; `resized_crop` or `rotated_crop`, or `to_float` where nothing interpolates; the operations of `color.py`, which
take floats in [0, 1]; `normalize` last, since its result leaves [0, 1]. Call all of them outside autocast: it would run
the matrix products of `resized_crop` in half precision. On CPUs the same views of larger pictures come faster from
`opencv_views.py`, picture by picture.
"""

from rayssl.data.boxes import draw_resized_crop, resized_crop
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
from rayssl.data.draws import Draws
from rayssl.data.geometry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    center_crop,
    crop,
    flip,
    normalize,
    resize,
    rotated_crop,
    to_float,
)

__all__ = [
    "Draws",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "blur_kernel_size",
    "center_crop",
    "color_jitter",
    "crop",
    "draw_color_jitter",
    "draw_resized_crop",
    "flip",
    "gaussian_blur",
    "grayscale",
    "normalize",
    "resize",
    "resized_crop",
    "rotated_crop",
    "sobel",
    "to_float",
]
