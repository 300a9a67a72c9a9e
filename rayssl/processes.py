"""Processes told apart over restarts and containers, so that a dead one can be known as dead by others."""

import os
from pathlib import Path

_PROC = Path("/proc")
_START = 19
"""Place of the start time in /proc/PID/stat, counted from the state, which follows the name."""


def this_process() -> str:
    """This process's mark: boot of the machine, PID namespace, PID and start; "" where there is no /proc.

    Of a PID alone another process may have it by now, or at the same time in another container.
    """
    try:
        return f"{_world()} {os.getpid()} {_stat(os.getpid())[_START]}"
    except OSError:
        return ""


def is_dead(mark: str) -> bool:
    """Whether the process with a mark is gone for sure. Not known, and so False, of other machines and containers."""
    try:
        world, pid, start = mark.rsplit(" ", maxsplit=2)
        if world != _world():
            return False
    except (ValueError, OSError):
        return False
    try:
        stat = _stat(int(pid))
    except OSError:
        return True
    return stat[_START] != start or stat[0] in "ZX"  # reused, or ended and only not waited for


def _world() -> str:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may have anything in it."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
