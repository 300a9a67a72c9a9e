"""Views of pictures on the CPU: the operations of `rayssl.data.augment` in OpenCV, on bytes, a few pictures at a time.

Some pictures of bytes and what is made of them fit into a core's cache, where a whole batch of floats does not. Results
are those of the tensor operations, but that each step rounds to whole levels of 255; every step is within one level of
torchvision's function of the same name. They depend on the parameters of a picture alone, not on the batch, the number
of threads or of workers.

One thread works: most calls take some microseconds, too short to be shared out under Python's lock. Workers share the
pictures of a step instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt

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
"""Side of the views, in pixels, from which a CPU takes this way. With one thread it makes a tenth more views than whole
batches at 16 px, twice as many at 32 and six times as many at 64 (`benchmarks/augment.py --crossover`); whole batches
can use several threads. The number of threads does not count here, so that all workers have equal views."""

_BLOCK_PIXELS = 32_768
"""Pixels of the views that are made together, 400 kB as floats: many small ones, so that a call is worth it, or one
large one."""
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
    recipes = [_as_recipe(each, count, height, width) for each in parameters]
    pictures = images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, 3)
    shape = (len(recipes) * count, size, size, 3)
    views = torch.empty(shape) if buffers is None else buffers.lend(*shape)
    targets = views.numpy().reshape(len(recipes), count, size, size, 3)
    cv2.setNumThreads(1)
    block = max(1, _BLOCK_PIXELS // size**2)
    levels = np.empty((min(block, count), size, size, 3), np.uint8)
    # All views of a few pictures, then the next few: the pictures are still in the cache for their second view.
    for first in range(0, count, block):
        rows = range(first, min(first + block, count))
        for recipe, view_targets in zip(recipes, targets, strict=True):
            _make_block(pictures, recipe, rows, levels[: len(rows)], view_targets)
            # Whole rows of pixels, whatever picture they are of, in place.
            pixels = view_targets[rows.start : rows.stop].reshape(-1, size, 3)
            cv2.transform(pixels, _NORMALIZATION, dst=pixels)
    return views.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Recipe:
    """The parameters of one view of each picture, as Python's numbers: an item for each picture."""

    boxes: list[list[int]]
    flips: list[bool]
    order: list[int]
    """Of the operations of the jitter, first to last."""
    factors: list[list[float]]
    """Those of each operation."""
    jittered: list[bool]
    gray: list[bool]
    sigmas: list[float]
    blurred: list[bool]
    sobel: list[bool]


def _as_recipe(parameters: ViewParameters, count: int, height: int, width: int) -> _Recipe:
    """The parameters of N = `count` pictures, checked."""
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
    flips, is_jittered, gray, is_blurred, sobel = (mask.tolist() for mask in masks.values())
    return _Recipe(
        boxes=boxes.tolist(),
        flips=flips,
        order=order.tolist(),
        factors=factors.T.tolist(),
        jittered=is_jittered,
        gray=gray,
        sigmas=sigmas.tolist(),
        blurred=is_blurred,
        sobel=sobel,
    )


def _make_block(pictures: np.ndarray, recipe: _Recipe, rows: range, levels: np.ndarray, targets: np.ndarray) -> None:
    """Make one view of some pictures, in levels of 255.

    Args:
        pictures: uint8 (N, H, W, 3).
        recipe: What is done to each.
        rows: Which pictures.
        levels: Memory for their views as bytes, (len(rows), size, size, 3).
        targets: Where their rows of the result belong, float32 (N, size, size, 3).
    """
    # Those that get the jitter lie first, so that one call can change the hue of all of them.
    order = sorted(rows, key=lambda row: not recipe.jittered[row])
    for view, row in zip(levels, order, strict=True):
        top, left, height, width = recipe.boxes[row]
        _resize(pictures[row, top : top + height, left : left + width], view)
        if recipe.flips[row]:
            cv2.flip(view, 1, dst=view)
    chosen = [row for row in order if recipe.jittered[row]]
    if chosen:
        for step in recipe.order:
            factors = recipe.factors[step]
            _JITTER[step](levels[: len(chosen)], [factors[row] for row in chosen])
    for view, row in zip(levels, order, strict=True):
        if recipe.gray[row]:
            cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, dst=view)
    for view, row in zip(levels, order, strict=True):
        target = targets[row]
        if recipe.blurred[row]:
            _blur(view, recipe.sigmas[row], target)
        else:
            target[...] = view
        if recipe.sobel[row]:
            _sobel(target if recipe.blurred[row] else view, target)


