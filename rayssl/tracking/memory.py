"""What a run's folder remembers of its record."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rayssl.files import write_whole
from rayssl.tracking.connection import Notify

_STATE = "mlflow.json"


@dataclass(frozen=True)
class State:
    """What a run's folder remembers of its record."""

    uri: str
    """Without a password."""
    run_id: str
    children: dict[str, str]
    """Ids by name."""


def read_state(folder: Path, notify: Notify) -> State | None:
    """None if there is none, or it is damaged, as by a kill or a disk that was full."""
    path = folder / _STATE
    if not path.exists():
        return None
    try:
        state = State(**json.loads(path.read_bytes()))
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


def write_state(state: State, folder: Path) -> None:
    """Remember a record."""
    write_whole(folder / _STATE, json.dumps(asdict(state), indent=1))
