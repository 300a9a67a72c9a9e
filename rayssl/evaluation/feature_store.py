"""Features of whole sets of pictures: computed once, kept in files, mapped by every protocol, seed and worker.

What one encoder makes of one choice of pictures, seen one way, lies in a folder whose name is a hash of all three.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rayssl.backbones import Backbone
from rayssl.data import BadFile, Pictures
from rayssl.evaluation.feature_files import FeatureFolder, Kind, shrink
from rayssl.evaluation.feature_kinds import Pool, Views
from rayssl.evaluation.features import cache_dtype, extract_features, pool_batches

KEPT_GIB = 8.0
"""What is kept from call to call if nothing is said; as much as a protocol's features may take."""
_VERSION = 1
"""To be raised when the same encoder, pictures and settings begin to give other features."""
_BAD_FILES = "bad_files.json"


class FeatureStore:
    """Where evaluations get features of whole sets.

    What is asked for is looked for in files first, and computed and written if it is missing. Where the files can't be
    written, or would take more than half of the room that is left on the disk, features are computed in memory.

    Args:
        folder: Where the files lie, the same for all workers; None: nothing is kept.
        expected_blocks: Blocks that others will ask for; whoever comes first computes them too.
        show: Called with a sentence if the folder can't be used.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        expected_blocks: Sequence[int] = (),
        show: Callable[[object], None] = lambda text: None,
    ) -> None:
        self._folder = folder
        self._expected_blocks = tuple(expected_blocks)
        self._show = show

    def extract(
        self,
        encoder: Backbone,
        sides: Sequence[tuple[Pictures, np.ndarray]],
        *,
        views: Views,
        blocks: Sequence[int],
        pool: Pool,
        also: Sequence[Pool] = (),
        memory_gib: float | None = None,
        rows_of_all: int | None = None,
        device: torch.device,
    ) -> list[dict[int, Tensor]]:
        """Features of several sets of pictures by a frozen encoder, found or computed.

        Args:
            encoder: On `device`.
            sides: Pictures, and which of them, indices (N,).
            views: How the pictures are shown.
            blocks: Which blocks, of 1..5.
            pool: How a block's map becomes features.
            also: Other poolings, whose float32 features are kept for later if the encoder has to run.
            memory_gib: Features are in float32, or in float16 where all sides' blocks would take more than this, in
                GiB; None: in float32.
            rows_of_all: Rows of all workers where each has a share, so that they decide alike; None: those given.
            device: Where the encoder runs.

        Returns:
            For each side: block -> (N, F) on the CPU, rows in the order of the indices. Kept features are maps of the
            files, whose pages all processes of a machine share. Writing to one copies what is written to into this
            process and leaves the file as it is.

        Raises:
            ConfigError: If float16 takes more than `memory_gib` too.
        """
        jobs = [_Job(encoder, pictures, rows, views, device) for pictures, rows in sides]
        folders: list[FeatureFolder | None] = [None] * len(jobs)
        if self._folder is not None:
            weights = _fingerprint(encoder)
            folders = [FeatureFolder(self._folder / job.key(weights), len(job.rows)) for job in jobs]
        dtype = torch.float32
        if memory_gib is not None:
            num_features = _num_features(jobs[0], folders[0], blocks, pool)
            num_rows = rows_of_all if rows_of_all is not None else sum(len(job.rows) for job in jobs)
            dtype = cache_dtype(num_rows, num_features, limit_gib=memory_gib)
        return [
            job.in_memory(blocks, pool, dtype) if folder is None else self._kept(job, folder, blocks, pool, also, dtype)
            for job, folder in zip(jobs, folders, strict=True)
        ]

    def shrink(self, limit_gib: float) -> None:
        """Delete what was not used for longest, until no more than this is left."""
        if self._folder is not None:
            shrink(self._folder, limit=int(limit_gib * 2**30))

    def _kept(
        self,
        job: "_Job",
        folder: FeatureFolder,
        blocks: Sequence[int],
        pool: Pool,
        also: Sequence[Pool],
        dtype: torch.dtype,
    ) -> dict[int, Tensor]:
        """One side's features as maps of files; in memory where there can be no files."""
        kinds = {block: Kind(block, pool, dtype) for block in blocks}
        expected = {*blocks, *self._expected_blocks}
        others = [Kind(block, pool, dtype) for block in expected]
        others += [Kind(block, other) for block in expected for other in also]
        found = folder.load(kinds.values())
        try:
            if len(found) < len(kinds):
                with folder.locked():
                    found = job.complete(folder, kinds.values(), others)
        except OSError as error:
            self._show(
                f"note: features are computed in memory: {self._folder} can't be used ({error.strerror or error})"
            )
            return job.in_memory(blocks, pool, dtype)
        job.note_bad_files(folder)
        with suppress(OSError):
            os.utime(folder.path)
        return {block: found[kind] for block, kind in kinds.items()}