def _resize(pixels: np.ndarray, view: np.ndarray) -> None:
    """Antialiased bilinear resize to the view's square; rounded, it is torchvision's with antialias=True."""
    size = len(view)
    height, width = pixels.shape[:2]
    if max(height, width) <= size:
        # Where nothing shrinks, nothing is to be filtered: the plain interpolation is the antialiased one.
        cv2.resize(pixels, (size, size), dst=view, interpolation=cv2.INTER_LINEAR)
    else:
        # OpenCV's INTER_AREA is another filter, and slower.
        view[...] = resize_bytes(pixels, (size, size))


# The jitter: each changes views of bytes, (M, size, size, 3), in place, by a factor for each.


def _brightness(views: np.ndarray, factors: list[float]) -> None:
    for view, factor in zip(views, factors, strict=True):
        cv2.convertScaleAbs(view, dst=view, alpha=factor)


def _contrast(views: np.ndarray, factors: list[float]) -> None:
    weight_red, weight_green, weight_blue = _LUMA_WEIGHTS
    for view, factor in zip(views, factors, strict=True):
        red, green, blue, _ = cv2.mean(view)
        shift = (1 - factor) * (weight_red * red + weight_green * green + weight_blue * blue)
        if shift >= 0:
            cv2.convertScaleAbs(view, dst=view, alpha=factor, beta=shift)
        else:  # convertScaleAbs would mirror what falls below 0
            cv2.addWeighted(view, factor, view, 0, shift, dst=view)


def _saturation(views: np.ndarray, factors: list[float]) -> None:
    shares = np.array(factors)[:, None, None]
    for view, matrix in zip(views, shares * _SAME + (1 - shares) * _GREY, strict=True):
        cv2.transform(view, matrix, dst=view)


def _hue(views: np.ndarray, shifts: list[float]) -> None:
    # As floats: in bytes a hue would be rounded to 1.4 degrees, which is up to 6 levels of a pure colour.
    turned = views.astype(np.float32)
    pixels = turned.reshape(-1, *views.shape[2:])  # rows of pixels, whatever view they are of
    cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV, dst=pixels)  # hue in degrees
    # OpenCV takes hues of up to two circles, but none below 0.
    degrees = 360 * (np.array(shifts) % 1)
    turned[..., 0] += degrees.astype(np.float32)[:, None, None]
    cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB, dst=pixels)
    cv2.convertScaleAbs(pixels, dst=views.reshape(pixels.shape))


_JITTER: tuple[Callable[[np.ndarray, list[float]], None], ...] = (_brightness, _contrast, _saturation, _hue)


def _blur(view: np.ndarray, sigma: float, target: np.ndarray) -> None:
    """Write float32 levels. The kernel ends at 3.5 sigma, where less than a thousandth of its weight is left."""
    size = min(blur_kernel_size(len(view)), 2 * ceil(3.5 * sigma) + 1)
    kernel = cv2.getGaussianKernel(size, sigma, cv2.CV_32F)
    cv2.sepFilter2D(view, cv2.CV_32F, kernel, kernel, dst=target, borderType=cv2.BORDER_REFLECT_101)


def _sobel(view: np.ndarray, target: np.ndarray) -> None:
    """Write float32 levels, which may be the view's own; see `color.sobel`."""
    across, down = (
        cv2.Sobel(view, cv2.CV_32F, *axes, ksize=3, scale=1 / sqrt(20), borderType=cv2.BORDER_REPLICATE)
        for axes in ((1, 0), (0, 1))
    )
    # Not cv2.magnitude, whose last bits depend on where in memory the arrays begin.
    np.sqrt(across * across + down * down, out=target)
