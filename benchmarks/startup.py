"""Wall seconds of `rayssl --help` in a fresh process, beside those of Python alone.

    python benchmarks/startup.py [--rounds 15]

The first start of each, which fills the file system's cache, does not count. About 10 seconds.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from common import interleaved_seconds, print_machine, print_rows, row

TARGET = 0.3
"""Seconds."""


def main() -> None:
    """Measure and print the row."""
    options = parse_options()
    print_machine()
    commands = {"rayssl --help": help_command(), "python -c pass": [sys.executable, "-c", "pass"]}
    seconds = interleaved_seconds({name: starter(command) for name, command in commands.items()}, rounds=options.rounds)
    for name, value in seconds.items():
        print(f"{name:15} {value:6.3f} s")
    print()
    ours, python = seconds.values()
    print_rows(
        [
            row(
                "rayssl --help (peer: python alone; ratio: our seconds)",
                ours=ours,
                peer=python,
                unit="s",
                ratio=ours,
                target=TARGET,
                at_most=True,
                spread=(min(seconds.rounds["rayssl --help"]), max(seconds.rounds["rayssl --help"])),
            )
        ]
    )


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="starts of each that count")
    return parser.parse_args()


def help_command() -> list[str]:
    """The command as a person types it where it is installed beside this Python, else the same through `-m`."""
    installed = Path(sys.executable).with_name("rayssl")
    return [str(installed), "--help"] if installed.exists() else [sys.executable, "-m", "rayssl", "--help"]


def starter(command: list[str]) -> Callable[[], None]:
    """A function that runs a command to its end, unseen.

    Raises:
        subprocess.CalledProcessError: By that function, if the command fails: what fails early is no fast start.
    """

    def start() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return start


if __name__ == "__main__":
    main()
