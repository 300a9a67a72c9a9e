"""What runs claim of a cluster, in the books of Ray's AutoscalingCoordinator.

That is an actor of Ray's own, one a cluster, which tells an elastic run how many workers there is room for. Where a
later Ray has another one, nothing here does anything: runs then wait as long as Ray lets them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from rayssl.cluster.repeating import repeated
from rayssl.files import write_whole

_COORDINATOR = "AutoscalingCoordinator"
_FILE = "ray_claim"
_COUNT_SECONDS = 2.0


@contextmanager
def claimed(trainer: Any, folder: Path) -> Iterator[None]:
    """While the body runs, a file in the run's folder names the run's claim; one that an earlier process left is void.

    Ray gives back the claim of a run whose driver was killed only three minutes later, and lets an elastic run wait for
    it so long.

    Args:
        trainer: The TorchTrainer that the body fits.
        folder: The run's folder.
    """
    file = folder / _FILE
    with suppress(OSError):
        earlier = file.read_text().strip()
        _ask(lambda coordinator: coordinator.cancel_request.remote(earlier))
    with suppress(OSError, AttributeError):  # a full disk is told of by what matters more
        write_whole(file, f"train-{trainer.train_run_context.run_id}\n")
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)


def counted_often() -> AbstractContextManager[None]:
    """While the body runs, let Ray look every other second what room the cluster has for an elastic run.

    It looks every 20 s by itself, and a run that has lost a node would be started again on that node until then.
    """

    def count() -> None:
        _ask(lambda coordinator: coordinator.get_reserved_resources.remote("rayssl", recompute=True))

    return repeated(count, _COUNT_SECONDS)


def _ask(question: Callable[[Any], Any]) -> None:
    """Ask the coordinator, if there is one that understands."""
    import ray

    with suppress(ValueError, TypeError, AttributeError, ray.exceptions.RayError):
        coordinator = ray.get_actor(_COORDINATOR, namespace=_COORDINATOR)
        ray.get(question(coordinator), timeout=_COUNT_SECONDS)
