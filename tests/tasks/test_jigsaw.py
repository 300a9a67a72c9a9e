"""Puzzles of the jigsaw task, against slices of single pictures; its head, its loss and what it refuses."""

import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from rayssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Draws, crop, flip, grayscale, normalize, resize
from rayssl.tasks.base import TaskSetting
from rayssl.tasks.jigsaw import JigsawConfig, JigsawHead, JigsawLevel, JigsawTask
from tests.tasks.task_batches import as_batch


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Permutations are kept away from the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def noise_pictures(count: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), generator=generator).to(torch.uint8)


def plain_task(num_permutations: int = 4, **changes: Any) -> JigsawTask:
    """Tiles as they were cut: nothing grey, ImageNet's normalisation, which `pixels` undoes."""
    return JigsawTask(
        num_permutations, **({"image_size": 32, "normalize_tiles": False, "gray_probability": 0} | changes)
    )


def pixels(inputs: Tensor) -> Tensor:
    """Views with ImageNet's normalisation as they were before, in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return inputs * std + mean


def one_by_one(task: JigsawTask, pictures: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Inputs and targets again, a picture and a tile at a time, from the same random numbers."""
    flips = draws.chance(0.5)
    side = pictures.shape[-1]
    wanted = task.short_side if side > task.short_side else max(side, task.crop)
    corners = draws.integers(wanted - task.crop + 1, 2).tolist()
    cell, size = task.crop // task.grid, task.tile_size
    offsets = draws.integers(cell - size + 1, task.grid**2, 2).tolist()
    grays, targets = draws.chance(task.gray_probability), draws.integers(task.num_permutations)
    inputs = []
    for n, picture in enumerate(pictures):
        image = (tv.horizontal_flip(picture) if flips[n] else picture) / 255
        image = tv.resize(image, [wanted], antialias=True)
        for source in task.permutations[targets[n]].tolist():
            top = corners[n][0] + source // task.grid * cell + offsets[n][source][0]
            left = corners[n][1] + source % task.grid * cell + offsets[n][source][1]
            tile = tv.crop(image, top, left, size, size)
            tile = tv.rgb_to_grayscale(tile, num_output_channels=3) if grays[n] else tile
            mean, std = list(IMAGENET_MEAN), list(IMAGENET_STD)
            if task.normalize_tiles:
                mean = [float(channel.mean()) for channel in tile]
                std = [float(channel.std(correction=0)) for channel in tile]
            inputs.append(tv.normalize(tile, mean, std))
    return torch.stack(inputs), targets


@pytest.mark.parametrize("normalize_tiles", [True, False])
@pytest.mark.parametrize("grid", [2, 3, 4])
@pytest.mark.parametrize("side", [32, 48, 29], ids=["as they are", "reduced", "enlarged"])
def test_puzzles_equal_those_made_picture_by_picture(side: int, grid: int, normalize_tiles: bool) -> None:
    pictures = noise_pictures(12, side)
    task = JigsawTask(10, image_size=32, grid=grid, normalize_tiles=normalize_tiles, gray_probability=0.5)
    views = task.make_views(as_batch(pictures, Draws(1, 2, 3, batch_size=12)))
    inputs, targets = one_by_one(task, pictures, Draws(1, 2, 3, batch_size=12))
    assert views.inputs.shape == (12 * grid**2, 3, task.tile_size, task.tile_size)
    torch.testing.assert_close(views.inputs, inputs, atol=2e-4, rtol=0)
    assert torch.equal(views.targets, targets)
    assert len(targets.unique()) > 3


