"""The permutations that a jigsaw task tells apart: far from one another, and the same ones at every level.

PSL keeps the average Hamming distance of its sets at 8.0 of 9 tiles (Table 1), which any balanced set has. What tells
good sets from bad is the smallest distance: two permutations that differ in two tiles alone are one class to most
puzzles. So the smallest distance comes first here and the average breaks ties, and each level's set is a prefix of one
sequence: C1 within C2 within C3 (section 3.3.1), where a class means the same permutation in each.
"""

import hashlib
import io
import math
import os
from contextlib import suppress
from itertools import chain, permutations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_POOL = 2**18
"""Candidates for a 4 x 4 grid, whose 16! permutations can't be listed."""
_ROWS = 1024
"""Permutations that are compared with all others at a time; bounds memory alone."""


def permutation_set(num_permutations: int, *, grid: int = 3, seed: int = 0) -> Tensor:
    """The first permutations of one sequence in which each is as far as can be from all before it.

    The first is drawn at random. Then always the one follows whose smallest Hamming distance to those before is the
    largest; of several the one with the largest mean distance, and of these the first in an order drawn from the seed.
    A shorter set is therefore the beginning of a longer one. For grids of 2 and 3 every permutation is a candidate, for
    4 x 4 tiles 262,144 different ones drawn from the seed. 2,000 permutations of 9 tiles take about 3 s on one core
    (the time grows in proportion) and are then kept in the user's cache folder, `$XDG_CACHE_HOME/rayssl` or
    `~/.cache/rayssl`; where nothing can be written there, they are made anew each time.

    Args:
        num_permutations: How many, P; up to 24, 362,880 and 262,144 for grids of 2, 3 and 4.
        grid: Cells a side, 2 to 4.
        seed: Decides the first permutation and the last ties; at least 0.

    Returns:
        int64 (P, grid * grid). Row k lists the cells, counted row by row, whose tiles permutation k shows: the tile
        of cell `row[j]` at position j. At P = 500, 1000 and 2000 of 9 tiles the mean distance is 8.016, 8.008 and
        8.004, the smallest 5, 5 and 4.

    Raises:
        ValueError: If there are not that many, or the grid or the seed is out of range.

    Source: Noroozi and Favaro 2016, Algorithm 1, with the smallest distance instead of the mean.
    """
    most = count_permutations(grid)
    if not 1 <= num_permutations <= most:
        raise ValueError(
            f"permutation_set: num_permutations must be in [1, {most}] for {grid} x {grid} tiles, "
            f"got {num_permutations}"
        )
    if seed < 0:
        raise ValueError(f"permutation_set: seed must be at least 0, got {seed}")
    folder, stem = _cache_folder(), f"permutations-{grid}-{seed}"
    sequence = _load(folder, stem)
    if sequence is None or len(sequence) < num_permutations:
        sequence = _spread_out(_candidates(grid, seed), num_permutations)
        _store(sequence, folder, stem)
    return torch.from_numpy(sequence[:num_permutations].astype(np.int64))


def count_permutations(grid: int) -> int:
    """How many permutations there are to choose from: all for 2 x 2 and 3 x 3 tiles, 262,144 for 4 x 4.

    Raises:
        ValueError: If the grid is not 2, 3 or 4.
    """
    if grid not in (2, 3, 4):
        raise ValueError(f"permutations: grid must be 2, 3 or 4, got {grid}")
    return _POOL if grid == 4 else math.factorial(grid * grid)


def hamming_summary(permutations: Tensor) -> tuple[float, int]:
    """Mean and smallest number of positions in which two of the permutations differ.

    Args:
        permutations: int64 (P, T), P at least 2, entries in [0, T).

    Raises:
        ValueError: If there are fewer than two.
    """
    if permutations.ndim != 2 or len(permutations) < 2:
        raise ValueError(f"hamming_summary: at least two permutations (P, T) needed, got {tuple(permutations.shape)}")
    count, num_tiles = permutations.shape
    ones = functional.one_hot(permutations, num_tiles).flatten(1).float()
    total, closest = 0.0, 0
    for first in range(0, count, _ROWS):
        equal = ones[first : first + _ROWS] @ ones.T  # positions in which two agree, small whole numbers: exact
        rows = torch.arange(len(equal))
        equal[rows, first + rows] = 0  # not with itself
        total += equal.double().sum().item()
        closest = max(closest, int(equal.max()))
    return num_tiles - total / (count * (count - 1)), num_tiles - closest


