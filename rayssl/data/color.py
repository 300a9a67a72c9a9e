"""Colours of batches: operations on the values of the pixels. See `rayssl.data.augment`.

Images are float (B, 3, H, W) in [0, 1], and so are results unless said otherwise. A mask, bool (B,), picks the samples
to change; where the operation is costly, only those are computed. A mask on the CPU, as `Draws` makes it, keeps the
host from waiting for the device. Where torchvision has the same function, the results are equal image by image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rayssl.data.arguments import change_where, check_images, check_mask, check_range, check_shape
from rayssl.data.draws import Draws

# ITU-R 601-2, rounded as torchvision rounds it.
_LUMA_WEIGHTS = (0.2989, 0.587, 0.114)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply each image by its factor and clip to [0, 1]; 0 gives black, 1 the image.

    Args:
        images: Float (B, 3, H, W) in [0, 1].
        factors: At least 0, (B,).

    Raises:
        ValueError: If a factor is negative or a shape or dtype is wrong.
    """
    ratios = _per_image("adjust_brightness", images, factors)
    return (images * ratios).clamp_(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Move each image from the mean of its greyscale by its factor and clip to [0, 1]; 0 gives an even grey.

    Args:
        images: Float (B, 3, H, W) in [0, 1].
        factors: At least 0, (B,).

    Raises:
        ValueError: If a factor is negative or a shape or dtype is wrong.
    """
    ratios = _per_image("adjust_contrast", images, factors)
    # The mean of the greyscale is the greyscale of the mean: no grey image is needed.
    return torch.lerp(_luma(images.mean(dim=(2, 3), keepdim=True)), images, ratios).clamp_(0, 1)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Move each pixel from its own grey by the image's factor and clip to [0, 1]; 0 gives a greyscale image.

    Args:
        images: Float (B, 3, H, W) in [0, 1].
        factors: At least 0, (B,).

    Raises:
        ValueError: If a factor is negative or a shape or dtype is wrong.
    """
    ratios = _per_image("adjust_saturation", images, factors)
    return torch.lerp(_luma(images), images, ratios).clamp_(0, 1)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue of each image by its part of the colour circle; value and saturation (HSV) stay.

    Args:
        images: Float (B, 3, H, W) in [0, 1].
        shifts: In [-0.5, 0.5], (B,); either end gives the complementary hues.

    Raises:
        ValueError: If a shift is outside its range or a shape or dtype is wrong.
    """
    turns = _per_image("adjust_hue", images, shifts, name="shifts", low=-0.5, high=0.5).squeeze(1)
    red, green, blue = images.unbind(dim=1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - torch.minimum(torch.minimum(red, green), blue)
    # A grey pixel has no hue: its differences are 0, and any divisor but 0 will do.
    divisor = chroma.clamp(min=torch.finfo(images.dtype).tiny)
    # In sixths of the colour circle.
    near_red, near_green, near_blue = (green - blue) / divisor, (blue - red) / divisor + 2, (red - green) / divisor + 4
    hue = torch.where(largest == red, near_red, torch.where(largest == green, near_green, near_blue))
    hue.add_(turns, alpha=6)

    def channel(darkest: int) -> Tensor:
        """Full chroma is taken away within a sixth of the darkest hue, none beyond two, linearly less in between."""
        distance = hue - darkest
        distance.sub_((distance / 6).round_(), alpha=6).abs_()  # around the circle
        return largest - distance.neg_().add_(2).clamp_(0, 1).mul_(chroma)

    return torch.stack([channel(3), channel(5), channel(1)], dim=1)  # red is darkest at cyan, and so on


def draw_color_jitter(
    draws: Draws, *, brightness: float, contrast: float, saturation: float, hue: float, probability: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters of `color_jitter`, with the ranges of torchvision's `ColorJitter`.

    Args:
        draws: Where the random numbers come from.
        brightness: Factors are uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: The same for the contrast.
        saturation: The same for the saturation.
        hue: Shifts are uniform in [-hue, hue]; at most 0.5.
        probability: Of a sample to be changed at all.

    Returns:
        Factors (num_samples, 4), the order of the operations, int64 (4,), and the mask (num_samples,).

    Raises:
        ValueError: If a strength is negative, the hue above 0.5 or the probability outside [0, 1].
    """
    strengths = (brightness, contrast, saturation)
    if min(strengths) < 0:
        raise ValueError(f"draw_color_jitter: strengths must be at least 0, got {strengths}")
    if not 0 <= hue <= 0.5:
        raise ValueError(f"draw_color_jitter: hue must be in [0, 0.5], got {hue}")
    ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths] + [(-hue, hue)]
    factors = torch.stack([draws.uniform(low, high) for low, high in ranges], dim=1)
    return factors, draws.permutation(4), draws.chance(probability)


