"""Pictures decoded once, into a flat file that all workers of a machine map."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self, TypeVar

import numpy as np
import torch

from rayssl.data.images import BadImageError, cut_window, decode_item, enlarge, squeeze
from rayssl.data.pictures import BadFile, ImageList, Plan, Targets, check_bad_share, fingerprint
from rayssl.errors import DataError

_CACHE_VERSION = 2

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class CachedPictures:
    """Pictures in one flat file, mapped read-only, so that all processes of a machine share its pages.

    Args:
        flat: All pixels, uint8, one picture after another.
        sizes: Height and width of each, (N, 2); every short side is the same.
        labels: int64 (N,).
        classes: The classes' names.
        targets: What pictures of several classes show; None if no picture has more than one.
        numbers: Each picture's number in the list that was decoded, int64 (N,).
        bad_files: What was left out; `labels`, `targets` and `numbers` know nothing of them.
        fingerprint: That of the list and of how it was decoded.
    """

    def __init__(
        self,
        flat: np.ndarray,
        sizes: np.ndarray,
        labels: np.ndarray,
        *,
        classes: tuple[str, ...],
        targets: Targets | None = None,
        numbers: np.ndarray,
        bad_files: list[BadFile],
        fingerprint: str,
    ) -> None:
        self.side = int(sizes.min())
        self.labels = labels
        self.classes = classes
        self.targets = targets
        self.numbers = numbers
        self.bad_files = bad_files
        self.fingerprint = fingerprint
        self._flat = flat
        self._sizes = sizes
        self._offsets = _offsets(sizes)
        all_square = bool((sizes == self.side).all())
        self._squares = flat.reshape(-1, self.side, self.side, 3) if all_square else None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Maps what `build_cache` wrote.

        Raises:
            DataError: If the folder holds no complete cache.
        """
        state = _read_state(folder)
        if state is None:
            raise DataError(f"data.cache_gib: {folder} holds no complete cache. Start the run again to build it.")
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            sizes, labels, numbers = index["sizes"], index["labels"], index["numbers"]
            targets = Targets(tuple(state["targets"]), index["targets"]) if state["targets"] else None
        flat = np.asarray(np.memmap(folder / "pictures.bin", dtype=np.uint8, mode="r"))
        bad_files = [BadFile(**bad) for bad in state["bad_files"]]
        classes = tuple(state["classes"])
        return cls(
            flat,
            sizes,
            labels,
            classes=classes,
            targets=targets,
            numbers=numbers,
            bad_files=bad_files,
            fingerprint=state["fingerprint"],
        )

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, plan: Plan) -> Iterator[torch.Tensor]:
        """See `Pictures.batches`."""
        for indices, positions in plan:
            if self._squares is not None:
                windows = self._squares[indices]
            elif positions is None:
                windows = np.stack([squeeze(self._picture(index), self.side) for index in indices])
            else:
                windows = np.stack(
                    [
                        cut_window(self._picture(index), position, self.side)
                        for index, position in zip(indices, positions, strict=True)
                    ]
                )
            yield torch.from_numpy(windows).permute(0, 3, 1, 2)

    def _picture(self, index: int) -> np.ndarray:
        return _slice(self._flat, self._sizes, self._offsets, index)


def build_cache(images: ImageList, folder: Path, *, resize: int, max_bad_fraction: float, threads: int) -> None:
    """Decodes all pictures into `folder`, unless it holds them already.

    Pictures are reduced to the short side `resize`. Where their short sides then still differ, the smaller ones are
    enlarged (bicubic) to the largest, so that all windows have one side; equal ones stay as they are. Unusable
    pictures are left out, and listed with their reasons in `cache.json`.

    Args:
        images: What to decode.
        folder: Where to; made if missing.
        resize: Largest short side, in pixels.
        max_bad_fraction: Share of pictures, in [0, 1], that may be unusable.
        threads: How many pictures are decoded at once.

    Raises:
        DataError: If more pictures are unusable, or all of them, or the folder can't be written.
    """
    known_by = fingerprint(images, _CACHE_VERSION, resize)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").unlink(missing_ok=True)
        state = _read_state(folder)
        if state is None or state["fingerprint"] != known_by:
            _write_cache(images, folder, known_by, resize=resize, max_bad_fraction=max_bad_fraction, threads=threads)
        else:
            bad_files = [BadFile(**bad) for bad in state["bad_files"]]
            check_bad_share(bad_files, len(images), max_bad_fraction=max_bad_fraction)
    except OSError as error:
        raise DataError(
            f"data.cache_gib: the decoded pictures can't be written to {folder}: {error.strerror or error}. "
            "Make room there, or set data.cache_gib=0 to decode them while training."
        ) from error


