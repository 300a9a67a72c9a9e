"""Where runs are disturbed: two Ray nodes on this machine, an MLflow server over HTTP, and `rayssl pretrain`."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

_QUIET = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # As in jobs/: a lost node is noticed after 5 s, not 15.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
}


def open_place(folder: Path) -> "Place":
    """Start the nodes and the server.

    Args:
        folder: For runs, records and logs.
    """
    os.environ.update(_QUIET)
    place = Place(folder)
    place.start_server()
    return place


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
        wait_until(lambda: _answers(self.port), 120, "the MLflow server does not come up")

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


def run_folder(arguments: list[str]) -> Path:
    """The folder of the run that a command made."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    return max(Path(given["storage_path"]).glob(f"{given['name']}-*"), key=lambda path: path.stat().st_mtime)


def ray_processes(name: str) -> list[int]:
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


def wait_until(condition: Callable[[], bool], seconds: float, failure: str) -> None:
    """Ask every half second.

    Raises:
        TimeoutError: With what failed, after so many seconds.
    """
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
