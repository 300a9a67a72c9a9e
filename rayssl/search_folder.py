"""Search folders: one for each search, named by the study and a hash of all that it says."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rayssl.errors import ConfigError
from rayssl.files import write_whole
from rayssl.search_space import Study
from rayssl.storage import is_address

_STUDY, _RESULT = "study.json", "results.md"


def open_search(study: Study, *, resume: bool, fresh: bool, show: Callable[[object], None]) -> tuple[Path, bool]:
    """Choose the search's folder: the newest of its study if that is not finished, else the next free suffix (-2, ...).

    Args:
        study: What is searched.
        resume: Refuse to begin a new search.
        fresh: Take a new folder even if the newest one is not finished; the old one is left as it is.
        show: Told of a search that is left unfinished.

    Returns:
        The folder, and whether there is a search in it to go on with.

    Raises:
        ConfigError: If there is nothing to go on with and `resume` is set, or the folder can't be made.
    """
    if is_address(study.base.storage_path):
        raise ConfigError(
            f"storage_path: a search needs a folder that all nodes see, since its trials leave stages for each other "
            f"there, got {study.base.storage_path}. Mount the object store (Mountpoint for S3, gcsfuse) on every node "
            "and give the mount's path"
        )
    base = study.base.storage_folder.expanduser().resolve() / f"search-{study.name}-{_fingerprint(study)}"
    newest, number = base, 1
    while (following := base.with_name(f"{base.name}-{number + 1}")).exists():
        newest, number = following, number + 1
    is_finished = (newest / _RESULT).exists()
    is_unfinished = (newest / _STUDY).exists() and not is_finished
    if is_unfinished and not fresh:
        return newest, True
    if resume and is_finished:
        raise ConfigError(f"--resume: {newest} is finished. Leave --resume out to search anew")
    if resume:
        raise ConfigError(f"--resume: there is no search of this study in {base.parent}. Leave --resume out")
    if is_unfinished:
        show(f"{newest.name} is not finished and is left as it is; this is a new search")
    folder = following if newest.exists() else newest
    try:
        folder.mkdir(parents=True)
        write_whole(folder / _STUDY, json.dumps(study.as_data(), indent=1))
    except OSError as error:
        raise ConfigError(
            f"storage_path: must be a folder that can be written, got {study.base.storage_path} ({error.strerror})"
        ) from None
    return folder, False


def _fingerprint(study: Study) -> str:
    """Eight hex digits that two studies share only if they agree in all but where runs are stored."""
    data = study.as_data()
    with suppress(KeyError):
        del data["experiment"]["storage_path"]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]
