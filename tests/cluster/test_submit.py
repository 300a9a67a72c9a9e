"""Jobs over HTTP: what is sent along, mistakes found before, and a real cluster that runs and stops them."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from rayssl.cli import cli
from rayssl.cluster.submit import Cluster, passed_on, withheld
from rayssl.errors import ClusterError, ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).parent.parent.parent


def test_secrets_are_not_sent_along() -> None:
    """A job's environment is shown on the dashboard."""
    environment = {
        "MLFLOW_TRACKING_URI": "http://tracking:5000",
        "MLFLOW_TRACKING_TOKEN": "s3cret",
        "MLFLOW_TRACKING_PASSWORD": "s3cret",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "s3cret",
        "HOME": "/home/somebody",
    }
    assert passed_on(environment) == {"MLFLOW_TRACKING_URI": "http://tracking:5000", "RAY_AUTH_MODE": "token"}
    assert withheld(environment) == ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["pretrian", "demo-psl"], "command 'pretrian': unknown. Did you mean 'pretrain'?"),
        (["pretrain", "demoo"], "recipe 'demoo': unknown"),
        (["pretrain", "demo-psl", "optimizer.learning_rat=1"], "unknown key. Did you mean 'learning_rate'"),
        (["pretrain", "demo-psl"], "storage_path: must be absolute for a job"),
    ],
)
def test_mistakes_are_found_before_the_cluster_is_asked(command: list[str], message: str) -> None:
    outcome = CliRunner().invoke(cli, ["submit", "--address", "http://127.0.0.1:9", "--", *command])
    assert isinstance(outcome.exception, ConfigError | ClusterError)
    assert message in str(outcome.exception)


def test_an_address_where_nobody_is_gets_one_line() -> None:
    with pytest.raises(ClusterError, match="nobody answers at http://127.0.0.1:9") as caught:
        Cluster("http://127.0.0.1:9")
    assert len(str(caught.value).splitlines()) == 1


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A real Ray head with its dashboard, on loopback; the address to submit to."""
    port, dashboard = free_port(), free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
        command += [f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += [f"--temp-dir={folder}", "--disable-usage-stats", "--include-dashboard=true"]
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            deadline = time.monotonic() + 120
            while not answers(dashboard):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(1)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def rayssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    return subprocess.run(
        [sys.executable, "-m", "rayssl", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_job_runs_there_and_its_output_and_exit_code_come_back(head: str) -> None:
    done = rayssl("submit", "--address", head, "--python", sys.executable, "--", "recipes")
    assert done.returncode == 0, done.stderr
    assert "psl-rotation-small" in done.stdout and "succeeded" in done.stdout
    failed = rayssl("submit", "--address", head, "--python", sys.executable, "--", "evaluate")
    assert failed.returncode == 2  # the command's own, for a missing argument
    listed = rayssl("jobs", "--address", head, "list")
    assert [line.split()[1] for line in listed.stdout.splitlines()] == ["SUCCEEDED", "FAILED"]


@pytest.mark.slow
def test_a_job_that_is_stopped_leaves_a_run_to_go_on_with(head: str, tmp_path: Path) -> None:
    overrides = ["data.limit=256", "cluster.workers=1", "method.stages.0.epochs=500", f"storage_path={tmp_path}"]
    started = rayssl(
        "submit", "--address", head, "--python", sys.executable, "--no-wait", "--", "pretrain", "demo-psl", *overrides
    )
    assert started.returncode == 0, started.stderr
    job_id = started.stdout.split()[1]
    deadline = time.monotonic() + 180
    while "epoch 1/" not in rayssl("jobs", "--address", head, "logs", job_id).stdout:
        assert time.monotonic() < deadline
        time.sleep(2)
    rayssl("jobs", "--address", head, "stop", job_id)
    while Cluster(head).find(job_id).status == "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(1)
    assert Cluster(head).find(job_id).status == "STOPPED"
    assert next(tmp_path.glob("demo-psl-*/config.yaml")).exists()
