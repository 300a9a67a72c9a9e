"""Random resized crops: boxes of random area and aspect, and cutting them out. See `rayssl.data.augment`."""

import math

import torch
from torch import Tensor

from rayssl.data.arguments import check_range, check_shape, check_size
from rayssl.data.draws import Draws
from rayssl.data.geometry import to_float


def draw_resized_crop(
    draws: Draws,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Boxes of random area and aspect, distributed as torchvision's `RandomResizedCrop`.

    Ten boxes are drawn for each image and the first that fits is taken; if none fits, the central box whose aspect
    is the nearest allowed one.

    Args:
        draws: Where the random numbers come from.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        scale: Smallest and largest area, as parts of the image's.
        ratio: Smallest and largest width / height; uniform in its logarithm.

    Returns:
        Top, left, height and width of each box in pixels, int64 (num_samples, 4).

    Raises:
        ValueError: If a range is not positive and ascending.
    """
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high:
            raise ValueError(f"draw_resized_crop: {name} must be positive and ascending, got ({low}, {high})")
    num_tries = 10
    areas = draws.uniform(*scale, num_tries).double() * (height * width)
    ratios = draws.uniform(math.log(ratio[0]), math.log(ratio[1]), num_tries).double().exp()
    places = draws.uniform(0.0, 1.0, 2).double()

    sides = torch.stack(((areas / ratios).sqrt(), (areas * ratios).sqrt()), dim=-1).round().long()  # (n, tries, 2)
    whole = torch.tensor((height, width))
    fits = ((sides > 0) & (sides <= whole)).all(dim=-1)
    first = fits.int().argmax(dim=1)  # the first of equal maxima
    chosen = sides[torch.arange(len(sides)), first]
    offsets = (places * (whole - chosen + 1)).long()

    central = torch.tensor(_largest_box(height, width, ratio))
    found = fits.any(dim=1, keepdim=True)
    return torch.where(found, torch.cat((offsets, chosen), dim=1), torch.cat(((whole - central) // 2, central)))


def resized_crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box of its own from each image and resize it to a square, antialiased bilinear.

    The filter is separable, so that each image is multiplied by a matrix of weights from the left and by one from
    the right: two batched products, whatever the boxes. On a GPU with TF32 allowed these round to 11 bits, an
    eighth of a grey level.

    Args:
        images: (B, 3, H, W), uint8 or float in [0, 1].
        boxes: Top, left, height and width of each box in pixels, int64 (B, 4), inside the image.
        size: Side of the result in pixels.

    Returns:
        Float (B, 3, size, size), equal to torchvision's `resized_crop(..., antialias=True)` image by image.

    Raises:
        ValueError: If a box leaves its image or is empty, the size is below 1 or a shape is wrong.
    """
    images = to_float(images)
    count, channels, height, width = images.shape
    check_size("resized_crop", size)
    check_shape("resized_crop", "boxes", boxes, (count, 4))
    check_range("resized_crop", "boxes' tops and lefts", boxes[:, :2], 0, math.inf)
    check_range("resized_crop", "boxes' heights and widths", boxes[:, 2:], 1, math.inf)
    check_range("resized_crop", "boxes' bottoms", boxes[:, 0] + boxes[:, 2], 1, height)
    check_range("resized_crop", "boxes' right edges", boxes[:, 1] + boxes[:, 3], 1, width)
    tops, lefts, heights, widths = boxes.to(images.device, images.dtype, non_blocking=True).unbind(dim=1)
    rows = _triangle_weights(tops, heights, source_size=height, size=size)
    columns = _triangle_weights(lefts, widths, source_size=width, size=size)
    # The three channels are stacked for the first product: a broadcast one would copy the weights three times.
    narrowed = torch.bmm(images.reshape(count, channels * height, width), columns.mT)
    return rows.unsqueeze(1) @ narrowed.view(count, channels, height, size)


def _triangle_weights(starts: Tensor, lengths: Tensor, *, source_size: int, size: int) -> Tensor:
    """Weights of antialiased linear interpolation from [start, start + length) to `size` pixels: (B, size, source).

    The triangle has a half-width of one output pixel when shrinking, and of one source pixel when enlarging.
    """
    pixels = torch.arange(max(source_size, size), device=starts.device, dtype=starts.dtype) + 0.5
    source = pixels[:source_size] - starts[:, None]  # seen from the start of the box, (B, source)
    scales = (lengths / size)[:, None, None]
    distances = (source[:, None] - scales * pixels[:size, None]).abs_()  # (B, size, source)
    weights = (1 - distances / scales.clamp(min=1)).clamp_(min=0)
    weights *= ((source > 0) & (source < lengths[:, None]))[:, None]
    return weights / weights.sum(dim=-1, keepdim=True)


def _largest_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Height and width of the largest box whose width / height is allowed."""
    if width / height < ratio[0]:
        return round(width / ratio[0]), width
    if width / height > ratio[1]:
        return height, round(height * ratio[1])
    return height, width
