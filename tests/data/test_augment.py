"""The draws of a step and the geometric operations, against torchvision image by image."""

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from rayssl.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Draws,
    center_crop,
    crop,
    draw_resized_crop,
    flip,
    normalize,
    resize,
    resized_crop,
    rotated_crop,
    tiles,
    to_float,
)

HEIGHT, WIDTH = 37, 52


def random_images(count: int = 6, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def random_bytes(count: int = 6, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def middle(images: Tensor) -> Tensor:
    return torch.tensor([images.shape[2] / 2, images.shape[3] / 2]).expand(len(images), 2)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


DRAWS: dict[str, Callable[[Draws], Tensor]] = {
    "uniform": lambda draws: draws.uniform(-1.0, 2.0, 3),
    "integers": lambda draws: draws.integers(1000, 2, 2),
    "chance": lambda draws: draws.chance(0.5),
    "resized_crop": lambda draws: draw_resized_crop(draws, 64, 80),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_slices_of_all_ranks_are_the_draw_of_a_single_worker(name: str, world_size: int) -> None:
    """Each method is called twice, so that what the first call consumed counts as well."""
    alone = Draws(3, 1, 4, batch_size=32)
    ranks = [Draws(3, 1, 4, batch_size=32, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(2):
        assert torch.equal(torch.cat([DRAWS[name](rank) for rank in ranks]), DRAWS[name](alone))
    assert [rank.num_samples for rank in ranks] == [32 // world_size] * world_size


def test_every_rank_draws_the_same_permutation_and_stays_in_step_after_it() -> None:
    alone = Draws(0, 0, 0, batch_size=8)
    ranks = [Draws(0, 0, 0, batch_size=8, rank=rank, world_size=2) for rank in range(2)]
    expected = alone.permutation(7)
    assert sorted(expected.tolist()) == list(range(7))
    assert all(torch.equal(rank.permutation(7), expected) for rank in ranks)
    assert torch.equal(torch.cat([rank.uniform(0, 1) for rank in ranks]), alone.uniform(0, 1))


def test_seed_epoch_and_step_each_change_the_draws() -> None:
    numbers = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)]
    firsts = {Draws(*three, batch_size=4).uniform(0, 1)[0].item() for three in numbers}
    assert len(firsts) == len(numbers)
    again = Draws(1, 2, 3, batch_size=4).uniform(0, 1)
    assert torch.equal(again, Draws(1, 2, 3, batch_size=4).uniform(0, 1))


def test_draws_have_the_promised_types_ranges_and_means() -> None:
    draws = Draws(0, 0, 0, batch_size=4000)
    uniform, integers, chance = draws.uniform(2, 6), draws.integers(5, 2), draws.chance(0.3)
    assert (uniform.dtype, integers.dtype, chance.dtype) == (torch.float32, torch.int64, torch.bool)
    assert uniform.min() >= 2
    assert uniform.max() <= 6
    assert uniform.mean().item() == pytest.approx(4, abs=0.1)
    assert integers.shape == (4000, 2)
    assert sorted(integers.unique().tolist()) == [0, 1, 2, 3, 4]
    assert chance.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert not draws.chance(0.0).any()
    assert draws.chance(1.0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Draws(-1, 0, 0, batch_size=4), "at least 0, got -1"),
        (lambda: Draws(0, 0, 0, batch_size=5, world_size=2), "multiple of 2 workers, got 5"),
        (lambda: Draws(0, 0, 0, batch_size=0), "got 0"),
        (lambda: Draws(0, 0, 0, batch_size=4, rank=2, world_size=2), "got rank 2 of 2"),
        (lambda: Draws(0, 0, 0, batch_size=4).uniform(1, 0), "high must be at least low"),
        (lambda: Draws(0, 0, 0, batch_size=4).integers(0), "at least 1, got 0"),
        (lambda: Draws(0, 0, 0, batch_size=4).chance(1.5), r"in \[0, 1\], got 1.5"),
        (lambda: draw_resized_crop(Draws(0, 0, 0, batch_size=4), 8, 8, scale=(0.5, 0.1)), r"scale .* got \(0.5, 0.1\)"),
        (lambda: draw_resized_crop(Draws(0, 0, 0, batch_size=4), 8, 8, ratio=(0.0, 1)), r"ratio .* got \(0.0, 1\)"),
    ],
)
def test_impossible_draws_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_to_float_equals_torchvision_and_passes_floats_through() -> None:
    images = random_bytes()
    assert_close(to_float(images), tv.to_dtype(images, torch.float32, scale=True), 1e-7)
    assert to_float(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).eq(1).all()
    floats = random_images()
    assert to_float(floats) is floats


def test_normalize_equals_torchvision() -> None:
    images = random_images()
    assert_close(normalize(images), tv.normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD)))
    assert_close(normalize(images, (0, 0.1, 0.2), (1, 2, 3)), tv.normalize(images, [0, 0.1, 0.2], [1, 2, 3]))


