"""A process is dead only if that is certain."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayssl import processes
from rayssl.processes import is_dead, this_process

MARK = "from rayssl.processes import this_process; print(this_process(), flush=True)"


def test_this_process_lives_and_a_child_is_dead_when_it_has_ended() -> None:
    assert not is_dead(this_process())
    child = subprocess.Popen([sys.executable, "-c", f"{MARK}; input()"], stdin=-1, stdout=-1, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    mark = child.stdout.readline().strip()
    assert mark.split()[-2] == str(child.pid)
    assert not is_dead(mark)
    child.stdin.close()
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is None:
        time.sleep(0.01)
    assert is_dead(mark)  # a zombie, which still has its PID
    child.wait()
    child.stdout.close()
    assert is_dead(mark)


def test_a_pid_that_another_process_has_by_now_is_no_life() -> None:
    world, pid, start = this_process().rsplit(" ", 2)
    assert is_dead(f"{world} {pid} {int(start) - 1}")


def test_of_other_containers_boots_and_machines_nothing_is_known() -> None:
    boot, namespace, _, start = this_process().split()
    nobody = 2**22 + 1  # above every PID
    assert is_dead(f"{boot} {namespace} {nobody} {start}")
    assert not is_dead(f"{boot} pid:[1] {nobody} {start}")
    assert not is_dead(f"other-boot {namespace} {nobody} {start}")


@pytest.mark.parametrize("mark", ["", "1234", "a b"])
def test_a_mark_that_is_none_says_nothing(mark: str) -> None:
    assert not is_dead(mark)


def test_without_proc_there_is_no_mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mark = this_process()
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert this_process() == ""
    assert not is_dead(mark)
