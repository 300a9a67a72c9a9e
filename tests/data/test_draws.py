"""The draws of a step: the same on any number of workers, and different for every step."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rayssl.data.augment import Draws, draw_resized_crop

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
