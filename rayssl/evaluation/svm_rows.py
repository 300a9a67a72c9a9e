"""Rows that several workers hold between them, each its share, and what is added up and compared over all of them."""

import torch
from torch import Tensor, distributed

from rayssl.clustering.rows import Group, Workers


def own_share(num_rows: int, group: Group) -> slice:
    """This worker's of so many rows that are dealt out in rank order, the shares' sizes at most one apart."""
    workers = Workers(group)
    return slice(num_rows * workers.rank // workers.size, num_rows * (workers.rank + 1) // workers.size)


class RowShares:
    """How many rows each worker of a group holds, in rank order, and how the workers bring theirs together.

    All workers call the same methods in the same order. With one worker every method gives what it is given.

    Args:
        num_own: This worker's rows.
        group: The workers; None: this process alone.
        device: Where the rows lie.

    Raises:
        ValueError: If one of several workers has no row; on all of them.
    """

    def __init__(self, num_own: int, group: Group = None, *, device: torch.device) -> None:
        self._workers = Workers(group)
        self._counts: list[int] = self._workers.gather(torch.tensor(num_own, device=device)).tolist()
        if not self.is_alone and min(self._counts) < 1:
            raise ValueError(f"rows: every worker must hold at least one, they hold {self._counts}; use fewer workers")
        first = sum(self._counts[: self.rank])
        self.own = slice(first, first + num_own)
        """This worker's among all rows."""
        self.total = sum(self._counts)

    @property
    def rank(self) -> int:
        """Number of this worker."""
        return self._workers.rank

    @property
    def num_workers(self) -> int:
        """Of the group."""
        return self._workers.size

    @property
    def is_alone(self) -> bool:
        """Whether this worker holds all rows."""
        return self._workers.size == 1

    def gather(self, own: Tensor) -> Tensor:
        """All workers' rows in order, (N, ...), of this worker's, (N_r, ...)."""
        if self.is_alone:
            return own
        most = max(self._counts)
        padded = own.contiguous()
        if len(own) < most:
            padded = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
        everyone = own.new_empty(self.num_workers * most, *own.shape[1:])
        distributed.all_gather_into_tensor(everyone, padded, group=self._workers.group)
        if min(self._counts) == most:
            return everyone
        return torch.cat([part[:count] for part, count in zip(everyone.split(most), self._counts, strict=True)])

    def sum(self, value: Tensor) -> Tensor:
        """Sum of the workers' values, in place."""
        return self._workers.sum(value)

    def largest(self, value: Tensor) -> Tensor:
        """Largest of the workers' values, place by place; in place."""
        if not self.is_alone:
            distributed.all_reduce(value, distributed.ReduceOp.MAX, group=self._workers.group)
        return value

    def any(self, value: Tensor) -> Tensor:
        """Where it is true on some worker, bool."""
        return value if self.is_alone else self.largest(value.to(torch.uint8)).bool()

    def mean(self, own: Tensor) -> Tensor:
        """Mean of all rows, (D,), of this worker's, (N_r, D)."""
        return own.mean(0) if self.is_alone else self.sum(own.sum(0)) / self.total

    def first(self, value: Tensor) -> Tensor:
        """The first worker's value, for what another library elsewhere might turn round."""
        if self.is_alone:
            return value
        value = value.contiguous()
        distributed.broadcast(value, group=self._workers.group, group_src=0)
        return value

    def collect(self, value: Tensor, *, worker: int) -> Tensor:
        """Sum of the workers' values, of use on one worker alone; in place."""
        if not self.is_alone:
            distributed.reduce(value, group=self._workers.group, group_dst=worker)
        return value
