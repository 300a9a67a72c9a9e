"""Batched augmentation, first half: the random draws of a step, and the geometry of images.

Every operation is a pure function of a batch and of parameters per sample, and runs where the images lie: a
training step augments its whole batch on its device, without a loop over images. Parameters may stay on the CPU,
where `Draws` makes them; there their values are checked, while on another device only their shapes are (looking at
a value would make the host wait for the device). Crops, flips and tiles keep the dtype; what interpolates gives
float32 in [0, 1]. Call these outside autocast: it would run the matrix products of `resized_crop` in half precision.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Draws:
    """The random numbers of one training step, drawn for the whole global batch; a rank keeps its rows.

    All workers seed alike and draw alike, so one worker and N workers together see the same views as long as they
    call the same methods in the same order. Results lie on the CPU.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        step: Step within the epoch, from 0.
        batch_size: Rows of the global batch, over all ranks.
        rank: Which contiguous slice of the rows is this worker's.
        world_size: Number of workers; divides `batch_size`.

    Raises:
        ValueError: If a number is negative, the batch is empty or can't be divided, or the rank does not exist.
    """

    def __init__(
        self, seed: int, epoch: int, step: int, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if min(seed, epoch, step) < 0:
            raise ValueError(f"Draws: seed, epoch and step must be at least 0, got {seed}, {epoch}, {step}")
        if not 0 <= rank < world_size:
            raise ValueError(f"Draws: rank must be in [0, world_size), got rank {rank} of {world_size}")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"Draws: batch_size must be a positive multiple of {world_size} workers, got {batch_size}")
        # One 32-bit word: torch's CPU generator ignores the upper half of a seed.
        mixed = int(np.random.SeedSequence((seed, epoch, step)).generate_state(1)[0])
        self._generator = torch.Generator().manual_seed(mixed)
        self._batch_size = batch_size
        self._num_samples = batch_size // world_size
        self._rows = slice(rank * self._num_samples, (rank + 1) * self._num_samples)

    @property
    def num_samples(self) -> int:
        """Rows of this rank."""
        return self._num_samples

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers from low to high: float32, (num_samples, *shape).

        Raises:
            ValueError: If `high` is below `low`.
        """
        if high < low:
            raise ValueError(f"Draws.uniform: high must be at least low, got [{low}, {high})")
        numbers = torch.rand(self._batch_size, *shape, generator=self._generator)[self._rows]
        return numbers * (high - low) + low

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in [0, high): int64, (num_samples, *shape).

        Raises:
            ValueError: If `high` is below 1.
        """
        if high < 1:
            raise ValueError(f"Draws.integers: high must be at least 1, got {high}")
        return torch.randint(high, (self._batch_size, *shape), generator=self._generator)[self._rows]

    def chance(self, probability: float) -> Tensor:
        """For each row, true with the given probability: bool, (num_samples,).

        Raises:
            ValueError: If the probability is outside [0, 1].
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"Draws.chance: probability must be in [0, 1], got {probability}")
        return self.uniform(0.0, 1.0) < probability

    def permutation(self, n: int) -> Tensor:
        """One random permutation of 0 .. n-1 for the whole step, the same on all ranks: int64, (n,)."""
        return torch.randperm(n, generator=self._generator)


def to_float(images: Tensor) -> Tensor:
    """Images as floats: uint8 becomes float32 in [0, 1], floats are returned as they are.

    Args:
        images: (B, 3, H, W), uint8 or floating point; the memory format is kept.

    Raises:
        ValueError: If the shape or the dtype is another.
    """
    check_images("to_float", images)
    return images if images.is_floating_point() else images.to(torch.float32).div_(255)


