"""What is done to a run, and at which moment."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fault_parts.place import Command, Place, ray_processes, run_folder, wait_until

_COMMON = ["backbone.width=16", "data.image_size=16", "evaluations=[]", "cluster.workers=2", "cluster.max_failures=20"]
_COMMON += ["data.limit=500", "online.every=2", "online.knn=false", "training.checkpoint_every=1"]
RECIPES = {
    "psl": ["demo-psl", *(f"method.stages.{i}.epochs=3" for i in range(3))],
    "mgta": ["demo-mgta", "method.baseline.epochs=4", "method.rounds.count=2", "method.rounds.epochs=2"]
    + ["method.final.epochs=2", "method.clusters=30"],
}
_EPOCHS = {"psl": 9, "mgta": 14}
_DOWN_SECONDS = 60.0
"""How long the MLflow server stays away."""
_REPLACED_AFTER = 5.0
"""Seconds until another node stands in for one that was killed."""


@dataclass
class Attempt:
    """A run and what was done to it."""

    folder: Path
    code: int
    """Exit code of the last command."""
    seconds: float
    """From the first command to the end of the last one."""
    strikes: int
    """Moments at which the fault came; those that were drawn too late for a run are missing."""
    output: list[str] = field(default_factory=list)
    shrunk_after: float | None = None
    """Seconds from the loss of a node to the end of the first epoch that was trained without it."""


def run(place: Place, method: str, name: str, fault: "Fault", draws: random.Random, *, num_moments: int = 1) -> Attempt:
    """Give the command of a method, and do to it what the fault does, at moments of the training that are drawn."""
    arguments = [*RECIPES[method], *_COMMON, f"name={method}-{name}", f"storage_path={place.folder / 'runs'}"]
    # Not in the first epoch, before which there is nothing to go on from, nor in the last, which may be over before.
    epochs = sorted(draws.sample(range(1, _EPOCHS[method] - 1), num_moments))
    return fault(place, arguments, [Moment(epoch, delay=draws.random(), draws=draws) for epoch in epochs])


@dataclass(frozen=True)
class Moment:
    """When a fault strikes."""

    after_epoch: int
    """Number of the run's epoch whose line is shown before."""
    delay: float
    """Seconds after that line."""
    draws: random.Random

    def wait(self, command: Command) -> bool:
        """Read until the moment has come; False if the command ended before."""
        for line in command:
            shown = re.match(r"stage .* epoch (\d+)/", line)
            if shown is not None and int(shown[1]) >= self.after_epoch:
                time.sleep(self.delay)
                return command.process.poll() is None
        return False


Fault = Callable[[Place, list[str], list[Moment]], Attempt]


def let_be(place: Place, arguments: list[str], moments: list[Moment]) -> Attempt:
    """Disturb nothing."""
    return _finished(Command(place, arguments), time.monotonic(), strikes=0)


def _kill_worker(place: Place, arguments: list[str], moments: list[Moment]) -> Attempt:
    start, command = time.monotonic(), Command(place, arguments)
    strikes = 0
    for moment in moments:
        if moment.wait(command):
            # Killed before, they may be about to start again.
            wait_until(lambda: bool(ray_processes("RayTrainWorker")), 60, "no worker is there to be killed")
            os.kill(moment.draws.choice(ray_processes("RayTrainWorker")), signal.SIGKILL)
            strikes += 1
    return _finished(command, start, strikes=strikes)


def _kill_node(place: Place, arguments: list[str], moments: list[Moment]) -> Attempt:
    start, command = time.monotonic(), Command(place, arguments)
    strikes = 0
    for moment in moments:
        if moment.wait(command):
            place.lose_node()
            time.sleep(_REPLACED_AFTER)
            place.mend()
            strikes += 1
    return _finished(command, start, strikes=strikes)


def _lose_node(place: Place, arguments: list[str], moments: list[Moment]) -> Attempt:
    """No other comes: the run goes on with one worker."""
    start, command = time.monotonic(), Command(place, [*arguments, "cluster.workers=[1,2]"])
    (moment,), shrunk_after, strikes = moments, None, 0
    if moment.wait(command):
        place.lose_node()
        strikes = 1
        lost = time.monotonic()
        told = False
        for line in command:
            told |= line.startswith("warning: worker")
            if told and line.startswith("stage "):
                shrunk_after = round(time.monotonic() - lost, 1)
                break
    return replace(_finished(command, start, strikes=strikes), shrunk_after=shrunk_after)


