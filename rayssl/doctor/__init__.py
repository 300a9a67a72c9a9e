"""What a run needs of a machine, tried out one by one: each finding is ok, or says what to do."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from rayssl.doctor.finding import Finding
from rayssl.doctor.machine import gpus, libraries, locked_memory, open_files, processes, python, shared_memory
from rayssl.doctor.places import data, storage
from rayssl.doctor.services import mlflow, ray
from rayssl.storage import StoragePath, local_folder

__all__ = ["Finding", "examine"]


def examine(*, address: str | None, storage_path: StoragePath, data_root: Path | None) -> Iterator[Finding]:
    """Look at everything, one after another; what is written to try things out is deleted again.

    Args:
        address: A Ray head, HOST:PORT, or its dashboard, http://HOST:PORT; None: the one that RAY_ADDRESS names, if it
            names one.
        storage_path: Where runs are to be stored.
        data_root: A folder of pictures to try; None: none.
    """
    yield python()
    yield libraries()
    yield _tried("gpus", gpus)
    yield _tried("ray", lambda: ray(address or os.environ.get("RAY_ADDRESS")))
    yield _tried("mlflow", lambda: mlflow(local_folder(storage_path)))
    yield _tried("storage", lambda: storage(storage_path))
    yield _tried("data", lambda: data(data_root))
    yield shared_memory()
    yield open_files()
    yield processes()
    yield locked_memory()


def _tried(name: str, look: Callable[[], Finding]) -> Finding:
    """A finding; a library that it wants and that is missing ends this one alone."""
    try:
        return look()
    except ImportError as error:
        return Finding(name, False, f"can't be looked at ({error}). Install what the line 'libraries' names.")
