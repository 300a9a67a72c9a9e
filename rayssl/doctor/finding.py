"""What all checks share."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    text: str
    """What was found, and what to do if it is not ok."""


@contextmanager
def made_for_a_while(folder: Path) -> Iterator[None]:
    """Make a folder with all above it, and take away again what was not there before.

    Raises:
        OSError: If it can't be made.
    """
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in new:
            with suppress(OSError):  # another process has put something into it
                each.rmdir()


@contextmanager
def deleted_after(file: Path) -> Iterator[None]:
    """Delete a file at the end, however that comes."""
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
