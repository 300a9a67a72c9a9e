"""Where runs are kept: a folder, or the address of an object store, of which a working copy lies on this machine."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from rayssl.addresses import has_secret, without_secrets
from rayssl.errors import ConfigError

LOCK = ".lock"
"""File by which the process that writes a run's folder keeps others on its machine out."""
_SCHEMES = ("s3", "gs", "file")

StoragePath = Path | str
"""A folder, or the address of an object store."""


def is_address(text: object) -> bool:
    """Whether it is an address such as s3://bucket/runs, and no path."""
    return isinstance(text, str) and "://" in text


def parse_storage_path(text: str) -> StoragePath:
    """What a user wrote as storage_path.

    Raises:
        ConfigError: If it is an address of no object store that is known.
    """
    if not is_address(text):
        return Path(text)
    try:
        return checked_address(text)
    except ValueError as error:
        raise ConfigError(f"storage_path: {error}") from None


def checked_address(address: str) -> str:
    """The address without a slash at its end.

    Raises:
        ValueError: If it can't be one.
    """
    if has_secret(address):  # first of all, since the other messages repeat the address
        raise ValueError("must name no key or password, since it is written into every run; set AWS_ACCESS_KEY_ID, ...")
    parts = urlsplit(address)
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            f"must be a folder, or begin with {', '.join(f'{scheme}://' for scheme in _SCHEMES)}, got {address}. Mount "
            "other stores, and give the mount's path"
        )
    if (parts.scheme == "file") == bool(parts.netloc) or ".." in parts.path.split("/"):
        raise ValueError(f"must be such as s3://bucket/runs, or file:///folder/runs, got {address}")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/")))


def lasting(storage_path: StoragePath) -> None:
    """Refuse a folder that is deleted with a Ray job: what is relative lies in the job's working copy.

    Raises:
        ConfigError: If it is a relative path.
    """
    if isinstance(storage_path, Path) and not storage_path.expanduser().is_absolute():
        raise ConfigError(
            f"storage_path: must be absolute for a job, since its working copy is deleted with it, got {storage_path}. "
            "Add storage_path=/FOLDER/THAT/ALL/NODES/SEE, or storage_path=s3://BUCKET/FOLDER."
        )


def in_job() -> bool:
    """Whether this process is the command of a Ray job, which starts in a copy of what was submitted."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def address_of(address: str, *names: str) -> str:
    """The address of something in a store."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path="/".join([parts.path.rstrip("/"), *names])))


def split_run_address(address: str) -> tuple[str, str]:
    """The store's address and the name in it, of a run (s3://bucket/runs/ID) or a part (.../ID/stage-2).

    Raises:
        ConfigError: If it is no such address.
    """
    path = PurePosixPath(urlsplit(address).path)
    is_part = path.name.startswith("stage-") or path.suffix == ".pt"
    name = "/".join(path.parts[-2:] if is_part else path.parts[-1:])
    store = urlunsplit(urlsplit(address)._replace(path=str(path.parents[1 if is_part else 0]).rstrip("/")))
    if not path.name or (is_part and len(path.parts) < 3):
        raise ConfigError(f"run '{without_secrets(address)}': must end in a run's id, such as s3://bucket/runs/ID")
    return str(parse_storage_path(store)), name


def local_folder(storage_path: StoragePath) -> Path:
    """The folder of all runs on this machine: the path itself, or the working copy of an object store.

    That one lies in the user's cache folder (XDG_CACHE_HOME, ~/.cache) under a name that the address decides.
    """
    if not isinstance(storage_path, str):
        return storage_path
    digest = hashlib.sha256(storage_path.encode()).hexdigest()[:10]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "rayssl" / "storage" / f"{urlsplit(storage_path).netloc or 'file'}-{digest}"


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Have a lock file to this process while the body runs; other machines do not notice.

    Args:
        path: The file.
        taken: What to tell if another process of this machine has it.

    Raises:
        ConfigError: If one has.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(taken) from None
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine writes a run's folder."""
    try:
        with (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file
        return False
    return False
