"""Runs in MLflow: one for a pre-training, a child for each stage. The only module that imports mlflow."""

import json
import logging
import os
import shutil
import socket
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rayssl.addresses import sentence_without_secrets, without_secrets
from rayssl.errors import ClusterError
from rayssl.files import write_whole
from rayssl.processes import is_dead, this_process

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from torch import nn

# Without these a server that is away holds the training up for minutes, a call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a stage
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

EXPERIMENT = "rayssl"
_STATE = "mlflow.json"
_PROCESS = "rayssl.process"
_MOST_PARAMS = 100  # that a request may carry
_WAY_OUT = "Start the server, or correct or unset MLFLOW_TRACKING_URI."
_PATIENCE = 120.0
"""Seconds that the end of a run waits for a server that is away."""

Notify = Callable[[str], None]


def tracking_uri(storage_path: Path) -> str:
    """The server that MLFLOW_TRACKING_URI names, or a database in the folder of all runs.

    It may carry a password: show it by `without_secrets` alone.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage_path.expanduser().resolve() / 'mlflow.db'}"


def check_server(uri: str) -> str:
    """Find out whether a tracking server answers and takes numbers and files; gives the address of the latter.

    The file is deleted for good, the run as far as MLflow deletes one: until `mlflow gc` it is in the server's bin. Its
    experiment, rayssl-doctor, stays.

    Raises:
        ClusterError: If not.
    """
    try:
        client = _connect(uri)
        run = client.create_run(_experiment_id(client, f"{EXPERIMENT}-doctor")).info
        try:
            client.log_metric(run.run_id, "doctor", 1.0)
            _check_artifacts(client, run.run_id, run.artifact_uri, uri)
        finally:
            client.delete_run(run.run_id)
        return str(run.artifact_uri)
    except _away() as error:
        raise ClusterError(
            f"MLflow at {without_secrets(uri)}: can't be reached or written ({_reason(error, uri)}). {_WAY_OUT}"
        ) from None


class MLflowTracker:
    """One MLflow run, a `Tracker`. Use `open` or `attach`.

    Calls never raise and never wait for long: what can't be sent is kept, in order, and sent with a later call.
    """

    def __init__(self, outbox: "_Outbox", *, folder: Path, run_id: str | None = None) -> None:
        self.run_id = run_id  # None until a child's creation is sent
        self._outbox = outbox
        self._folder = folder
        self._children: dict[str, MLflowTracker] = {}
        self._recorded: dict[str, set[int]] | None = None  # steps by metric; None: not asked yet

    @classmethod
    def open(cls, folder: Path, *, uri: str, notify: Notify = warnings.warn) -> "MLflowTracker":
        """Take up the record of the run in `folder`, or make one, as this process's.

        Args:
            folder: The run's folder; it remembers the record's ids.
            uri: The tracking server or database.
            notify: Told when the server goes away later on.

        Raises:
            ClusterError: If the server can't be reached now.
        """
        try:
            known = cls.attach(folder, uri=uri, notify=notify)
            tracker = known or cls(_Outbox(uri, notify), folder=folder, run_id=_create_run(uri, folder))
            tracker._remember()
            client = _connect(uri)
            client.update_run(tracker.run_id, status="RUNNING")
            tags = {"rayssl.host": socket.gethostname(), "rayssl.pid": str(os.getpid()), _PROCESS: this_process()}
            for name, value in tags.items():
                client.set_tag(tracker.run_id, name, value)
            return tracker
        except _away() as error:
            raise ClusterError(
                f"MLflow at {without_secrets(uri)}: can't be reached ({_reason(error, uri)}). {_WAY_OUT}"
            ) from None

    @classmethod
    def attach(cls, folder: Path, *, uri: str, notify: Notify = warnings.warn) -> "MLflowTracker | None":
        """The record that `folder` remembers, None if it has none on this server. Sends nothing.

        Args:
            folder: The run's folder.
            uri: The tracking server or database, or what another tracker's `uri` is: a password that this lacks is
                taken from MLFLOW_TRACKING_URI.
            notify: Told when the server goes away later on.
        """
        state = _read_state(folder / _STATE, notify)
        if state is None or without_secrets(state.uri) != without_secrets(uri):
            return None
        tracker = cls(_Outbox(_with_secrets(uri), notify), folder=folder, run_id=state.run_id)
        for name, run_id in state.children.items():
            tracker._children[name] = cls(tracker._outbox, folder=folder, run_id=run_id)
        return tracker

    @property
    def uri(self) -> str:
        """The tracking server or database, without a password."""
        return without_secrets(self._outbox.uri)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record parameters by their dotted keys; those that are recorded already stay as they are."""
        from mlflow.entities import Param

        rows = [Param(name, str(value)) for name, value in params.items()]
        for start in range(0, len(rows), _MOST_PARAMS):
            batch = rows[start : start + _MOST_PARAMS]
            self._outbox.send(partial(self._send_params, batch))

    def _send_params(self, rows: "list[Param]", client: "MlflowClient") -> None:
        known = client.get_run(self.run_id).data.params
        new = [row for row in rows if row.key not in known]  # MLflow refuses to change one
        if new:
            client.log_batch(self.run_id, params=new)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record numbers at an epoch of the run, each once: those of an epoch that is done again are left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self._outbox.send(lambda client: self._send_metrics(rows, client))

    def _send_metrics(self, rows: "list[Metric]", client: "MlflowClient") -> None:
        if self._recorded is None:
            known = client.get_run(self.run_id).data.metrics
            histories = {name: client.get_metric_history(self.run_id, name) for name in known}
            self._recorded = {name: {row.step for row in history} for name, history in histories.items()}
        new = [row for row in rows if row.step not in self._recorded.get(row.key, ())]
        if new:
            client.log_batch(self.run_id, metrics=new)
        for row in new:
            self._recorded.setdefault(row.key, set()).add(row.step)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file, or all files of a folder."""
        if path.is_dir():
            self._outbox.send(lambda client: client.log_artifacts(self.run_id, str(path), folder))
        else:
            self._outbox.send(lambda client: client.log_artifact(self.run_id, str(path), folder))

    def log_model(self, model: "nn.Module", name: str) -> None:
        """Record a network as an MLflow model: mlflow.pytorch.load_model("runs:/RUN_ID/NAME") gives it back."""
        import mlflow.pytorch
        import torch
        import torchvision

        versions = [f"{library.__name__}=={library.__version__.split('+')[0]}" for library in (torch, torchvision)]
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        # MLflow warns of pickle by a log line and a warning. Its other format holds for one size of picture only.
        logging.getLogger("mlflow.pytorch").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            mlflow.pytorch.save_model(model, folder, pip_requirements=versions, serialization_format="pickle")
        self.log_artifact(folder, name)

    def child(self, name: str) -> "MLflowTracker":
        """The child run called `name`: made at the first call, opened again at later ones."""
        if name in self._children:
            child = self._children[name]
            self._outbox.send(lambda client: client.update_run(child.run_id, status="RUNNING"))
            return child
        child = self._children[name] = MLflowTracker(self._outbox, folder=self._folder)

        def create(client: "MlflowClient") -> None:
            parent = client.get_run(self.run_id).info
            tags = {"mlflow.parentRunId": parent.run_id}
            run = client.create_run(parent.experiment_id, run_name=f"{parent.run_name}/{name}", tags=tags)
            child.run_id = run.info.run_id
            self._remember()

        self._outbox.send(create)
        return child

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, by which runs can be filtered; those of the same name are replaced."""
        for name, value in tags.items():
            self._outbox.send(partial(self._send_tag, name, value))

    def _send_tag(self, name: str, value: str, client: "MlflowClient") -> None:
        client.set_tag(self.run_id, name, value)

    def close_children(self, status: str) -> None:
        """Close the children that a process left open when it died."""
        self._outbox.send(lambda client: _close_children(client, str(self.run_id), status))

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is left and close the run; one that did not end well closes its open children too."""
        if status != "FINISHED":
            self._outbox.send(lambda client: _close_children(client, str(self.run_id), status))
        self._outbox.send(lambda client: client.set_terminated(self.run_id, status))
        if self._children:
            self._outbox.drain()

    def _remember(self) -> None:
        children = {name: child.run_id for name, child in self._children.items() if child.run_id}
        state = _State(self.uri, str(self.run_id), children)
        write_whole(self._folder / _STATE, json.dumps(asdict(state), indent=1))


@dataclass(frozen=True)
class _State:
    """What a run's folder remembers of its record."""

    uri: str
    """Without a password."""
    run_id: str
    children: dict[str, str]
    """Ids by name."""


