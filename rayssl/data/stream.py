"""Pictures decoded while training goes on, by worker processes."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from rayssl.data.images import BadImageError, cut_window, decode_item, enlarge, squeeze
from rayssl.data.pictures import BadFile, ImageList, Plan, check_bad_share, fingerprint


class StreamedPictures:
    """Pictures decoded again each time, by worker processes that stay alive between epochs.

    Every picture gets the short side `resize`, enlarged (bicubic) if it is smaller. In the place of an unusable one
    stands the next usable one in the list with the same label and targets, or the next of all if there is none; the
    order is the plan's, whatever the number of workers.

    Args:
        images: What to decode.
        resize: The windows' side.
        max_bad_fraction: Share of pictures, in [0, 1], that may be unusable; one always may.
        num_workers: Decoding processes; 0 decodes in this process.
    """

    def __init__(self, images: ImageList, *, resize: int, max_bad_fraction: float, num_workers: int) -> None:
        self.side = resize
        self.labels = images.labels
        self.classes = images.classes
        self.targets = images.targets
        self.numbers = np.arange(len(images))
        self.bad_files: list[BadFile] = []
        self._images = images
        self._max_bad_fraction = max_bad_fraction
        self._num_workers = num_workers
        self._bad_indices: set[int] = set()
        self._decoder = _WindowDecoder(images, side=resize, max_bad=max(1, int(max_bad_fraction * len(images))))
        self._idle: list[tuple[_Requests, DataLoader]] = []

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """See `Pictures`; looks at every file, so not before it is asked for."""
        return fingerprint(self._images, "streamed", self.side)

    def batches(self, plan: Plan) -> Iterator[torch.Tensor]:
        """See `Pictures.batches`; iterations that overlap get worker processes of their own.

        Raises:
            DataError: If more pictures than `max_bad_fraction` proved to be unusable.
        """
        requests, loader = self._idle.pop() if self._idle else self._new_loader()
        requests.plan = plan
        try:
            for windows, reasons in loader:
                self._note(reasons)
                yield windows.permute(0, 3, 1, 2)
        finally:
            self._idle.append((requests, loader))

    def _new_loader(self) -> tuple["_Requests", DataLoader]:
        requests = _Requests()
        loader: DataLoader = DataLoader(
            self._decoder,
            batch_size=None,
            sampler=requests,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            generator=torch.Generator(),  # Else each epoch would draw from the global one and shift a seeded run.
        )
        return requests, loader

    def _note(self, reasons: dict[int, str]) -> None:
        for index, reason in reasons.items():
            if index not in self._bad_indices:
                self._bad_indices.add(index)
                bad = BadFile(self._images.name_of(index), reason)
                if bad not in self.bad_files:  # it may be known from features that were kept
                    self.bad_files.append(bad)
        if reasons:
            check_bad_share(self.bad_files, len(self), max_bad_fraction=self._max_bad_fraction, spared=1)


class _Requests:
    """What the loader hands to its workers next: the entries of the plan."""

    plan: Plan = ()

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        return iter(self.plan)


class _WindowDecoder(Dataset):
    """An entry of the plan -> its windows (b, side, side, 3) and the unusable pictures met, index -> reason."""

    def __init__(self, images: ImageList, *, side: int, max_bad: int) -> None:
        self._images = images
        self._side = side
        self._max_bad = max_bad
        self._bad: dict[int, str] = {}

    def __getitem__(self, request: tuple[np.ndarray, np.ndarray | None]) -> tuple[torch.Tensor, dict[int, str]]:
        indices, positions = request
        windows = np.zeros((len(indices), self._side, self._side, 3), dtype=np.uint8)
        met: dict[int, str] = {}
        for row, index in enumerate(indices):
            picture = self._usable_picture(int(index), met)
            if picture is None:
                return torch.from_numpy(windows), self._bad  # Too many: the parent, which sees them, stops the run.
            if positions is None:
                windows[row] = squeeze(picture, self._side)
            else:
                windows[row] = cut_window(picture, positions[row], self._side)
        return torch.from_numpy(windows), met

    def _usable_picture(self, index: int, met: dict[int, str]) -> np.ndarray | None:
        for candidate in self._candidates(index):
            if candidate not in self._bad:
                try:
                    picture = decode_item(self._images.items[candidate], short_side=self._side)
                    return enlarge(picture, short_side=self._side)
                except BadImageError as error:
                    self._bad[candidate] = error.reason
            met[candidate] = self._bad[candidate]
            if len(self._bad) > self._max_bad:
                break
        return None

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        following = (index + 1 + np.arange(len(self._images) - 1)) % len(self._images)
        same_label = self._images.labels[following] == self._images.labels[index]
        if self._images.targets is not None:
            shown = self._images.targets.values
            same_label &= (shown[following] == shown[index]).all(axis=1)
        yield from following[same_label].tolist()
        yield from following[~same_label].tolist()
