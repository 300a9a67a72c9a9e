"""Views of pictures on the CPU: the operations of `rayssl.data.augment` in OpenCV, on bytes, picture by picture.

A picture of bytes and its intermediate results fit into a core's cache, where a whole batch of floats does not. Results
are those of the tensor operations, but that each step rounds to whole levels of 255; every step is within one level of
torchvision's function of the same name. They depend on the parameters of a picture alone, not on the batch, the number
of threads or of workers.

One thread works: most calls take some microseconds, too short to be shared out under Python's lock. Workers share the
pictures of a step instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, inf, sqrt
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from rayssl.data.arguments import check_images, check_range, check_shape, check_size
from rayssl.data.buffers import Buffers
from rayssl.data.color import blur_kernel_size
from rayssl.data.geometry import IMAGENET_MEAN, IMAGENET_STD
from rayssl.data.jpeg import resize_bytes

FASTER_FROM = 32
"""Side of the views, in pixels, from which a CPU takes this way. With one thread it draws level with whole batches at
16 px, and makes twice as many views at 32 and four times as many at 64 (`benchmarks/augment.py --crossover`); whole
batches can use several threads. The number of threads does not count here, so that all workers have equal views."""

_BLOCK_PIXELS = 32_768
"""Pixels that are normalised at once, 400 kB of floats: many small views, so that a call is worth it, one large one."""
_LUMA_WEIGHTS = (0.2989, 0.587, 0.114)  # as in color.py
# Matrices over the channels.
_SAME, _GREY = np.eye(3), np.tile(_LUMA_WEIGHTS, (3, 1))
# Levels to normalised floats: x / 255 / std - mean / std.
_NORMALIZATION = np.column_stack([np.diag(1 / (255 * np.array(IMAGENET_STD))), -np.array(IMAGENET_MEAN) / IMAGENET_STD])


@dataclass(frozen=True)
class ViewParameters:
    """What is done to each of N pictures, in this order. Tensors lie on the CPU; None: to no picture."""

    boxes: Tensor
    """Top, left, height and width in pixels of the part that a view shows, int64 (N, 4)."""
    flips: Tensor
    """Which are mirrored left and right, bool (N,)."""
    jitter: tuple[Tensor, Tensor, Tensor] | None = None
    """Factors (N, 4), order (4,) and mask (N,) of `color_jitter`."""
    gray: Tensor | None = None
    """Which lose their colour, bool (N,)."""
    blur: tuple[Tensor, Tensor] | None = None
    """Sigmas in pixels (N,) and mask (N,) of `gaussian_blur`, with the kernel of `blur_kernel_size`."""
    sobel: Tensor | None = None
    """Of which only the size of the gradient is left, bool (N,)."""


def is_faster(images: Tensor, size: int) -> bool:
    """Whether `make_views` is the faster way to views of `size` pixels of these images."""
    return images.device.type == "cpu" and images.dtype == torch.uint8 and size >= FASTER_FROM


def make_views(
    images: Tensor, parameters: Sequence[ViewParameters], *, size: int, buffers: Buffers | None = None
) -> Tensor:
    """Make views of uint8 pictures on the CPU, normalised with ImageNet's mean and deviation.

    OpenCV's own threads are switched off in this process: its pieces of work are too small for them.

    Args:
        images: uint8 (N, 3, H, W), best with the channels last in memory.
        parameters: A view of every picture for each.
        size: Side of the views in pixels.
        buffers: Where to take the result's memory from; None: fresh memory.

    Returns:
        Float32 (len(parameters) * N, 3, size, size), the channels last in memory; first all first views.

    Raises:
        ValueError: If the images are not uint8 on the CPU, a box leaves its picture or a shape is wrong.
    """
    check_images("make_views", images)
    check_size("make_views", size)
    if images.device.type != "cpu" or images.dtype != torch.uint8:
        raise ValueError(f"make_views: images must be uint8 on the CPU, got {images.dtype} on {images.device}")
    count, _, height, width = images.shape
    recipes = [recipe for each in parameters for recipe in _by_picture(each, count, height, width)]
    pictures = images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, 3)
    shape = (len(recipes), size, size, 3)
    views = torch.empty(shape) if buffers is None else buffers.lend(*shape)
    targets = views.numpy()
    cv2.setNumThreads(1)
    block = max(1, _BLOCK_PIXELS // size**2)
    # All views of a few pictures, then the next few: the pictures are still in the cache for their second view.
    for first, view in product(range(0, count, block), range(len(parameters))):
        rows = range(view * count + first, view * count + min(first + block, count))
        for row in rows:
            targets[row] = _view(pictures[row % count], recipes[row], size)
        # Whole rows of pixels, whatever picture they are of, in place.
        pixels = targets[rows.start : rows.stop].reshape(-1, size, 3)
        cv2.transform(pixels, _NORMALIZATION, dst=pixels)
    return views.permute(0, 3, 1, 2)


class _Recipe(NamedTuple):
    """What is done to one picture."""

    box: list[int]
    flip: bool
    jitter: list[tuple[int, float]]
    """Operation and factor, first to last."""
    gray: bool
    sigma: float | None
    """Of the blur; None: no blur."""
    sobel: bool


def _by_picture(parameters: ViewParameters, count: int, height: int, width: int) -> list[_Recipe]:
    """The parameters of a batch as those of its pictures, checked."""
    boxes = parameters.boxes
    check_shape("make_views", "boxes", boxes, (count, 4))
    ends = boxes[:, :2] + boxes[:, 2:]
    check_range("make_views", "boxes' tops and lefts", boxes[:, :2], 0, inf)
    check_range("make_views", "boxes' heights and widths", boxes[:, 2:], 1, inf)
    check_range("make_views", "boxes' bottoms", ends[:, 0], 1, height)
    check_range("make_views", "boxes' right edges", ends[:, 1], 1, width)

    never = torch.zeros(count, dtype=torch.bool)
    factors, order, jittered = parameters.jitter or (torch.zeros(count, 4), torch.arange(4), never)
    sigmas, blurred = parameters.blur or (torch.zeros(count), never)
    masks = {
        "flips": parameters.flips,
        "jitter's mask": jittered,
        "gray": never if parameters.gray is None else parameters.gray,
        "blur's mask": blurred,
        "sobel": never if parameters.sobel is None else parameters.sobel,
    }
    for name, mask in masks.items():
        check_shape("make_views", name, mask, (count,))
    check_shape("make_views", "jitter's factors", factors, (count, 4))
    check_shape("make_views", "blur's sigmas", sigmas, (count,))
    steps = order.tolist()
    rows = zip(boxes.tolist(), factors.tolist(), sigmas.tolist(), *(m.tolist() for m in masks.values()), strict=True)
    return [
        _Recipe(
            box, flip, [(step, values[step]) for step in steps] if jitter else [], gray, sigma if blur else None, sobel
        )
        for box, values, sigma, flip, jitter, gray, blur, sobel in rows
    ]


def _view(picture: np.ndarray, recipe: _Recipe, size: int) -> np.ndarray:
    """One view, (size, size, 3) in levels of 255, uint8 or float32, of one picture (H, W, 3)."""
    top, left, height, width = recipe.box
    pixels = _resize(picture[top : top + height, left : left + width], size)
    if recipe.flip:
        pixels = cv2.flip(pixels, 1)
    for step, factor in recipe.jitter:
        pixels = _JITTER[step](pixels, factor)
    if recipe.gray:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if recipe.sigma is not None:
        pixels = _blur(pixels, recipe.sigma, blur_kernel_size(size))
    return _sobel(pixels) if recipe.sobel else pixels


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bilinear resize to a square; rounded, it is torchvision's with antialias=True."""
    height, width = pixels.shape[:2]
    if max(height, width) <= size:
        # Where nothing shrinks, nothing is to be filtered: the plain interpolation is the antialiased one.
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    # OpenCV's INTER_AREA is another filter, and slower.
    return resize_bytes(pixels, (size, size))