def _kill_driver(place: Place, arguments: list[str], moments: list[Moment]) -> Attempt:
    return _end_and_repeat(place, arguments, moments, signal.SIGKILL)


def _terminate(place: Place, arguments: list[str], moments: list[Moment]) -> Attempt:
    return _end_and_repeat(place, arguments, moments, signal.SIGTERM)


def _truncate(place: Place, arguments: list[str], moments: list[Moment]) -> Attempt:
    def cut() -> None:
        newest = sorted(run_folder(arguments).glob("ray/checkpoint_*/tensors.pt"))[-1]
        with newest.open("r+b") as file:
            file.truncate(newest.stat().st_size // 2)

    # Late enough for two checkpoints to be there: with a single one, damaged, there is nothing to go on from.
    later = [replace(moment, after_epoch=max(3, moment.after_epoch)) for moment in moments]
    return _end_and_repeat(place, arguments, later, signal.SIGKILL, before_repeating=cut)


def _stop_server(place: Place, arguments: list[str], moments: list[Moment]) -> Attempt:
    start, command = time.monotonic(), Command(place, arguments)
    (moment,), strikes = moments, 0
    if moment.wait(command):
        place.stop_server()
        time.sleep(_DOWN_SECONDS)
        place.start_server()
        strikes = 1
    return _finished(command, start, strikes=strikes)


def _fill_disk(place: Place, arguments: list[str], moments: list[Moment]) -> Attempt:
    """The runs lie on a small disk of their own, which is full when the next checkpoint is written."""
    disk = place.folder / "small-disk"
    disk.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        raise PermissionError(f"a small disk can't be mounted: {mounted.stderr.decode().strip()}")
    try:
        *others, storage = arguments
        on_disk = [*others, f"storage_path={disk}"]
        start, command = time.monotonic(), Command(place, on_disk)
        lines: list[str] = []
        strikes = 0
        for moment in moments:
            if not moment.wait(command):
                break
            with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(2**16))
            strikes += 1
            if command.finish() != 2 or "Make room" not in "\n".join(command.lines):
                break
            (disk / "filler").unlink()
            lines += command.lines
            command = Command(place, on_disk)
        attempt = _finished(command, start, strikes=strikes)
        target = Path(storage.removeprefix("storage_path=")) / attempt.folder.name
        shutil.copytree(attempt.folder, target)
        return replace(attempt, folder=target, output=[*lines, *attempt.output])
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def _end_and_repeat(
    place: Place,
    arguments: list[str],
    moments: list[Moment],
    number: signal.Signals,
    *,
    before_repeating: Callable[[], None] | None = None,
) -> Attempt:
    """The command is given again at once, while Ray may still be ending the workers, unless something is to be done."""
    start, command = time.monotonic(), Command(place, arguments)
    lines: list[str] = []
    strikes = 0
    for moment in moments:
        if not moment.wait(command):
            break
        command.process.send_signal(number)
        code = command.finish()
        if code == 0:  # it was at its end
            break
        strikes += 1
        lines += command.lines
        if number == signal.SIGTERM and code != 143:
            lines.append(f"exit code {code} after SIGTERM, not 143")
            return Attempt(run_folder(arguments), -1, time.monotonic() - start, strikes, lines)
        if before_repeating is not None:
            wait_until(lambda: not ray_processes("RayTrainWorker"), 60, "workers outlive their driver")
            before_repeating()
        command = Command(place, arguments)
    attempt = _finished(command, start, strikes=strikes)
    return replace(attempt, output=[*lines, *attempt.output])


FAULTS: dict[str, Fault] = {
    "worker killed": _kill_worker,
    "node killed": _kill_node,
    "node lost for good": _lose_node,
    "driver killed": _kill_driver,
    "SIGTERM": _terminate,
    "MLflow away": _stop_server,
    "disk full": _fill_disk,
    "checkpoint truncated": _truncate,
}
OTHER_SIZE = ("node lost for good",)
"""Faults after which fewer workers go on, so that sums are made in another order."""
ONCE = ("node lost for good", "MLflow away")
"""Faults that a run meets once: no second node is left to lose, and the training is over before the server is back."""


def _finished(command: Command, start: float, *, strikes: int) -> Attempt:
    code = command.finish()
    return Attempt(run_folder(command.arguments), code, time.monotonic() - start, strikes, command.lines)
