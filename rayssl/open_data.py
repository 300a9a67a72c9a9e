"""The pictures of a run or an evaluation, listed, checked, decoded and open."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rayssl.config import ExperimentConfig
from rayssl.data import ImageList, Pictures, Splits, check_size, open_pictures
from rayssl.errors import DataError
from rayssl.evaluate_config import EvaluateConfig
from rayssl.storage import is_address


@dataclass(frozen=True)
class OpenPictures:
    """The pictures of a run, ready to be read."""

    train: Pictures
    validation: Pictures | None
    test: Pictures | None

    @property
    def told(self) -> Pictures | None:
        """Pictures that the final probes are tested on: the data set's own test split, or the held-out ones."""
        return self.test or self.validation


def open_data(
    config: ExperimentConfig | EvaluateConfig,
    folder: Path,
    *,
    rank: int = 0,
    leads_node: bool = True,
    barrier: Callable[[], None] = lambda: None,
) -> OpenPictures:
    """List, check, decode and open the pictures; small sets are decoded once.

    They go to `folder`/cache, for all workers, or to a folder of each machine, for those there: the one that
    `data.cache_path` names, or `folder`/cache if each has a working copy of an object store.

    Raises:
        DataError: If they are missing, unreadable or smaller than the views.
    """
    splits = _list_pictures(config, rank=rank, barrier=barrier)
    check_size(splits.train, image_size=config.data.image_size, allow_upscaling=config.data.allow_upscaling)

    own = _node_cache(config, folder)

    def open_split(name: str, images: ImageList | None) -> Pictures | None:
        if images is None or len(images) == 0:
            return None
        return open_pictures(
            images,
            (folder / "cache" if own is None else own) / name,
            resize=config.data.decode_size,
            cache_bytes=int(config.data.cache_gib * 2**30),
            max_bad_fraction=config.data.max_bad_fraction,
            num_workers=config.data.loader_workers,
            is_builder=rank == 0 if own is None else leads_node,
            barrier=barrier,
        )

    train = open_split("train", splits.train)
    if train is None:
        raise DataError("data: there are no pictures to train on. Lower data.validation_fraction or raise data.limit.")
    return OpenPictures(train, open_split("validation", splits.validation), open_split("test", splits.test))


def _node_cache(config: ExperimentConfig | EvaluateConfig, folder: Path) -> Path | None:
    """Where a machine keeps the decoded pictures of the run in `folder`; None: in that folder."""
    if config.data.cache_path is None:
        return folder / "cache" if is_address(config.storage_path) else None
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return config.data.cache_path.expanduser() / f"{folder.name}-{digest}"


def drop_node_cache(config: ExperimentConfig | EvaluateConfig, folder: Path) -> None:
    """Delete this machine's own decoded pictures of the run in `folder`, which has ended."""
    own = _node_cache(config, folder)
    if own is not None:
        shutil.rmtree(own, ignore_errors=True)


def _list_pictures(config: ExperimentConfig | EvaluateConfig, *, rank: int, barrier: Callable[[], None]) -> Splits:
    """The same splits on every rank; rank 0 goes first, since it may have to download or unpack them."""
    if rank != 0:
        barrier()
        return config.data.build(seed=config.seed)
    try:
        return config.data.build(seed=config.seed)
    finally:
        barrier()  # also after an error, which the others, waiting here, then meet themselves
