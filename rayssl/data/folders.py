"""Listing the pictures of a folder, with its class folders as labels."""

import os
from pathlib import Path

import numpy as np

from rayssl.data.pictures import ImageList
from rayssl.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")
"""File names that count as pictures, whatever their case."""

_SPLIT_NAMES = {"train", "val", "valid", "validation", "test"}
_LAYOUT = "It needs class folders, CLASS/*.jpg, or pictures directly in it for a set without labels."


def list_folder(root: Path, *, key: str, classes: tuple[str, ...] | None = None) -> ImageList:
    """The pictures of class folders, or of one flat folder without labels, sorted by their paths.

    Hidden files, other files and folders without pictures are ignored.

    Args:
        root: The folder.
        key: The config key that named it, for messages.
        classes: The only classes allowed, in their order; None: those found.

    Raises:
        DataError: If it is missing, holds no pictures, mixes the two layouts or has a class beyond `classes`.
    """
    top = _visible(root, key=key)
    flat = [path for path in top if _is_picture(path)]
    below = {path.name: _pictures_below(path, key=key) for path in top if path.is_dir()}
    by_class = {name: paths for name, paths in below.items() if paths}
    if not flat and not by_class:
        raise DataError(f"{key}: {root} holds no pictures ({', '.join(each[1:] for each in EXTENSIONS)}). {_LAYOUT}")
    if flat and by_class:
        raise DataError(
            f"{key}: {root} holds pictures ({flat[0].name}, ...) beside class folders ({next(iter(by_class))}, ...). "
            "Move the pictures into class folders, or all into one flat folder for a set without labels."
        )
    _refuse_split_folders(root, set(by_class), key=key)
    found = tuple(by_class)
    if classes is not None:
        _refuse_other_classes(root, found, classes, key=key)
    if flat:
        return ImageList(flat, np.full(len(flat), -1, dtype=np.int64), ())
    number = {name: index for index, name in enumerate(found if classes is None else classes)}
    labels = [np.full(len(paths), number[name], dtype=np.int64) for name, paths in by_class.items()]
    return ImageList([path for paths in by_class.values() for path in paths], np.concatenate(labels), tuple(number))


def _visible(root: Path, *, key: str) -> list[Path]:
    """What is in a folder, sorted, without hidden entries."""
    if not root.exists():
        raise DataError(f"{key}: {root} does not exist. Set it to the folder of your pictures. {_LAYOUT}")
    if not root.is_dir():
        raise DataError(f"{key}: must be a folder, {root} is a file. Unpack it if it is an archive. {_LAYOUT}")
    try:
        return sorted((each for each in root.iterdir() if not each.name.startswith(".")), key=lambda each: each.name)
    except OSError as error:
        raise DataError(f"{key}: {root} can't be read: {error.strerror}. Mend its permissions.") from error


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def _pictures_below(folder: Path, *, key: str) -> list[Path]:
    """All pictures in and below a folder, sorted by path; links to folders are followed, each folder once."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{key}: {error.filename} can't be read: {error.strerror}. Mend its permissions.") from error

    seen: set[str] = set()
    pictures = []
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        pictures += [Path(here, name) for name in files if name.lower().endswith(EXTENSIONS) and name[0] != "."]
    return sorted(pictures)


def _refuse_split_folders(root: Path, names: set[str], *, key: str) -> None:
    """root/train/CLASS and root/val/CLASS are splits, not two classes named train and val."""
    if "train" not in names or not names <= _SPLIT_NAMES:
        return
    if any(each.is_dir() for each in (root / "train").iterdir()):
        tests = [f" data.test_root={root / name}" for name in ("val", "valid", "validation", "test") if name in names]
        raise DataError(
            f"{key}: {root} holds splits ({', '.join(sorted(names))}), not classes. "
            f"Set data.root={root / 'train'}{tests[0] if tests else ''}"
        )


def _refuse_other_classes(root: Path, found: tuple[str, ...], classes: tuple[str, ...], *, key: str) -> None:
    """Test pictures may lack classes of the training pictures, but have no others."""
    if unknown := sorted(set(found) - set(classes)):
        what = f"classes that data.root lacks: {unknown[:5]}"
    elif classes and not found:
        what = "no class folders, but data.root does"
    else:
        return
    raise DataError(f"{key}: {root} has {what}. Both need the same class folders: {classes[:5] or 'none'}.")
