"""What every benchmark shares: the machine's description, fair timing, and the last lines that a program reads."""

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
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


def interleaved_seconds(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Give each contestant's median seconds over `rounds` rounds of A B C A B C, after one round that warms up.

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
    return {name: statistics.median(values) for name, values in seconds.items()}


def row(
    benchmark: str, *, ours: float, peer: float, unit: str, ratio: float, target: float, at_most: bool = False
) -> dict[str, object]:
    """Give one result: `ratio` must reach `target`, or stay at or below it if `at_most`."""
    met = ratio <= target if at_most else ratio >= target
    figures = {"ours": ours, "peer": peer, "unit": unit, "ratio": ratio, "target": target}
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}
    return {"benchmark": benchmark, **rounded, "met": met} | ({"at_most": True} if at_most else {})


def skipped(benchmark: str, why: str) -> dict[str, object]:
    """Give the row of a comparison that can't run here."""
    return {"benchmark": benchmark, "skipped": why}


def print_rows(rows: list[dict[str, object]]) -> None:
    """Print a JSON line a row; a benchmark prints nothing after them."""
    for result in rows:
        print(json.dumps(result))


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
