"""What is done to a run, and at which moment."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fault_parts.place import Command, Place, ray_processes, run_folder, wait_until

_COMMON = ["backbone.width=16", "data.image_size=16", "evaluations=[]", "cluster.workers=2", "cluster.max_failures=5"]
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
    output: list[str] = field(default_factory=list)
    shrunk_after: float | None = None
    """Seconds from the loss of a node to the end of the first epoch that was trained without it."""


def run(
    place: Place, method: str, name: str, fault: "Callable[[Place, list[str], Moment], Attempt]", draws: random.Random
) -> Attempt:
    """Give the command of a method, and do to it what the fault does, at a moment of the training that is drawn."""
    arguments = [*RECIPES[method], *_COMMON, f"name={method}-{name}", f"storage_path={place.folder / 'runs'}"]
    # Not in the first epoch, before which there is nothing to go on from, nor after the last.
    moment = Moment(after_epoch=draws.randint(1, _EPOCHS[method] - 1), delay=draws.random(), draws=draws)
    return fault(place, arguments, moment)


@dataclass(frozen=True)
class Moment:
    """When a fault strikes."""

    after_epoch: int
    """Lines of epochs that were shown before."""
    delay: float
    """Seconds after that line."""
    draws: random.Random

    def wait(self, command: Command) -> bool:
        """Read until the moment has come; False if the command ended before."""
        shown = 0
        for line in command:
            shown += line.startswith("stage ")
            if shown == self.after_epoch:
                time.sleep(self.delay)
                return True
        return False


def let_be(place: Place, arguments: list[str], moment: Moment) -> Attempt:
    """Disturb nothing."""
    return _finished(Command(place, arguments), time.monotonic())


def _kill_worker(place: Place, arguments: list[str], moment: Moment) -> Attempt:
    start, command = time.monotonic(), Command(place, arguments)
    if moment.wait(command):
        os.kill(moment.draws.choice(ray_processes("RayTrainWorker")), signal.SIGKILL)
    return _finished(command, start)


def _kill_node(place: Place, arguments: list[str], moment: Moment) -> Attempt:
    start, command = time.monotonic(), Command(place, arguments)
    if moment.wait(command):
        place.lose_node()
        time.sleep(_REPLACED_AFTER)
        place.mend()
    return _finished(command, start)


def _lose_node(place: Place, arguments: list[str], moment: Moment) -> Attempt:
    """No other comes: the run goes on with one worker."""
    start, command = time.monotonic(), Command(place, [*arguments, "cluster.workers=[1,2]"])
    shrunk_after = None
    if moment.wait(command):
        place.lose_node()
        lost = time.monotonic()
        told = False
        for line in command:
            told |= line.startswith("warning: worker")
            if told and line.startswith("stage "):
                shrunk_after = round(time.monotonic() - lost, 1)
                break
    return replace(_finished(command, start), shrunk_after=shrunk_after)


def _kill_driver(place: Place, arguments: list[str], moment: Moment) -> Attempt:
    return _end_and_repeat(place, arguments, moment, signal.SIGKILL)


def _terminate(place: Place, arguments: list[str], moment: Moment) -> Attempt:
    return _end_and_repeat(place, arguments, moment, signal.SIGTERM)


def _truncate(place: Place, arguments: list[str], moment: Moment) -> Attempt:
    def cut() -> None:
        newest = sorted(run_folder(arguments).glob("ray/checkpoint_*/tensors.pt"))[-1]
        with newest.open("r+b") as file:
            file.truncate(newest.stat().st_size // 2)

    # Late enough for two checkpoints to be there: with a single one, damaged, there is nothing to go on from.
    later = replace(moment, after_epoch=max(3, moment.after_epoch))
    return _end_and_repeat(place, arguments, later, signal.SIGKILL, before_repeating=cut)


def _stop_server(place: Place, arguments: list[str], moment: Moment) -> Attempt:
    start, command = time.monotonic(), Command(place, arguments)
    if moment.wait(command):
        place.stop_server()
        back = time.monotonic() + _DOWN_SECONDS
        time.sleep(max(0.0, back - time.monotonic()))
        place.start_server()
    return _finished(command, start)


def _fill_disk(place: Place, arguments: list[str], moment: Moment) -> Attempt:
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
        if moment.wait(command):
            with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(2**16))
        code = command.finish()
        if code == 2 and "Make room" in "\n".join(command.lines):
            (disk / "filler").unlink()
            again = Command(place, on_disk)
            code = again.finish()
            command.lines += again.lines
        seconds = time.monotonic() - start
        source = run_folder(on_disk)
        target = Path(storage.removeprefix("storage_path=")) / source.name
        shutil.copytree(source, target)
        return Attempt(target, code, seconds, command.lines)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def _end_and_repeat(
    place: Place,
    arguments: list[str],
    moment: Moment,
    number: signal.Signals,
    *,
    before_repeating: Callable[[], None] | None = None,
) -> Attempt:
    """The command is given again at once, while Ray may still be ending the workers, unless something is to be done."""
    start, command = time.monotonic(), Command(place, arguments)
    if not moment.wait(command):
        return _finished(command, start)
    command.process.send_signal(number)
    code = command.finish()
    if number == signal.SIGTERM and code != 143:
        command.lines.append(f"exit code {code} after SIGTERM, not 143")
        return Attempt(run_folder(arguments), -1, time.monotonic() - start, command.lines)
    if before_repeating is not None:
        wait_until(lambda: not ray_processes("RayTrainWorker"), 60, "workers outlive their driver")
        before_repeating()
    again = _finished(Command(place, arguments), start)
    return Attempt(again.folder, again.code, again.seconds, [*command.lines, *again.output])


FAULTS: dict[str, Callable[[Place, list[str], Moment], Attempt]] = {
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


def _finished(command: Command, start: float) -> Attempt:
    code = command.finish()
    return Attempt(run_folder(command.arguments), code, time.monotonic() - start, command.lines)
