"""One job at a time beside the training, such as writing a checkpoint."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs a job in a thread; the next one waits for it, and what goes wrong is raised where somebody waits.

    A process that ends finishes the job first.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job, once the one before it has ended.

        Raises:
            Exception: What the job before it raised; this one is not begun then.
        """
        self.settle()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running = self._pool.submit(job)

    def settle(self) -> None:
        """Wait for the job in progress, if there is one.

        Raises:
            Exception: What it raised, once.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()
