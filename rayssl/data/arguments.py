"""What the operations on batches share: checks of their arguments, and masks.

Values are checked only on the CPU, where `Draws` makes them; on another device only their shapes are, since looking at
a value would make the host wait for the device. For the same reason what goes from the CPU to the images' device goes
with `non_blocking`: CUDA has taken its content by the time the call returns.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


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
    rows = indices.to(images.device, non_blocking=True)
    changed = change(images[rows], *(values[indices.to(values.device, non_blocking=True)] for values in parameters))
    if len(indices) == len(images):
        return changed
    # Of the clone, since index_copy itself would lose the memory format.
    return images.clone().index_copy_(0, rows, changed)


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


def check_size(operation: str, size: int, *, at_most: float = math.inf) -> None:
    """Refuse a side, in pixels, below 1 or beyond the shorter side of the images, `at_most`.

    Raises:
        ValueError: If the size is outside.
    """
    if not 1 <= size <= at_most:
        limit = "at least 1" if at_most == math.inf else f"in [1, {at_most}], the shorter side"
        raise ValueError(f"{operation}: size must be {limit}, got {size}")
