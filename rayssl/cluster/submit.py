"""Jobs on a running Ray cluster: pack the working tree, submit a command, follow it, stop it."""

import asyncio
import logging
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rayssl.addresses import has_secret
from rayssl.cluster.environment import knock, no_token
from rayssl.errors import ClusterError

_EXCLUDES = [
    *("/.git", "/.venv", "/venv", "/runs", "/data", "/mlruns", "/mlartifacts", "/docs", "/dist", "/build"),
    *("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", "*.egg-info", "*.pt", "*.pth", "*.npz", "*.db"),
    *("*.jpg", "*.jpeg", "*.JPEG", "*.png", "*.zip", "*.tar", "*.gz", "*.xz", "*.npy", ".env", ".env.*"),
]
"""What a job never needs of the working tree: data, caches, results and secrets."""
_SECRETS = ("TOKEN", "PASSWORD", "SECRET", "KEY")
_STOP_SECONDS = 40
"""Seconds between SIGTERM and SIGKILL when a job is stopped, 3 by Ray's default: a checkpoint may take 25 of them."""
_QUIET = {
    "ray.dashboard": logging.WARNING,
    "ray.dashboard.modules.dashboard_sdk": logging.WARNING,  # which has a level of its own, as has the next
    "ray.dashboard.modules.job.sdk": logging.WARNING,
    "ray._private.runtime_env": logging.ERROR,
}
_RECONNECT_SECONDS = 60.0
"""How long a job's output is asked for again after the connection broke."""
_READY_SECONDS = 60.0
"""How long a cluster may go on saying that nobody is there who could start a job."""
_NOT_READY = "No available agent"
"""Ray's words for that."""


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    exit_code: int | None
    """Of the command; None while it runs, or if it never began."""
    message: str = ""
    """What Ray says of its end, such as that its environment could not be set up."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended, one way or the other."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def exit_status(self) -> int:
        """The command's exit code as a shell gives it: 128 + N after signal N, 143 if it was stopped."""
        if self.exit_code is not None:
            return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code
        return {"SUCCEEDED": 0, "STOPPED": 143}.get(self.status, 1)


