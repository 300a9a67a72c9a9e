"""Calls to MLflow that are refused, wait for a server or a store that is away, or are interrupted."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rayssl.tracking import MLflowTracker
from rayssl.tracking.outbox import Outbox

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and SQLAlchemy's own


def test_a_record_that_is_refused_holds_up_no_other(tmp_path: Path) -> None:
    """A parameter's second value, which MLflow never takes, as opposed to a server that is away."""
    told: list[str] = []
    outbox = Outbox(f"sqlite:///{tmp_path}/mlflow.db", told.append)
    ids: list[str] = []
    outbox.send(lambda client: ids.append(client.create_run("0").info.run_id))
    for value in ("first", "second"):
        outbox.send(lambda client, value=value: client.log_param(ids[0], "key", value))  # type: ignore[misc]
    outbox.send(lambda client: client.log_metric(ids[0], "loss", 1.0))
    run = MlflowClient(outbox.uri).get_run(ids[0])
    assert (run.data.params, run.data.metrics) == ({"key": "first"}, {"loss": 1.0})
    (line,) = told
    assert line.startswith("MLflow refuses a record (") and "Changing param values" in line


class NoCredentialsError(Exception):
    """As the stores' own libraries raise them, of no common kind."""


def test_files_that_no_store_takes_hold_up_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayssl.tracking.outbox._PATIENCE", 1.5)
    told: list[str] = []
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = MLflowTracker.open(tmp_path, uri=uri, notify=told.append)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    may_be_stored = threading.Event()
    send = MlflowClient.log_artifact

    def refuse(*arguments: Any) -> None:
        if not may_be_stored.is_set():
            raise NoCredentialsError("Unable to locate credentials")
        send(*arguments)

    monkeypatch.setattr(MlflowClient, "log_artifact", refuse)
    tracker.log_artifact(tmp_path / "config.yaml")
    tracker.log_metrics({"loss": 3.0}, step=1)
    tracker.log_metrics({"loss": 2.0}, step=2)
    client = MlflowClient(uri)
    assert client.get_run(str(tracker.run_id)).data.metrics == {"loss": 2.0}
    assert [line.partition(" can't ")[2] for line in told] == [
        "take files (Unable to locate credentials); training goes on, what it misses is kept and sent later"
    ]
    tracker.flush()
    assert told[1].endswith("still can't take files: 1 files are lost; the run's folder has all")
    may_be_stored.set()
    tracker.finish()
    assert [item.path for item in client.list_artifacts(str(tracker.run_id))] == ["config.yaml"]
    assert client.get_run(str(tracker.run_id)).info.status == "FINISHED"
    assert len(told) == 2


def test_a_server_that_answers_nothing_is_not_asked_at_every_epoch(tmp_path: Path) -> None:
    """Ten seconds an answer would be most of a short epoch; all workers wait for rank 0."""
    outbox = Outbox(f"sqlite:///{tmp_path}/mlflow.db", lambda _: None)
    asked: list[float] = []

    def take_long(_: MlflowClient) -> None:
        asked.append(time.monotonic())
        time.sleep(0.3)
        raise OSError("timed out")

    started = time.monotonic()
    while time.monotonic() - started < 1.5:
        outbox.send(take_long)
        time.sleep(0.01)
    assert len(asked) == 1  # the next try is due after 3 s


def test_an_interruption_lets_a_call_come_to_its_end(tmp_path: Path) -> None:
    """SQLAlchemy would keep the database locked otherwise, and the record of the interruption waits for minutes."""
    outbox = Outbox(f"sqlite:///{tmp_path}/mlflow.db", pytest.fail)
    done: list[str] = []

    def take_long(client: MlflowClient) -> None:
        done.append("begun")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        done.append("ended")

    outbox.send(lambda client: done.append("first"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            outbox.send(take_long)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["first", "begun"]
    outbox.send(lambda client: done.append("next"))
    assert done == ["first", "begun", "ended", "next"]