def _write_cache(
    images: ImageList, folder: Path, known_by: str, *, resize: int, max_bad_fraction: float, threads: int
) -> None:
    (folder / "cache.json").unlink(missing_ok=True)
    with TemporaryDirectory(prefix="building-", dir=folder) as name:
        building = Path(name)
        decoded, enlarged = building / "pictures.bin", building / "enlarged.bin"
        sizes, good, bad = _decode_all(images, decoded, resize=resize, threads=threads)
        check_bad_share(bad, len(images), max_bad_fraction=max_bad_fraction)
        side = int(sizes.min(axis=1).max())
        if (sizes.min(axis=1) < side).any():
            sizes = _enlarge_all(decoded, enlarged, sizes, side=side, threads=threads)
            enlarged.replace(decoded)
        targets = images.targets or Targets((), np.empty((len(images), 0), dtype=np.int8))
        np.savez(
            building / "index.npz", sizes=sizes, labels=images.labels[good], numbers=good, targets=targets.values[good]
        )
        state = {
            "fingerprint": known_by,
            "classes": images.classes,
            "targets": targets.classes,
            "bad_files": [asdict(each) for each in bad],
        }
        (building / "cache.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        # cache.json is the last, because its presence says that the rest is complete.
        for file_name in ("pictures.bin", "index.npz", "cache.json"):
            (building / file_name).replace(folder / file_name)


def _decode_all(
    images: ImageList, target: Path, *, resize: int, threads: int
) -> tuple[np.ndarray, np.ndarray, list[BadFile]]:
    """Writes all usable pictures one after another: their sizes (N, 2), their indices (N,) and the others' reasons."""

    def decode(index: int) -> np.ndarray | BadFile:
        try:
            return decode_item(images.items[index], short_side=resize)
        except BadImageError as error:
            return BadFile(images.name_of(index), error.reason)

    sizes, good, bad = [], [], []
    with target.open("wb") as file:
        for index, result in enumerate(_in_order(decode, range(len(images)), threads=threads)):
            if isinstance(result, BadFile):
                bad.append(result)
            else:
                file.write(np.ascontiguousarray(result).data)
                sizes.append(result.shape[:2])
                good.append(index)
    return np.array(sizes, dtype=np.int64).reshape(-1, 2), np.array(good, dtype=np.int64), bad


def _enlarge_all(source: Path, target: Path, sizes: np.ndarray, *, side: int, threads: int) -> np.ndarray:
    """Copies the pictures with all short sides brought up to `side`; returns their new sizes (N, 2)."""
    flat, offsets = np.memmap(source, dtype=np.uint8, mode="r"), _offsets(sizes)
    pictures = (np.asarray(_slice(flat, sizes, offsets, index)) for index in range(len(sizes)))
    new_sizes = []
    with target.open("wb") as file:
        for picture in _in_order(partial(enlarge, short_side=side), pictures, threads=threads):
            file.write(picture.data)
            new_sizes.append(picture.shape[:2])
    return np.array(new_sizes, dtype=np.int64)


def _in_order(function: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int) -> Iterator[_Result]:
    """Maps in a thread pool, in order, with only a few results waiting (`Executor.map` would hold them all)."""
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _offsets(sizes: np.ndarray) -> np.ndarray:
    """Where each picture begins in the flat file, (N,) in bytes."""
    return np.concatenate([[0], np.cumsum(3 * sizes.prod(axis=1))[:-1]])


def _slice(flat: np.ndarray, sizes: np.ndarray, offsets: np.ndarray, index: int) -> np.ndarray:
    """A picture of the flat file, a view (H, W, 3)."""
    height, width = sizes[index]
    return flat[offsets[index] : offsets[index] + 3 * height * width].reshape(height, width, 3)


def _read_state(folder: Path) -> dict | None:
    try:
        return json.loads((folder / "cache.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
