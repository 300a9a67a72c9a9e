"""Views made by OpenCV on bytes, against torchvision picture by picture and against the tensor operations."""

import itertools

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

import rayssl.tasks.augmented_views
from rayssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Draws, blur_kernel_size, sobel
from rayssl.data.buffers import Buffers
from rayssl.data.opencv_views import FASTER_FROM, ViewParameters, is_faster, make_views
from rayssl.tasks.augmented_views import AugmentationLevel, augmented_view
from tests.data.random_batches import random_bytes

SIZE = 64
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
T1 = AugmentationLevel()
T3 = AugmentationLevel(color_strength=1.0, gray=0.2, blur=0.5, sobel=0.2)


def coloured_bytes(count: int = 6, height: int = SIZE, width: int = SIZE) -> Tensor:
    """Random pictures; their first row has the pure, mixed, black, white and grey colours, where hues have edges."""
    images = random_bytes(count, height, width)
    images[:, :, 0, :27] = torch.tensor(list(itertools.product((0, 128, 255), repeat=3)), dtype=torch.uint8).T
    return images


def smooth_bytes(count: int, height: int, width: int) -> Tensor:
    """Pictures with the large areas and soft edges of photographs, and some noise."""
    coarse = random_bytes(count, height // 16, width // 16).float()
    fine = 8 * torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))
    return (tv.resize(coarse, [height, width]) + fine).clamp(0, 255).to(torch.uint8)


def whole(images: Tensor, **changes: object) -> ViewParameters:
    """Show the whole of each picture, with these changes."""
    count, _, height, width = images.shape
    boxes = torch.tensor([0, 0, height, width]).repeat(count, 1)
    return ViewParameters(boxes, torch.zeros(count, dtype=torch.bool), **changes)  # type: ignore[arg-type]


def every(images: Tensor) -> Tensor:
    return torch.ones(len(images), dtype=torch.bool)


