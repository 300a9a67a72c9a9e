"""Kill everything that a run depends on, once or many times, and see whether it ends as if nothing had happened.

    python benchmarks/faults.py [--moments 1] [--faults worker node ...] [--methods psl mgta]
    python benchmarks/faults.py --moments 20 --results faults.jsonl

Two Ray nodes on this machine, an MLflow server over HTTP (its records in SQLite, or in the PostgreSQL that
MLFLOW_BACKEND_STORE_URI names), and the `rayssl pretrain` command in small, each fault at a random moment of the
training. Afterwards the weights are compared with those of an undisturbed run, bit for bit, and so is every number in
MLflow; nothing may be left running, reserved or half written. With --moments 20 each fault is tried twenty times, which
takes some hours: --results keeps a line for each try, and the same command goes on with those that are missing there.

The exit code is 0 only if every try recovered, with nothing lost, doubled, changed or left over.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table
from rich.console import Console
from rich.table import Table

from rayssl.errors import CheckpointError
from rayssl.training.checkpoints import load_checkpoint

_QUIET = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # As in jobs/: a lost node is noticed after 5 s, not 15.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}
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
_COUNTED = ("metrics_lost", "metrics_doubled", "metrics_changed", "left_over")
"""What a try may leave none of."""
_TIMES = ("images_per_second",)
"""Metrics that no two runs have in common."""
_OF_A_RUN = ("RayTrainWorker", "TrainController", "ProgressBoard", "SynchronizationActor", "DatasetManager")
"""Ray's processes that belong to one run."""


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


class Place:
    """Two nodes, an MLflow server, and a folder for runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # In the environment: a password would be seen in the command.
        self._server_environment = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'mlflow.db'}", **os.environ}
        self.port = _free_port()
        self.server: subprocess.Popen[bytes] | None = None
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.second: Any = self.cluster.add_node(num_cpus=1)

    @property
    def tracking_uri(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.port}"

    def start_server(self) -> None:
        """Start the MLflow server, on the same port each time."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                command, env=self._server_environment, stdout=log, stderr=log, start_new_session=True
            )
        _wait_until(lambda: _answers(self.port), 120, "the MLflow server does not come up")

    def stop_server(self) -> None:
        """Kill it, with its workers."""
        if self.server is not None:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()
            self.server = None

    def lose_node(self) -> None:
        """Kill the second node."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def mend(self) -> None:
        """Bring back what a fault took."""
        if self.second is None:
            self.second = self.cluster.add_node(num_cpus=1)
        if self.server is None:
            self.start_server()

    def close(self) -> None:
        """End everything."""
        self.stop_server()
        self.cluster.shutdown()


class Command:
    """`rayssl pretrain` as a process whose lines are read."""

    def __init__(self, place: Place, arguments: list[str]) -> None:
        environment = {**os.environ, "RAY_ADDRESS": place.cluster.address, "MLFLOW_TRACKING_URI": place.tracking_uri}
        environment["PYTHONUNBUFFERED"] = "1"
        environment.pop("MLFLOW_BACKEND_STORE_URI", None)  # the server's alone
        self.arguments = arguments
        command = [sys.executable, "-m", "rayssl", "pretrain", *arguments]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []

    def __iter__(self) -> Iterator[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            yield self.lines[-1]

    def finish(self) -> int:
        """Read what is left; the exit code."""
        for _ in self:
            pass
        return self.process.wait()


def main() -> None:
    """Undisturbed runs first, then each fault at one moment after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=1, help="times that each fault is tried with each method")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--folder", type=Path, help="keep runs and logs there; else they are deleted")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="a line for each try; those in it are not repeated"
    )
    chosen = parser.parse_args()
    tries = [
        (number, method, fault)
        for number in range(chosen.moments)
        for method in chosen.methods
        for fault in chosen.faults
    ]
    known = read_results(chosen.results, seed=chosen.seed)
    with _folder(chosen.folder) as folder, suppress(KeyboardInterrupt):  # which leaves what there is to be told
        place = open_place(folder)
        try:
            wholes = {method: _undisturbed(place, method) for method in chosen.methods}
            for number, method, fault in tries:
                if (fault, method, number) not in known:
                    outcome = _try(place, fault, method, wholes[method], number=number, seed=chosen.seed)
                    known[fault, method, number] = outcome
                    if chosen.results is not None and "skipped" not in outcome:
                        with chosen.results.open("a") as file:
                            file.write(json.dumps(outcome) + "\n")
        finally:
            place.close()
    outcomes = [known[fault, method, number] for number, method, fault in tries if (fault, method, number) in known]
    rows = [summary(fault, method, outcomes) for method in chosen.methods for fault in chosen.faults]
    _print_table(rows)
    for row in rows:
        print(json.dumps(row))
    sys.exit(not all(_is_clean(row) for row in rows))


