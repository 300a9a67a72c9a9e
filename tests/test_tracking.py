"""Runs in a real MLflow: parameters, metrics by epoch, children, artifacts, endings, and a server that goes away."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rayssl.addresses import without_secrets
from rayssl.cli import main
from rayssl.cluster.train import run_on_ray
from rayssl.errors import ClusterError
from rayssl.experiment import run_experiment
from rayssl.launch import mlflow_command, pretrain
from rayssl.processes import this_process
from rayssl.recipe_file import flatten
from rayssl.runs import open_run
from rayssl.runtime import EpochDone
from rayssl.tracking import MLflowTracker, mark_dead_runs, tracking_uri
from rayssl.tracking.connection import reason_of
from tests.conftest import SMALL, SmallRun
from tests.dying import DyingRuntime, Interrupted

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and SQLAlchemy's own
ROOT = Path(__file__).parent.parent


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """A real tracking server on loopback, killed with all its processes at the end."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "store"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, env=environment, **quiet)  # type: ignore[call-overload]
    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=1)
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
        else:
            return
    raise TimeoutError(url)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_run_and_its_stages_are_recorded(small_run: SmallRun) -> None:
    config = small_run.config()
    report = pretrain(config, show=lambda event: None)
    client = MlflowClient(tracking_uri(small_run.storage))
    (experiment,) = [each for each in client.search_experiments() if each.name == "rayssl"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    name = report.folder.name
    assert runs.keys() == {name, f"{name}/stage-1", f"{name}/stage-2", f"{name}/stage-3"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs[name]
    assert parent.data.params == {key: str(value) for key, value in flatten(config).items()}
    for number in (1, 2, 3):
        assert runs[f"{name}/stage-{number}"].data.tags["mlflow.parentRunId"] == parent.info.run_id
    losses = client.get_metric_history(parent.info.run_id, "loss")
    assert [(point.step, point.value) for point in losses] == [(row["epoch"], row["loss"]) for row in report.history]
    stage_2 = client.get_metric_history(runs[f"{name}/stage-2"].info.run_id, "probe/best/top1")
    assert [point.step for point in stage_2] == [2, 3]
    assert parent.data.metrics["linear_probe/best/top1"] == report.metrics["linear_probe/best/top1"]
    wanted = {"loss", "accuracy", "chance", "learning_rate", "images_per_second", "feature/std", "knn/k20/top1"}
    assert wanted <= parent.data.metrics.keys()
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"config.yaml", "encoder.pt", "report.md", "history.jsonl"} <= artifacts
    stage_run = runs[f"{name}/stage-1"].info.run_id
    assert {item.path for item in client.list_artifacts(stage_run, "checkpoint")} == {
        "checkpoint/checkpoint.json",
        "checkpoint/tensors.pt",
    }


def test_a_failed_run_is_marked_and_taken_up_again(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_run.config()

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr("rayssl.experiment.evaluate_beside_random", fail)
        with pytest.raises(RuntimeError):
            pretrain(config, show=lambda event: None)
    client = MlflowClient(tracking_uri(small_run.storage))
    run_id = json.loads((open_run(config).path / "mlflow.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"
    pretrain(config, show=lambda event: None)
    assert client.get_run(run_id).info.status == "FINISHED"


def test_an_interrupted_run_and_its_open_stage_are_marked_killed(small_run: SmallRun) -> None:
    """Ctrl-C in stage 2, as the terminal sends it."""
    command = [sys.executable, "-m", "rayssl", "pretrain", "demo-psl", *SMALL, "method.stages.1.epochs=200"]
    command.append(f"storage_path={small_run.storage}")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("stage 2/3"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    statuses = _statuses(small_run)
    assert statuses == {"": "KILLED", "stage-1": "FINISHED", "stage-2": "KILLED"}


def test_a_run_whose_process_died_without_a_word_is_marked_by_the_next_one(small_run: SmallRun) -> None:
    run = open_run(small_run.config())
    uri = tracking_uri(small_run.storage)
    code = (
        "import os, sys; from pathlib import Path; from rayssl.tracking import MLflowTracker\n"
        f"tracker = MLflowTracker.open(Path({str(run.path)!r}), uri={uri!r})\n"
        "tracker.child('stage-1'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert set(_statuses(small_run).values()) == {"RUNNING"}
    mark_dead_runs(uri)
    assert set(_statuses(small_run).values()) == {"KILLED"}


def _statuses(small_run: SmallRun) -> dict[str, str]:
    """Status of the run ("") and of its stages."""
    client = MlflowClient(tracking_uri(small_run.storage))
    experiment = client.get_experiment_by_name("rayssl")
    runs = client.search_runs([experiment.experiment_id])
    return {run.info.run_name.partition("/")[2]: run.info.status for run in runs}


def test_what_is_recorded_is_neither_repeated_nor_changed(tmp_path: Path) -> None:
    """As after a kill: another process takes up the record, and does again what was not in the checkpoint."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    first = MLflowTracker.open(tmp_path, uri=uri)
    first.log_params({"seed": 0, "cluster.timeout_s": 60})
    first.child("stage-1").log_metrics({"loss": 3.0}, step=1)
    first.log_metrics({"loss": 3.0}, step=1)
    first.log_metrics({"loss": 2.0, "probe": 0.5}, step=2)
    again = MLflowTracker.attach(tmp_path, uri=uri)
    assert again is not None
    again.log_params({"seed": 0, "cluster.timeout_s": 90, "new": 1})
    again.child("stage-1").log_metrics({"loss": 3.0}, step=1)
    for step in (1, 2, 3):
        again.log_metrics({"loss": 4.0 - step, "probe": 0.5}, step=step)
    client = MlflowClient(uri)
    assert client.get_run(str(first.run_id)).data.params == {"seed": "0", "cluster.timeout_s": "60", "new": "1"}
    losses = client.get_metric_history(str(first.run_id), "loss")
    assert [(row.step, row.value) for row in losses] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert sorted(row.step for row in client.get_metric_history(str(first.run_id), "probe")) == [1, 2, 3]
    stage = str(again.child("stage-1").run_id)
    assert [row.step for row in client.get_metric_history(stage, "loss")] == [1]


def test_a_resumed_run_records_what_a_dead_process_did_not_send(small_run: SmallRun) -> None:
    """Killed after its checkpoint, while the server was away."""
    config = small_run.config("evaluations=[]")
    run = open_run(config)
    uri = tracking_uri(small_run.storage)
    MLflowTracker.open(run.path, uri=uri)
    with pytest.raises(Interrupted):
        run_experiment(config, DyingRuntime(run.path, after=2))  # its tracker is the one that records nothing
    report = pretrain(config, show=lambda event: None)
    client = MlflowClient(uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "rayssl"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    losses = client.get_metric_history(runs[report.folder.name].info.run_id, "loss")
    assert [(row.step, row.value) for row in losses] == [(row["epoch"], row["loss"]) for row in report.history]
    stages = [client.get_metric_history(runs[f"{report.folder.name}/stage-{n}"].info.run_id, "loss") for n in (1, 2, 3)]
    assert [[row.step for row in rows] for rows in stages] == [[1], [2, 3], [4]]
    for number in (1, 2, 3):  # the first one's end came before the kill
        stage = runs[f"{report.folder.name}/stage-{number}"].info.run_id
        assert len(client.list_artifacts(stage, "checkpoint")) == 2


def test_stages_that_have_ended_are_not_opened_again_by_a_restart(small_run: SmallRun) -> None:
    config = small_run.config("evaluations=[]")
    run, uri = open_run(config), tracking_uri(small_run.storage)
    tracker = MLflowTracker.open(run.path, uri=uri)
    with pytest.raises(Interrupted):
        run_experiment(config, DyingRuntime(run.path, after=2), tracker)
    client = MlflowClient(uri)
    first = str(tracker.child("stage-1", reopen=False).run_id)
    ended = client.get_run(first).info.end_time
    assert ended is not None
    pretrain(config, show=lambda event: None)
    assert client.get_run(first).info.end_time == ended


def test_a_run_that_dies_while_it_records_its_end_is_finished_by_the_same_command(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end may wait for a server that is away for two minutes."""
    config = small_run.config("evaluations=[]")

    def die(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(MLflowTracker, "flush", die)
        with pytest.raises(Interrupted):
            pretrain(config, show=lambda event: None)
    run = open_run(config)
    assert (run.path / "encoder.pt").exists() and not run.finished
    shown: list[object] = []
    report = pretrain(config, show=shown.append)
    assert report.folder == run.path and open_run(config).path != run.path
    assert not any(isinstance(event, EpochDone) for event in shown)  # nothing is trained again
    run_id = json.loads((run.path / "mlflow.json").read_text())["run_id"]
    client = MlflowClient(tracking_uri(small_run.storage))
    assert "report.json" in {item.path for item in client.list_artifacts(run_id)}


def test_a_server_that_is_not_there_is_one_clear_error(small_run: SmallRun) -> None:
    run = open_run(small_run.config())
    with pytest.raises(ClusterError, match=r"MLflow at http://127\.0\.0\.1:1: can't be reached"):
        MLflowTracker.open(run.path, uri="http://127.0.0.1:1")


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_gets_everything(small_run: SmallRun, tmp_path: Path) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    run = open_run(small_run.config())
    told: list[str] = []
    with server(tmp_path / "server", port):
        tracker = MLflowTracker.open(run.path, uri=uri, notify=told.append)
        tracker.log_metrics({"loss": 3.0}, step=1)
    started = time.monotonic()
    tracker.log_metrics({"loss": 2.0}, step=2)
    child = tracker.child("stage-1")
    child.log_metrics({"loss": 2.0}, step=2)
    assert time.monotonic() - started < 30
    assert len(told) == 1
    assert "training goes on" in told[0]
    with server(tmp_path / "server", port):
        tracker.log_metrics({"loss": 1.0}, step=3)
        child.finish()
        tracker.finish()
        client = MlflowClient(uri)
        points = client.get_metric_history(str(tracker.run_id), "loss")
        assert [(point.step, point.value) for point in points] == [(1, 3.0), (2, 2.0), (3, 1.0)]
        assert client.get_run(str(child.run_id)).data.metrics == {"loss": 2.0}
        assert client.get_run(str(tracker.run_id)).info.status == "FINISHED"


def test_without_a_tracker_nothing_is_recorded(small_run: SmallRun) -> None:
    run_experiment(small_run.config())
    assert not (small_run.storage / "mlflow.db").exists()


def test_a_password_in_the_servers_address_is_left_nowhere(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Training, a measurement, the doctor and a server that is gone: what is written, printed, recorded."""
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:XYZ%5AY@127.0.0.1:{port}")
    with server(tmp_path / "server", port):
        main(["pretrain", "demo-psl", *SMALL, f"storage_path={small_run.storage}"])
        (run,) = small_run.storage.glob("demo-psl-*")
        main(["evaluate", str(run), "--protocol", "knn", f"storage_path={small_run.storage}"])
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:XYZ%5AY@localhost:{port}")
        main(["evaluate", str(run), "--protocol", "knn", f"storage_path={small_run.storage}"])  # no record there
        client = MlflowClient(f"http://127.0.0.1:{port}")
        experiments = [each.experiment_id for each in client.search_experiments()]
        records = [str(each.to_dictionary()) for each in client.search_runs(experiments)]
        assert any("knn/k20/top1" in each for each in records)
        with pytest.raises(SystemExit):
            main(["doctor", "--storage", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main(["pretrain", "demo-psl", *SMALL, "name=other", f"storage_path={small_run.storage}"])
    shown = "".join(capfd.readouterr())
    assert f"the MLflow page is at http://***@127.0.0.1:{port}" in shown
    assert f"MLflow at http://***@localhost:{port} has no record of this run" in shown
    assert f"MLflow at http://***@localhost:{port}: can't be reached (API request to http://***@localhost" in shown
    files = [
        path.read_bytes()
        for path in [*small_run.storage.rglob("*"), *(tmp_path / "server").rglob("*")]
        if path.is_file()
    ]
    for text in [shown, *records, *(content.decode(errors="ignore") for content in files)]:
        assert not any(secret in text for secret in ("somebody", "XYZ%5AY", "XYZZY"))


def test_a_tracker_is_taken_up_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a worker, whose settings can be read on the dashboard; the server refuses whoever has no password."""
    with password_server("me:XYZZY") as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        (tmp_path / "mlflow.json").write_text(json.dumps({"uri": uri, "run_id": "1", "children": {}}))
        tracker = MLflowTracker.attach(tmp_path, uri=uri)
        assert tracker is not None
        told: list[str] = []
        worker = MLflowTracker.attach(tmp_path, uri=tracker.uri, notify=told.append)
        assert worker is not None
        worker.set_tags({"a": "b"})
        assert told == []
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        stranger = MLflowTracker.attach(tmp_path, uri=tracker.uri, notify=told.append)
        assert stranger is not None
        stranger.set_tags({"a": "b"})
        assert "401" in told[0]
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "XYZZY")
        plain = without_secrets(uri).replace("***@", "")
        (tmp_path / "mlflow.json").write_text(json.dumps({"uri": plain, "run_id": "1", "children": {}}))
        documented = MLflowTracker.attach(tmp_path, uri=plain, notify=told.append)
        assert documented is not None
        documented.set_tags({"a": "b"})
        assert len(told) == 1


@contextmanager
def password_server(user_info: str) -> Iterator[str]:
    """Answers every request with {} if it brings the right name and password; gives its address, which has them."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            right = self.headers["Authorization"] == f"Basic {b64encode(user_info.encode()).decode()}"
            self.send_response(200 if right else 401)
            self.end_headers()
            self.wfile.write(b"{}" if right else b"You are not authenticated.")

        def log_message(self, *_: object) -> None:
            pass

    found = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    try:
        yield f"http://{user_info}@127.0.0.1:{found.server_port}"
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


def test_the_command_that_opens_mlflow_shows_no_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:XYZZY@127.0.0.1/db")
    assert mlflow_command(tmp_path).startswith("MLFLOW_BACKEND_STORE_URI=$MLFLOW_TRACKING_URI ")
    assert "XYZZY" not in mlflow_command(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql:///db")
    assert "--backend-store-uri postgresql:///db" in mlflow_command(tmp_path)


@pytest.mark.parametrize(
    "content", ["", '{"uri": "sqlite', "[]", "{}", '{"uri": 1, "run_id": "a", "children": []}', "\xff"]
)
def test_a_damaged_memory_of_the_record_is_one_warning_and_a_new_record(tmp_path: Path, content: str) -> None:
    """As after a kill or on a disk that was full, when it was not yet renamed into place."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    first = MLflowTracker.open(tmp_path, uri=uri)
    (tmp_path / "mlflow.json").write_text(content, encoding="latin-1")
    told: list[str] = []
    second = MLflowTracker.open(tmp_path, uri=uri, notify=told.append)
    assert second.run_id != first.run_id
    assert len(told) == 1
    assert "mlflow.json: is damaged" in told[0]
    third = MLflowTracker.open(tmp_path, uri=uri, notify=told.append)
    assert third.run_id == second.run_id


def test_dead_runs_are_looked_for_without_raising_into_the_run() -> None:
    """Also where an error says nothing."""
    told: list[str] = []
    mark_dead_runs("http://127.0.0.1:1", notify=told.append)
    assert len(told) == 1
    assert "can't be reached" in told[0]
    assert reason_of(OSError(""), "http://127.0.0.1:1") == "OSError"


def test_a_run_of_another_container_with_this_ones_name_is_left_alone(small_run: SmallRun) -> None:
    """Its PID is nobody's here, or somebody else's."""
    run = open_run(small_run.config())
    uri = tracking_uri(small_run.storage)
    tracker = MLflowTracker.open(run.path, uri=uri)
    boot, _, _, start = this_process().split()
    for mark in (f"{boot} pid:[1] 4194305 {start}", f"{boot} pid:[1] {os.getpid()} 1", ""):
        tracker.set_tags({"rayssl.process": mark, "rayssl.pid": "4194305"})
        mark_dead_runs(uri)
        assert set(_statuses(small_run).values()) == {"RUNNING"}


def test_a_record_that_somebody_deleted_is_begun_anew(tmp_path: Path) -> None:
    """Put into the bin, or gone with its database; the run itself goes on either way."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    ids = [str(MLflowTracker.open(tmp_path, uri=uri).run_id)]
    told: list[str] = []
    MlflowClient(uri).delete_run(ids[0])
    ids.append(str(MLflowTracker.open(tmp_path, uri=uri, notify=told.append).run_id))
    state = json.loads((tmp_path / "mlflow.json").read_text())
    (tmp_path / "mlflow.json").write_text(json.dumps({**state, "run_id": "0" * 32}))
    ids.append(str(MLflowTracker.open(tmp_path, uri=uri, notify=told.append).run_id))
    assert len(set(ids)) == 3
    assert len(told) == 2
    assert all("has no longer the record of this run; another one is begun" in each for each in told)


@pytest.mark.slow
@pytest.mark.ray
def test_a_worker_of_ray_finds_the_password_though_it_is_not_told(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Train's settings are shown on the dashboard; the worker has the driver's environment."""
    port = free_port()
    uri = f"http://somebody:XYZZY@127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    seen: list[str | None] = []

    def watched(*arguments: Any, tracking_uri: str | None, **more: Any) -> Any:
        seen.append(tracking_uri)
        return run_on_ray(*arguments, tracking_uri=tracking_uri, **more)

    monkeypatch.setattr("rayssl.cluster.train.run_on_ray", watched)
    with server(tmp_path / "server", port):
        command = ["pretrain", "demo-psl", *SMALL, "cluster.workers=1", f"storage_path={small_run.storage}"]
        main(command)
        client = MlflowClient(f"http://127.0.0.1:{port}")
        experiment = client.get_experiment_by_name("rayssl")
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        assert len(runs) == 4
        assert all("loss" in run.data.metrics for run in runs)
    assert seen == [f"http://***@127.0.0.1:{port}"]
    assert "XYZZY" not in "".join(capfd.readouterr())
    files = [path.read_bytes() for path in small_run.storage.rglob("*") if path.is_file()]
    assert not any(b"XYZZY" in content for content in files)