class Cluster:
    """The jobs of one cluster.

    Args:
        address: Of the dashboard, http://HEAD:8265.

    Raises:
        ClusterError: If nobody is there, the token is wrong or missing, or the versions don't go together.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        with _in_plain_words(address):
            knock(urlsplit(address).netloc)
            from ray.job_submission import JobSubmissionClient

            # What is packed, uploaded and left out, and that the output has ended, line by line.
            for name, level in _QUIET.items():
                logging.getLogger(name).setLevel(level)
            self._client = JobSubmissionClient(address)

    @property
    def ray_version(self) -> str:
        """Ray's version on the cluster."""
        return str(self._client._server_ray_version)

    def submit(self, arguments: Sequence[str], *, working_dir: Path, python: str = "python") -> str:
        """Submit `rayssl ARGUMENTS`; gives the job's id.

        Args:
            arguments: Of the rayssl command, such as ["pretrain", "demo-psl"].
            working_dir: Packed and sent along, without data, caches and results.
            python: The interpreter on the cluster's head.

        Raises:
            ClusterError: If the cluster refuses it, or the working tree is too large to be sent.
        """
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS), **passed_on(os.environ)}
        package = Path(__file__).parent.parent
        runtime_env = {
            "working_dir": str(working_dir),
            "excludes": _EXCLUDES,
            "env_vars": environment,
            # The package as it is here, whatever the cluster has installed.
            **({} if (working_dir / "rayssl").is_dir() else {"py_modules": [str(package)]}),
        }
        entrypoint = shlex.join([python, "-m", "rayssl", *arguments])
        with _in_plain_words(self.address):
            return self._submit_when_ready(entrypoint, runtime_env)

    def _submit_when_ready(self, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        """Submit, again and again to a head that has just started: it answers before it can start a job."""
        began = time.monotonic()
        while True:
            try:
                return str(self._client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env))
            except RuntimeError as error:
                if _NOT_READY not in str(error) or time.monotonic() - began > _READY_SECONDS:
                    raise
                time.sleep(1)

    def follow(self, job_id: str, show: Callable[[str], None]) -> Job:
        """Show a job's output as it comes, until it ends; gives how it ended.

        A connection that breaks is made again, and what was shown is not shown twice.

        Raises:
            ClusterError: If there is no such job, or the cluster does not answer for a minute; the job goes on.
        """
        import aiohttp

        shown = 0

        async def tail() -> None:
            nonlocal shown
            position = 0
            async for text in self._client.tail_job_logs(job_id):
                new = text[max(0, shown - position) :]
                position += len(text)
                shown = max(shown, position)
                if new:
                    show(new)

        job = self.find(job_id)
        answered = time.monotonic()
        while True:
            try:
                asyncio.run(tail())
                job = self.find(job_id)
                answered = time.monotonic()
            except (aiohttp.ClientError, ClusterError, OSError, RuntimeError) as error:
                if time.monotonic() - answered > _RECONNECT_SECONDS:
                    reason = next(iter(str(error).splitlines()), type(error).__name__)
                    raise ClusterError(
                        f"the connection to {self.address} is lost ({reason}). Job {job_id} may go on without it; "
                        f"follow it with: rayssl jobs --address {self.address} logs --follow {job_id}"
                    ) from None
                # The last words of a job that has ended may be all that is missing.
                time.sleep(1)
                continue
            if job.is_over:
                return job
            time.sleep(1)

    def find(self, job_id: str) -> Job:
        """One job.

        Raises:
            ClusterError: If there is none of that id.
        """
        with _in_plain_words(self.address):
            info = self._client.get_job_info(job_id)
        return _job(job_id, info)

    def jobs(self) -> list[Job]:
        """All submitted jobs, the newest last."""
        with _in_plain_words(self.address):
            found = [info for info in self._client.list_jobs() if info.submission_id]
        found.sort(key=lambda info: info.start_time or 0)
        return [_job(str(info.submission_id), info) for info in found]

    def logs(self, job_id: str) -> str:
        """What a job has printed so far."""
        with _in_plain_words(self.address):
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> None:
        """Ask a job to stop: it gets SIGTERM, marks its run as killed, and can be gone on with later."""
        with _in_plain_words(self.address):
            self._client.stop_job(job_id)


def _job(job_id: str, info: Any) -> Job:
    return Job(job_id, str(info.status.value), info.entrypoint, info.driver_exit_code, info.message or "")


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a job is given: MLflow's, and Ray's way of logging in, but no secret.

    A job's environment can be read by everybody who sees the cluster's dashboard; secrets belong into the cluster's
    own.
    """
    return {
        name: value
        for name, value in environment.items()
        if name == "RAY_AUTH_MODE" or (name.startswith("MLFLOW_") and not _is_secret(name, value))
    }


def withheld(environment: Mapping[str, str]) -> list[str]:
    """Names of MLflow's variables that are not passed on because they are secrets, or addresses with one in them."""
    return sorted(name for name, value in environment.items() if name.startswith("MLFLOW_") and _is_secret(name, value))


def _is_secret(name: str, value: str) -> bool:
    return any(word in name for word in _SECRETS) or has_secret(value)


@contextmanager
def _in_plain_words(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into one line with the way out."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise ClusterError(no_token(address)) from None
    except (ConnectionError, TimeoutError, socket.gaierror):
        raise ClusterError(
            f"--address: nobody answers at {address}. Give http://HOST:PORT of a running head's dashboard (8265 by "
            "default; `ray start --head --dashboard-host=...` prints it)."
        ) from None
    except KeyError:
        raise ClusterError(f"--address: {address} answers, but not as a Ray dashboard does.") from None
    except (RuntimeError, ValueError, OSError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ClusterError(f"Ray at {address}: {first}") from None