def one_after_another(task: JigsawTask, pictures: Tensor, draws: Draws) -> Tensor:
    """The plain way: flip, reduce, crop, cut all cells, reorder, grey, normalise, each into memory of its own."""
    images = flip(pictures, draws.chance(0.5))
    side = min(max(images.shape[-1], task.crop), task.short_side)
    images = resize(images, side)
    tops, lefts = draws.integers(side - task.crop + 1, 2).unbind(1)
    offsets = draws.integers(task.cell - task.tile_size + 1, task.grid**2, 2)
    grays, targets = draws.chance(task.gray_probability), draws.integers(task.num_permutations)
    tiles = []
    for image, places in zip(crop(images, tops, lefts, task.crop), offsets.tolist(), strict=True):
        for number, offset in enumerate(places):
            top, left = (at + cell * task.cell for at, cell in zip(offset, divmod(number, task.grid), strict=True))
            tiles.append(image[:, top : top + task.tile_size, left : left + task.tile_size])
    cut = torch.stack(tiles).unflatten(0, (len(pictures), -1))
    shown = cut[torch.arange(len(cut))[:, None], task.permutations[targets]].flatten(0, 1)
    shown = grayscale(shown, grays.repeat_interleave(task.grid**2)).contiguous(memory_format=torch.channels_last)
    if not task.normalize_tiles:
        return normalize(shown)
    centered = shown - shown.mean((2, 3), keepdim=True)
    return centered / centered.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1 / 255)


@pytest.mark.parametrize("normalize_tiles", [True, False])
@pytest.mark.parametrize(("side", "image_size"), [(32, 32), (29, 32), (48, 32), (73, 64), (256, 224)])
def test_puzzles_cut_at_once_equal_the_plain_way_bit_for_bit(side: int, image_size: int, normalize_tiles: bool) -> None:
    pictures = noise_pictures(6, side).contiguous(memory_format=torch.channels_last)  # as stores give them
    task = JigsawTask(10, image_size=image_size, normalize_tiles=normalize_tiles, gray_probability=0.5)
    for step in range(2):  # the second one into the memory of the first
        views = task.make_views(as_batch(pictures, Draws(1, 2, step, batch_size=6)))
        assert torch.equal(views.inputs, one_after_another(task, pictures, Draws(1, 2, step, batch_size=6)))
        assert views.inputs.is_contiguous(memory_format=torch.channels_last)
        del views


@pytest.mark.parametrize(
    ("image_size", "grid", "expected"),
    [
        (224, 3, (225, 75, 64, 256)),  # section 3.3.1
        (224, 2, (224, 112, 96, 256)),
        (224, 4, (224, 56, 48, 256)),
        (128, 3, (126, 42, 36, 146)),
        (32, 3, (30, 10, 9, 37)),
        (8, 3, (6, 2, 2, 9)),
    ],
)
def test_sizes_keep_the_papers_proportions(image_size: int, grid: int, expected: tuple[int, ...]) -> None:
    task = JigsawTask(4, image_size=image_size, grid=grid)
    assert (task.crop, task.cell, task.tile_size, task.short_side) == expected


def test_in_the_identitys_order_tiles_without_gaps_are_the_picture() -> None:
    pictures = noise_pictures(20, 30)
    task = plain_task(image_size=30, tile_size=10)
    task.permutations = torch.arange(9).repeat(4, 1)
    inputs = task.make_views(as_batch(pictures, Draws(0, 0, 0, batch_size=20))).inputs
    rows_of_tiles = pixels(inputs).unflatten(0, (20, 3, 3))
    whole = torch.cat([torch.cat(list(row), -1) for row in rows_of_tiles.permute(1, 2, 0, 3, 4, 5)], -2)
    mirrored = ((whole - pictures / 255).abs().amax((1, 2, 3)) > 1e-3).tolist()
    assert 3 < sum(mirrored) < 17
    for shown, picture, flipped in zip(whole, pictures, mirrored, strict=True):
        torch.testing.assert_close(shown, (picture.flip(2) if flipped else picture) / 255)


def test_position_j_shows_the_cell_that_the_permutation_lists_there() -> None:
    """Cell k of every picture has the grey value 20 k; mirrored, it is the cell on the other side."""
    levels = (20 * torch.arange(9)).view(3, 3)
    pictures = levels.repeat_interleave(11, 0).repeat_interleave(11, 1).expand(16, 3, -1, -1).to(torch.uint8)
    task = plain_task(100, image_size=33, crop=33)
    views = task.make_views(as_batch(pictures, Draws(0, 0, 0, batch_size=16)))
    shown = (pixels(views.inputs).mean((1, 2, 3)) * 255 / 20).round().long().view(16, 9)
    across = torch.tensor([2, 1, 0, 5, 4, 3, 8, 7, 6])
    for seen, target in zip(shown, views.targets, strict=True):
        listed = task.permutations[target]
        assert torch.equal(seen, listed) or torch.equal(seen, across[listed])


