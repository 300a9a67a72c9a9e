"""Files that are there whole or not at all, whatever kills the process that writes them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str) -> None:
    """Write a text file under another name, then rename it: readers see the old content or all of the new.

    Raises:
        OSError: If it can't be written; what was there stays.
    """
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give another name to write a file under; at the end of the body it is renamed, after an error it is deleted.

    The other name ends with .partial, and differs between processes, which may write one file at a time each.

    Raises:
        OSError: If it can't be written; what was there stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave an empty file under the final name
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
