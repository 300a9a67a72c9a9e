"""A folder of features: a .npy file for each block, pooling and type, whole or not there, for all processes to map."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import numpy as np
import torch
from torch import Tensor

from rayssl.evaluation.feature_kinds import Pool

_LOCK = "lock"
_LARGEST_SHARE = 0.5
"""Of the room that is left on the disk: the run's own files need some too."""


@dataclass(frozen=True)
class Kind:
    """What one file holds."""

    block: int
    pool: Pool
    dtype: torch.dtype = torch.float32

    @property
    def file_name(self) -> str:
        """Such as goyal-9216-b4-float32.npy."""
        return f"{self.pool.name}-b{self.block}-{_numpy_type(self.dtype)}.npy"


@dataclass(frozen=True)
class FeatureFolder:
    """Features of the same pictures by the same encoder."""

    path: Path
    num_rows: int
    """How many pictures there are."""

    def load(self, kinds: Iterable[Kind]) -> dict[Kind, Tensor]:
        """Those kinds that are there and whole, (num_rows, F) each, mapped copy-on-write."""
        found = {}
        for kind in kinds:
            with suppress(OSError, ValueError):  # missing; cut off, or something else than features
                features = _map(self.path / kind.file_name)
                if features.ndim == 2 and len(features) == self.num_rows and features.dtype == kind.dtype:
                    found[kind] = features
        return found

    def write(
        self, kinds: Iterable[Kind], compute: Callable[[Callable[[dict[Kind, Tensor]], None]], None]
    ) -> dict[Kind, Tensor]:
        """Write files batch by batch, each under its name only once it is whole.

        Args:
            kinds: What is written.
            compute: Called with a function that takes the features of batch after batch, kind -> (N, F).

        Returns:
            What was written, as from `load`.

        Raises:
            OSError: If the files can't be written, or would take more than half of the room that is left.
            ValueError: If there are not `num_rows` rows.
        """
        with TemporaryDirectory(prefix="building-", dir=self.path, ignore_cleanup_errors=True) as building:
            with _Writer(Path(building), self.num_rows) as writer:
                compute(writer.append)
                writer.finish()
            # Mapped before others can see, and delete, them.
            written = {kind: _map(Path(building) / kind.file_name) for kind in kinds}
            for kind in written:
                (Path(building) / kind.file_name).replace(self.path / kind.file_name)
        return written

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep the machine's other processes that want the same out of it."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / _LOCK).open("w") as lock:
                _lock(lock, wait=True)
                if _is_at(lock, self.path / _LOCK):  # else it was deleted, with the folder, while we waited
                    yield
                    return


def shrink(folder: Path, *, limit: int) -> None:
    """Delete feature folders, those first that were not used for longest.

    Folders that are being written stay. What is mapped by another process can be read there to the end.

    Args:
        folder: Where feature folders lie; deleted too if nothing is left in it.
        limit: Bytes that may be left.
    """
    with suppress(OSError):  # another process deletes the same, or nothing can be deleted here: the rest stays
        sizes = {lock.parent: _num_bytes(lock.parent) for lock in folder.glob(f"*/{_LOCK}")}
        for oldest in sorted(sizes, key=lambda path: path.stat().st_mtime_ns):
            if sum(sizes.values()) <= limit:
                return
            with (oldest / _LOCK).open("w") as lock:
                if _lock(lock, wait=False):
                    shutil.rmtree(oldest)
                    del sizes[oldest]
        if not sizes:
            folder.rmdir()


class _Writer:
    """.npy files that grow batch by batch; opened with the first one, which tells how wide they are."""

    def __init__(self, folder: Path, num_rows: int) -> None:
        self._folder = folder
        self._num_rows = num_rows
        self._filled = 0
        self._files: dict[Kind, IO[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def append(self, features: dict[Kind, Tensor]) -> None:
        if not self._files:
            self._open({kind: values.shape[1] for kind, values in features.items()})
        for kind, values in features.items():
            self._files[kind].write(values.to("cpu", kind.dtype).contiguous().numpy().data)
        self._filled += len(next(iter(features.values())))

    def finish(self) -> None:
        if self._filled != self._num_rows:
            raise ValueError(f"num_rows: {self._num_rows} were announced, the batches hold {self._filled}")
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave a whole file of zeros under the final name

    def _open(self, widths: dict[Kind, int]) -> None:
        needed = sum(self._num_rows * width * kind.dtype.itemsize for kind, width in widths.items())
        if needed > _LARGEST_SHARE * shutil.disk_usage(self._folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for kind, width in widths.items():
            self._files[kind] = self._stack.enter_context((self._folder / kind.file_name).open("wb"))
            descr = np.lib.format.dtype_to_descr(_numpy_type(kind.dtype))
            header = {"descr": descr, "fortran_order": False, "shape": (self._num_rows, width)}
            np.lib.format.write_array_header_1_0(self._files[kind], header)


def _numpy_type(dtype: torch.dtype) -> np.dtype:
    return np.dtype(str(dtype).removeprefix("torch."))


def _map(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(np.lib.format.open_memmap(path, mode="c")))


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


def _lock(file: IO[str], *, wait: bool) -> bool:
    """Whether the lock is ours; where a file system knows no locks, it always is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
