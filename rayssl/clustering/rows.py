"""Rows that several workers hold between them: checks, moments, and passes over them in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

Group = distributed.ProcessGroup | None
_CHUNK_NUMBERS = 2**20
"""Numbers of a chunk; 4 MiB in float32, which stay in a core's cache from one operation to the next."""
_CHUNK_NUMBERS_GPU = 2**26
"""The same on a GPU: 256 MiB, of which few launches make a pass, and which fill it."""


class Workers:
    """The processes of a group, or this one alone."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rank = 0 if group is None else distributed.get_rank(group)
        self.size = 1 if group is None else distributed.get_world_size(group)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the workers, in place."""
        if self.size > 1:
            distributed.all_reduce(value, group=self.group)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """All workers' values, (size, ...) in rank order; the same shape on each."""
        if self.size == 1:
            return value[None]
        values = [torch.empty_like(value) for _ in range(self.size)]
        distributed.all_gather(values, value, group=self.group)
        return torch.stack(values)


@dataclass(frozen=True, eq=False)
class Rows:
    """One worker's share of all rows, and the moments of all of them."""

    values: Tensor
    """(N_r, D), float32."""
    workers: Workers
    num_rows: int
    """Over all workers."""
    first_row: int
    """The number of this worker's first row among all."""
    mean: Tensor
    """Of all rows, (D,), float32."""
    square_norms: Tensor
    """Squared distances of this worker's rows to the mean, (N_r,), float32."""
    scatter: float
    """Sum of the squared distances of all rows to their mean."""


def share_rows(features: Tensor, group: Group) -> Rows:
    """Check a worker's rows together with the others' and measure all of them.

    What is wrong on one worker raises on all, so that none waits for the others.

    Args:
        features: (N_r, D), any floating-point type; N_r may be 0 where another worker has rows.
        group: See the package.

    Returns:
        The rows in float32, not copied if they are contiguous and in it.

    Raises:
        ValueError: If the features are not (N, D) floats of one D, or a value is not finite.
    """
    workers = Workers(group)
    counts = _count_rows(features, workers)
    num_rows = sum(counts)
    values = features.detach().float().contiguous()
    sums = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    num_bad = torch.zeros((), dtype=torch.int64, device=values.device)
    for _, chunk in _blocks(values):
        sums += chunk.sum(dim=0)
    if not sums.isfinite().all():  # asked once: a GPU would have to be waited for in each block
        for _, chunk in _blocks(values):
            num_bad += (~chunk.isfinite()).any(dim=1).sum()
    if workers.sum(num_bad) > 0:
        raise ValueError(
            f"features: must be finite numbers, got nan or infinity in {num_bad.item()} of {num_rows} rows; "
            "look for what spoiled the encoder"
        )
    mean = (workers.sum(sums) / num_rows).float()
    only = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    square_norms = square_distances(values, mean[None], only)
    scatter = workers.sum(square_norms.sum(dtype=torch.float64)).item()
    if not scatter < float("inf"):
        raise ValueError("features: must have squares that float32 can hold, got larger numbers; scale them down")
    return Rows(values, workers, num_rows, sum(counts[: workers.rank]), mean, square_norms, scatter)


def row_blocks(num_rows: int, width: int, device: torch.device) -> Iterator[slice]:
    """Cut rows of `width` numbers into consecutive blocks of a size that suits the device."""
    size = max(1, (_CHUNK_NUMBERS if device.type == "cpu" else _CHUNK_NUMBERS_GPU) // max(1, width))
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def take_rows(values: Tensor, rows: Tensor, *, width: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """Copy chosen rows block by block into one buffer, which the next step overwrites.

    Args:
        values: (N, D).
        rows: Numbers of rows, (M,).
        width: Numbers that the caller makes of each row, if more than D: blocks are that much smaller.

    Yields:
        The slice of `rows`, and its rows' values.
    """
    buffer = None
    for block in row_blocks(len(rows), max(values.shape[1], width), values.device):
        size = block.stop - block.start
        if buffer is None:  # fresh memory for each block would cost more than the arithmetic
            buffer = values.new_empty(size, values.shape[1])
        yield block, torch.index_select(values, 0, rows[block], out=buffer[:size])


def square_distances(values: Tensor, centers: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
    """Squared distances of pairs of a row and a centre, from their difference: exact also where they are close.

    Args:
        values: (N, D).
        centers: (K, D).
        labels: Each pair's centre, (P,).
        rows: Each pair's row, (P,); None: 0, 1, ...

    Returns:
        (P,), float32.
    """
    distances = values.new_empty(len(labels))
    for block, chosen in take_rows(centers, labels, width=4 * centers.shape[1]):  # two chunks at once, and no product
        differences = chosen.sub_(values[block] if rows is None else values.index_select(0, rows[block]))
        torch.linalg.vecdot(differences, differences, out=distances[block])
    return distances


def add_rows(sums: Tensor, values: Tensor, labels: Tensor, rows: Tensor | None = None, *, sign: float = 1.0) -> None:
    """Add rows to the sums of their clusters, in place.

    Args:
        sums: (K, D), float64, which thousands of additions and subtractions don't wear.
        values: (N, D).
        labels: Each added row's cluster, (M,).
        rows: Numbers of the added rows, (M,); None: all.
        sign: -1 takes them away.
    """
    partial = torch.zeros(sums.shape, dtype=torch.float32, device=sums.device)
    for block, chunk in _blocks(values) if rows is None else take_rows(values, rows):
        sums.add_(partial.zero_().index_add_(0, labels[block], chunk), alpha=sign)


def _count_rows(features: Tensor, workers: Workers) -> list[int]:
    """Rows of each worker, once all workers' shapes are known to fit."""
    is_matrix = features.dim() == 2 and features.is_floating_point()
    shape = list(features.shape) if is_matrix else [-1, -1]
    shapes = workers.gather(torch.tensor(shape, device=features.device)).tolist()
    if [-1, -1] in shapes:
        raise ValueError(
            "features: must be floats of shape (rows, dimensions) on every worker, "
            f"got {features.dtype} of shape {tuple(features.shape)} on worker {workers.rank}"
        )
    if len({dim for _, dim in shapes}) > 1:
        raise ValueError(f"features: must have as many dimensions on every worker, got {[dim for _, dim in shapes]}")
    counts = [count for count, _ in shapes]
    if sum(counts) == 0 or shapes[0][1] == 0:
        raise ValueError(f"features: must have at least one row and one dimension, got shapes {shapes}")
    return counts


def _blocks(values: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """All rows block by block, not copied."""
    return ((block, values[block]) for block in row_blocks(len(values), values.shape[1], values.device))