def _read_state(path: Path, notify: Notify) -> _State | None:
    """None if there is none, or it is damaged, as by a kill or a disk that was full."""
    if not path.exists():
        return None
    try:
        state = _State(**json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        state = None
    if (
        state is None
        or not isinstance(state.children, dict)
        or not all(isinstance(each, str) for each in (state.uri, state.run_id, *state.children.values()))
    ):
        notify(f"{path}: is damaged, so that the record in MLflow which it named can't be gone on with")
        return None
    return state


class _Outbox:
    """Calls to a tracking server, sent in order; those that fail because it is away wait for the next one."""

    def __init__(self, uri: str, notify: Notify) -> None:
        self.uri = uri
        self._notify = notify
        self._waiting: deque[Callable[[MlflowClient], object]] = deque()
        self._is_away = False

    def send(self, call: "Callable[[MlflowClient], object]") -> None:
        self._waiting.append(call)
        try:
            while self._waiting:
                self._waiting[0](_connect(self.uri))
                self._waiting.popleft()
            self._is_away = False
        except _away() as error:
            if not self._is_away:
                self._notify(
                    f"MLflow at {without_secrets(self.uri)} can't be reached ({_reason(error, self.uri)}); "
                    "training goes on, records are kept and sent later"
                )
            self._is_away = True

    def drain(self) -> None:
        """Wait for a server that is away, but not for ever."""
        deadline = time.monotonic() + _PATIENCE
        while self._waiting and time.monotonic() < deadline:
            time.sleep(1)
            self.send(lambda client: None)
        if self._waiting:
            self._notify(
                f"MLflow at {without_secrets(self.uri)} is still away: {len(self._waiting)} records are lost; the "
                "run's folder has all"
            )


def mark_dead_runs(uri: str, *, notify: Notify = warnings.warn) -> None:
    """Mark as killed the runs that a process of this machine left open when it died without a word.

    Left alone are those of other containers, which may bear this one's name and can't be looked into, and those from
    before the machine was started: when they go on, they are marked anew.

    Args:
        uri: The tracking server or database.
        notify: Told if it can't be reached; nothing is marked then.
    """
    query = f"attributes.status = 'RUNNING' and tags.`rayssl.host` = '{socket.gethostname()}'"
    try:
        client = _connect(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return
        for run in client.search_runs([experiment.experiment_id], query):
            if is_dead(run.data.tags.get(_PROCESS, "")):
                _close_children(client, run.info.run_id, "KILLED")
                client.set_terminated(run.info.run_id, "KILLED")
    except _away() as error:
        notify(
            f"MLflow at {without_secrets(uri)} can't be reached ({_reason(error, uri)}); runs whose process died stay "
            "marked as running"
        )


def _close_children(client: "MlflowClient", run_id: str, status: str) -> None:
    experiment_id = client.get_run(run_id).info.experiment_id
    query = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{run_id}'"
    for child in client.search_runs([experiment_id], query):
        client.set_terminated(child.info.run_id, status)


def _create_run(uri: str, folder: Path) -> str:
    client = _connect(uri)
    location = str(folder.parent / "mlartifacts") if uri.startswith("sqlite:") else None
    experiment_id = _experiment_id(client, EXPERIMENT, location=location)
    return str(client.create_run(experiment_id, run_name=folder.name).info.run_id)


def _experiment_id(client: "MlflowClient", name: str, *, location: str | None = None) -> str:
    """The experiment of a name: as it is, brought back from the bin, or new, though others may make it just now."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _check_artifacts(client: "MlflowClient", run_id: str, artifact_uri: str, uri: str) -> None:
    """Send a file, bring it back and delete it."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with TemporaryDirectory() as folder:
        sent = Path(folder, "doctor.txt")
        sent.write_text(run_id)
        client.log_artifact(run_id, str(sent))
        got = Path(client.download_artifacts(run_id, sent.name, str(Path(folder))))
        if got.read_text() != run_id:
            raise MlflowException(f"{artifact_uri} gives back another file than was sent")
    get_artifact_repository(artifact_uri, tracking_uri=uri).delete_artifacts()


@cache
def _connect(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils"):  # a new database reports every migration
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def _away() -> tuple[type[Exception], ...]:
    """What MLflow raises when its server or database can't be used.

    The errors of requests are OSErrors; a database whose driver isn't installed is an ImportError.
    """
    from mlflow.exceptions import MlflowException

    return (MlflowException, OSError, ImportError)


def _with_secrets(uri: str) -> str:
    """The address of which a tracker has shown `uri`: its password is in this process's environment, if anywhere."""
    own = os.environ.get("MLFLOW_TRACKING_URI", "")
    return own if without_secrets(own) == uri else uri


def _reason(error: Exception, uri: str) -> str:
    """The first line; MLflow puts the whole address that it was given into it."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return sentence_without_secrets(line, uri)[:200]
