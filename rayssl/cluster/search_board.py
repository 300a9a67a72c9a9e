"""What the driver of a search and the processes of its trials tell each other."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ASK_SECONDS = 0.5


class SearchBoard:
    """An actor on the driver's node: trials leave sentences for the person who waits, and ask whether to stop."""

    def __init__(self) -> None:
        self._sentences: list[tuple[str, str]] = []
        self._is_stopping = False
        self._stopped: set[str] = set()

    def post(self, trial: str, sentence: str) -> None:
        """A trial has something to say."""
        self._sentences.append((trial, sentence))

    def take(self) -> list[tuple[str, str]]:
        """What trials said since the last call: their names and the sentences."""
        sentences, self._sentences = self._sentences, []
        return sentences

    def stop(self) -> None:
        """Ask all trials to write a checkpoint and wait for their end."""
        self._is_stopping = True

    def is_stopping(self) -> bool:
        """Whether trials are asked to stop."""
        return self._is_stopping

    def note_stopped(self, trial: str) -> None:
        """A trial has written its checkpoint and waits."""
        self._stopped.add(trial)

    def are_stopped(self, trials: Sequence[str]) -> bool:
        """Whether all of these trials wait for their end."""
        return self._stopped.issuperset(trials)


@contextmanager
def opened_board(folder: Path) -> Iterator[Any]:
    """Put up the board of the search in `folder`, where its trials find it, while the body runs."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Should memory run short, Ray ends such actors first: what an empty board has forgotten, the search can do without.
    again = {"max_restarts": -1, "max_task_retries": -1}
    board = ray.remote(num_cpus=0, name=_name(folder), scheduling_strategy=here, **again)(SearchBoard).remote()
    try:
        yield board
    finally:
        ray.kill(board)


def find_board(folder: Path) -> Any:
    """The board of the search in `folder`, for one of its trials."""
    return ray.get_actor(_name(folder))


class StopQuestion:
    """Whether a search's trials are asked to stop; the board is asked now and then, and the answer kept between."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._next = 0.0
        self._answer = False

    def __call__(self) -> bool:
        """True from the moment on that they are."""
        if not self._answer and time.monotonic() >= self._next:
            self._answer = ray.get(self._board.is_stopping.remote())
            self._next = time.monotonic() + _ASK_SECONDS
        return self._answer


def _name(folder: Path) -> str:
    return f"rayssl-search-{folder}"