def _candidates(grid: int, seed: int) -> NDArray[np.uint8]:
    """All permutations, or for 4 x 4 tiles many, in an order drawn from the seed; (C, grid * grid).

    Sorted by raw bits, since those of a bit generator are the same in every version of numpy and on every machine,
    which is not promised of `Generator.permutation`.
    """
    bits = np.random.PCG64(seed)
    num_tiles = grid * grid
    if grid == 4:
        spare = 1024  # for pairs of equal ones, of which about one in 600 seeds has any
        drawn = bits.random_raw((_POOL + spare) * num_tiles).reshape(-1, num_tiles).argsort(1, kind="stable")
        _, first = np.unique(drawn.astype(np.uint8), axis=0, return_index=True)
        return drawn[np.sort(first)[:_POOL]].astype(np.uint8)
    count = math.factorial(num_tiles)
    flat = np.fromiter(chain.from_iterable(permutations(range(num_tiles))), dtype=np.uint8, count=count * num_tiles)
    return flat.reshape(count, num_tiles)[bits.random_raw(count).argsort(kind="stable")]


def _spread_out(candidates: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Begin with the first candidate, then always take the one farthest from those taken; (count, T)."""
    columns = np.ascontiguousarray(candidates.T)  # a tile at a time: long rows of bytes are compared fastest
    smallest = np.full(len(candidates), candidates.shape[1] + 1, dtype=np.uint8)
    total = np.zeros(len(candidates), dtype=np.int32)
    taken = [0]
    while len(taken) < count:
        distance = np.zeros(len(candidates), dtype=np.uint8)
        for column, tile in zip(columns, candidates[taken[-1]], strict=True):
            distance += column != tile
        np.minimum(smallest, distance, out=smallest)
        total += distance
        farthest = np.flatnonzero(smallest == smallest.max())
        taken.append(int(farthest[total[farthest].argmax()]))  # argmax: the first of equals
    return candidates[taken]


def _cache_folder() -> Path | None:
    """Where sequences are kept; None for a user without a home."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "rayssl"
    try:
        return Path.home() / ".cache" / "rayssl"
    except RuntimeError:
        return None


def _load(folder: Path | None, stem: str) -> NDArray[np.uint8] | None:
    """The longest undamaged sequence in the cache: one whose file is named by its own hash."""
    found = []
    for path in _files(folder, stem):
        try:
            content = path.read_bytes()
        except OSError:  # another process may just have replaced it
            continue
        if path == _file(path.parent, stem, content):
            found.append(np.load(io.BytesIO(content), allow_pickle=False))
    return max(found, key=len, default=None)


def _store(sequence: NDArray[np.uint8], folder: Path | None, stem: str) -> None:
    """Put a sequence into the cache in place of shorter ones; a folder that can't be written is left alone."""
    if folder is None:
        return
    buffer = io.BytesIO()
    np.save(buffer, sequence, allow_pickle=False)
    content = buffer.getvalue()
    place = _file(folder, stem, content)
    temporary = folder / f"{place.stem}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shorter = [path for path in _files(folder, stem) if path.stat().st_size <= len(content)]
        temporary.write_bytes(content)
        temporary.replace(place)
        for path in shorter:
            if path != place:
                path.unlink(missing_ok=True)
    except OSError:  # full, read-only or another's: the cache only saves seconds
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _files(folder: Path | None, stem: str) -> list[Path]:
    return [] if folder is None else sorted(folder.glob(f"{stem}-*.npy"))


def _file(folder: Path, stem: str, content: bytes) -> Path:
    return folder / f"{stem}-{hashlib.sha256(content).hexdigest()}.npy"
