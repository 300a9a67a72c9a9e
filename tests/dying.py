"""A run whose process dies, without a process that has to: it leaves by an exception that nothing in rayssl expects."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rayssl.runtime import LocalRuntime


class Interrupted(Exception):  # noqa: N818
    """As if the process had been killed."""


class DyingRuntime(LocalRuntime):
    """Dies right after the n-th report has been written, of an epoch or, with `epochs_only` off, of any moment."""

    def __init__(self, folder: Path, *, after: int, epochs_only: bool = True, use_gpu: bool = False) -> None:
        super().__init__(folder, num_threads=1, use_gpu=use_gpu)
        self._left = after
        self._epochs_only = epochs_only

    def report(
        self,
        metrics: Mapping[str, float],
        save: Callable[[Path], None] | None = None,
        *,
        in_background: bool = False,
    ) -> None:
        super().report(metrics, save)
        self._left -= bool(metrics) or not self._epochs_only
        if self._left == 0:
            raise Interrupted
