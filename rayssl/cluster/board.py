"""The board on which workers and driver leave word for each other.

Nothing here imports torch: the board is a process of its own, which has to be there before the workers are.
"""

import math
import pickle
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayssl import errors
from rayssl.errors import RaysslError

_LOST = ("WorkerHealthCheck", "ActorDied", "ActorUnavailable", "NodeDied", "WorkerCrashed")
_CUT = ("connection closed", "connection reset", "broken pipe")
_WAITED = ("timed out", "timeout")
_START = (0, 0)
_STANDSTILL = 0.9
"""Share of the workers' patience with each other after which a group in which nobody moves is taken to hang."""


class ProgressBoard:
    """What the driver and its workers tell each other; an actor of its own, which outlives workers.

    Rank 0 leaves what it has to show until the driver comes and takes it, workers leave the mistake that ended them,
    and the driver leaves word that they shall stop.

    Args:
        timeout_s: Seconds that workers wait for each other (`ClusterConfig`).
        patience: Seconds after a loss in which new workers should have started; then it is told that none have.
    """

    def __init__(self, *, timeout_s: float = math.inf, patience: float = 45.0) -> None:
        self._timeout_s = timeout_s
        self._patience = patience
        self._lost_at: float | None = None
        self._events: list[bytes] = []
        self._mistake: tuple[str, str] | None = None
        self._hosts: dict[int, str] = {}
        self._places: dict[int, tuple[int, int]] = {}
        self._moved_at = time.monotonic()
        self._waiting: set[int] = set()
        self._stop_after: tuple[int, int] | None = None

    def post(self, event: bytes) -> None:
        """Add something to show, pickled: to hold what it is, the board would have to import torch."""
        self._events.append(event)

    def take(self) -> list[bytes]:
        """Everything since the last call, pickled."""
        if self._lost_at is not None and time.monotonic() - self._lost_at > self._patience:
            self._lost_at = None
            self._say(
                f"warning: {self._patience:.0f} s after the loss there is no room for {len(self._hosts)} workers yet; "
                "waiting. Add a node, or stop and give the command again with fewer in cluster.workers"
            )
        events, self._events = self._events, []
        return events

    def _say(self, sentence: str) -> None:
        self.post(pickle.dumps(sentence))

    def join(self, rank: int, size: int, host: str) -> None:
        """A worker of a group of so many starts on a host."""
        self._lost_at = None
        self._moved_at = time.monotonic()
        self._waiting.discard(rank)
        # Of an elastic run's larger group before it, some workers have no successor.
        self._places = {other: place for other, place in self._places.items() if other < size and other != rank}
        self._hosts = {other: name for other, name in self._hosts.items() if other < size} | {rank: host}

    def note_loss(self, failures: Mapping[int, str]) -> None:
        """The group is started again, because these workers ended so, each with the last line of its error."""
        self._lost_at = time.monotonic()
        # A worker that GPUs are waited for in is ended by their library, without a word.
        stood_still = self._lost_at - self._moved_at > _STANDSTILL * self._timeout_s
        behind = [rank for rank in self._hosts if self._places.get(rank, _START) < self._latest] if stood_still else []
        told = describe_loss(failures, self._hosts, waiting=self._waiting, behind=behind)
        self._say(f"warning: {told}; starting again from the last checkpoint")
        self._waiting.clear()

    def note_waiting(self, rank: int) -> None:
        """A worker has waited for the others until its time was over."""
        self._waiting.add(rank)

    def note_mistake(self, kind: str, message: str) -> None:
        """Tell of a user's mistake: the name of its error's class, and what it says. The first one counts."""
        self._mistake = self._mistake or (kind, message)

    def first_mistake(self) -> tuple[str, str] | None:
        """What `note_mistake` was told first."""
        return self._mistake

    def stop(self) -> None:
        """Ask all workers to stop at the first place that none of them has passed."""
        self._stop_after = self._stop_after or self._latest

    @property
    def _latest(self) -> tuple[int, int]:
        return max(self._places.values(), default=_START)

    def stops_at(self, rank: int, place: tuple[int, int]) -> bool:
        """Whether a worker that has come to a place, an epoch and a step, has to stop there; all ask at the same ones.

        Places are compared here, so that workers agree without waiting for each other.
        """
        self._places[rank] = place
        self._moved_at = time.monotonic()
        return self._stop_after is not None and place > self._stop_after


def put_up_board(timeout_s: float) -> "ray.actor.ActorHandle":
    """A board on this node, where whoever looks at it is: another node may be lost.

    Args:
        timeout_s: Seconds that workers wait for each other (`ClusterConfig`).
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Should memory run short, Ray ends such actors first: what an empty board has forgotten, a run can do without.
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(**options)(ProgressBoard).remote(timeout_s=timeout_s)


def post(board: "ray.actor.ActorHandle", event: object) -> None:
    """Leave something on a board for the driver to show."""
    board.post.remote(pickle.dumps(event))


def take(board: "ray.actor.ActorHandle") -> list[Any]:
    """What was left on a board since the last call."""
    return [pickle.loads(event) for event in ray.get(board.take.remote())]


def raise_mistake(board: "ray.actor.ActorHandle") -> None:
    """Raise the error that a worker left on the board, if there is one, as it was raised there."""
    mistake = ray.get(board.first_mistake.remote())
    if mistake is not None:
        kind, message = mistake
        raise getattr(errors, kind, RaysslError)(message)


def describe_loss(
    failures: Mapping[int, str],
    hosts: Mapping[int, str],
    *,
    waiting: Collection[int] = (),
    behind: Collection[int] = (),
) -> str:
    """What happened to a group of workers, by who is to blame.

    A worker that is lost breaks the connections of the others, and one that hangs lets the others time out and says
    nothing itself. The group is ended at the first failure, so most workers that have waited have none of their own.

    Args:
        failures: Last line of the error of each worker that failed, by rank.
        hosts: Where each worker of the group runs.
        waiting: Workers that have waited for others in vain.
        behind: Workers that the others were ahead of, if none has moved for as long as they wait for each other.
    """

    def name(ranks: Iterable[int]) -> str:
        return ", ".join(f"worker {rank} (on {hosts.get(rank, 'an unknown node')})" for rank in sorted(ranks))

    hangs = "does not answer any more, the others have waited for cluster.timeout_s"
    if behind and len(behind) < len(hosts):
        return f"{name(behind)} {hangs}"
    lost = [rank for rank, text in failures.items() if any(word in text for word in _LOST)]
    if lost:
        return f"{name(lost)} was lost"
    silent = [rank for rank in hosts if rank not in failures and rank not in waiting]
    if silent and any(word in text.lower() for text in failures.values() for word in _CUT):
        return f"{name(silent)} was lost"
    if silent and any(has_waited(text) for text in failures.values()):
        return f"{name(silent)} {hangs}"
    rank, text = min(failures.items())
    return f"{name([rank])} failed: {text}"


def has_waited(text: str) -> bool:
    """Whether an error says that other workers were waited for in vain."""
    return any(word in text.lower() for word in _WAITED)


def last_line(error: Exception) -> str:
    """The last line of what an error says, which is the error itself if that is a traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
