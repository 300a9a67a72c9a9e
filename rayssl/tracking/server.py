"""What is done to a tracking server as a whole: it is found, tried out, and runs of dead processes are closed."""

import os
import socket
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rayssl.addresses import without_secrets
from rayssl.errors import ClusterError
from rayssl.processes import is_dead
from rayssl.tracking.connection import WAY_OUT, Notify, close_children, connect, experiment_id_of, failures, reason_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "rayssl"
PROCESS = "rayssl.process"
"""Tag by which a process is known again; see `rayssl.processes`."""


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
        client = connect(uri)
        run = client.create_run(experiment_id_of(client, f"{EXPERIMENT}-doctor")).info
        try:
            client.log_metric(run.run_id, "doctor", 1.0)
            _check_artifacts(client, run.run_id, run.artifact_uri, uri)
        finally:
            client.set_terminated(run.run_id)
            client.delete_run(run.run_id)
        return str(run.artifact_uri)
    except Exception as error:  # noqa: BLE001  each kind of artifact store has errors of its own
        raise ClusterError(
            f"MLflow at {without_secrets(uri)}: can't be reached or written ({reason_of(error, uri)}). {WAY_OUT}"
        ) from None


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
        client = connect(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return
        for run in client.search_runs([experiment.experiment_id], query):
            if is_dead(run.data.tags.get(PROCESS, "")):
                close_children(client, run.info.run_id, "KILLED")
                client.set_terminated(run.info.run_id, "KILLED")
    except failures() as error:
        notify(
            f"MLflow at {without_secrets(uri)} can't be reached ({reason_of(error, uri)}); runs whose process died "
            "stay marked as running"
        )


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
