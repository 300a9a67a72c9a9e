"""What a run talks to: Ray's head, its dashboard, and MLflow."""

import json
import os
import sqlite3
from contextlib import closing, nullcontext
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from rayssl.addresses import has_secret, sentence_without_secrets, without_secrets
from rayssl.doctor.finding import Finding, deleted_after, made_for_a_while
from rayssl.errors import ClusterError

_TIMEOUT = 10.0
_TOKEN_FILE = "~/.ray/auth_token"
_TOKENS = f"RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or {_TOKEN_FILE}"


class _NoRedirect(HTTPRedirectHandler):
    """Else the token would be sent along to wherever the answer points."""

    def redirect_request(self, *_: object) -> None:
        return None


def ray(address: str | None) -> Finding:
    """A cluster, by its head or its dashboard, and whether the token is the right one."""
    if address is None:
        return Finding("ray", True, "no cluster named (--address, RAY_ADDRESS); runs start one on this machine")
    if urlsplit(address).scheme in ("http", "https"):
        return _dashboard(address.rstrip("/"))
    from rayssl.cluster.environment import cluster_size

    if _sends_token() and _token() is None:
        return Finding("ray", False, f"RAY_AUTH_MODE is token, but there is no token. Put it into {_TOKENS}.")
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    try:
        nodes, cpus, num_gpus = cluster_size(address)
    except ClusterError as error:
        hint = f"RAY_AUTH_MODE is {mode} here: it must be what it is for the head, and the token the same."
        return Finding("ray", False, f"{error} {hint}")
    return Finding("ray", True, f"{address}: {nodes} nodes, {cpus:g} CPUs, {num_gpus:g} GPUs; RAY_AUTH_MODE {mode}")


def _dashboard(address: str) -> Finding:
    """By HTTP alone, as `rayssl submit` reaches it."""
    shown = without_secrets(address)
    if has_secret(address):
        return Finding("ray", False, f"{shown}: must carry no password; Ray's token belongs into {_TOKENS}.")
    token = _token() if _sends_token() else None
    try:
        with _get(f"{address}/api/version", token) as answer:
            found = json.loads(answer.read())["ray_version"]
    except HTTPError as error:
        return Finding("ray", False, f"{shown}: {_refusal(error.code, token)}")
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", None) or f"{type(error).__name__}: {error}"
        return Finding(
            "ray", False, f"{shown}: no dashboard of Ray answers ({reason}). Give http://HOST:8265 of the head."
        )
    asks = (
        "without asking for a token: whoever reaches it can run programs there"
        if _answers_anybody(address)
        else ("and the token is right")
    )
    return Finding("ray", True, f"{shown} answers, Ray {found}, {asks}")


def _refusal(code: int, token: str | None) -> str:
    if code == 401 and token is None:
        if not _sends_token():
            return f"wants a token (401). Set RAY_AUTH_MODE=token, and put the token into {_TOKENS}."
        return f"wants a token (401), and there is none here. Put it into {_TOKENS}."
    if code in (401, 403) and token is not None:
        return f"refuses the token ({code}), which is another than the cluster's. Copy the head's into {_TOKENS}."
    return f"answers with {code}. Is it the dashboard of Ray, http://HOST:8265, or a proxy before it?"


def _answers_anybody(address: str) -> bool:
    try:
        with _get(f"{address}/api/version", None):
            return True
    except OSError:
        return False


def _get(url: str, token: str | None):  # type: ignore[no-untyped-def]  # urllib's answers have no type of their own
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    return build_opener(_NoRedirect).open(Request(url, headers=headers), timeout=_TIMEOUT)


def _sends_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _token() -> str | None:
    """What Ray would send; None if there is none, or it can't be read."""
    own = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if own:
        return own
    try:
        text = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _TOKEN_FILE).expanduser().read_text().strip()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return None
    return text or None


def mlflow(storage_path: Path) -> Finding:
    """Whether runs can be recorded, with their files."""
    from rayssl.tracking import check_server, tracking_uri

    uri = tracking_uri(storage_path)
    if uri.startswith("sqlite:"):
        return _sqlite(Path(urlsplit(uri).path[1:]))
    try:
        artifacts = check_server(uri)
    except ClusterError as error:
        return Finding("mlflow", False, str(error))
    text = f"{without_secrets(uri)} answers and can be written; files go to {without_secrets(artifacts)}"
    if "://" not in artifacts and ":/" not in artifacts:
        text += ", a folder that every node must see"
    return Finding("mlflow", True, text)


def _sqlite(file: Path) -> Finding:
    """Whether a database can be locked and written, or made; nothing in it changes."""
    is_new = not file.exists()
    trial = file.with_name(f".doctor-{os.getpid()}.db") if is_new else file
    try:
        with (
            made_for_a_while(file.parent),
            deleted_after(trial) if is_new else nullcontext(),
            closing(sqlite3.connect(trial, timeout=_TIMEOUT, isolation_level=None)) as database,
        ):
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE rayssl_doctor (trial INTEGER)")
            database.execute("ROLLBACK")
    except (OSError, sqlite3.Error) as error:
        reason = sentence_without_secrets(str(error))
        return Finding(
            "mlflow",
            False,
            f"{file}: can't be written ({reason}). Free it, choose another storage_path, or name a server by "
            "MLFLOW_TRACKING_URI.",
        )
    return Finding("mlflow", True, f"no server named (MLFLOW_TRACKING_URI); runs write {file}, which can be written")
