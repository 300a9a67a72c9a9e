"""Jobs on a running Ray cluster: pack the working tree, submit a command, follow it, stop it."""

import asyncio
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rayssl.errors import ClusterError

_EXCLUDES = [
    *("/.git", "/.venv", "/venv", "/runs", "/data", "/mlruns", "/mlartifacts", "/docs", "/dist", "/build"),
    *("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", "*.egg-info", "*.pt", "*.pth", "*.npz", "*.db"),
    *("*.jpg", "*.jpeg", "*.JPEG", "*.png", "*.zip", "*.tar", "*.gz", "*.xz"),
]
"""What a job never needs of the working tree: data, caches and results."""
_PASSED_ON = ("MLFLOW_", "RAY_AUTH_MODE")
_SECRETS = ("TOKEN", "PASSWORD", "SECRET", "KEY")


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    exit_code: int | None
    """Of the command; None while it runs, or if it never began."""


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
            from ray.job_submission import JobSubmissionClient

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
        environment = passed_on(os.environ)
        package = Path(__file__).parent.parent
        runtime_env = {
            "working_dir": str(working_dir),
            "excludes": _EXCLUDES,
            "env_vars": environment,
            # The package as it is here, whatever the cluster has installed.
            **({} if (working_dir / "rayssl").is_dir() else {"py_modules": [str(package)]}),
        }
        with _in_plain_words(self.address):
            return self._client.submit_job(
                entrypoint=shlex.join([python, "-m", "rayssl", *arguments]), runtime_env=runtime_env
            )

    def follow(self, job_id: str, show: Callable[[str], None]) -> Job:
        """Show a job's output as it comes, until it ends; gives how it ended."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job_id):
                show(text)

        with _in_plain_words(self.address):
            asyncio.run(tail())
        return self.find(job_id)

    def find(self, job_id: str) -> Job:
        """One job.

        Raises:
            ClusterError: If there is none of that id.
        """
        with _in_plain_words(self.address):
            info = self._client.get_job_info(job_id)
        return Job(job_id, str(info.status.value), info.entrypoint, info.driver_exit_code)

    def jobs(self) -> list[Job]:
        """All submitted jobs, the newest last."""
        with _in_plain_words(self.address):
            found = [info for info in self._client.list_jobs() if info.submission_id]
        found.sort(key=lambda info: info.start_time or 0)
        return [
            Job(str(info.submission_id), str(info.status.value), info.entrypoint, info.driver_exit_code)
            for info in found
        ]

    def logs(self, job_id: str) -> str:
        """What a job has printed so far."""
        with _in_plain_words(self.address):
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> None:
        """Ask a job to stop: it gets SIGTERM, marks its run as killed, and can be gone on with later."""
        with _in_plain_words(self.address):
            self._client.stop_job(job_id)


def passed_on(environment: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    """The variables that a job is given: MLflow's and Ray's way of logging in, but no secret.

    A job's environment can be read by everybody who sees the cluster's dashboard; secrets belong into the cluster's
    own.
    """
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_PASSED_ON) and not any(word in name for word in _SECRETS)
    }


def withheld(environment: "os._Environ[str] | dict[str, str]") -> list[str]:
    """Names of the variables that are not passed on because they are secrets."""
    return sorted(name for name in environment if name.startswith("MLFLOW_") and any(word in name for word in _SECRETS))


@contextmanager
def _in_plain_words(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into one line with the way out."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise ClusterError(_no_token(address)) from None
    except ConnectionError:
        raise ClusterError(
            f"--address: nobody answers at {address}. Give http://HOST:PORT of a running head's dashboard (8265 by "
            "default; `ray start --head --dashboard-host=...` prints it)."
        ) from None
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip()
        if "401" in reason or "403" in reason:
            raise ClusterError(_no_token(address)) from None
        first = next(iter(reason.splitlines()), type(error).__name__)
        raise ClusterError(f"Ray at {address}: {first}") from None


def _no_token(address: str) -> str:
    return (
        f"Ray at {address}: refuses the token, or wants one. Set RAY_AUTH_MODE=token and put the cluster's token into "
        "~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH."
    )
