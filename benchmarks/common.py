"""What every benchmark shares: the machine's description, fair timing, and the last lines that a program reads."""

import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch


def print_machine(*packages: str) -> None:
    """Print the machine and the versions of Python, torch and `packages` (those not installed are said to be).

    Call it first: it starts the program over if the environment slows some contestants down.
    """
    if os.environ.pop("OPENBLAS_CORETYPE", None):
        # Set to Haswell, as some environments do, it takes half the matrix speed of numpy, scikit-learn and faiss
        # on a newer CPU. They read it when they are loaded, so it is too late for this process.
        os.execv(sys.executable, sys.orig_argv)
    print(f"machine: {_processor()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        print(f"device: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    versions = [f"{name} {installed_version(name) or 'not installed'}" for name in ("torch", *packages)]
    print(f"versions: python {platform.python_version()}, {', '.join(versions)}")


def installed_version(package: str) -> str | None:
    """Give a package's version, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Timings(dict[str, float]):
    """Each contestant's median seconds, and the rounds that they come from.

    Args:
        rounds: Name -> seconds of each round, as many of each contestant.
    """

    def __init__(self, rounds: Mapping[str, Sequence[float]]) -> None:
        super().__init__({name: statistics.median(seconds) for name, seconds in rounds.items()})
        self.rounds = {name: list(seconds) for name, seconds in rounds.items()}

    def spread(self, above: str, below: str) -> tuple[float, float]:
        """The least and the greatest that one contestant's seconds over another one's were in a round.

        Contestants of one round met the same machine, so that its moods cancel out. The ratio of the medians always
        lies within.
        """
        return self.spread_of(lambda seconds: seconds[above] / seconds[below])

    def spread_of(self, figure: Callable[[Mapping[str, float]], float]) -> tuple[float, float]:
        """The least and the greatest value of a figure over the rounds; it is given the contestants' seconds of one."""
        rounds = zip(*self.rounds.values(), strict=True)
        figures = [figure(dict(zip(self.rounds, seconds, strict=True))) for seconds in rounds]
        return min(figures), max(figures)


def interleaved_seconds(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> Timings:
    """Time each contestant in `rounds` rounds of A B C A B C, after one round that warms up.

    Taking turns spreads whatever else the machine does over all of them. A CUDA device is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            _wait_for_device()
            start = clock()
            run()
            _wait_for_device()
            if turn > 0:
                seconds[name].append(clock() - start)
    return Timings(seconds)


def median_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """An interval that holds the median of what the values were drawn from, whatever its distribution is.

    Of so few values that even their whole range is less sure than wished, it gives the range.

    Args:
        values: Independent draws, at least one.
        confidence: Least probability, in (0, 1), that the interval holds the median.

    Source: the sign test, turned round; Conover 1999, "Practical nonparametric statistics", section 3.2.
    """
    ordered, count = sorted(values), len(values)
    outside, low = 0.0, 0
    for cut in range((count + 1) // 2):  # values left out at either end
        outside += 2 * math.comb(count, cut) / 2**count
        if outside > 1 - confidence:
            break
        low = cut
    return ordered[low], ordered[count - 1 - low]


def row(
    benchmark: str,
    *,
    ours: float,
    peer: float,
    unit: str,
    ratio: float,
    target: float | None,
    at_most: bool = False,
    spread: tuple[float, float] | None = None,
) -> dict[str, object]:
    """Give one result: `ratio` must reach `target`, or stay at or below it if `at_most`.

    Args:
        benchmark: What was compared, and what is in the columns where it is not plain.
        ours: Our figure.
        peer: The one it is compared with.
        unit: Of both.
        ratio: What is judged.
        target: By what it is judged; None: it is only told.
        at_most: Whether less is better.
        spread: Least and greatest ratio that the rounds gave, or an interval of it; None: it was measured once.
    """
    figures: dict[str, object] = {"ours": ours, "peer": peer, "unit": unit, "ratio": ratio}
    if target is not None:
        figures["target"] = target
    result: dict[str, object] = {"benchmark": benchmark}
    result |= {key: _rounded(value) for key, value in figures.items()}
    if spread is not None:
        result["spread"] = [_rounded(value) for value in spread]
    if target is not None:
        result["met"] = ratio <= target if at_most else ratio >= target
    return result | ({"at_most": True} if at_most else {})


def skipped(benchmark: str, why: str) -> dict[str, object]:
    """Give the row of a comparison that can't run here."""
    return {"benchmark": benchmark, "skipped": why}


def print_rows(rows: list[dict[str, object]]) -> None:
    """Print a JSON line a row; a benchmark prints nothing after its last ones."""
    for result in rows:
        print(json.dumps(result), flush=True)


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