def _brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    return cv2.convertScaleAbs(pixels, alpha=factor)


def _contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    mean_grey = sum(weight * mean for weight, mean in zip(_LUMA_WEIGHTS, cv2.mean(pixels), strict=False))
    shift = (1 - factor) * mean_grey
    if shift >= 0:
        return cv2.convertScaleAbs(pixels, alpha=factor, beta=shift)
    return cv2.addWeighted(pixels, factor, pixels, 0, shift)  # convertScaleAbs would mirror what falls below 0


def _saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    return cv2.transform(pixels, factor * _SAME + (1 - factor) * _GREY)


def _hue(pixels: np.ndarray, shift: float) -> np.ndarray:
    # As floats: in bytes a hue would be rounded to 1.4 degrees, which is up to 6 levels of a pure colour.
    turned: np.ndarray = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2HSV)  # hue in degrees
    turned[..., 0] += 360 * (shift % 1)  # OpenCV takes hues of up to two circles, but none below 0
    return cv2.convertScaleAbs(cv2.cvtColor(turned, cv2.COLOR_HSV2RGB))


def _blur(pixels: np.ndarray, sigma: float, kernel_size: int) -> np.ndarray:
    """Float32 levels. The kernel ends at 3.5 sigma, where less than a thousandth of its weight is left."""
    kernel = cv2.getGaussianKernel(min(kernel_size, 2 * ceil(3.5 * sigma) + 1), sigma, cv2.CV_32F)
    return cv2.sepFilter2D(pixels, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)


def _sobel(pixels: np.ndarray) -> np.ndarray:
    """Float32 levels; see `color.sobel`."""
    across, down = (
        cv2.Sobel(pixels, cv2.CV_32F, *axes, ksize=3, scale=1 / sqrt(20), borderType=cv2.BORDER_REPLICATE)
        for axes in ((1, 0), (0, 1))
    )
    # Not cv2.magnitude, whose last bits depend on where in memory the arrays begin.
    return np.sqrt(across * across + down * down)


_JITTER: tuple[Callable[[np.ndarray, float], np.ndarray], ...] = (_brightness, _contrast, _saturation, _hue)
