"""A tracking server or database: reached, and named in messages without its password."""

import logging
import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from rayssl.addresses import sentence_without_secrets, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

Notify = Callable[[str], None]

WAY_OUT = "Start the server, or correct or unset MLFLOW_TRACKING_URI."


@cache
def connect(uri: str) -> "MlflowClient":
    """The client of a server; one for all calls of a process."""
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils"):  # a new database reports every migration
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def failures() -> tuple[type[Exception], ...]:
    """What MLflow raises when its server or database can't be used.

    The errors of requests are OSErrors; a database whose driver isn't installed is an ImportError.
    """
    from mlflow.exceptions import MlflowException

    return (MlflowException, OSError, ImportError)


def is_refused(error: Exception) -> bool:
    """Whether the server answered that it will never take this: asking again would hold up all that comes after."""
    return getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")


def with_secrets(uri: str) -> str:
    """The address of which a tracker has shown `uri`: its password is in this process's environment, if anywhere."""
    own = os.environ.get("MLFLOW_TRACKING_URI", "")
    return own if without_secrets(own) == uri else uri


def reason_of(error: Exception, uri: str) -> str:
    """The first line of an error; MLflow puts the whole address that it was given into it."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return sentence_without_secrets(line, uri)[:200]


def experiment_id_of(client: "MlflowClient", name: str, *, location: str | None = None) -> str:
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


def close_children(client: "MlflowClient", run_id: str, status: str) -> None:
    """End the children of a run that are still open."""
    experiment_id = client.get_run(run_id).info.experiment_id
    query = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{run_id}'"
    for child in client.search_runs([experiment_id], query):
        client.set_terminated(child.info.run_id, status)
