"""A file is replaced whole or stays as it was."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rayssl.files import write_whole


def test_a_file_is_written_and_replaced_and_nothing_else_stays(tmp_path: Path) -> None:
    for content in ("first\r\nline", "", "Zürich"):
        write_whole(tmp_path / "a.json", content)
        assert (tmp_path / "a.json").read_bytes() == content.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.json", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_process_that_is_killed_while_it_writes_leaves_what_was_there(tmp_path: Path) -> None:
    """Killed after all was written and before it is known to be on the disk."""
    write_whole(tmp_path / "a.json", "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from rayssl.files import write_whole\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(Path(sys.argv[1]), 'new')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a.json").read_text() == "old"
