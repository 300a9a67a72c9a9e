"""What several test files share: pictures of noise, written to files, and what the stores make of them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from rayssl.data import CachedPictures, ImageList, Pictures, build_cache


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_folder(root: Path, *names: str) -> Path:
    """Tiny pictures at these paths below the root."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return root


def write_pictures(folder: Path, pictures: list[np.ndarray]) -> ImageList:
    paths = [folder / f"{index:03}.png" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    return ImageList(paths, np.arange(len(paths)), tuple(f"class {index}" for index in range(len(paths))))


def spoil(images: ImageList, *indices: int) -> None:
    for index in indices:
        Path(images.items[index]).write_bytes(b"")


def cached(images: ImageList, folder: Path, *, resize: int = 64, max_bad_fraction: float = 0.5) -> CachedPictures:
    build_cache(images, folder, resize=resize, max_bad_fraction=max_bad_fraction, threads=2)
    return CachedPictures.open(folder)


def plan(*batches: tuple[list[int], list[float]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.array(indices), np.array(positions)) for indices, positions in batches]


def windows(pictures: Pictures, indices: list[int], position: float = 0.5) -> np.ndarray:
    """One batch, channels last: (b, side, side, 3)."""
    (batch,) = pictures.batches(plan((indices, [position] * len(indices))))
    return batch.permute(0, 2, 3, 1).numpy()