def read_results(file: Path | None, *, seed: int) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The tries of earlier calls, by fault, method and number of the moment."""
    if file is None or not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {(line["fault"], line["method"], line["moment"]): line for line in lines if line["seed"] == seed}


def summary(fault: str, method: str, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the result: what became of all tries of a fault with a method."""
    row: dict[str, Any] = {"fault": fault, "method": method}
    mine = [outcome for outcome in outcomes if (outcome["fault"], outcome["method"]) == (fault, method)]
    for outcome in mine:
        if "skipped" in outcome:
            return row | {"skipped": outcome["skipped"]}
    equal = [outcome["equal"] for outcome in mine if outcome["equal"] is not None]
    shrunk = [outcome["shrunk_after"] for outcome in mine if "shrunk_after" in outcome]
    return {
        **row,
        "times": len(mine),
        "recovered": sum(outcome["recovered"] for outcome in mine),
        "equal": sum(equal) if equal else None,
        **{key: sum(outcome[key] for outcome in mine) for key in _COUNTED},
        "seconds_lost": round(statistics.median(outcome["seconds_lost"] for outcome in mine), 1) if mine else None,
        **({"shrunk_after": max(shrunk)} if shrunk else {}),
    }


def _is_clean(row: dict[str, Any]) -> bool:
    if "skipped" in row or not row["times"] or row["recovered"] != row["times"]:
        return False
    return row["equal"] in (None, row["times"]) and not any(row[name] for name in _COUNTED)


def open_place(folder: Path) -> Place:
    """Start the nodes and the server.

    Args:
        folder: For runs, records and logs.
    """
    os.environ.update(_QUIET)
    place = Place(folder)
    place.start_server()
    return place


def _undisturbed(place: Place, method: str) -> Attempt:
    whole = run(place, method, "whole", let_be, random.Random(0))
    if whole.code != 0:
        sys.exit("\n".join([*whole.output[-20:], f"the undisturbed run of {method} failed"]))
    return whole


def _try(place: Place, fault: str, method: str, whole: Attempt, *, number: int, seed: int) -> dict[str, Any]:
    """One fault at one moment."""
    outcome: dict[str, Any] = {"fault": fault, "method": method, "seed": seed, "moment": number}
    draws = random.Random(f"{seed} {fault} {method} {number}")
    try:
        attempt = run(place, method, f"{fault.replace(' ', '-')}-{number}", FAULTS[fault], draws)
    except PermissionError as error:
        return outcome | {"skipped": str(error)}
    finally:
        place.mend()
    outcome |= judge(place, attempt, whole, may_differ=fault in OTHER_SIZE)
    print(outcome, flush=True)
    if not outcome["recovered"]:
        print("\n".join(f"    {line}" for line in attempt.output[-12:]), flush=True)
    return outcome


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
        os.kill(moment.draws.choice(_ray_processes("RayTrainWorker")), signal.SIGKILL)
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
        newest = sorted(_run_folder(arguments).glob("ray/checkpoint_*/tensors.pt"))[-1]
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
        source = _run_folder(on_disk)
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
        return Attempt(_run_folder(arguments), -1, time.monotonic() - start, command.lines)
    if before_repeating is not None:
        _wait_until(lambda: not _ray_processes("RayTrainWorker"), 60, "workers outlive their driver")
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