def test_tiles_lie_anywhere_in_their_cell() -> None:
    """Offsets 0 to 11 at the paper's size, read from pictures whose colours are coordinates."""
    rows = torch.arange(225).expand(225, -1).T
    picture = torch.stack((rows, rows.T, 224 - rows.T)).to(torch.uint8)
    task = plain_task(2, image_size=224)
    views = task.make_views(as_batch(picture.expand(40, -1, -1, -1), Draws(0, 0, 0, batch_size=40)))
    corners = (pixels(views.inputs)[:, :, 0, 0] * 255).round().long() % 75
    left = torch.where(
        pixels(views.inputs)[:, 1, 0, 0] < pixels(views.inputs)[:, 1, 0, 1], corners[:, 1], corners[:, 2]
    )
    for offsets in (corners[:, 0], left):
        counts = torch.bincount(offsets, minlength=12)
        assert len(counts) == 12
        assert ((counts - 30).abs() < 5 * math.sqrt(30)).all()  # 360 tiles


def test_all_levels_see_the_same_tiles() -> None:
    """Only their order differs: C1 within C2 within C3 makes harder puzzles of the same pieces."""
    pictures = noise_pictures(8, 36)
    in_place = []
    for num_permutations in (2, 5, 24):
        task = JigsawTask(num_permutations, image_size=32, grid=2)
        views = task.make_views(as_batch(pictures, Draws(0, 1, 2, batch_size=8)))
        back = task.permutations[views.targets].argsort(1)
        in_place.append(views.inputs.unflatten(0, (8, 4))[torch.arange(8)[:, None], back])
    assert torch.equal(in_place[0], in_place[1])
    assert torch.equal(in_place[1], in_place[2])


@pytest.mark.parametrize("side", [32, 46])
def test_two_workers_see_the_puzzles_that_one_sees(side: int) -> None:
    pictures = noise_pictures(6, side)
    task = JigsawTask(20, image_size=32)
    whole = task.make_views(as_batch(pictures, Draws(5, 2, 7, batch_size=6)))
    parts = [
        task.make_views(as_batch(half, Draws(5, 2, 7, batch_size=6, rank=rank, world_size=2)))
        for rank, half in enumerate(pictures.chunk(2))
    ]
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    torch.testing.assert_close(torch.cat([part.inputs for part in parts]), whole.inputs, atol=1e-5, rtol=0)


def test_a_picture_is_grey_in_all_its_tiles_or_in_none() -> None:
    task = plain_task(gray_probability=0.3)
    inputs = pixels(task.make_views(as_batch(noise_pictures(500, 30), Draws(0, 0, 0, batch_size=500))).inputs)
    is_gray = ((inputs - inputs.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-3).view(500, 9)
    assert torch.equal(is_gray.any(1), is_gray.all(1))
    assert is_gray.any(1).float().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / 500))