def levels(views: Tensor) -> Tensor:
    """Views before their normalisation, in levels of 255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return 255 * (views * std + mean)


def made(images: Tensor, parameters: ViewParameters, size: int = SIZE) -> Tensor:
    return levels(make_views(images, [parameters], size=size))


def assert_within(actual: Tensor, expected: Tensor, most: float) -> None:
    """Both in levels of 255."""
    torch.testing.assert_close(actual, expected, atol=most, rtol=0)


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 97, 131),
        (5, 7, 40, 33),
        (20, 1, 77, 130),
        (40, 90, 57, 41),
        (3, 2, 90, 30),
        (0, 0, 30, 131),
        (9, 9, 64, 64),
    ],
    ids=["all", "enlarged", "shrunk", "corner", "tall", "wide", "as it is"],
)
def test_a_crop_is_torchvisions_antialiased_one(box: tuple[int, int, int, int]) -> None:
    images = random_bytes(2, 97, 131)
    parameters = ViewParameters(torch.tensor([box, box]), torch.tensor([False, True]))
    expected = tv.resized_crop(images / 255, *box, [SIZE, SIZE], antialias=True) * 255
    assert_within(made(images, parameters), torch.stack([expected[0], expected[1].flip(2)]), 1.0)


@pytest.mark.parametrize("corner", [(0, 0), (96, 130)])
def test_a_crop_of_one_pixel_is_its_colour(corner: tuple[int, int]) -> None:
    images = random_bytes(1, 97, 131)
    parameters = ViewParameters(torch.tensor([[*corner, 1, 1]]), torch.tensor([False]))
    colour = images[0, :, corner[0], corner[1]].float()
    assert_within(made(images, parameters), colour.view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE), 1e-3)


@pytest.mark.parametrize("box", [(0, 5, 97, 1), (5, 0, 1, 131)])
def test_a_crop_of_one_row_or_column_is_torchvisions(box: tuple[int, int, int, int]) -> None:
    images = random_bytes(1, 97, 131)
    expected = tv.resized_crop(images / 255, *box, [SIZE, SIZE], antialias=True) * 255
    assert_within(made(images, ViewParameters(torch.tensor([box]), torch.tensor([False]))), expected, 1.0)


@pytest.mark.parametrize(
    ("step", "factors", "theirs"),
    [
        (0, (0.0, 0.2, 0.9, 1.0, 1.3, 1.8), tv.adjust_brightness),
        (1, (0.0, 0.2, 0.9, 1.0, 1.3, 1.8), tv.adjust_contrast),
        (2, (0.0, 0.2, 0.9, 1.0, 1.3, 3.0), tv.adjust_saturation),
        (3, (-0.5, -0.2, -0.01, 0.0, 0.13, 0.5), tv.adjust_hue),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_each_step_of_the_jitter_is_torchvisions(step: int, factors: tuple[float, ...], theirs) -> None:  # type: ignore[no-untyped-def]
    images = coloured_bytes()
    table = torch.tensor(NEUTRAL).repeat(6, 1)
    table[:, step] = torch.tensor(factors)
    parameters = whole(images, jitter=(table, torch.tensor([0, 1, 2, 3]), every(images)))
    expected = torch.stack([theirs(image / 255, factor) for image, factor in zip(images, factors, strict=True)]) * 255
    assert_within(made(images, parameters), expected, 1.0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_the_jitter_keeps_the_drawn_order(order: tuple[int, ...]) -> None:
    """Each step rounds to bytes and the next may stretch that: all the same, torchvision on bytes is farther off."""
    images = coloured_bytes(2)
    factors = torch.tensor([[1.7, 0.4, 1.6, 0.2], [0.5, 1.8, 0.3, -0.15]])
    parameters = whole(images, jitter=(factors, torch.tensor(order), every(images)))
    exact = 255 * jittered_by_torchvision(images / 255, factors, order)
    error = (made(images, parameters) - exact).abs()
    assert error.max() < 6
    assert error.mean() < 0.8 * (jittered_by_torchvision(images, factors, order) - exact).abs().mean()


def jittered_by_torchvision(images: Tensor, factors: Tensor, order: tuple[int, ...]) -> Tensor:
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    results = []
    for image, values in zip(images, factors.tolist(), strict=True):
        changed = image
        for step in order:
            changed = steps[step](changed, values[step])
        results.append(changed)
    return torch.stack(results)


def test_grey_and_blur_and_gradient_are_those_of_the_floats() -> None:
    images = coloured_bytes(height=SIZE, width=SIZE)
    mask = torch.tensor([True, False, True, True, False, True])
    chosen = mask[:, None, None, None]
    grey = torch.where(chosen, tv.rgb_to_grayscale(images / 255, num_output_channels=3) * 255, images)
    assert_within(made(images, whole(images, gray=mask)), grey, 1.0)
    assert_within(made(images, whole(images, sobel=mask)), 255 * sobel(images / 255, mask), 1e-2)


@pytest.mark.parametrize("size", [SIZE, 224])
@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.9, 1.4, 2.0])
def test_a_blur_is_torchvisions_though_its_kernel_is_smaller(size: int, sigma: float) -> None:
    images = random_bytes(2, size, size)
    kernel = [blur_kernel_size(size)] * 2
    expected = torch.stack([tv.gaussian_blur(images[0] / 255, kernel, [sigma, sigma]) * 255, images[1].float()])
    parameters = whole(images, blur=(torch.tensor([sigma, 1.0]), torch.tensor([True, False])))
    assert_within(made(images, parameters, size), expected, 0.1)


def test_a_grey_picture_stays_grey_and_is_only_moved_by_brightness_and_contrast() -> None:
    images = random_bytes(2)[:, :1].repeat(1, 3, 1, 1)[..., :37, :37].contiguous()
    factors = torch.tensor([[1.0, 1.0, 1.8, 0.2], [1.0, 1.0, 0.2, -0.2]])
    parameters = whole(images, jitter=(factors, torch.tensor([3, 2, 1, 0]), every(images)))
    assert_within(made(images, parameters, 37), images.float(), 1.0)


def test_views_are_normalised_with_the_channels_last_in_memory() -> None:
    images = random_bytes(2, SIZE, SIZE)
    views = make_views(images, [whole(images), whole(images)], size=SIZE)
    expected = tv.normalize(images / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(views, torch.cat([expected, expected]), atol=1e-5, rtol=0)
    assert views.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("level", "most", "mean"), [(T1, 1.1, 0.3), (T3, 10.0, 0.5)], ids=["T1", "T3"])
@pytest.mark.parametrize("size", [FASTER_FROM, 96])
def test_views_are_those_of_the_whole_batch_but_for_rounding(
    level: AugmentationLevel, most: float, mean: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = smooth_bytes(24, 128, 160)
    views = augmented_view(images, Draws(0, 0, 0, batch_size=24), level, image_size=size, num_views=2)
    monkeypatch.setattr(rayssl.tasks.augmented_views, "is_faster", lambda *_: False)
    expected = augmented_view(images, Draws(0, 0, 0, batch_size=24), level, image_size=size, num_views=2)
    assert views.shape == expected.shape == (48, 3, size, size)
    assert_within(levels(views), levels(expected), most)
    assert (levels(views) - levels(expected)).abs().mean() < mean


def test_two_workers_make_the_same_views_as_one() -> None:
    images = smooth_bytes(6, 64, 80)
    alone = augmented_view(images, Draws(0, 0, 0, batch_size=6), T3, image_size=SIZE, num_views=2)
    halves = [
        augmented_view(
            images[3 * rank : 3 * rank + 3],
            Draws(0, 0, 0, batch_size=6, rank=rank, world_size=2),
            T3,
            image_size=SIZE,
            num_views=2,
        ).chunk(2)
        for rank in range(2)
    ]
    assert torch.equal(alone, torch.cat([torch.cat(parts) for parts in zip(*halves, strict=True)]))


def test_bits_do_not_depend_on_where_arrays_lie_in_memory() -> None:
    """They do in some of OpenCV's functions; then a resumed run would differ from an uninterrupted one."""
    images = smooth_bytes(8, 64, 80)
    expected = augmented_view(images, Draws(0, 0, 0, batch_size=8), T3, image_size=SIZE)
    kept = []
    for size in range(100_001, 100_021):
        kept.append(torch.empty(size, dtype=torch.uint8))  # moves what is allocated next
        assert torch.equal(augmented_view(images, Draws(0, 0, 0, batch_size=8), T3, image_size=SIZE), expected)