@pytest.mark.parametrize("size", [15, 37, 61])
@pytest.mark.parametrize("turned", [False, True])
def test_resize_equals_torchvision(size: int, turned: bool) -> None:
    images = random_images().mT if turned else random_images()
    assert_close(resize(images, size), tv.resize(images, [size], antialias=True))


@pytest.mark.parametrize("size", [20, 21, 37])
def test_center_crop_equals_torchvision(size: int) -> None:
    for images in (random_images(), random_bytes()):
        assert torch.equal(center_crop(images, size), tv.center_crop(images, [size]))


def test_crop_equals_slicing() -> None:
    draws = Draws(0, 0, 0, batch_size=6)
    for images in (random_images(), random_bytes()):
        tops, lefts = draws.integers(HEIGHT - 20 + 1), draws.integers(WIDTH - 20 + 1)
        expected = [
            image[:, top : top + 20, left : left + 20] for image, top, left in zip(images, tops, lefts, strict=True)
        ]
        assert torch.equal(crop(images, tops, lefts, 20), torch.stack(expected))


def test_tiles_equal_slicing() -> None:
    """Cells of 12 of 38 pixels: two rows and columns are left over."""
    images = random_bytes(5, 38, 38)
    offsets = Draws(0, 0, 0, batch_size=5).integers(12 - 9 + 1, 9, 2)
    result = tiles(images, offsets, grid=3, tile=9)
    assert result.shape == (5, 9, 3, 9, 9)
    for sample in range(5):
        for cell in range(9):
            top = cell // 3 * 12 + int(offsets[sample, cell, 0])
            left = cell % 3 * 12 + int(offsets[sample, cell, 1])
            assert torch.equal(result[sample, cell], images[sample, :, top : top + 9, left : left + 9])


def test_flip_mirrors_the_picked_images_only() -> None:
    mask = torch.tensor([True, False, True, True, False, False])
    for images in (random_images(), random_bytes()):
        expected = [tv.horizontal_flip(image) if picked else image for image, picked in zip(images, mask, strict=True)]
        assert torch.equal(flip(images, mask), torch.stack(expected))
        assert torch.equal(flip(images, ~mask).flip(3), flip(images, mask))
        assert torch.equal(flip(images, torch.zeros(6, dtype=torch.bool)), images)
        assert torch.equal(flip(images, torch.ones(6, dtype=torch.bool)), images.flip(3))


@pytest.mark.parametrize("size", [9, 24, 70])
def test_resized_crop_equals_torchvision(size: int) -> None:
    """Boxes that shrink, enlarge and keep each side, down to one pixel."""
    images = random_images(12)
    boxes = draw_resized_crop(Draws(0, 0, 0, batch_size=12), HEIGHT, WIDTH)
    boxes[:4] = torch.tensor([[0, 0, HEIGHT, WIDTH], [3, 4, 24, 24], [36, 51, 1, 1], [5, 0, 2, 50]])
    expected = [
        tv.resized_crop(image, *box.tolist(), size=[size, size], antialias=True)
        for image, box in zip(images, boxes, strict=True)
    ]
    assert_close(resized_crop(images, boxes, size), torch.stack(expected))


def test_resized_crop_of_bytes_is_that_of_the_floats() -> None:
    images = random_bytes()
    boxes = draw_resized_crop(Draws(0, 0, 0, batch_size=6), HEIGHT, WIDTH)
    assert torch.equal(resized_crop(images, boxes, 16), resized_crop(to_float(images), boxes, 16))


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(64, 64, (0.08, 1.0)), (40, 60, (0.2, 1.0)), (60, 20, (0.9, 1.0))]
)
def test_boxes_are_distributed_as_those_of_torchvision(height: int, width: int, scale: tuple[float, float]) -> None:
    """The last shape leaves the fallback as the only choice for many samples."""
    count = 2500
    boxes = draw_resized_crop(Draws(0, 0, 0, batch_size=count), height, width, scale=scale)
    assert boxes.dtype == torch.int64
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor([height, width])).all()

    torch.manual_seed(0)
    image, transform = torch.empty(3, height, width), v2.RandomResizedCrop(8, scale=scale)
    theirs = torch.tensor([list(transform.make_params([image]).values()) for _ in range(count)])
    ours, reference = statistics(boxes), statistics(theirs)
    # Five standard errors of the difference of two means; what is constant may differ by rounding only.
    errors = 5 * (ours.var(0) / count + reference.var(0) / count).sqrt() + 1e-6
    assert (ours.mean(0) - reference.mean(0)).abs().le(errors).all()
    for quantile in (0.25, 0.75):
        expected = reference.quantile(quantile, dim=0)
        torch.testing.assert_close(ours.quantile(quantile, dim=0), expected, atol=1.5, rtol=0.05)


