"""Runs in an object store (s3://bucket/runs), and the working copy of them on this machine.

What the store has is what counts. A run is brought here before it goes on, works in plain files, and is brought back
with every checkpoint; a working copy can be deleted whenever nothing runs in it.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rayssl.errors import CheckpointError, ConfigError, full_disk
from rayssl.storage import StoragePath, address_of, is_locked, local_folder

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_HEADS = ("config.yaml", "report.json")
"""Files of a run that tell that it was begun, and that it is finished."""
_RESUME = "checkpoints"
_TENSORS, _READABLE = "tensors.pt", "checkpoint.json"
_REPORT, _RECORD = "report.json", "mlflow.json"
_STAYS = ("cache", "ray")
"""Folders of a run that are never brought: decoded pictures, and what Ray itself writes to the store."""
_CHUNK = 64 << 20
_PATIENCE = "retry_limit_seconds"
_HELP = {
    "s3": "Is there such a bucket? Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws or the "
    "machine's role, a server other than Amazon's from AWS_ENDPOINT_URL",
    "gs": "Is there such a bucket? Credentials come from GOOGLE_APPLICATION_CREDENTIALS or the machine's role",
    "file": "Give the path of a folder that can be written",
}


def open_store(storage_path: StoragePath) -> "ObjectStore | None":
    """The object store of an address; None for a folder. Nothing is sent yet."""
    return ObjectStore(storage_path) if isinstance(storage_path, str) else None


def store_of(storage_path: StoragePath, folder: Path) -> "ObjectStore | None":
    """The object store that a folder is brought to; None if it is no part of a working copy."""
    store = open_store(storage_path)
    return store if store is not None and folder.resolve().is_relative_to(store.folder) else None


class ObjectStore:
    """The runs of an object store, and their working copy in `folder`. Goes to other processes by pickle.

    A file counts as brought when its size and time of change are the store's; both are set after each transfer.

    Args:
        address: Such as s3://bucket/runs.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.folder = local_folder(address).resolve()
        # The ids of a record in an SQLite file mean nothing on other machines.
        self._stays = () if os.environ.get("MLFLOW_TRACKING_URI") else (_RECORD,)
        self._brought: dict[str, tuple[int, int]] = {}
        self._connection: tuple[FileSystem, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None, "_brought": {}}

    def check(self) -> None:
        """Find out whether objects can be written, read and deleted.

        Raises:
            ConfigError: If one of that fails.
        """
        try:
            self._try(b"rayssl")
        except (OSError, ValueError, NotImplementedError) as error:
            help_text = _HELP[urlsplit(self.address).scheme]
            raise ConfigError(
                f"storage_path: {self.address} can't be written and read ({_reason(error)}). {help_text}."
            ) from None

    def seconds_to_transfer(self, content: bytes) -> float:
        """How long it takes to write an object, read it and delete it.

        Raises:
            CheckpointError: If it can't be written.
        """
        with self._reaching():
            started = time.monotonic()
            self._try(content)
            return time.monotonic() - started

    def refresh(self, prefix: str = "") -> None:
        """Find out which runs there are: bring what tells that a run was begun or is finished.

        Args:
            prefix: What the runs' ids begin with.
        """
        with self._reaching():
            files, root = self._connect()
            known = {path.name for path in self.folder.glob("*") if path.is_dir()}
            runs = {name for name in known | set(self._names(root)) if name.startswith(prefix) and name[0] != "."}
            paths = [f"{root}/{run}/{head}" for run in sorted(runs) for head in _HEADS]
            for info in files.get_file_info(paths):
                local = self._local(info.path)
                if is_locked(local.parent):
                    continue
                if info.is_file:
                    self._download(info, local)
                else:
                    local.unlink(missing_ok=True)

    def pull(self, folder: Path, *, unless_locked: bool = False) -> None:
        """Make a folder of the working copy what it is in the store; what is never brought stays.

        Of a checkpoint that was brought by half there is nothing. Processes may do this to one folder at a time.

        Args:
            folder: The folder of a run, or one within.
            unless_locked: Leave a run's folder alone that a process of this machine writes: it is ahead of the store.

        Raises:
            ConfigError: If the folder is outside the working copy, or an object's name would be.
            CheckpointError: If the store can't be reached.
        """
        if unless_locked and is_locked(folder):
            return
        with self._reaching():
            found = {self._local(info.path): info for info in self._files(folder)}
            half = {path.parent for path in found if path.name == _TENSORS and path.with_name(_READABLE) not in found}
            found = {path: info for path, info in found.items() if path.parent not in half}
            for path, info in found.items():
                if self._is_ours(path, folder):
                    self._download(info, path)
            for path in [path for path in self._walk(folder) if path not in found]:
                path.unlink(missing_ok=True)
                self._brought.pop(self._name(path), None)
            for place, _, _ in os.walk(folder, topdown=False):
                with suppress(OSError):  # it isn't empty
                    if self._is_ours(Path(place, "any"), folder):
                        Path(place).rmdir()

    def push(self, path: Path) -> None:
        """Bring to the store what has changed in a file or folder since it was brought; drop dropped checkpoints there.

        At no time is a part of a checkpoint taken for a whole one: its readable file, which every reader wants, is
        deleted first and brought last. A run's resume checkpoints come after all else, its report.json at the end.

        Raises:
            CheckpointError: If the store can't be reached.
        """
        with self._reaching():
            here = [path] if path.is_file() else list(self._walk(path))
            replaced = {self._name(each.with_name(_READABLE)) for each in filter(self._has_changed, here)}
            for name in sorted(replaced & set(self._brought)):
                self._delete(name)
            for each in sorted(filter(self._has_changed, here), key=self._turn):
                self._upload(each)
            dropped = {self.folder / name for name in self._brought if self._is_resume(name)}
            for folder in {each.parent for each in dropped if not each.parent.exists()}:
                self._delete(self._name(folder / _READABLE))
                self.delete(folder)

    def delete(self, folder: Path) -> None:
        """Delete a folder in the store; its working copy stays.

        Raises:
            CheckpointError: If the store can't be reached.
        """
        with self._reaching(), suppress(FileNotFoundError):
            self._connect()[0].delete_dir(self._remote(folder))
        self._brought = {
            name: mark for name, mark in self._brought.items() if not (self.folder / name).is_relative_to(folder)
        }

    def names(self, folder: Path | None = None) -> list[str]:
        """Names of the folders within a folder, in the store; None: of all runs.

        Raises:
            CheckpointError: If the store can't be reached.
        """
        with self._reaching():
            return self._names(self._remote(folder or self.folder))

    def run_of(self, folder: Path) -> Path:
        """The folder of the run that a folder belongs to."""
        return self.folder / PurePosixPath(self._name(folder)).parts[0]

    def address_of(self, folder: Path) -> str:
        """The address of a folder of the working copy."""
        return address_of(self.address, self._name(folder))

    def path_of(self, name: str) -> Path:
        """Where something of the store lies in the working copy.

        Raises:
            ConfigError: If the name leads out of it.
        """
        if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
            raise ConfigError(f"storage_path: '{name}' in {self.address} is no name of a run or of a part of one")
        return self.folder / name

    def _connect(self) -> "tuple[FileSystem, str]":
        if self._connection is None:
            from pyarrow.fs import FileSystem

            address = self.address
            if urlsplit(address).scheme == "gs" and _PATIENCE not in address:  # Google's library tries for 15 minutes
                address += f"{'&' if urlsplit(address).query else '?'}{_PATIENCE}=60"
            files, root = FileSystem.from_uri(address)
            self._connection = files, root.rstrip("/")
        return self._connection

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, NotImplementedError) as error:
            raise self.failure(error) from None

    def failure(self, error: Exception) -> CheckpointError:
        """What to tell of a transfer that failed, for want of room on this machine's disk or because of the store."""
        mistake = full_disk(error) if isinstance(error, OSError) else None
        return mistake or CheckpointError(
            f"{self.address}: can't be written or read ({_reason(error)}). When it can, the same command goes on "
            "from the last checkpoint there."
        )

    def _try(self, content: bytes) -> None:
        """Write, read and delete an object."""
        files, root = self._connect()
        trial = f"{root}/.rayssl-{os.getpid()}-{time.time_ns()}"
        self._make_folder(root)
        with files.open_output_stream(trial) as stream:
            stream.write(content)
        with files.open_input_file(trial) as file:  # a stream would ask for it megabyte by megabyte
            if file.readall() != content:
                raise OSError("it gives back something else than was written")
        files.delete_file(trial)

    def _names(self, path: str) -> list[str]:
        from pyarrow.fs import FileSelector, FileType

        found = self._connect()[0].get_file_info(FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)

    def _files(self, folder: Path) -> "Sequence[FileInfo]":
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._remote(folder), allow_not_found=True, recursive=True)
        return [info for info in self._connect()[0].get_file_info(selector) if info.is_file]

    def _remote(self, path: Path) -> str:
        """The path in the store's file system of something in the working copy."""
        name = self._name(path)
        root = self._connect()[1]
        return root if name == "." else f"{root}/{name}"

    def _name(self, path: Path) -> str:
        """The name in the store of something in the working copy."""
        whole = path if path.is_absolute() else path.absolute()
        if not whole.is_relative_to(self.folder) or ".." in whole.parts:
            raise ConfigError(f"{path}: is outside of {self.folder}, the working copy of {self.address}")
        return whole.relative_to(self.folder).as_posix()

    def _local(self, path: str) -> Path:
        """Where a path of the store's file system lies in the working copy."""
        return self.path_of(path.removeprefix(f"{self._connect()[1]}/"))

    def _is_ours(self, path: Path, folder: Path) -> bool:
        """Whether a file within a folder is one that is brought."""
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part.endswith((".partial", ".outdated")) for part in parts)
        return not hidden and parts[0] not in _STAYS and path.name not in self._stays

    def _walk(self, folder: Path) -> Iterator[Path]:
        for place, _, names in os.walk(folder):
            for name in names:
                if self._is_ours(Path(place, name), folder):
                    yield Path(place, name)

    def _has_changed(self, path: Path) -> bool:
        return self._brought.get(self._name(path)) != _mark(path)

    def _turn(self, path: Path) -> tuple[bool, bool, bool]:
        """Orders what is brought."""
        return path.name == _REPORT, self._is_resume(self._name(path)), path.name == _READABLE

    @staticmethod
    def _is_resume(name: str) -> bool:
        """Whether it belongs to a checkpoint that a run deletes when there are newer ones."""
        return PurePosixPath(name).parts[1:2] == (_RESUME,)

    def _download(self, info: "FileInfo", path: Path) -> None:
        if not path.is_file() or _mark(path) != (info.size, info.mtime_ns):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".pull-") as place:
                whole = Path(place) / "file"
                self._copy(info.path, str(whole), source_filesystem=self._connect()[0])
                os.utime(whole, ns=(info.mtime_ns, info.mtime_ns))
                whole.replace(path)
        self._brought[self._name(path)] = _mark(path)

    def _upload(self, path: Path) -> None:
        files, remote = self._connect()[0], self._remote(path)
        self._make_folder(remote.rpartition("/")[0])
        self._copy(str(path), remote, destination_filesystem=files)
        brought_at = files.get_file_info(remote).mtime_ns
        os.utime(path, ns=(brought_at, brought_at))
        self._brought[self._name(path)] = _mark(path)

    def _delete(self, name: str) -> None:
        files, root = self._connect()
        with suppress(FileNotFoundError):
            files.delete_file(f"{root}/{name}")
        self._brought.pop(name, None)

    def _make_folder(self, path: str) -> None:
        files, _ = self._connect()
        if files.type_name == "local":  # object stores have none
            files.create_dir(path)

    @staticmethod
    def _copy(source: str, target: str, **filesystems: Any) -> None:
        from pyarrow.fs import copy_files

        copy_files(source, target, chunk_size=_CHUNK, use_threads=False, **filesystems)


def _mark(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _reason(error: Exception) -> str:
    """The first line, of Amazon's errors from where they begin to the number of the request."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line[max(0, line.find("AWS Error")) :].partition(" (Request ID")[0][:300]
