"""Memory that is used again: a fresh batch costs more time in page faults than in the arithmetic that fills it."""

import math
import weakref

import numpy as np
import torch
from torch import Tensor

_KEEP_IDLE = 2
"""Idle blocks kept: as many as a training step hands back at once (the two views of a MoCo step)."""


class Buffers:
    """Lends float tensors on the CPU; their memory comes back by itself when no tensor looks at it any more.

    A batch that is still in use somewhere, be it a slice of it or what autograd saved, is never lent again, so that
    any number of batches may be in flight.
    """

    def __init__(self) -> None:
        self._idle: list[np.ndarray] = []

    def lend(self, *shape: int) -> Tensor:
        """Give a float32 tensor of this shape, contiguous, with arbitrary content."""
        size = math.prod(shape)
        fitting = [index for index, block in enumerate(self._idle) if block.size == size]
        block = self._idle.pop(fitting[-1]) if fitting else np.empty(size, dtype=np.float32)
        # Tensors keep this view alive, wherever their storage goes, and nothing else does: its end is the batch's.
        view = block.view()
        weakref.finalize(view, self._take_back, block).atexit = False
        return torch.from_numpy(view).view(shape)

    def lend_views(self, count: int, size: int) -> Tensor:
        """Give float32 images (count, 3, size, size), the channels last in memory, with arbitrary content."""
        return self.lend(count, size, size, 3).permute(0, 3, 1, 2)

    def _take_back(self, block: np.ndarray) -> None:
        self._idle.append(block)
        del self._idle[:-_KEEP_IDLE]
