"""Files that are there whole or not at all, whatever kills the process that writes them."""

import os
from pathlib import Path


def write_whole(path: Path, content: str) -> None:
    """Write a text file under another name, then rename it: readers see the old content or all of the new.

    The other name ends with .partial, and differs between processes, which may write one file at a time each.

    Raises:
        OSError: If it can't be written; what was there stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave an empty file under the final name
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
