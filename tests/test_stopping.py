"""SIGTERM in a real process: asked once, told twice, or for too long."""

import signal
import subprocess
import sys
import time

import pytest

BODY = """
import signal, sys, time
from rayssl import stopping
stopping._GRACE_SECONDS, stopping._ECHO_SECONDS = {grace}, {echo}
with stopping.asked_to_stop() as asked:
    print("ready", flush=True)
    while not asked.is_set():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep({work})
print("done", flush=True)
"""


def ended(*, signals: int, grace: float, echo: float, work: float) -> tuple[int, list[str]]:
    """Exit code and lines of a process that gets so many signals, a moment apart, and works on for some seconds."""
    command = [sys.executable, "-c", BODY.format(grace=grace, echo=echo, work=work)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip()]
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        lines += process.stdout.read().split()
        return process.wait(), lines


@pytest.mark.parametrize(
    ("signals", "grace", "echo", "code"),
    [
        (1, 60.0, 5.0, 0),  # it stops by itself
        (2, 60.0, 5.0, 0),  # the same request, told twice
        (2, 60.0, 0.1, 143),  # somebody who does not want to wait
        (1, 0.5, 0.1, 143),  # the time is over
    ],
)
def test_a_process_has_its_time_to_stop_but_no_more(signals: int, grace: float, echo: float, code: int) -> None:
    assert ended(signals=signals, grace=grace, echo=echo, work=1.5) == (
        code,
        ["ready", "asked", *(["done"] if code == 0 else [])],
    )
