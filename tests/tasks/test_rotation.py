"""Views and targets of the rotation task, against torchvision's rotation and against each other."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

import rayssl.tasks.rotation
from rayssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Draws, rotated_crop
from rayssl.tasks import RotationConfig, RotationTask, TaskSetting
from tests.tasks.task_batches import as_batch

GEOMETRIES = [(32, 32), (32, 33), (32, 46), (32, 64), (33, 40), (64, 44), (16, 50)]  # view and picture, in pixels


def smooth_pictures(count: int, side: int, seed: int = 0) -> Tensor:
    """Uint8 pictures that vary so slowly that resampling them hardly matters, and that look different every way up."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    return (fine.clamp(0, 1) * 255).round().to(torch.uint8)


def noise_pictures(count: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), generator=generator).to(torch.uint8)


def pixels(inputs: Tensor) -> Tensor:
    """Normalised views as they were before, in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return inputs * std + mean


def disc(side: int, radius: float) -> Tensor:
    rows = torch.arange(side) + 0.5 - side / 2
    return rows[:, None] ** 2 + rows[None, :] ** 2 <= radius**2


@pytest.mark.parametrize("num_angles", [2, 4, 8, 5])
@pytest.mark.parametrize("corners", ["inside", "mask", "paper"])
def test_view_k_is_view_0_turned_counter_clockwise_by_k_parts_of_a_circle(num_angles: int, corners: str) -> None:
    """Compared on the disc that all turned views share; `paper` moves the crop after turning, so without room to."""
    side = 8 if corners == "paper" else 48  # a view of 3 pixels is cut from 3: no room
    size = 3 if corners == "paper" else 32
    pictures = smooth_pictures(6, side)
    task = RotationTask(num_angles, image_size=size, copies="all", corners=corners)
    views = task.make_views(as_batch(pictures, Draws(0, 0, 0, batch_size=6)))
    grouped = pixels(views.inputs).unflatten(0, (6, num_angles))
    shared = disc(size, size / 2 - 1)
    for k in range(num_angles):
        expected = tv.rotate(grouped[:, 0], 360 / num_angles * k, interpolation=InterpolationMode.BILINEAR)
        assert (grouped[:, k] - expected)[..., shared].abs().max() < (0.1 if corners == "paper" else 0.03)


def test_a_mark_at_the_top_goes_left_down_and_right() -> None:
    """The direction, without another library: a quarter turn counter-clockwise brings the top to the left."""
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    picture[:, :, 18:26, 28:36] = 255
    views = RotationTask(4, image_size=40).make_views(as_batch(picture, Draws(0, 0, 0, batch_size=1)))
    light = pixels(views.inputs).mean(1)
    centres = torch.arange(40.0) - 19.5
    weights = light.sum((1, 2))
    down = ((light * centres[:, None]).sum((1, 2)) / weights).tolist()
    right = ((light * centres).sum((1, 2)) / weights).tolist()
    up, left, lower, other = range(4)
    assert down[up] < -3 and right[left] < -3 and down[lower] > 3 and right[other] > 3


@pytest.mark.parametrize("corners", ["inside", "mask", "paper"])
def test_all_copies_are_grouped_by_picture_and_balanced(corners: str) -> None:
    task = RotationTask(8, image_size=16, copies="all", corners=corners)
    views = task.make_views(as_batch(noise_pictures(3, 24), Draws(0, 0, 0, batch_size=3)))
    assert views.inputs.shape == (24, 3, 16, 16)
    assert views.targets.tolist() == 3 * list(range(8))
    assert (task.examples_per_image, task.chance) == (8, 1 / 8)
    # Of its own picture alone: another third picture leaves the views of the first two as they were.
    pictures = noise_pictures(3, 24)
    pictures[2] = 0
    again = task.make_views(as_batch(pictures, Draws(0, 0, 0, batch_size=3))).inputs
    assert torch.equal(again[:16], views.inputs[:16])
    assert not torch.equal(again[16:], views.inputs[16:])


@pytest.mark.parametrize("corners", ["inside", "mask", "paper"])
def test_one_copy_takes_each_angle_equally_often(corners: str) -> None:
    task = RotationTask(4, image_size=4, copies="one", corners=corners)
    views = task.make_views(as_batch(noise_pictures(2000, 6), Draws(0, 0, 0, batch_size=2000)))
    assert len(views.inputs) == task.examples_per_image * 2000 == 2000
    counts = torch.bincount(views.targets, minlength=4)
    assert ((counts - 500).abs() < 5 * math.sqrt(2000 * 3 / 16)).all()


def test_one_copy_is_turned_by_its_own_target() -> None:
    """Turned back by what the target says, all views of a picture show the same, or its mirror image."""
    picture = smooth_pictures(1, 46)
    plain = tv.center_crop(picture[0], [32, 32]) / 255
    shared = disc(32, 15)
    for step in range(12):
        views = RotationTask(8, image_size=32, copies="one").make_views(
            as_batch(picture, Draws(0, 0, step, batch_size=1))
        )
        degrees = -45.0 * views.targets.item()
        upright = tv.rotate(pixels(views.inputs), degrees, interpolation=InterpolationMode.BILINEAR)[0]
        errors = [float((upright - way)[:, shared].abs().max()) for way in (plain, plain.flip(2))]
        assert min(errors) < 0.05
        assert max(errors) > 0.2


@pytest.mark.parametrize("corners", ["inside", "mask", "paper"])
@pytest.mark.parametrize("copies", ["all", "one"])
def test_two_workers_see_the_views_that_one_sees(corners: str, copies: str) -> None:
    pictures = noise_pictures(6, 28)
    task = RotationTask(4, image_size=20, copies=copies, corners=corners)
    whole = task.make_views(as_batch(pictures, Draws(5, 2, 7, batch_size=6)))
    parts = [
        task.make_views(as_batch(half, Draws(5, 2, 7, batch_size=6, rank=rank, world_size=2)))
        for rank, half in enumerate(pictures.chunk(2))
    ]
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    torch.testing.assert_close(torch.cat([part.inputs for part in parts]), whole.inputs, atol=1e-5, rtol=0)


def test_pictures_are_mirrored_before_they_are_turned() -> None:
    """View k is then view 0 of the mirrored picture turned by k; mirrored afterwards it would turn the other way."""
    picture = smooth_pictures(1, 46)
    task = RotationTask(4, image_size=32)
    mirrored = set()
    for step in range(10):
        views = pixels(task.make_views(as_batch(picture, Draws(0, 0, step, batch_size=1))).inputs)
        torch.testing.assert_close(views[1], torch.rot90(views[0], 1, (1, 2)), atol=0.02, rtol=0)
        plain = tv.center_crop(picture[0], [32, 32]) / 255
        mirrored.add(bool((views[0] - plain).abs().mean() > (views[0] - plain.flip(2)).abs().mean()))
    assert mirrored == {True, False}


@pytest.mark.parametrize("corners", ["inside", "mask"])
def test_an_easy_level_shows_the_same_views_as_a_hard_one(corners: str) -> None:
    """R1 within R2 within R3, in the pixels: no level has a geometry or a resampling of its own."""
    pictures = noise_pictures(4, 36)
    levels = [
        RotationTask(num_angles, image_size=32, corners=corners)
        .make_views(as_batch(pictures, Draws(0, 1, 2, batch_size=4)))
        .inputs.unflatten(0, (4, num_angles))
        for num_angles in (2, 4, 8)
    ]
    torch.testing.assert_close(levels[0], levels[2][:, ::4], atol=1e-5, rtol=0)
    torch.testing.assert_close(levels[1], levels[2][:, ::2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("corners", ["inside", "mask"])
@pytest.mark.parametrize(("size", "side"), GEOMETRIES)
def test_nothing_from_outside_the_picture_is_seen(
    size: int, side: int, corners: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Black pictures are laid on white ground; a view that shows any of it is no longer black.

    Where the picture has to be enlarged, the interpolation's and the blur's tails reach past its edge, by a few
    percent of a pixel in the corners; the task repeats the edge there.
    """
    calls: list[dict[str, object]] = []

    def on_white_ground(images: Tensor, angles: Tensor, *, centers: Tensor, **others: object) -> Tensor:
        if not calls:  # the second resampling is of the first one's result
            images = functional.pad(functional.pad(images, (1,) * 4, mode="replicate"), (19,) * 4, value=1.0)
            centers = centers + 20
        calls.append(others)
        return rotated_crop(images, angles, centers=centers, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(rayssl.tasks.rotation, "rotated_crop", on_white_ground)
    monkeypatch.setattr(rayssl.tasks.rotation, "flip", lambda images, _: images.float() / 255)
    pictures = torch.zeros(50, 3, side, side, dtype=torch.uint8)
    views = RotationTask(8, image_size=size, corners=corners).make_views(
        as_batch(pictures, Draws(0, 0, 0, batch_size=50))
    )
    seen = pixels(views.inputs)
    if corners == "mask":
        seen = seen[..., disc(size, size / 2)]
    needed = math.ceil(size * math.sqrt(2)) if corners == "inside" else round(size * 256 / 224)
    assert len(calls) == 2
    assert seen.max() < (1e-5 if side >= needed and corners == "inside" else 0.06)


@pytest.mark.parametrize("num_angles", [2, 4, 8])
@pytest.mark.parametrize(("size", "side"), GEOMETRIES)
def test_an_even_picture_stays_even_inside(size: int, side: int, num_angles: int) -> None:
    pictures = torch.full((3, 3, side, side), 200, dtype=torch.uint8)
    views = RotationTask(num_angles, image_size=size).make_views(as_batch(pictures, Draws(0, 0, 0, batch_size=3)))
    torch.testing.assert_close(pixels(views.inputs), torch.full((3 * num_angles, 3, size, size), 200 / 255))


@pytest.mark.parametrize("num_angles", [2, 4, 8])
@pytest.mark.parametrize(("size", "side"), GEOMETRIES)
def test_the_mask_leaves_a_disc_and_zeros_around_it(size: int, side: int, num_angles: int) -> None:
    """Zero after normalising: the mean colour, which no picture can be told from."""
    pictures = torch.full((3, 3, side, side), 200, dtype=torch.uint8)
    task = RotationTask(num_angles, image_size=size, corners="mask")
    views = task.make_views(as_batch(pictures, Draws(0, 0, 0, batch_size=3))).inputs
    inside = disc(size, size / 2)
    assert (views[..., ~inside] == 0).all() and (~inside).any()
    expected = torch.full((3 * num_angles, 3, int(inside.sum())), 200 / 255)
    torch.testing.assert_close(pixels(views)[..., inside], expected)


def test_the_literal_geometry_blackens_eight_percent_of_odd_multiples_of_45_degrees() -> None:
    """Spec 1: resized to 256, turned, cropped to 224; the octagon's closed form lies within what crops can see."""
    pictures = torch.full((20, 3, 256, 256), 255, dtype=torch.uint8)
    views = RotationTask(8, image_size=224, corners="paper").make_views(
        as_batch(pictures, Draws(0, 0, 0, batch_size=20))
    )
    black = (pixels(views.inputs).mean(1) < 0.5).float().unflatten(0, (20, 8))
    shares = black.mean((0, 2, 3))
    assert shares[::2].tolist() == [0, 0, 0, 0]
    # A square of side 256 turned by 45 degrees ends 128 * sqrt 2 from the middle along a diagonal.
    corner = 224 - 128 * math.sqrt(2)  # legs of the triangles that a central crop of 224 loses
    assert 2 * corner**2 / 224**2 == pytest.approx(0.0737, abs=1e-3)
    torch.testing.assert_close(shares[1::2], torch.full((4,), 0.08), atol=0.006, rtol=0)
    assert (black[:, 1, 0, 0] == 1).any()


def test_the_loss_of_a_head_that_knows_nothing_is_the_log_of_the_number_of_angles() -> None:
    task = RotationTask(8, image_size=8)
    head = task.build_head(5, ())
    torch.nn.init.zeros_(head.weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    outcome = task.compute_loss(head, torch.randn(16, 5, 3, 3), torch.arange(8).repeat(2))
    assert outcome.loss.item() == pytest.approx(math.log(8))
    assert outcome.metrics["accuracy"].item() == pytest.approx(2 / 16)  # of equal logits the first wins


def test_the_loss_is_the_cross_entropy_of_the_averaged_map() -> None:
    task = RotationTask(4, image_size=8)
    head, maps, targets = task.build_head(6, ()), torch.randn(10, 6, 4, 4), torch.randint(4, (10,))
    outcome = task.compute_loss(head, maps, targets)
    logits = head(maps.flatten(2).mean(2))
    by_hand = torch.stack([logits[i].logsumexp(0) - logits[i, targets[i]] for i in range(10)]).mean()
    torch.testing.assert_close(outcome.loss, by_hand)
    accuracy = outcome.metrics["accuracy"]
    assert accuracy.item() == pytest.approx(sum(int(logits[i].argmax() == targets[i]) for i in range(10)) / 10)
    assert outcome.loss.requires_grad and not accuracy.requires_grad


@pytest.mark.parametrize("level", [{"angles": 1}, {"angles": 37}, {"angle": 4}, {}, 4])
def test_a_level_that_breaks_a_rule_is_refused(level: object) -> None:
    with pytest.raises((ValidationError, ValueError)):
        RotationConfig().parse_level(level)


def test_a_config_builds_the_task_that_it_describes() -> None:
    config = RotationConfig(copies="one", corners="mask")
    task = config.build(config.parse_level({"angles": 8}), TaskSetting(image_size=24, batch_size=8))
    assert (task.num_angles, task.image_size, task.copies, task.corners) == (8, 24, "one", "mask")
