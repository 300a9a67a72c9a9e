"""Which pictures go into which step: each once an epoch, the same on any number of workers."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from rayssl.data import BadFile, Targets
from rayssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Draws
from rayssl.data.loaders import TrainLoader, plain_views
from rayssl.data.pictures import Plan
from rayssl.errors import ConfigError


class NumberedPictures:
    """Picture i is filled with the value i; remembers the positions that were asked for."""

    def __init__(self, count: int) -> None:
        self.side = 4
        self.labels = np.zeros(count, dtype=np.int64)
        self.classes: tuple[str, ...] = ()
        self.bad_files: list[BadFile] = []
        self.targets: Targets | None = None
        self.numbers = np.arange(len(self.labels))
        self.fingerprint = ""
        self.positions: list[float] = []

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, plan: Plan) -> Iterator[Tensor]:
        for indices, positions in plan:
            assert positions is not None
            self.positions += positions.tolist()
            yield torch.from_numpy(indices).to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)


def numbers(loader: TrainLoader, epoch: int) -> list[list[int]]:
    """The pictures of each step, by their numbers."""
    return [batch.images[:, 0, 0, 0].tolist() for batch in loader.epoch(epoch)]


def test_an_epoch_shows_each_picture_once_and_drops_the_remainder() -> None:
    loader = TrainLoader(NumberedPictures(50), images_per_step=8, seed=0)
    steps = numbers(loader, 0)
    assert [len(step) for step in steps] == loader.num_steps * [8] == 6 * [8]
    shown = sum(steps, [])
    assert len(set(shown)) == 48 and set(shown) < set(range(50))


def test_over_the_epochs_every_picture_is_shown() -> None:
    """What one epoch drops is not what the next one drops."""
    loader = TrainLoader(NumberedPictures(50), images_per_step=8, seed=0)
    assert {number for epoch in range(10) for step in numbers(loader, epoch) for number in step} == set(range(50))


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_share_the_steps_of_a_single_one(world_size: int) -> None:
    """In order: step by step, the workers' shares laid side by side are the single worker's batch."""
    whole = TrainLoader(NumberedPictures(50), images_per_step=8, seed=3)
    pictures = [NumberedPictures(50) for _ in range(world_size)]
    parts = [
        TrainLoader(pictures[rank], images_per_step=8, seed=3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for epoch in (0, 5):
        shares = zip(*(numbers(part, epoch) for part in parts), strict=True)
        assert [sum(share, []) for share in shares] == numbers(whole, epoch)


def test_workers_draw_the_numbers_of_a_single_one() -> None:
    """For the window's place and, afterwards, for the views."""
    alone = NumberedPictures(20)
    whole = list(TrainLoader(alone, images_per_step=4, seed=3).epoch(2))
    halves = [NumberedPictures(20) for _ in range(2)]
    parts = [
        list(TrainLoader(half, images_per_step=4, seed=3, rank=rank, world_size=2).epoch(2))
        for rank, half in enumerate(halves)
    ]
    positions = torch.stack([torch.tensor(half.positions).view(5, 2) for half in halves], dim=1).flatten()
    assert positions.tolist() == torch.tensor(alone.positions).tolist()
    for batch, first, second in zip(whole, *parts, strict=True):
        numbers = [share.draws.uniform(0, 1, 2) for share in (first, second)]
        assert torch.equal(torch.cat(numbers), batch.draws.uniform(0, 1, 2))


def test_the_draws_of_a_step_are_those_of_its_seed_epoch_and_number() -> None:
    """The first number of each picture is the place of its window; the task's come after it."""
    pictures = NumberedPictures(12)
    for step, batch in enumerate(TrainLoader(pictures, images_per_step=4, seed=9).epoch(2)):
        expected = Draws(9, 2, step, batch_size=4)
        assert pictures.positions[4 * step : 4 * step + 4] == expected.uniform(0.0, 1.0).tolist()
        assert torch.equal(batch.draws.uniform(0.0, 1.0, 3), expected.uniform(0.0, 1.0, 3))


def test_epoch_and_seed_decide_the_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return sum(numbers(TrainLoader(NumberedPictures(40), images_per_step=8, seed=seed), epoch), [])

    assert order(0, 0) == order(0, 0)
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(o) for o in orders}) == 9
    # Far from each other, too: two orders agree in about one place.
    assert max(sum(a == b for a, b in zip(orders[0], other, strict=True)) for other in orders[1:]) < 8


def test_places_of_windows_fill_the_range() -> None:
    pictures = NumberedPictures(200)
    numbers(TrainLoader(pictures, images_per_step=20, seed=0), 0)
    assert 0 <= min(pictures.positions) < 0.05 and 0.95 < max(pictures.positions) <= 1


def test_too_few_pictures_for_a_step_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size: a step takes 8 pictures, but there are only 7"):
        TrainLoader(NumberedPictures(7), images_per_step=8, seed=0)
    assert TrainLoader(NumberedPictures(8), images_per_step=8, seed=0).num_steps == 1


class RandomPictures(NumberedPictures):
    """Random windows of 40 px; remembers which were asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.pixels = torch.randint(256, (count, 3, 40, 40), generator=torch.Generator().manual_seed(0)).byte()

    def batches(self, plan: Plan) -> Iterator[Tensor]:
        for indices, positions in plan:
            assert positions is not None
            self.positions += positions.tolist()
            yield self.pixels[torch.from_numpy(indices)]


@pytest.mark.parametrize(("eval_resize", "image_size"), [(40, 40), (40, 32), (28, 24), (48, 42)])
def test_plain_views_are_torchvisions_resize_centre_crop_and_normalize(eval_resize: int, image_size: int) -> None:
    pictures = RandomPictures(7)
    indices = np.array([6, 0, 3, 3, 2])
    batches = list(
        plain_views(
            pictures,
            indices,
            image_size=image_size,
            eval_resize=eval_resize,
            batch_size=2,
            device=torch.device("cpu"),
        )
    )
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert set(pictures.positions) == {0.5}
    for view, index in zip(torch.cat(batches), indices, strict=True):
        resized = tv.resize(pictures.pixels[index] / 255, [eval_resize], antialias=True)
        expected = tv.normalize(
            tv.center_crop(resized, [image_size, image_size]), list(IMAGENET_MEAN), list(IMAGENET_STD)
        )
        torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)
