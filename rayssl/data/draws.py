"""The random numbers of a training step: one generator for the whole global batch, of which a rank keeps its rows."""

import numpy as np
import torch
from torch import Tensor


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