def test_normalised_tiles_have_mean_0_and_deviation_1() -> None:
    task = JigsawTask(4, image_size=32)
    inputs = task.make_views(as_batch(noise_pictures(5, 32), Draws(0, 0, 0, batch_size=5))).inputs
    torch.testing.assert_close(inputs.mean((2, 3)), torch.zeros(45, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std((2, 3), correction=0), torch.ones(45, 3))


def test_light_and_contrast_do_not_show_in_normalised_tiles() -> None:
    """Half as bright or a third of the contrast, to a rounding: the same tiles."""
    task, pictures = JigsawTask(4, image_size=32, gray_probability=0), noise_pictures(5, 32)
    inputs = task.make_views(as_batch(pictures, Draws(0, 0, 0, batch_size=5))).inputs
    for changed in (pictures // 2, pictures // 3 + 100):
        again = task.make_views(as_batch(changed, Draws(0, 0, 0, batch_size=5))).inputs
        torch.testing.assert_close(again, inputs, atol=0.03, rtol=0)


def test_rounding_in_even_tiles_is_not_blown_up() -> None:
    """Deviation 0 and half a level of 255, where 1 is the least that is divided by."""
    even = torch.full((3, 3, 32, 32), 127, dtype=torch.uint8)
    checkered = even + (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).to(torch.uint8)
    task = JigsawTask(4, image_size=32, gray_probability=0)
    for pictures, most in ((even, 1e-3), (checkered, 0.55)):
        inputs = task.make_views(as_batch(pictures, Draws(0, 0, 0, batch_size=3))).inputs
        assert inputs.abs().max() < most


def test_the_head_joins_the_tiles_of_a_picture_in_their_order() -> None:
    head = JigsawHead(5, 4, 6, 10).eval()
    features = torch.randn(3 * 4, 5)
    logits = head(features)
    for n in range(3):
        tiles = [head.each(features[4 * n + j][None])[0] for j in range(4)]
        torch.testing.assert_close(logits[n], head.together(torch.cat(tiles)))
    swapped = features.clone()
    swapped[[4, 5]] = features[[5, 4]]  # the first two tiles of the second picture
    again = head(swapped)
    torch.testing.assert_close(again[[0, 2]], logits[[0, 2]])
    assert (again[1] - logits[1]).abs().max() > 1e-3


def test_the_papers_head_has_the_published_sizes() -> None:
    """Goyal et al.: 2048 -> 1000 for each of 9 tiles, then 9000 -> 2000."""
    head = JigsawTask(2000, image_size=224).build_head(2048, [])
    assert [tuple(weight.shape) for weight in head.parameters() if weight.ndim == 2] == [(1000, 2048), (2000, 9000)]


def test_the_loss_of_a_head_that_knows_nothing_is_the_log_of_the_number_of_permutations() -> None:
    task = JigsawTask(8, image_size=32, grid=2, head_width=3)
    head = task.build_head(5, [])
    nn.init.zeros_(head.together.weight)
    nn.init.zeros_(head.together.bias)
    outcome = task.compute_loss(head, torch.randn(16 * 4, 5, 3, 3), torch.arange(8).repeat(2))
    assert outcome.loss.item() == pytest.approx(math.log(8))
    assert outcome.metrics["accuracy"].item() == pytest.approx(task.chance)  # of equal logits the first wins
    assert outcome.loss.requires_grad and not outcome.metrics["accuracy"].requires_grad


def test_the_loss_is_the_cross_entropy_of_the_averaged_maps_in_single_precision() -> None:
    task = JigsawTask(4, image_size=32, grid=2, head_width=3)
    head, maps, targets = task.build_head(6, []).eval(), torch.randn(10 * 4, 6, 4, 4), torch.randint(4, (10,))
    outcome = task.compute_loss(head, maps, targets)
    logits = head(maps.flatten(2).mean(2))
    by_hand = torch.stack([logits[i].logsumexp(0) - logits[i, targets[i]] for i in range(10)]).mean()
    torch.testing.assert_close(outcome.loss, by_hand)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = task.compute_loss(head, maps, targets).loss
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(outcome.loss.item(), abs=0.05)


def textured_pictures(count: int, generator: torch.Generator) -> Tensor:
    """Upright stripes above, noise in the middle, level stripes below; each picture with contrasts of its own."""
    stripes = (torch.arange(30) % 2).float().expand(10, -1)
    upright = stripes.expand(count, -1, -1)
    level = stripes[:, :10].T.repeat(1, 3).expand(count, -1, -1)
    noise = torch.rand(count, 10, 30, generator=generator)
    grey = torch.cat((upright, noise, level), 1)[:, None]
    grey = grey * (0.2 + 0.8 * torch.rand(count, 1, 1, 1, generator=generator))
    grey = grey + 0.2 * torch.rand(count, 1, 30, 30, generator=generator)
    return (200 * grey).clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


def test_a_tiny_network_learns_to_tell_four_permutations() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    task = JigsawTask(4, image_size=30, head_width=8)
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    head = task.build_head(6, [])
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=0.02)
    for step in range(40):
        views = task.make_views(as_batch(textured_pictures(32, generator), Draws(0, 0, step, batch_size=32)))
        loss = task.compute_loss(head, trunk(views.inputs), views.targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trunk.eval()
    head.eval()
    views = task.make_views(as_batch(textured_pictures(100, generator), Draws(1, 0, 0, batch_size=100)))
    accuracy = task.compute_loss(head, trunk(views.inputs), views.targets).metrics["accuracy"]
    assert accuracy > 0.9 > 3 * task.chance


def test_a_task_knows_how_far_apart_its_permutations_are() -> None:
    task = JigsawTask(2, image_size=32, grid=2)
    task.permutations = torch.tensor([[0, 1, 2, 3], [0, 1, 3, 2], [1, 2, 3, 0]])
    mean = (2 + 4 + 3) / 3
    assert task.facts() == {"permutations/mean_hamming": pytest.approx(mean), "permutations/minimum_hamming": 2}


@pytest.mark.parametrize(
    ("grid", "level", "rule"),
    [
        (3, {"num_permutations": 1}, "num_permutations\n  must be at least 2, got 1"),
        (2, {"num_permutations": 25}, "must be at most 24, the permutations for 2 x 2 tiles, got 25"),
        (3, {"num_permutations": 362881}, "must be at most 362880, the permutations for 3 x 3 tiles, got 362881"),
        (4, {"num_permutations": 2**18 + 1}, "must be at most 262144, the permutations for 4 x 4 tiles"),
        (3, {"num_permutations": 2.5}, "must be a whole number, got 2.5"),
        (3, {"permutations": 500}, "unknown key"),
        (3, {}, "is required"),
        (3, 500, "must be a section"),
    ],
)
def test_a_level_that_breaks_a_rule_is_refused(grid: int, level: object, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        JigsawConfig.model_validate({"grid": grid}).parse_level(level)


def test_a_level_is_the_same_however_it_was_made() -> None:
    """Also as a copy that went to another process."""
    level = JigsawConfig(grid=2).parse_level({"num_permutations": 24})
    assert level == JigsawLevel(num_permutations=24) == pickle.loads(pickle.dumps(level))
    assert JigsawConfig().parse_level(level) == level


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"crop": 200}, "must be a multiple of grid, 3, got 200. Write 198"),
        ({"grid": 5}, "Input should be 2, 3 or 4"),
        ({"gray_probability": 1.5}, "less than or equal to 1"),
        ({"tile_size": 0}, "greater than or equal to 1"),
        ({"permutation_seed": -1}, "greater than or equal to 0"),
    ],
)
def test_a_config_that_breaks_a_rule_is_refused(settings: dict[str, object], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        JigsawConfig.model_validate(settings)


def test_a_tile_that_does_not_fit_its_cell_is_refused() -> None:
    config, setting = JigsawConfig(tile_size=76), TaskSetting(image_size=224, batch_size=256)
    level = JigsawLevel(num_permutations=500)
    with pytest.raises(ValueError, match=r"^method.task.tile_size: must be at most 75, .* got 76"):
        config.check(level, setting)
    JigsawConfig(tile_size=75).check(level, setting)
    JigsawConfig(tile_size=76, crop=228).check(level, setting)


def test_a_config_builds_the_task_that_it_describes() -> None:
    config = JigsawConfig(
        grid=2,
        crop=20,
        tile_size=7,
        normalize_tiles=False,
        gray_probability=0.5,
        head_width=50,
        permutation_seed=9,
    )
    task = config.build(config.parse_level({"num_permutations": 12}), TaskSetting(image_size=24, batch_size=8))
    assert (task.num_permutations, task.chance, task.examples_per_image) == (12, 1 / 12, 1)
    assert (task.grid, task.crop, task.tile_size, task.normalize_tiles) == (2, 20, 7, False)
    assert (task.gray_probability, task.head_width, task.permutation_seed) == (0.5, 50, 9)
    assert not torch.equal(task.permutations, JigsawTask(12, image_size=24, grid=2).permutations)