def judge(place: Place, attempt: Attempt, whole: Attempt, *, may_differ: bool = False) -> dict[str, Any]:
    """What became of a run.

    Args:
        place: Where it ran.
        attempt: The run.
        whole: The undisturbed one.
        may_differ: Whether another number of workers went on, so that sums were made in another order.
    """
    recovered = attempt.code == 0 and (attempt.folder / "encoder.pt").exists()
    outcome: dict[str, Any] = {"recovered": recovered, "equal": None, **dict.fromkeys(_COUNTED, 0)}
    outcome["left_over"] = _left_over(place, attempt.folder)
    outcome["seconds_lost"] = round(attempt.seconds - whole.seconds, 1)
    if attempt.shrunk_after is not None:
        outcome["shrunk_after"] = attempt.shrunk_after
    if not recovered:
        return outcome
    ours, expected = (_recorded(place, each.folder) for each in (attempt, whole))
    outcome["metrics_lost"] = sum(len(values) > len(ours[key]) for key, values in expected.items())
    outcome["metrics_doubled"] = sum(len(values) > len(expected[key]) for key, values in ours.items())
    if not may_differ:
        mine, theirs = (torch.load(each.folder / "encoder.pt", weights_only=True) for each in (attempt, whole))
        outcome["equal"] = mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        compared = [key for key in expected if key[1] not in _TIMES]
        outcome["metrics_changed"] = sum(set(expected[key]) != set(ours[key]) for key in compared if key in ours)
    return outcome


def _recorded(place: Place, folder: Path) -> "defaultdict[tuple[str, str, int], list[float]]":
    """The values of each metric of each step in MLflow: of the run and, by their names, of its children."""
    client = MlflowClient(place.tracking_uri)
    parent, children = _records(client, folder)
    values: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
    for run in (parent, *children):
        part = str(run.info.run_name).removeprefix(folder.name)
        for name in run.data.metrics:
            for row in client.get_metric_history(run.info.run_id, name):
                values[part, name, row.step].append(row.value)
    return values


def _records(client: MlflowClient, folder: Path) -> tuple[Run, list[Run]]:
    """A run's record in MLflow and those of its stages; a database may have older ones of the same name."""
    parent = client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])
    of_it = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return parent, list(client.search_runs([parent.info.experiment_id], of_it))


def _left_over(place: Place, folder: Path) -> int:
    """Processes, reservations, open records and damaged or half-written checkpoints that outlive the run."""

    def processes() -> list[int]:
        return [pid for name in _OF_A_RUN for pid in _ray_processes(name)]

    def reserved() -> int:
        groups = placement_group_table().values()
        held = sum(group["state"] not in ("REMOVED", "INFEASIBLE") for group in groups)
        return held + (ray.cluster_resources().get("CPU") != ray.available_resources().get("CPU"))

    # Joined only now: a process that has joined prints pages about each node that is killed.
    ray.init(address=place.cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        with suppress(TimeoutError):
            _wait_until(lambda: not processes() and not reserved(), 30, "")
        left = len(processes()) + reserved()
    finally:
        ray.shutdown()
    parent, children = _records(MlflowClient(place.tracking_uri), folder)
    left += sum(record.info.status == "RUNNING" for record in (parent, *children))
    left += len([*folder.rglob("*.partial"), *folder.rglob("*.outdated"), *folder.glob("ray_claim")])
    for checkpoint in {path.parent for path in folder.rglob("checkpoint.json")}:
        try:
            load_checkpoint(checkpoint)
        except CheckpointError:
            left += 1
    return left


def _finished(command: Command, start: float) -> Attempt:
    code = command.finish()
    return Attempt(_run_folder(command.arguments), code, time.monotonic() - start, command.lines)


def _run_folder(arguments: list[str]) -> Path:
    """The folder of the run that a command made."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    return max(Path(given["storage_path"]).glob(f"{given['name']}-*"), key=lambda path: path.stat().st_mtime)


def _ray_processes(name: str) -> list[int]:
    """Processes of this kind that descend from this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if path.read_bytes().startswith(f"ray::{name}".encode()) and _is_ours(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


def _is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def _wait_until(condition: Callable[[], bool], seconds: float, failure: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(failure)
        time.sleep(0.5)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="rayssl-faults-") as folder:
        yield Path(folder)


def _print_table(rows: list[dict[str, Any]]) -> None:
    columns = ("times", "recovered", "equal", *_COUNTED, "seconds_lost")
    table = Table("fault", "method", *(name.replace("_", " ") for name in columns), title="Faults")
    for row in rows:
        values = [row["skipped"]] if "skipped" in row else [str(row[name]) for name in columns]
        table.add_row(row["fault"], row["method"], *values)
    Console().print(table)


if __name__ == "__main__":
    main()