def statistics(boxes: Tensor) -> Tensor:
    """Of each box: the four numbers, the area, the logarithm of the aspect; (N, 6)."""
    values = boxes.double()
    area, log_ratio = values[:, 2] * values[:, 3], (values[:, 3] / values[:, 2]).log()
    return torch.cat((values, area[:, None], log_ratio[:, None]), dim=1)


def test_boxes_keep_to_the_asked_area_and_aspect() -> None:
    """On large images rounding is small, so that the ranges themselves can be seen."""
    boxes = draw_resized_crop(Draws(0, 0, 0, batch_size=3000), 1000, 1000, scale=(0.1, 0.3), ratio=(0.5, 1.5)).double()
    areas, ratios = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 3] / boxes[:, 2]
    assert areas.min().item() == pytest.approx(0.1, abs=0.002)
    assert areas.max().item() == pytest.approx(0.3, abs=0.002)
    assert areas.mean().item() == pytest.approx(0.2, abs=0.005)
    assert ratios.min().item() == pytest.approx(0.5, abs=0.01)
    assert ratios.max().item() == pytest.approx(1.5, abs=0.01)
    assert ratios.log().mean().item() == pytest.approx(math.log(0.75) / 2, abs=0.03)


@pytest.mark.parametrize(("height", "width", "expected"), [(100, 10, [43, 0, 13, 10]), (10, 100, [0, 43, 10, 13])])
def test_images_too_narrow_for_any_box_give_the_central_one(height: int, width: int, expected: list[int]) -> None:
    boxes = draw_resized_crop(Draws(0, 0, 0, batch_size=4), height, width, scale=(0.9, 1.0))
    assert boxes.tolist() == [expected] * 4


@pytest.mark.parametrize("size", [21, 37])
def test_rotated_crop_equals_torchvision(size: int) -> None:
    """The remainder is even on both sides, so that their central crop is central; the larger has black corners."""
    images = random_images(width=51)
    angles = torch.tensor([0.0, 30.0, -45.0, 90.0, 200.5, 359.0])
    rotated = torch.stack(
        [
            tv.rotate(image, angle.item(), interpolation=InterpolationMode.BILINEAR)
            for image, angle in zip(images, angles, strict=True)
        ]
    )
    result = rotated_crop(images, angles, size=size, zoom=1.0, centers=middle(images))
    assert_close(result, tv.center_crop(rotated, [size]), 2e-5)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, -1])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_quarter_turns_move_pixels_exactly(turns: int, padding: Literal["zeros", "border"]) -> None:
    images = random_images(3, 32, 32)
    result = rotated_crop(
        images, torch.full((3,), 90.0 * turns), size=32, zoom=1.0, centers=middle(images), padding=padding
    )
    assert_close(result, images.rot90(turns, dims=(2, 3)))


@pytest.mark.parametrize("zoom", [2, 3])
def test_magnifying_without_rotation_equals_resizing(zoom: int) -> None:
    images = random_images(3, 20, 20)
    result = rotated_crop(
        images, torch.zeros(3), size=20 * zoom, zoom=float(zoom), centers=middle(images), padding="border"
    )
    assert_close(result, tv.resize(images, [20 * zoom]))


def test_rotated_crop_moves_to_the_asked_point() -> None:
    """A window around the centre of pixel (10, 30) of an unrotated image is a slice; outside there is black."""
    images = to_float(random_bytes(2))
    centers = torch.tensor([[10.5, 30.5], [0.5, 0.5]])
    result = rotated_crop(images, torch.zeros(2), size=5, zoom=1.0, centers=centers)
    assert_close(result[0], images[0, :, 8:13, 28:33])
    assert_close(result[1, :, 2:, 2:], images[1, :, :3, :3])
    assert result[1, :, :2].abs().max() < 1e-5


