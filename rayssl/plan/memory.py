"""What the backward pass keeps in memory, where the allocator does not tell: on CPUs."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class SavedBytes:
    """Counts the bytes that autograd holds for the backward pass, each storage once.

    Args:
        known: Storages that don't count, such as weights.
    """

    def __init__(self, known: Iterable[int] = ()) -> None:
        self.peak = 0
        """Most bytes held at a time."""
        self._known = set(known)
        self._now = 0
        self._holders: dict[int, int] = {}

    def watched(self) -> torch.autograd.graph.saved_tensors_hooks:
        """A context in which what is saved counts."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)

    def _pack(self, tensor: Tensor) -> "_Held":
        storage = tensor.untyped_storage()
        pointer, num_bytes = storage.data_ptr(), storage.nbytes()
        if pointer in self._known:
            return _Held(tensor, lambda: None)
        if self._holders.get(pointer, 0) == 0:
            self._now += num_bytes
            self.peak = max(self.peak, self._now)
        self._holders[pointer] = self._holders.get(pointer, 0) + 1

        def release() -> None:
            self._holders[pointer] -= 1
            if self._holders[pointer] == 0:
                self._now -= num_bytes

        return _Held(tensor, release)


class _Held:
    """A saved tensor; autograd drops it once the backward pass has used it."""

    def __init__(self, tensor: Tensor, release: Callable[[], None]) -> None:
        self.tensor = tensor
        self._release = release

    def __del__(self) -> None:
        self._release()


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address -> bytes, of storages that may be shared."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