def color_jitter(images: Tensor, factors: Tensor, *, order: Tensor | Sequence[int], mask: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of the samples that the mask picks.

    torchvision draws one order of the four operations for each image. Here the whole step shares one: an order for
    each sample would need every operation four times, on all samples. Over the steps all 24 orders come equally
    often.

    Args:
        images: Float (B, 3, H, W) in [0, 1].
        factors: Of brightness, contrast and saturation (at least 0) and the shift of the hue (in [-0.5, 0.5]),
            (B, 4).
        order: A permutation of 0 (brightness), 1 (contrast), 2 (saturation) and 3 (hue): first to last.
        mask: Bool (B,).

    Raises:
        ValueError: If the order is no permutation, a factor is outside its range or a shape or dtype is wrong.
    """
    check_images("color_jitter", images, floats=True)
    check_shape("color_jitter", "factors", factors, (len(images), 4))
    steps = [int(operation) for operation in order]
    if sorted(steps) != [0, 1, 2, 3]:
        raise ValueError(f"color_jitter: order must be a permutation of 0, 1, 2, 3, got {steps}")

    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)

    def jitter(chosen: Tensor, chosen_factors: Tensor) -> Tensor:
        for step in steps:
            chosen = operations[step](chosen, chosen_factors[:, step])
        return chosen

    return change_where("color_jitter", images, mask, jitter, factors)


def grayscale(images: Tensor, mask: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Give the samples that the mask, bool (B,), picks their grey in all three channels.

    Args:
        images: Float (B, 3, H, W) in [0, 1].
        mask: Bool (B,).
        out: Where to write the result, in the images' shape; may be the images themselves. None: fresh memory.

    Raises:
        ValueError: If a shape or dtype is wrong.
    """
    check_images("grayscale", images, floats=True)
    check_mask("grayscale", mask, len(images))
    picked = mask.to(images.device, non_blocking=True)[:, None, None, None]
    return torch.where(picked, _luma(images), images, out=out)


def blur_kernel_size(side: int) -> int:
    """The odd number nearest to a tenth of the side, at least 3: 23 at 224 pixels, 9 at 96, 3 at 32.

    Source: Chen et al. 2020 (SimCLR), appendix A: a kernel of 10 % of the side.
    """
    return max(3, side // 20 * 2 + 1)


def gaussian_blur(images: Tensor, sigmas: Tensor, *, kernel_size: int, mask: Tensor) -> Tensor:
    """Blur the samples that the mask picks, each with its own width, reflecting at the border.

    Args:
        images: Float (B, 3, H, W) in [0, 1].
        sigmas: Standard deviations in pixels, above 0, (B,).
        kernel_size: Pixels of the kernel, odd; half of it fits into the shorter side.
        mask: Bool (B,).

    Raises:
        ValueError: If the kernel is even or too large, a sigma is not positive or a shape or dtype is wrong.
    """
    check_images("gaussian_blur", images, floats=True)
    check_shape("gaussian_blur", "sigmas", sigmas, (len(images),))
    check_range("gaussian_blur", "sigmas", sigmas, torch.finfo(sigmas.dtype).tiny, torch.inf)
    radius = kernel_size // 2
    if kernel_size < 1 or kernel_size % 2 == 0 or radius >= min(images.shape[-2:]):
        raise ValueError(
            f"gaussian_blur: kernel_size must be odd and its half below the shorter side, {min(images.shape[-2:])}, "
            f"got {kernel_size}"
        )

    def blur(chosen: Tensor, chosen_sigmas: Tensor) -> Tensor:
        distances = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
        scaled = distances / chosen_sigmas.to(images.device, images.dtype, non_blocking=True)[:, None]
        kernels = torch.softmax(-0.5 * scaled.square(), dim=1)  # (B, K)
        # Each channel of each image is a group of its own, so that one convolution holds all the kernels.
        groups = 3 * len(chosen)
        weights = kernels.repeat_interleave(3, dim=0).view(groups, 1, 1, kernel_size)
        padded = F.pad(chosen, (radius,) * 4, mode="reflect")
        blurred = F.conv2d(padded.reshape(1, groups, *padded.shape[-2:]), weights, groups=groups)
        return F.conv2d(blurred, weights.mT, groups=groups).view(chosen.shape)

    return change_where("gaussian_blur", images, mask, blur, sigmas)


def sobel(images: Tensor, mask: Tensor) -> Tensor:
    """Replace the samples that the mask, bool (B,), picks by the size of their gradient, channel by channel.

    The Sobel responses along both axes are squared, summed, and the root divided by 2 sqrt 5, the most that pixels
    in [0, 1] can reach: results fill [0, 1]. Three channels stay three, so conv1 is unchanged. The border repeats its
    nearest pixel.

    Raises:
        ValueError: If a shape or dtype is wrong.
    """
    check_images("sobel", images, floats=True)

    def gradient_size(chosen: Tensor) -> Tensor:
        padded = F.pad(chosen, (1, 1, 1, 1), mode="replicate")
        across = padded[..., 2:] - padded[..., :-2]
        across = across[..., :-2, :] + across[..., 2:, :] + 2 * across[..., 1:-1, :]
        down = padded[..., 2:, :] - padded[..., :-2, :]
        down = down[..., :-2] + down[..., 2:] + 2 * down[..., 1:-1]
        return across.square_().addcmul_(down, down).div_(20).sqrt_()

    return change_where("sobel", images, mask, gradient_size)


def _luma(images: Tensor) -> Tensor:
    """The grey of each pixel, (B, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    weight_red, weight_green, weight_blue = _LUMA_WEIGHTS
    return (red * weight_red).add_(green, alpha=weight_green).add_(blue, alpha=weight_blue)


def _per_image(
    operation: str, images: Tensor, values: Tensor, *, name: str = "factors", low: float = 0.0, high: float = torch.inf
) -> Tensor:
    """Checked numbers of the images, ready to be broadcast on their device: (B, 1, 1, 1)."""
    check_images(operation, images, floats=True)
    check_shape(operation, name, values, (len(images),))
    check_range(operation, name, values, low, high)
    return values.to(images.device, images.dtype, non_blocking=True)[:, None, None, None]