def normalize(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Subtract a mean and divide by a standard deviation, each per channel; the result leaves [0, 1].

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
    return torch.addcmul(shifts, images, factors)


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
    _check_size("resize", size)
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
    _check_size("center_crop", size, at_most=min(height, width))
    # Half to even, as torchvision rounds when an odd number of pixels is left over.
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def crop(images: Tensor, tops: Tensor, lefts: Tensor, size: int) -> Tensor:
    """A square of `size` pixels from each image, at its own place.

    Args:
        images: (B, 3, H, W), uint8 or float.
        tops: First row of each square, int64 (B,), in [0, H - size].
        lefts: First column of each square, int64 (B,), in [0, W - size].
        size: Side of the squares in pixels.

    Returns:
        (B, 3, size, size) in the dtype and memory format of the images.

    Raises:
        ValueError: If a square does not fit or a shape is wrong.
    """
    check_images("crop", images)
    count, _, height, width = images.shape
    _check_size("crop", size, at_most=min(height, width))
    check_shape("crop", "tops", tops, (count,))
    check_shape("crop", "lefts", lefts, (count,))
    check_range("crop", "tops", tops, 0, height - size)
    check_range("crop", "lefts", lefts, 0, width - size)
    return _windows(images, tops, lefts, size)


def tiles(images: Tensor, offsets: Tensor, *, grid: int, tile: int) -> Tensor:
    """Cut square images into grid x grid cells and take one tile from each cell.

    Args:
        images: (B, 3, S, S), uint8 or float. A cell has S // grid pixels a side; what is left over at the bottom
            and at the right is not used.
        offsets: Top and left of each tile inside its cell, int64 (B, grid * grid, 2), in [0, S // grid - tile].
        grid: Cells a side.
        tile: Side of a tile in pixels.

    Returns:
        (B, grid * grid, 3, tile, tile), the cells row by row, in the dtype of the images.

    Raises:
        ValueError: If the images are not square, a tile does not fit its cell or a shape is wrong.
    """
    check_images("tiles", images)
    count, _, height, width = images.shape
    if height != width:
        raise ValueError(f"tiles: images must be square, got {height} x {width} pixels")
    if not 1 <= grid <= height:
        raise ValueError(f"tiles: grid must be in [1, {height}], got {grid}")
    cell = height // grid
    if not 1 <= tile <= cell:
        raise ValueError(f"tiles: tile must be in [1, {cell}], the side of a cell, got {tile}")
    check_shape("tiles", "offsets", offsets, (count, grid * grid, 2))
    check_range("tiles", "offsets", offsets, 0, cell - tile)
    cells = torch.arange(grid, device=offsets.device) * cell
    tops = offsets[..., 0] + cells.repeat_interleave(grid)
    lefts = offsets[..., 1] + cells.repeat(grid)
    return _windows(images, tops, lefts, tile)


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror left and right the images that the mask, bool (B,), picks; uint8 or float, the dtype is kept.

    Raises:
        ValueError: If the mask is not bool (B,), or the images have the wrong shape or dtype.
    """
    check_images("flip", images)
    return change_where("flip", images, mask, lambda chosen: chosen.flip(3))


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
    _check_size("resized_crop", size)
    check_shape("resized_crop", "boxes", boxes, (count, 4))
    check_range("resized_crop", "boxes' tops and lefts", boxes[:, :2], 0, math.inf)
    check_range("resized_crop", "boxes' heights and widths", boxes[:, 2:], 1, math.inf)
    check_range("resized_crop", "boxes' bottoms", boxes[:, 0] + boxes[:, 2], 1, height)
    check_range("resized_crop", "boxes' right edges", boxes[:, 1] + boxes[:, 3], 1, width)
    tops, lefts, heights, widths = boxes.to(images.device, images.dtype).unbind(dim=1)
    rows = _triangle_weights(tops, heights, source_size=height, size=size)
    columns = _triangle_weights(lefts, widths, source_size=width, size=size)
    # The three channels are stacked for the first product: a broadcast one would copy the weights three times.
    narrowed = torch.bmm(images.reshape(count, channels * height, width), columns.mT)
    return rows.unsqueeze(1) @ narrowed.view(count, channels, height, size)


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
    _check_size("rotated_crop", size)
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
    cosines, sines, shift_y, shift_x = (
        numbers.to(images.device, images.dtype)[:, None, None]
        for numbers in (radians.cos() / zoom, radians.sin() / zoom, center_y - height / 2, center_x - width / 2)
    )
    right = torch.arange(size, device=images.device, dtype=images.dtype) - (size - 1) / 2
    down = right[:, None]
    x = (right * cosines - down * sines + shift_x) * (2 / width)
    y = (right * sines + down * cosines + shift_y) * (2 / height)
    grid = torch.stack((x, y), dim=-1)  # (B, size, size, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def change_where(
    operation: str, images: Tensor, mask: Tensor, change: Callable[..., Tensor], *parameters: Tensor
) -> Tensor:
    """The images, but change(images, *parameters) of those that the mask, bool (B,), picks; only these are computed.

    Raises:
        ValueError: If the mask is not bool (B,).
    """
    check_mask(operation, mask, len(images))
    indices = mask.nonzero().squeeze(1)
    if len(indices) == 0:
        return images
    chosen = [values[indices.to(values.device)] for values in (images, *parameters)]
    changed = change(*chosen)
    if len(indices) == len(images):
        return changed
    # Of the clone, since index_copy itself would lose the memory format.
    return images.clone().index_copy_(0, indices.to(images.device), changed)


def check_images(operation: str, images: Tensor, *, floats: bool = False) -> None:
    """Refuse what is not a batch of images.

    Raises:
        ValueError: If the images are not (B, 3, H, W), or neither floating point nor, unless `floats`, uint8.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{operation}: images must be (B, 3, H, W), got {tuple(images.shape)}")
    if floats and not images.is_floating_point():
        raise ValueError(f"{operation}: images must be floating point (see to_float), got {images.dtype}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"{operation}: images must be uint8 or floating point, got {images.dtype}")


def check_shape(operation: str, name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a parameter of another shape.

    Raises:
        ValueError: If the shapes differ.
    """
    if tuple(values.shape) != shape:
        raise ValueError(f"{operation}: {name} must have the shape {shape}, got {tuple(values.shape)}")


def check_mask(operation: str, mask: Tensor, num_images: int) -> None:
    """Refuse a mask that is not bool (B,).

    Raises:
        ValueError: If the shape or the dtype is another.
    """
    check_shape(operation, "mask", mask, (num_images,))
    if mask.dtype != torch.bool:
        raise ValueError(f"{operation}: mask must be bool, got {mask.dtype}")


def check_range(operation: str, name: str, values: Tensor, low: float, high: float) -> None:
    """Refuse values outside [low, high], where looking at them is free: on the CPU.

    Raises:
        ValueError: If a value is outside.
    """
    if values.device.type != "cpu" or values.numel() == 0:
        return
    outside = values[~((values >= low) & (values <= high))]
    if outside.numel():
        rule = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ValueError(f"{operation}: {name} must be {rule}, got {outside[0].item()}")


def _check_size(operation: str, size: int, *, at_most: float = math.inf) -> None:
    if not 1 <= size <= at_most:
        limit = "at least 1" if at_most == math.inf else f"in [1, {at_most}], the shorter side"
        raise ValueError(f"{operation}: size must be {limit}, got {size}")


def _windows(images: Tensor, tops: Tensor, lefts: Tensor, size: int) -> Tensor:
    """The squares at tops and lefts, (B, ...), of each image: (B, ..., 3, size, size)."""
    # A view of every possible window; indexing it copies only the wanted ones, in whole rows of pixels.
    windows = images.unfold(2, size, 1).unfold(3, size, 1)  # (B, 3, H - size + 1, W - size + 1, size, size)
    batch = torch.arange(len(images), device=images.device).view(-1, *[1] * (tops.ndim - 1))
    return windows[batch, :, tops.to(images.device), lefts.to(images.device)]


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
