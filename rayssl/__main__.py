"""`python -m rayssl` is the `rayssl` command."""

from rayssl.cli import run

run()
