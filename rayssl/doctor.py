"""What a run needs of a machine, tried out one by one: each finding is ok, or says what to do."""

import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rayssl.addresses import without_secrets
from rayssl.errors import CheckpointError, ClusterError, ConfigError, DataError
from rayssl.object_store import ObjectStore, open_store
from rayssl.storage import StoragePath, local_folder

_LIBRARIES = ("rayssl", "torch", "torchvision", "ray", "mlflow", "scikit-learn", "numpy")
_TRIAL_MIB = 64
_LEAST_SHARED_GIB = 1.0
_LEAST_FILES = 4096


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    text: str
    """What was found, and what to do if it is not ok."""


def examine(*, address: str | None, storage_path: StoragePath, data_root: Path | None) -> Iterator[Finding]:
    """Look at everything, one after another; nothing is left behind.

    Args:
        address: A Ray head, HOST:PORT; None: the one that RAY_ADDRESS names, if it names one.
        storage_path: Where runs are to be stored.
        data_root: A folder of pictures to try; None: none.
    """
    yield Finding("python", True, sys.version.split()[0])
    yield Finding("libraries", True, ", ".join(f"{name} {version(name)}" for name in _LIBRARIES))
    yield _gpus()
    yield _ray(address or os.environ.get("RAY_ADDRESS"))
    yield _mlflow(local_folder(storage_path))
    store = open_store(storage_path)
    yield _storage(local_folder(storage_path)) if store is None else _object_store(store)
    if data_root is not None:
        yield _data(data_root)
    yield _shared_memory()
    yield _open_files()


def _gpus() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("gpus", True, f"none; {os.cpu_count()} CPU cores (cluster.gpus_per_worker must be 0)")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("gpus", True, f"{', '.join(names)}, CUDA {torch.version.cuda}")


def _ray(address: str | None) -> Finding:
    from rayssl.cluster.environment import cluster_size

    if address is None:
        return Finding("ray", True, "no cluster named; runs start one on this machine")
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    try:
        nodes, cpus, gpus = cluster_size(address)
    except ClusterError as error:
        return Finding("ray", False, f"{error} RAY_AUTH_MODE is {mode}.")
    return Finding("ray", True, f"{address}: {nodes} nodes, {cpus:g} CPUs, {gpus:g} GPUs; RAY_AUTH_MODE {mode}")


def _mlflow(storage_path: Path) -> Finding:
    from rayssl.tracking import check_server, tracking_uri

    uri = tracking_uri(storage_path)
    if uri.startswith("sqlite:"):
        return Finding("mlflow", True, f"no server named (MLFLOW_TRACKING_URI); runs write {uri}")
    try:
        check_server(uri)
    except ClusterError as error:
        return Finding("mlflow", False, str(error))
    return Finding("mlflow", True, f"{without_secrets(uri)} answers and can be written")


def _storage(storage_path: Path) -> Finding:
    folder = storage_path.expanduser()
    is_new = not folder.exists()
    trial = folder / f".doctor-{os.getpid()}"
    block = os.urandom(1 << 20)
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
            "storage", False, f"{folder}: can't be written ({error.strerror}). Set storage_path to a folder."
        )
    finally:
        trial.unlink(missing_ok=True)
        if is_new and folder.exists():
            folder.rmdir()
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


def _data(root: Path) -> Finding:
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


def _shared_memory() -> Finding:
    shared = Path("/dev/shm")
    if not shared.exists():
        return Finding("shared memory", True, "no /dev/shm here")
    total = shutil.disk_usage(shared).total / 2**30
    if total < _LEAST_SHARED_GIB:
        way_out = "start the container with --shm-size=8g (Kubernetes: an emptyDir of medium Memory)"
        return Finding("shared memory", False, f"/dev/shm has {total:.2f} GiB; {way_out}")
    return Finding("shared memory", True, f"/dev/shm has {total:.0f} GiB")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _LEAST_FILES:
        return Finding(
            "open files", False, f"at most {soft}; Ray wants {_LEAST_FILES} or more: ulimit -n {min(hard, 65536)}"
        )
    return Finding("open files", True, f"at most {soft}")