def test_it_is_taken_for_bytes_of_a_sufficient_size_on_the_cpu() -> None:
    images = random_bytes(2)
    assert is_faster(images, FASTER_FROM)
    assert not is_faster(images, FASTER_FROM - 1)
    assert not is_faster(images / 255, FASTER_FROM)
    assert not is_faster(images.to("meta"), FASTER_FROM)


def test_memory_is_lent_again_only_after_its_last_user() -> None:
    """A slice, or what autograd keeps, counts as a user."""
    buffers = Buffers()
    first = buffers.lend(4, 3)
    place, part = first.data_ptr(), first.fill_(1.0)[2:]
    second = buffers.lend(4, 3).fill_(2.0)
    assert second.data_ptr() != place
    del first
    assert buffers.lend(4, 3).fill_(3.0).data_ptr() != place
    weight = torch.ones(2, 3, requires_grad=True)
    loss = (weight * part).sum()
    del part
    assert buffers.lend(4, 3).fill_(4.0).data_ptr() != place
    loss.backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.ones(2, 3))
    del loss
    assert buffers.lend(3, 4).data_ptr() == place


def test_batches_in_flight_do_not_share_memory() -> None:
    images, buffers = random_bytes(2, SIZE, SIZE), Buffers()
    first = make_views(images, [whole(images)], size=SIZE, buffers=buffers)
    kept = first.clone()
    second = make_views(255 - images, [whole(images)], size=SIZE, buffers=buffers)
    assert torch.equal(first, kept)
    assert first.data_ptr() != second.data_ptr()
    place = first.data_ptr()
    del first
    assert make_views(images, [whole(images)], size=SIZE, buffers=buffers).data_ptr() == place


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((-1, 0, 5, 5), "tops and lefts must be at least 0, got -1"),
        ((0, 0, 0, 5), r"heights and widths must be at least 1, got 0"),
        ((30, 0, 8, 5), r"bottoms must be in \[1, 37\], got 38"),
        ((0, 50, 5, 5), r"right edges must be in \[1, 52\], got 55"),
    ],
)
def test_a_box_outside_its_picture_is_refused(box: tuple[int, int, int, int], message: str) -> None:
    parameters = ViewParameters(torch.tensor([box]), torch.tensor([False]))
    with pytest.raises(ValueError, match=message):
        make_views(random_bytes(1), [parameters], size=SIZE)


def test_floats_and_masks_of_another_length_are_refused() -> None:
    images = random_bytes(2)
    with pytest.raises(ValueError, match=r"images must be uint8 on the CPU, got torch\.float32"):
        make_views(images / 255, [whole(images)], size=SIZE)
    with pytest.raises(ValueError, match=r"gray must have the shape \(2,\), got \(3,\)"):
        make_views(images, [whole(images, gray=torch.ones(3, dtype=torch.bool))], size=SIZE)
