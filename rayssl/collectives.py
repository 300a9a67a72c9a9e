"""A gather with gradient, for losses and statistics that look across a worker group's whole batch."""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


def is_distributed() -> bool:
    """Whether this process is one of several workers."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


def gather_rows(rows: Tensor) -> Tensor:
    """Lay the rows of all workers below each other, in rank order; itself with one worker.

    The gradient of a row is the sum of what all workers' losses say about it. A loss that every worker computes on all
    rows therefore gives each worker world_size times its own rows' gradient, and averaging over the workers, as
    data-parallel training does, gives exactly the gradient of one process with the whole batch.

    Args:
        rows: This worker's, (N, ...), as many on every worker.

    Returns:
        (world_size * N, ...), this worker's part of the autograd graph.
    """
    return _GatherRows.apply(rows) if is_distributed() else rows


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everyone = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(_world_size())]
        distributed.all_gather(everyone, rows.contiguous())
        return torch.cat(everyone)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total.chunk(_world_size())[distributed.get_rank()]


def _world_size() -> int:
    return distributed.get_world_size()
