"""Runs in MLflow: one for a pre-training, a child for each stage. The only module that imports mlflow."""

import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rayssl.errors import ClusterError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Without these a server that is down holds the training up for minutes, a call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

EXPERIMENT = "rayssl"
_STATE = "mlflow.json"
_FINAL_PATIENCE = 30.0
"""Seconds that the end of a run waits for a server that is away."""

Call = Callable[["MlflowClient"], object]


def tracking_uri(storage_path: Path) -> str:
    """The server that MLFLOW_TRACKING_URI names, or a database in the folder of all runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage_path.expanduser().resolve() / 'mlflow.db'}"


class MLflowTracker:
    """One MLflow run. What can't be sent is kept, in order, and sent with the next call; training never waits for long.

    Args:
        uri: The tracking server or database.
        run_id: An existing run.
        folder: The run's folder, where the ids of this run and its children are remembered; None for a child.
        notify: Told when the server goes away.
    """

    def __init__(
        self, uri: str, run_id: str, *, folder: Path | None = None, notify: Callable[[str], None] = warnings.warn
    ) -> None:
        self.uri = uri
        self.run_id = run_id
        self._folder = folder
        self._client: MlflowClient | None = None
        self._pending: list[Call] = []
        self._children: dict[str, MLflowTracker] = {}
        self._warned = False
        self._notify = notify

    @classmethod
    def open(cls, folder: Path, *, uri: str, notify: Callable[[str], None] = warnings.warn) -> "MLflowTracker":
        """Make the record of the run in `folder`, or take up the one it has.

        Raises:
            ClusterError: If the tracking server can't be reached.
        """
        try:
            return cls._take_up(folder, uri, notify) or cls._create(folder, uri, notify)
        except _errors() as error:
            raise ClusterError(
                f"MLflow at {uri}: can't be reached ({str(error).splitlines()[0][:200]}). Start the server, or correct or unset MLFLOW_TRACKING_URI."
            ) from None

    @classmethod
    def _create(cls, folder: Path, uri: str, notify: Callable[[str], None]) -> "MLflowTracker":
        client = _connect(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            location = str(folder.parent / "mlartifacts") if uri.startswith("sqlite") else None
            experiment_id = client.create_experiment(EXPERIMENT, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        run = client.create_run(experiment_id, run_name=folder.name, tags=_process_tags())
        tracker = cls(uri, run.info.run_id, folder=folder, notify=notify)
        tracker._remember()
        return tracker

    @classmethod
    def _take_up(cls, folder: Path, uri: str, notify: Callable[[str], None]) -> "MLflowTracker | None":
        """The record that an earlier attempt made, if it made one on this server."""
        if not (folder / _STATE).exists():
            return None
        state = json.loads((folder / _STATE).read_text())
        if state["uri"] != uri:
            return None
        client = _connect(uri)
        tracker = cls(uri, state["run_id"], folder=folder, notify=notify)
        tracker._children = {name: cls(uri, run_id, notify=notify) for name, run_id in state["children"].items()}
        client.update_run(tracker.run_id, status="RUNNING")
        for name, value in _process_tags().items():
            client.set_tag(tracker.run_id, name, value)
        return tracker

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record parameters by their dotted keys; repeating the same ones is fine."""
        from mlflow.entities import Param

        rows = [Param(name, str(value)) for name, value in params.items()]
        for start in range(0, len(rows), 100):  # the most that a request may carry
            batch = rows[start : start + 100]
            self._send(lambda client, batch=batch: client.log_batch(self.run_id, params=batch))  # type: ignore[misc]

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record numbers at an epoch of the run; a repeated epoch repeats the same numbers."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self._send(lambda client: client.log_batch(self.run_id, metrics=rows))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file, or all files of a folder."""
        if path.is_dir():
            self._send(lambda client: client.log_artifacts(self.run_id, str(path), folder))
        else:
            self._send(lambda client: client.log_artifact(self.run_id, str(path), folder))

    def child(self, name: str) -> "MLflowTracker":
        """The child run called `name`; made at the first call. A server that is away gives the parent's record instead."""
        if name in self._children:
            self._children[name]._send(lambda client: client.update_run(self._children[name].run_id, status="RUNNING"))
            return self._children[name]

        def create(client: "MlflowClient") -> None:
            parent = client.get_run(self.run_id)
            tags = {"mlflow.parentRunId": self.run_id}
            run_name = f"{parent.info.run_name}/{name}"
            run = client.create_run(parent.info.experiment_id, run_name=run_name, tags=tags)
            self._children[name] = MLflowTracker(self.uri, run.info.run_id, notify=self._notify)

        self._send(create)
        if name not in self._children:
            self._pending.remove(create)
            return self
        self._remember()
        return self._children[name]

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is left and close the run, and its open children where it did not end well."""
        if status != "FINISHED":
            for part in self._children.values():
                if part._is_running():
                    part.finish(status)
        self._send(lambda client: client.set_terminated(self.run_id, status))
        deadline = time.monotonic() + _FINAL_PATIENCE
        while self._pending and self._folder is not None and time.monotonic() < deadline:
            time.sleep(1)
            self._flush()
        if self._pending:
            self._notify(f"MLflow at {self.uri} is still away: {len(self._pending)} records of this run are lost; its folder has them all.")

    def _is_running(self) -> bool:
        try:
            return bool(_connect(self.uri).get_run(self.run_id).info.status == "RUNNING")
        except _errors():
            return False

    def _send(self, call: Call) -> None:
        self._pending.append(call)
        self._flush()

    def _flush(self) -> None:
        try:
            if self._client is None:
                self._client = _connect(self.uri)
            while self._pending:
                self._pending[0](self._client)
                self._pending.pop(0)
            self._warned = False
        except _errors() as error:
            if not self._warned:
                reason = str(error).splitlines()[0][:200]
                self._notify(f"MLflow at {self.uri} can't be reached ({reason}); training goes on, records are kept and sent later.")
            self._warned = True

    def _remember(self) -> None:
        if self._folder is not None:
            children = {name: part.run_id for name, part in self._children.items()}
            state = {"uri": self.uri, "run_id": self.run_id, "children": children}
            (self._folder / _STATE).write_text(json.dumps(state, indent=1))


def mark_dead_runs(uri: str) -> None:
    """Mark as killed the runs that a process of this machine left open when it died without a word."""
    client = _connect(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return
    query = f"attributes.status = 'RUNNING' and tags.`rayssl.host` = '{socket.gethostname()}'"
    for run in client.search_runs([experiment.experiment_id], query):
        if not Path(f"/proc/{run.data.tags['rayssl.pid']}").exists():
            client.set_terminated(run.info.run_id, "KILLED")
            for part in client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"):
                if part.info.status == "RUNNING":
                    client.set_terminated(part.info.run_id, "KILLED")


def _process_tags() -> dict[str, str]:
    return {"rayssl.host": socket.gethostname(), "rayssl.pid": str(os.getpid())}


def _connect(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils"):  # a new database reports every migration
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def _errors() -> tuple[type[Exception], ...]:
    """What MLflow raises when its server or database is away (requests' errors are OSErrors)."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)


