"""Runs in MLflow: one for a pre-training, a child for each stage. The only package that imports mlflow."""

import os

from rayssl.tracking.server import check_server, mark_dead_runs, tracking_uri
from rayssl.tracking.tracker import MLflowTracker

__all__ = ["MLflowTracker", "check_server", "mark_dead_runs", "tracking_uri"]

# Read when mlflow is imported. Without the first two a server that is away holds the training up for minutes, a call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a stage
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
