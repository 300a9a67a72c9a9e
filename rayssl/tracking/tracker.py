"""The record of one run: its parameters, numbers, files and children."""

import logging
import os
import shutil
import socket
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rayssl.addresses import without_secrets
from rayssl.errors import ClusterError
from rayssl.processes import this_process
from rayssl.tracking.connection import (
    WAY_OUT,
    Notify,
    close_children,
    connect,
    experiment_id_of,
    failures,
    reason_of,
    with_secrets,
)
from rayssl.tracking.memory import State, read_state, write_state
from rayssl.tracking.outbox import Outbox
from rayssl.tracking.server import EXPERIMENT, PROCESS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from torch import nn

_MOST_PARAMS = 100  # that a request may carry


class MLflowTracker:
    """One MLflow run, a `Tracker`. Use `open` or `attach`.

    Calls never raise and seldom wait for long: what can't be sent is kept, in order, and sent with a later call.
    """

    def __init__(
        self,
        outbox: "Outbox",
        *,
        folder: Path,
        run_id: str | None = None,
        parent: "MLflowTracker | None" = None,
    ) -> None:
        self.run_id = run_id  # None until a child's creation is sent
        self._outbox = outbox
        self._notify = outbox.notify
        self._parent = parent
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
            if known is not None and not _is_there(connect(uri), str(known.run_id)):
                notify(f"MLflow at {without_secrets(uri)} has no longer the record of this run; another one is begun")
                known = None
            tracker = known or cls(Outbox(uri, notify), folder=folder, run_id=_create_run(uri, folder))
            tracker._remember()
            client = connect(uri)
            client.update_run(tracker.run_id, status="RUNNING")
            tags = {"rayssl.host": socket.gethostname(), "rayssl.pid": str(os.getpid()), PROCESS: this_process()}
            for name, value in tags.items():
                client.set_tag(tracker.run_id, name, value)
            return tracker
        except failures() as error:
            raise ClusterError(
                f"MLflow at {without_secrets(uri)}: can't be reached ({reason_of(error, uri)}). {WAY_OUT}"
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
        state = read_state(folder, notify)
        if state is None or without_secrets(state.uri) != without_secrets(uri):
            return None
        tracker = cls(Outbox(with_secrets(uri), notify), folder=folder, run_id=state.run_id)
        for name, run_id in state.children.items():
            tracker._children[name] = cls(tracker._outbox, folder=folder, run_id=run_id, parent=tracker)
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

    def log_artifact(self, path: Path, folder: str | None = None, *, unless_there: bool = False) -> None:
        """Record a file, or all files of a folder."""
        self._outbox.send_file(lambda client: self._send_file(path, folder, unless_there, client))

    def _send_file(self, path: Path, folder: str | None, unless_there: bool, client: "MlflowClient") -> None:
        if not path.exists():  # it may have waited for long
            self._notify(f"{path} is gone before MLflow took it")
        elif not unless_there or not client.list_artifacts(self.run_id, folder):
            send = client.log_artifacts if path.is_dir() else client.log_artifact
            send(self.run_id, str(path), folder)

    def log_model(self, model: "nn.Module", name: str) -> None:
        """Record a network as an MLflow model: mlflow.pytorch.load_model("runs:/RUN_ID/NAME") gives it back."""
        import mlflow.pytorch
        import torch
        import torchvision

        versions = [f"{library.__name__}=={library.__version__.split('+')[0]}" for library in (torch, torchvision)]
        expected: tuple[type[Exception], ...] = (*failures(), RuntimeError)  # the last is torch's where a disk is full
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        # MLflow warns of pickle by a log line and a warning. Its other format holds for one size of picture only.
        logging.getLogger("mlflow.pytorch").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                mlflow.pytorch.save_model(model, folder, pip_requirements=versions, serialization_format="pickle")
        except expected as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = reason_of(error, self._outbox.uri)
            self._notify(f"{folder}: the model can't be written for MLflow ({reason}), which goes without")
            return
        self.log_artifact(folder, name)

    def child(self, name: str, *, reopen: bool = True) -> "MLflowTracker":
        """The child run called `name`: made at the first call, opened again at later ones unless that is not wanted."""
        if name in self._children:
            child = self._children[name]
            if reopen:
                self._outbox.send(lambda client: client.update_run(child.run_id, status="RUNNING"))
            return child
        child = self._children[name] = MLflowTracker(self._outbox, folder=self._folder, parent=self)

        def create(client: "MlflowClient") -> None:
            if child.run_id is None:  # else it was made, and could not be remembered
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
        self._outbox.send(lambda client: close_children(client, str(self.run_id), status))

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is left and close the run; one that did not end well closes its open children too."""
        if status != "FINISHED":
            self._outbox.send(lambda client: close_children(client, str(self.run_id), status))
        self._outbox.send(lambda client: self._close(status, client))
        if self._parent is None:
            self.flush()

    def _close(self, status: str, client: "MlflowClient") -> None:
        if client.get_run(self.run_id).info.status != status:  # else its end would move to now
            client.set_terminated(self.run_id, status)

    def flush(self) -> None:
        """Wait until all is sent, for two minutes at most if the server is away."""
        self._outbox.drain()

    def _remember(self) -> None:
        children = {name: child.run_id for name, child in self._children.items() if child.run_id}
        state = State(self.uri, str(self.run_id), children)
        write_state(state, self._folder)


def _is_there(client: "MlflowClient", run_id: str) -> bool:
    """Whether a run is known and not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _create_run(uri: str, folder: Path) -> str:
    client = connect(uri)
    location = str(folder.parent / "mlartifacts") if uri.startswith("sqlite:") else None
    experiment_id = experiment_id_of(client, EXPERIMENT, location=location)
    return str(client.create_run(experiment_id, run_name=folder.name).info.run_id)