def test_rotation_is_counter_clockwise() -> None:
    """A light at the right edge moves to the top."""
    images = torch.zeros(1, 3, 9, 9)
    images[:, :, 4, 8] = 1
    result = rotated_crop(images, torch.tensor([90.0]), size=9, zoom=1.0, centers=middle(images))
    assert result[0, 0].argmax().item() == 4


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "to_float": to_float,
    "normalize": normalize,
    "resize": lambda images: resize(images, 18),
    "center_crop": lambda images: center_crop(images, 18),
    "crop": lambda images: crop(images, torch.arange(6), torch.arange(6) * 2, 18),
    "resized_crop": lambda images: resized_crop(images, torch.tensor([[1, 2, 30, 20]] * 6), 18),
    "flip": lambda images: flip(images, torch.arange(6) % 2 == 0),
    "rotated_crop": lambda images: rotated_crop(
        images, torch.arange(6) * 20.0, size=18, zoom=0.9, centers=middle(images)
    ),
    "tiles": lambda images: tiles(images, torch.ones(6, 4, 2, dtype=torch.int64), grid=2, tile=15),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_memory_layout_does_not_matter(name: str) -> None:
    images = random_images(6, 40, 40)
    expected = OPERATIONS[name](images)
    strided = torch.stack((images, images), dim=-1)[..., 0]
    repeated = images[:1].expand(6, -1, -1, -1)
    assert_close(OPERATIONS[name](images.contiguous(memory_format=torch.channels_last)), expected)
    assert_close(OPERATIONS[name](strided), expected)
    assert_close(OPERATIONS[name](repeated), OPERATIONS[name](repeated.contiguous()))


@pytest.mark.parametrize("name", ["to_float", "normalize", "crop", "flip"])
def test_channels_last_is_kept(name: str) -> None:
    images = random_images(6, 40, 40).contiguous(memory_format=torch.channels_last)
    assert OPERATIONS[name](images).is_contiguous(memory_format=torch.channels_last)
    as_bytes = random_bytes().contiguous(memory_format=torch.channels_last)
    assert to_float(as_bytes).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_given_images_stay_as_they_were(name: str) -> None:
    images = random_images(6, 40, 40)
    before = images.clone()
    OPERATIONS[name](images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda images: to_float(images[0]), r"must be \(B, 3, H, W\), got \(3, 37, 52\)"),
        (lambda images: to_float(images.long()), "uint8 or floating point, got torch.int64"),
        (lambda images: normalize(images.byte()), "must be floating point .* got torch.uint8"),
        (lambda images: normalize(images, std=(0.1, 0.0, 0.1)), r"std above 0, got .*\(0.1, 0.0, 0.1\)"),
        (lambda images: resize(images, 0), "at least 1, got 0"),
        (lambda images: center_crop(images, 38), r"in \[1, 37\], the shorter side, got 38"),
        (lambda images: crop(images, torch.full((6,), 18), torch.zeros(6).long(), 20), r"tops .* in \[0, 17\], got 18"),
        (lambda images: crop(images, torch.zeros(6).long(), torch.zeros(5).long(), 20), r"lefts .* got \(5,\)"),
        (lambda images: resized_crop(images, torch.tensor([[8, 0, 30, 9]] * 6), 9), r"bottoms .* \[1, 37\], got 38"),
        (lambda images: resized_crop(images, torch.tensor([[0, -1, 9, 9]] * 6), 9), "at least 0, got -1"),
        (lambda images: resized_crop(images, torch.tensor([[0, 0, 9, 0]] * 6), 9), "at least 1, got 0"),
        (lambda images: flip(images, torch.zeros(6)), "must be bool, got torch.float32"),
        (lambda images: flip(images, torch.zeros(5).bool()), r"shape \(6,\), got \(5,\)"),
        (lambda images: turn(images, zoom=0.0), "above 0, got 0.0"),
        (lambda images: turn(images, padding="mirror"), "'zeros' or 'border', got 'mirror'"),
        (lambda images: turn(images, centers=torch.zeros(6)), r"shape \(6, 2\), got \(6,\)"),
        (lambda images: cut(images, 3, 5), "square, got 37 x 52"),
        (lambda images: cut(images[..., :37], 3, 13), r"in \[1, 12\], the side of a cell, got 13"),
        (lambda images: cut(images[..., :37], 38, 1), r"grid must be in \[1, 37\], got 38"),
        (lambda images: cut(images[..., :37], 3, 11, offset=2), r"offsets .* in \[0, 1\], got 2"),
    ],
)
def test_arguments_that_break_a_rule_are_named_with_their_value(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(random_images())


def turn(images: Tensor, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = {"size": 8, "zoom": 1.0, "centers": middle(images)} | changes
    return rotated_crop(images, torch.zeros(len(images)), **arguments)


def cut(images: Tensor, grid: int, tile: int, offset: int = 0) -> Tensor:
    offsets = torch.full((len(images), grid * grid, 2), offset)
    return tiles(images, offsets, grid=grid, tile=tile)
