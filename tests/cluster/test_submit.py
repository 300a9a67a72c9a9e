"""Jobs over HTTP: what is sent along, mistakes found before, and a real cluster that runs and stops them."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import click
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from rayssl.cli import cli
from rayssl.cluster.submit import Cluster, Job, passed_on, withheld
from rayssl.commands.submit import _leave_or_stop
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


def test_an_address_with_a_password_in_it_is_not_sent_along() -> None:
    environment = {
        "MLFLOW_TRACKING_URI": "http://user:s3cret@tracking:5000",
        "MLFLOW_BACKEND_STORE_URI": "postgresql://mlflow:s3cret@tracking/mlflow",
        "MLFLOW_EXPERIMENT_NAME": "rayssl",
    }
    assert passed_on(environment) == {"MLFLOW_EXPERIMENT_NAME": "rayssl"}
    assert withheld(environment) == ["MLFLOW_BACKEND_STORE_URI", "MLFLOW_TRACKING_URI"]


@pytest.mark.parametrize(
    ("status", "code", "shown"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 143)],
)
def test_a_job_ends_with_the_code_that_a_shell_would_show(status: str, code: int | None, shown: int) -> None:
    assert Job("id", status, "command", code).exit_status == shown


class FlakyClient:
    """A dashboard whose connection breaks in the middle of a job's output, which each time is sent from its start."""

    def __init__(self, *tails: "list[str | Exception]") -> None:
        self._tails = list(tails)
        self._over = False

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for part in self._tails.pop(0):
            if isinstance(part, Exception):
                raise part
            yield part
        self._over = not self._tails

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        status = SimpleNamespace(value="SUCCEEDED" if self._over else "RUNNING")
        return SimpleNamespace(status=status, entrypoint="", driver_exit_code=0 if self._over else None, message=None)


