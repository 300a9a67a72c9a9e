"""The command as a person meets it: messages, exit codes, what is printed."""

import subprocess
import sys
from pathlib import Path

import pytest

from rayssl import cli
from tests.conftest import SMALL, SmallRun

ROOT = Path(__file__).parent.parent


def rayssl(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    try:
        cli.main(arguments)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_show_prints_a_config_that_loads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, shown, _ = rayssl(capsys, "pretrain", "--show", "demo-psl", "optimizer.learning_rate=1e-3")
    assert code == 0
    assert "learning_rate: 1.0e-3" in shown or "learning_rate: 0.001" in shown
    (tmp_path / "again.yaml").write_text(shown)
    assert rayssl(capsys, "pretrain", "--show", str(tmp_path / "again.yaml"))[1] == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "dmeo-psl"], "error: recipe 'dmeo-psl': unknown. Did you mean 'demo-psl'?"),
        (["pretrain", "demo-psl", "sead=1"], "unknown key. Did you mean 'seed'?"),
        (["pretrain", "demo-psl", "cluster.address=127.0.0.1:1"], "no Ray cluster can be reached at '127.0.0.1:1'"),
        (["pretrain", "demo-psl", "initial_weights=nowhere.pt"], "error: nowhere.pt: does not exist."),
        (["pretrain", "demo-psl", "data.name=folder", "data.root=nowhere"], "error: data.root:"),
        (
            ["pretrain", "demo-psl", "storage_path=/proc/runs"],
            "error: storage_path: must be a folder that can be written",
        ),
        (["pretrian"], "No such command 'pretrian'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    storage = [f"storage_path={tmp_path}"] if len(arguments) > 1 and "storage_path" not in arguments[-1] else []
    code, _, errors = rayssl(capsys, *arguments, *storage)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


def test_a_run_ends_with_the_table_and_where_everything_is(small_run: SmallRun) -> None:
    command = [sys.executable, "-m", "rayssl", "pretrain", "demo-psl", *SMALL, f"storage_path={small_run.storage}"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    lines = result.stdout.splitlines()
    assert sum(line.startswith("stage ") for line in lines) == 4
    assert any("accuracy" in line and "chance 12.5%" in line and "img/s" in line and "left" in line for line in lines)
    assert any("│ B5 " in line for line in lines)
    found = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith(("checkpoint", "report"))}
    assert all(Path(path).is_file() for path in found.values())
    assert lines[-1].startswith("MLflow")
    assert f"--backend-store-uri sqlite:///{small_run.storage}/mlflow.db" in lines[-1]


def test_recipes_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    code, listing, _ = rayssl(capsys, "recipes")
    assert code == 0
    assert any(line.startswith("demo-psl ") and "digits" in line for line in listing.splitlines())


def test_the_schema_is_written_where_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, _ = rayssl(capsys, "schema", str(tmp_path / "schema.json"))
    assert code == 0
    assert (tmp_path / "schema.json").read_text() == (ROOT / "rayssl/recipes/schema.json").read_text()


_ENDINGS = """
import atexit, ctypes, sys, threading, time
import click
from rayssl.cli import run
from rayssl.errors import ConfigError

@click.command()
@click.argument("ending")
def command(ending):
    atexit.register(print, "at the end")
    threading.Thread(target=lambda: (time.sleep(0.2), print("a thread"))).start()
    libc = ctypes.CDLL(None)
    libc.on_exit(libc.pause, None)  # a library that never comes to its end
    print("begun")
    if ending == "mistake":
        raise ConfigError("seed: wrong")
    if ending == "bug":
        raise AttributeError("a bug")

run(sys.argv[1:], command=command)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="on_exit is glibc's")
@pytest.mark.parametrize(
    ("ending", "code", "told"), [("well", 0, ""), ("mistake", 2, "error: seed: wrong\n"), ("bug", 1, "a bug\n")]
)
def test_a_command_ends_whatever_libraries_do_at_the_end(ending: str, code: int, told: str) -> None:
    """Its threads and what is registered for the end come first, and all that was printed arrives."""
    command = [sys.executable, "-c", _ENDINGS, ending]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "begun\na thread\nat the end\n")
    assert done.stderr.endswith(told) and ("Traceback" in done.stderr) == (ending == "bug")
