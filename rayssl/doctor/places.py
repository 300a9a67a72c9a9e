"""Where runs are stored, and where pictures are read."""

import os
import shutil
import time
from pathlib import Path

from rayssl.doctor.finding import Finding, deleted_after, made_for_a_while
from rayssl.errors import CheckpointError, ConfigError, DataError
from rayssl.object_store import ObjectStore, open_store
from rayssl.storage import StoragePath, local_folder

_TRIAL_MIB = 64


def storage(storage_path: StoragePath) -> Finding:
    """Whether a folder, or an object store, can be written, and how quick it is."""
    store = open_store(storage_path)
    return _folder(local_folder(storage_path)) if store is None else _object_store(store)


def data(root: Path | None) -> Finding:
    """Whether the pictures of a folder can be read."""
    if root is None:
        return Finding("data", True, "not looked at; rayssl doctor --data DIR tries the pictures of a folder")
    from rayssl.data.folders import list_folder
    from rayssl.data.pictures import header_sizes

    try:
        images = list_folder(root.expanduser(), key="--data")
    except DataError as error:
        return Finding("data", False, str(error))
    sizes = header_sizes(images)
    if not sizes:
        return Finding("data", False, f"{root}: none of its pictures can be read. Look at one of them.")
    short = sorted(min(size) for size in sizes)[len(sizes) // 2]
    classes = f"{len(images.classes)} classes" if images.classes else "no classes"
    return Finding("data", True, f"{root}: {len(images):,} pictures, {classes}, median short side {short} px")


def _folder(storage_path: Path) -> Finding:
    folder = storage_path.expanduser()
    trial = folder / f".doctor-{os.getpid()}"
    block = os.urandom(1 << 20)
    try:
        with made_for_a_while(folder), deleted_after(trial):
            started = time.monotonic()
            with trial.open("wb") as file:
                for _ in range(_TRIAL_MIB):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            speed = _TRIAL_MIB / (time.monotonic() - started)
            free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        return Finding(
            "storage", False, f"{folder}: can't be written ({error.strerror}). Give --storage a folder that can."
        )
    return Finding("storage", True, f"{folder}: writes {speed:,.0f} MiB/s, {free:,.0f} GiB free")


def _object_store(store: ObjectStore) -> Finding:
    try:
        store.check()
        speed = _TRIAL_MIB / store.seconds_to_transfer(os.urandom(_TRIAL_MIB << 20))
    except (ConfigError, CheckpointError) as error:
        return Finding("storage", False, str(error))
    return Finding(
        "storage", True, f"{store.address}: writes and reads {speed:,.0f} MiB/s; working copies go to {store.folder}"
    )