def cluster_of(client: object, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr("rayssl.cluster.submit.time.sleep", lambda _: None)
    cluster = object.__new__(Cluster)
    cluster.address, cluster._client = "http://head:8265", client
    return cluster


def followed(client: FlakyClient, monkeypatch: pytest.MonkeyPatch) -> tuple[Job, str]:
    shown: list[str] = []
    return cluster_of(client, monkeypatch).follow("job", shown.append), "".join(shown)


def test_output_is_shown_once_although_the_connection_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
    client = FlakyClient(["one ", "two", broken], ["one two thr"], [broken], ["one two three", " four"])
    job, shown = followed(client, monkeypatch)
    assert (job.status, shown) == ("SUCCEEDED", "one two three four")


def test_a_cluster_that_stays_away_is_told_and_the_job_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayssl.cluster.submit._RECONNECT_SECONDS", 0.0)
    with pytest.raises(ClusterError, match="may go on without it; follow it with: rayssl jobs"):
        followed(FlakyClient(["one", aiohttp.ClientConnectionError("gone")]), monkeypatch)


class StartingClient:
    """A dashboard whose node has not come up yet, so many times."""

    def __init__(self, refusals: int) -> None:
        self._refusals = refusals

    def submit_job(self, *, entrypoint: str, runtime_env: object) -> str:
        if self._refusals:
            self._refusals -= 1
            raise RuntimeError(
                "Request failed with status code 500: No available agent to submit job, please try again later.."
            )
        return f"job of {entrypoint}"


def test_a_head_that_has_just_started_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = cluster_of(StartingClient(3), monkeypatch)
    assert cluster.submit(["pretrain", "demo-psl"], working_dir=tmp_path) == "job of python -m rayssl pretrain demo-psl"
    monkeypatch.setattr("rayssl.cluster.submit._READY_SECONDS", 0.0)
    cluster = cluster_of(StartingClient(3), monkeypatch)
    with pytest.raises(ClusterError, match="Ray at http://head:8265: .*No available agent"):
        cluster.submit(["pretrain", "demo-psl"], working_dir=tmp_path)


def test_a_second_interruption_leaves_the_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> bool:
        raise click.Abort

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("click.confirm", interrupt)
    _leave_or_stop("http://127.0.0.1:9", "job")  # where nobody could be asked to stop anything


@pytest.mark.parametrize("command", [["pretrain", "demo-psl"], ["search", "search_spaces/smoke.yaml"]])
def test_a_job_refuses_a_folder_that_is_deleted_with_it(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """However it was submitted."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    outcome = CliRunner().invoke(cli, command)
    assert "storage_path: must be absolute for a job" in str(outcome.exception)


def test_a_server_that_is_no_dashboard_gets_one_line() -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClusterError, match="answers, but not as a Ray dashboard"):
            Cluster(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    # Nor a line of Ray's own when the output of a job has ended.
    assert not logging.getLogger("ray.dashboard.modules.job.sdk").isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["pretrian", "demo-psl"], "command 'pretrian': unknown, or none that a job can run. Did you mean 'pretrain'?"),
        (["jobs", "list"], "command 'jobs': unknown, or none that a job can run"),
        (["pretrain", "demoo"], "recipe 'demoo': unknown"),
        (["pretrain", "demo-psl", "optimizer.learning_rat=1"], "unknown key. Did you mean 'learning_rate'"),
        (["pretrain", "demo-psl"], "storage_path: must be absolute for a job"),
        (["pretrain", "../elsewhere.yaml", "storage_path=/runs"], "lies outside of"),
        (["search", "search_spaces/smoke.yaml"], "storage_path: must be absolute for a job"),
        (["search", "search_spaces/smoke.yaml", "tune.num_sample=1", "storage_path=/runs"], "unknown"),
        (["evaluate", "demo-psl", "--protocol", "knn"], "storage_path: must be absolute for a job"),
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


@contextmanager
def ray_head(*, cpus: int = 2, nodes: int = 1, **variables: str) -> Iterator[str]:
    """A real Ray head with its dashboard, and other nodes, each with so many CPUs; the address to submit to."""
    port, dashboard = free_port(), free_port()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        start = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--num-cpus={cpus}"]
        start += ["--disable-usage-stats"]
        head = [*start, "--head", f"--port={port}", f"--temp-dir={folder}/0", "--include-dashboard=true"]
        head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        # Folders of their own, as on different machines: a node deletes a job's working copy when it needs it no more.
        more = [[*start, f"--address={node_address()}:{port}", f"--temp-dir={folder}/{n}"] for n in range(1, nodes)]
        commands = [head, *more]
        processes = []
        try:
            for command in commands:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    start_new_session=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                processes.append(process)
                deadline = time.monotonic() + 120
                while not answers(dashboard):
                    assert time.monotonic() < deadline and process.poll() is None
                    time.sleep(1)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            for process in reversed(processes):
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def node_address() -> str:
    """Under which Ray's other nodes find the head on this machine."""
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """One that lets everybody in."""
    with ray_head(RAY_AUTH_MODE="disabled") as address:
        yield address


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def rayssl(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", **variables}
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
    failed = rayssl("submit", "--address", head, "--python", sys.executable, "--", "report", "/nowhere")
    assert failed.returncode == 2  # the command's own: there is no such run
    listed = rayssl("jobs", "--address", head, "list")
    assert [line.split()[1] for line in listed.stdout.splitlines()] == ["SUCCEEDED", "FAILED"]


@pytest.mark.slow
def test_a_job_that_is_stopped_writes_a_checkpoint_and_goes_on_when_it_is_submitted_again(
    head: str, tmp_path: Path
) -> None:
    overrides = ["data.limit=1200", "cluster.workers=1", f"storage_path={tmp_path}", "evaluations=[]"]
    overrides += [f"method.stages.{index}.epochs={epochs}" for index, epochs in enumerate([8, 1, 1])]
    submit = ["submit", "--address", head, "--python", sys.executable]
    started = rayssl(*submit, "--no-wait", "--", "pretrain", "demo-psl", *overrides)
    assert started.returncode == 0, started.stderr
    job_id = started.stdout.split()[1]
    deadline = time.monotonic() + 180
    while "epoch 1/" not in rayssl("jobs", "--address", head, "logs", job_id).stdout:
        assert time.monotonic() < deadline
        time.sleep(1)
    rayssl("jobs", "--address", head, "stop", job_id)
    while not Cluster(head).find(job_id).is_over:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert Cluster(head).find(job_id).status == "STOPPED"
    output = rayssl("jobs", "--address", head, "logs", job_id).stdout
    assert "the same command goes on from there" in output, output  # said once the checkpoint is written
    assert recorded_status(tmp_path) == "KILLED"
    again = rayssl(*submit, "--", "pretrain", "demo-psl", *overrides)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stdout and "succeeded" in again.stdout
    assert recorded_status(tmp_path) == "FINISHED"


def recorded_status(storage: Path) -> str:
    """How the only run stands in MLflow."""
    (record,) = (json.loads(path.read_text()) for path in storage.glob("demo-psl-*/mlflow.json"))
    return str(MlflowClient(f"sqlite:///{storage / 'mlflow.db'}").get_run(record["run_id"]).info.status)


@pytest.fixture(scope="module")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server over HTTP."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command, env=quiet, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not answers(port):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(1)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)


@pytest.mark.slow
def test_both_methods_run_as_jobs_on_two_nodes_and_are_recorded_by_a_server(
    tracking_server: str, tmp_path: Path
) -> None:
    """Each node has one CPU, so two workers are on both of them."""
    recipes = [
        ["demo-psl", "data.limit=300", *(f"method.stages.{index}.epochs=1" for index in range(3))],
        ["demo-mgta", "data.limit=300", "method.baseline.epochs=1", "method.rounds.count=1", "method.rounds.epochs=1"]
        + ["method.final.epochs=1", "method.clusters=20"],
    ]
    with ray_head(cpus=1, nodes=2, RAY_AUTH_MODE="disabled") as head:
        for recipe in recipes:
            command = ["pretrain", *recipe, "backbone.width=8", "data.image_size=16", f"storage_path={tmp_path}"]
            done = rayssl(
                *("submit", "--address", head, "--python", sys.executable, "--", *command, "cluster.workers=2"),
                MLFLOW_TRACKING_URI=tracking_server,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "starting 2 workers" in done.stdout and f"the MLflow page is at {tracking_server}" in done.stdout
    client = MlflowClient(tracking_server)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/mlflow.json")]
    assert [client.get_run(record["run_id"]).info.status for record in records] == ["FINISHED", "FINISHED"]
    assert {
        tuple(path.name for path in tmp_path.glob(f"{name}-*/encoder.pt")) for name in ("demo-psl", "demo-mgta")
    } == {("encoder.pt",)}


@pytest.mark.slow
def test_a_missing_and_a_wrong_token_get_one_line(tmp_path: Path) -> None:
    token, wrong = tmp_path / "token", tmp_path / "wrong"
    token.write_text("a" * 64)
    wrong.write_text("b" * 64)
    with ray_head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)) as address:
        for variables in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)}):
            refused = rayssl("jobs", "--address", address, "list", **variables)
            assert refused.returncode == 2
            assert refused.stderr.startswith(f"error: Ray at {address} refuses the token, or wants one.")
            assert len(refused.stderr.splitlines()) == 1
        let_in = rayssl("jobs", "--address", address, "list", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
        assert (let_in.returncode, let_in.stdout) == (0, ""), let_in.stderr