@dataclass(frozen=True)
class _Job:
    """An encoder's pass over some pictures: all that decides features but the block, the pooling and the type."""

    encoder: Backbone
    pictures: Pictures
    rows: np.ndarray
    views: Views
    device: torch.device

    def key(self, weights: str) -> str:
        """Name of its folder. Device and library count for their rounding: results don't depend on what was kept."""
        seen = (self.pictures.fingerprint, self.pictures.side, self.views)
        digest = hashlib.sha256(repr((_VERSION, torch.__version__, self.device.type, weights, *seen)).encode())
        digest.update(self.pictures.numbers[self.rows].astype(np.int64).tobytes())
        return digest.hexdigest()[:32]

    def in_memory(self, blocks: Sequence[int], pool: Pool, dtype: torch.dtype) -> dict[int, Tensor]:
        """The features, in this process alone."""
        return extract_features(
            self.encoder,
            self.views.batches(self.pictures, self.rows, device=self.device),
            blocks=blocks,
            pool=pool,
            device=self.device,
            dtype=dtype,
            num_images=len(self.rows),
        )

    def complete(self, folder: FeatureFolder, asked: Collection[Kind], others: Iterable[Kind]) -> dict[Kind, Tensor]:
        """Load what is asked for; if the encoder has to run for it, all that is missing is written in one pass."""
        found = folder.load(asked)  # another process may have been at it until now
        if len(found) == len(asked):
            return found
        found |= folder.load(others)
        wanted = {kind: (kind.block, kind.pool) for kind in (*asked, *others) if kind not in found}
        batches = self.views.batches(self.pictures, self.rows, device=self.device)
        written = folder.write(
            wanted,
            lambda keep: pool_batches(self.encoder, batches, wanted=wanted, device=self.device, keep=keep),
        )
        if self.pictures.bad_files:
            bad = json.dumps([asdict(each) for each in self.pictures.bad_files])
            (folder.path / _BAD_FILES).write_text(bad, encoding="utf-8")
        return found | written

    def note_bad_files(self, folder: FeatureFolder) -> None:
        """Remember the unusable pictures that were met when the features were computed."""
        with suppress(OSError, ValueError):
            bad_files = [BadFile(**each) for each in json.loads((folder.path / _BAD_FILES).read_text(encoding="utf-8"))]
            self.pictures.bad_files += [each for each in bad_files if each not in self.pictures.bad_files]


def _num_features(job: _Job, folder: FeatureFolder | None, blocks: Sequence[int], pool: Pool) -> int:
    """Of a picture, all blocks together: as files tell, or a blank picture."""
    if folder is not None:
        kinds = [Kind(block, pool, dtype) for dtype in (torch.float32, torch.float16) for block in blocks]
        widths = {kind.block: features.shape[1] for kind, features in folder.load(kinds).items()}
        if len(widths) == len(blocks):
            return sum(widths.values())
    blank = torch.zeros(1, 3, job.views.image_size, job.views.image_size)
    sizes = extract_features(job.encoder, [blank], blocks=blocks, pool=pool, device=job.device)
    return sum(features.shape[1] for features in sizes.values())


def _fingerprint(encoder: Backbone) -> str:
    """Of its layers and of every parameter and buffer, bit for bit."""
    digest = hashlib.sha256(repr(encoder).encode())
    for name, tensor in chain(encoder.named_parameters(), encoder.named_buffers()):
        values = tensor.detach().cpu().contiguous()
        digest.update(repr((name, values.dtype, tuple(values.shape))).encode())
        digest.update(values.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
