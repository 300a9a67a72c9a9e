"""A run writes nothing outside its storage path, and works where HOME can't be written."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import SMALL

ROOT = Path(__file__).parent.parent
WATCH = """
import json, os, sys
_log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_kinds = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.truncate": 0, "sqlite3.connect": 0}
def _told(event, arguments):
    path = None
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = arguments[0]
    elif event in _kinds:
        path = arguments[_kinds[event]]
    if isinstance(path, (str, bytes)) and path:
        os.write(_log, (json.dumps(os.path.abspath(os.fsdecode(path))) + "\\n").encode())
sys.addaudithook(_told)
"""
"""As sitecustomize.py: notes what Python opens for writing, makes or renames, in this process and those it starts."""
_DROP_BOUND, _OVERRIDE = 24, 1


def _obey_modes() -> None:
    """Let even root be refused what a folder's mode forbids."""
    ctypes.CDLL(None).prctl(_DROP_BOUND, _OVERRIDE, 0, 0, 0)


def _environment() -> dict[str, str]:
    """This process's, without what moves or was moved by libraries here."""
    moves = ("XDG_", "MPL", "MLFLOW", "TORCH", "TRITON")
    return {name: value for name, value in os.environ.items() if not name.startswith(moves)}


def test_a_run_with_a_read_only_home_writes_only_where_it_was_told(tmp_path: Path) -> None:
    """Seen are all that Python opens for writing, and all that is new in HOME, TMPDIR and the working directory.

    With jigsaw, whose permutations are kept in HOME otherwise.
    """
    folders = {name: tmp_path / name for name in ("home", "tmp", "cwd", "watch", "runs")}
    for folder in folders.values():
        folder.mkdir()
    (folders["watch"] / "sitecustomize.py").write_text(WATCH)
    folders["home"].chmod(0o555)
    environment = _environment() | {
        "HOME": str(folders["home"]),
        "TMPDIR": str(folders["tmp"]),
        "PYTHONPATH": f"{folders['watch']}:{ROOT}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "WATCH_LOG": str(tmp_path / "watch.log"),
    }
    overrides = [*SMALL, f"storage_path={folders['runs']}", "method.task={name: jigsaw}"]
    overrides += [f"method.stages.{number}.level={{num_permutations: 20}}" for number in range(3)]
    touch = ["touch", str(folders["home"] / "x")]
    assert subprocess.run(touch, preexec_fn=_obey_modes, capture_output=True, check=False).returncode != 0
    done = subprocess.run(
        [sys.executable, "-m", "rayssl", "pretrain", "demo-psl", *overrides],
        cwd=folders["cwd"],
        env=environment,
        preexec_fn=_obey_modes,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "report      " in done.stdout
    touched = {json.loads(line) for line in (tmp_path / "watch.log").read_text().splitlines()}
    assert any(path.startswith(str(folders["runs"])) for path in touched)
    allowed = (str(folders["runs"]), str(folders["tmp"]), "/dev/", str(tmp_path / "watch.log"))
    failed = {str(folders["home"] / each) for each in (".cache", ".cache/rayssl", ".config", ".config/matplotlib")}
    assert {path for path in touched if not path.startswith(allowed)} <= failed
    left = [path for name in ("home", "tmp", "cwd") for path in folders[name].rglob("*")]
    assert [path for path in left if not path.name.startswith("torchinductor_")] == []  # an empty folder of torch's


def test_without_a_place_for_its_working_copy_a_run_says_which_setting_moves_it(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o555)
    environment = _environment() | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "rayssl", "pretrain", "demo-psl", *SMALL, f"storage_path=file://{tmp_path}/store"],
        env=environment,
        preexec_fn=_obey_modes,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "XDG_CACHE_HOME" in done.stderr
