"""Two SimCLR views of each picture on one CPU thread, against lightly, albumentations and kornia.

    python benchmarks/augment.py [--rounds 5] [--crossover]

Three cases: JPEG files of 500 x 375 pixels, decoded and made views of 224 px; 256 decoded pictures of 64 px; 256 of
32 px, without blur. Every contestant gives float batches, normalised, from the same pictures, with SimCLR's parameters
at full strength. Ours is what a task calls, random numbers included. lightly's SimCLRTransform starts from PIL images,
albumentations from arrays (OpenCV decodes its files), kornia from the whole batch. Crops are antialiased where a peer
offers it: lightly's are, albumentations' with its INTER_AREA (its default, not antialiased, runs beside it), kornia's
can't be. Figures are pictures per CPU second, medians.

First every contestant's views are compared with ours, in the means over some hundred views: brightness, contrast,
colour, sharpness, and the share of grey ones. A mean may differ by a tenth or by 4 standard errors, or the program
stops; sharpness without antialiasing is not compared. With --crossover, our two ways to make views are
timed at several sizes too. About 4 minutes; peers that are not installed are skipped.
"""

import argparse
import importlib
import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from common import Timings, installed_version, interleaved_seconds, print_machine, print_rows, row, skipped
from PIL import Image
from torch import Tensor

from rayssl.data import opencv_views
from rayssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Draws
from rayssl.data.buffers import Buffers
from rayssl.data.images import decode_image
from rayssl.tasks.augmented_views import AugmentationLevel, augmented_view

MakeViews = Callable[[], Tensor]
"""Makes a batch of views, (2N, 3, S, S)."""


@dataclass(frozen=True)
class Case:
    """What is made of what."""

    name: str
    pictures: np.ndarray
    """uint8 (N, H, W, 3)."""
    size: int
    """Side of the views in pixels."""
    blur: float
    targets: dict[str, float]
    """Peer -> how many times as many pictures a second we are to make."""
    jpegs: tuple[bytes, ...] = ()
    """The pictures as files; empty: they are decoded already."""


def main() -> None:
    """Compare the views, measure, print a table and the rows."""
    options = parse_options()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore")  # what the peers have to say about versions
    print_machine("torchvision", "opencv-python-headless", "lightly", "albumentations", "kornia")
    rows: list[dict[str, object]] = []
    for case in build_cases():
        contestants = build_contestants(case)
        print(f"\n{case.name}, batches of {len(case.pictures)}")
        check_equal_work(contestants, case.size)
        runs = {name: free_result(make) for name, make in contestants.items()}
        seconds = interleaved_seconds(runs, rounds=options.rounds, clock=time.process_time)
        rates = {name: len(case.pictures) / value for name, value in seconds.items()}
        for name, rate in rates.items():
            print(f"{name:28} {rate:9.1f} pictures/s   {1e3 / rate:8.3f} ms each")
        rows += compare(case, rates, seconds)
    if options.crossover:
        print_crossover(options.rounds)
    print()
    print_rows(rows)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed batches of each contestant")
    parser.add_argument("--crossover", action="store_true", help="time our two ways to make views at several sizes")
    return parser.parse_args()


def build_cases() -> list[Case]:
    """The three cases, of made-up pictures."""
    photographs = made_up_pictures(32, 375, 500)
    jpegs = tuple(as_jpeg(picture) for picture in photographs)
    print(f"files: {np.mean([len(jpeg) for jpeg in jpegs]) / 1000:.0f} kB each")
    return [
        Case("JPEG to 224 px", photographs, 224, 0.5, {"lightly": 4.7, "albumentations": 1.4}, jpegs),
        Case("64 px", made_up_pictures(256, 64, 64), 64, 0.5, {"lightly": 9.0, "albumentations": 2.3}),
        Case("32 px without blur", made_up_pictures(256, 32, 32), 32, 0.0, {"lightly": 18.0, "kornia": 7.5}),
    ]


def made_up_pictures(count: int, height: int, width: int) -> np.ndarray:
    """Areas, edges and textures of several scales, and a little noise: JPEG files of a photograph's size."""
    generator = np.random.default_rng(0)
    pictures = np.empty((count, height, width, 3), np.uint8)
    for picture in pictures:
        layers = generator.normal(0, 5, (height, width, 3))
        for cells, strength in ((3, 60), (8, 30), (24, 15), (60, 8)):
            layer = generator.normal(0, strength, (cells, cells, 3)).astype(np.float32)
            layers += cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC)
        picture[...] = np.clip(layers + 120, 0, 255)
    return pictures


def as_jpeg(picture: np.ndarray) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    return file.getvalue()


def build_contestants(case: Case) -> dict[str, MakeViews]:
    """Name -> a function that makes the views of one batch, for all that are installed."""
    contestants = {"ours": build_ours(case)}
    if installed_version("lightly"):
        contestants["lightly"] = build_lightly(case)
    if "albumentations" in case.targets and installed_version("albumentations"):
        contestants["albumentations"] = build_albumentations(case, antialiased=True)
        contestants["albumentations, not antialiased"] = build_albumentations(case, antialiased=False)
    if "kornia" in case.targets and installed_version("kornia"):
        contestants["kornia"] = build_kornia(case)
    return contestants


def build_ours(case: Case) -> MakeViews:
    """Decode, draw, make both views into memory that was used before: as a training step does."""
    level = AugmentationLevel(color_strength=1.0, gray=0.2, blur=case.blur)
    count, step, buffers = len(case.pictures), -1, Buffers()
    pictures = case.pictures.copy()

    def make() -> Tensor:
        nonlocal step
        step += 1
        if case.jpegs:
            np.stack([decode_image(jpeg, short_side=None) for jpeg in case.jpegs], out=pictures)
        draws = Draws(0, 0, step, batch_size=count)
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        return augmented_view(images, draws, level, image_size=case.size, num_views=2, buffers=buffers)

    return make


def build_lightly(case: Case) -> MakeViews:
    """SimCLRTransform with its defaults, on PIL images, and a batch of each view as its collate function makes it."""
    transform = importlib.import_module("lightly.transforms").SimCLRTransform(
        input_size=case.size, gaussian_blur=case.blur
    )

    def make() -> Tensor:
        if case.jpegs:
            images = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in case.jpegs]
        else:
            images = [Image.fromarray(picture) for picture in case.pictures]
        pairs = [transform(image) for image in images]
        return torch.cat([torch.stack(views) for views in zip(*pairs, strict=True)])

    return make


def build_albumentations(case: Case, *, antialiased: bool) -> MakeViews:
    """The same operations as lightly's, per picture; the blur's kernel is sized by sigma, as by default."""
    albumentations: Any = importlib.import_module("albumentations")
    to_tensor = importlib.import_module("albumentations.pytorch").ToTensorV2
    strengths = {name: (0.2, 1.8) for name in ("brightness", "contrast", "saturation")}
    transform = albumentations.Compose(
        [
            albumentations.RandomResizedCrop(
                (case.size, case.size), scale=(0.08, 1.0), area_for_downscale="image" if antialiased else None
            ),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ColorJitter(**strengths, hue=(-0.2, 0.2), p=0.8),
            albumentations.ToGray(p=0.2),
            *([albumentations.GaussianBlur(sigma_limit=(0.1, 2.0), p=case.blur)] if case.blur else []),
            albumentations.Normalize(),
            to_tensor(),
        ]
    )

    def make() -> Tensor:
        if case.jpegs:
            files = (np.frombuffer(jpeg, np.uint8) for jpeg in case.jpegs)
            images = [cv2.imdecode(file, cv2.IMREAD_COLOR_RGB) for file in files]
        else:
            images = list(case.pictures)
        return torch.cat([torch.stack([transform(image=image)["image"] for image in images]) for _ in range(2)])

    return make


def build_kornia(case: Case) -> MakeViews:
    """The same operations on the whole batch."""
    kornia: Any = importlib.import_module("kornia.augmentation")
    assert not case.blur, "kornia takes part without blur only"
    transform = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((case.size, case.size), scale=(0.08, 1.0)),
        kornia.RandomHorizontalFlip(p=0.5),
        kornia.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        data_keys=["input"],
    )
    images = torch.from_numpy(case.pictures).permute(0, 3, 1, 2).contiguous()

    def make() -> Tensor:
        batch = images.float() / 255
        return torch.cat([transform(batch) for _ in range(2)])

    return make


def check_equal_work(contestants: dict[str, MakeViews], size: int) -> None:
    """Compare what the contestants' views show.

    Raises:
        SystemExit: If a mean over the views is not ours, or a shape or dtype differs.
    """
    print(f"{'':28} {'brightness':>12}{'contrast':>12}{'colour':>12}{'sharpness':>12}{'grey':>12}")
    ours: Tensor | None = None
    for name, make in contestants.items():
        # The order of our jitter is one for a whole batch, so that a mean needs several batches.
        batches = [make() for _ in range(max(3, 768 // len(make())))]
        if {(batch.shape[1:], batch.dtype) for batch in batches} != {((3, size, size), torch.float32)}:
            raise SystemExit(f"{name} gives other batches: {batches[0].shape}, {batches[0].dtype}")
        table = torch.cat([describe(batch) for batch in batches])
        means, errors = table.mean(0), table.std(0) / len(table) ** 0.5
        print(f"{name:28} " + "".join(f"{value:12.4f}" for value in means))
        if ours is None:
            ours, own_errors = means, errors
            continue
        allowed = torch.maximum(0.1 * ours, 4 * (errors**2 + own_errors**2).sqrt())
        if name in ("kornia", "albumentations, not antialiased"):
            allowed[3] = torch.inf
        if ((means - ours).abs() > allowed).any():
            raise SystemExit(f"{name} does other work than ours: means may differ by {allowed.tolist()}")


def describe(views: Tensor) -> Tensor:
    """Brightness, contrast, colour, sharpness and whether it is grey, of each view: (N, 5)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = views * std + mean
    brightness = pixels.mean((1, 2, 3))
    contrast = pixels.mean(1).std((1, 2))
    colour = (pixels.amax(1) - pixels.amin(1)).mean((1, 2))
    sharpness = (pixels[..., 1:] - pixels[..., :-1]).abs().mean((1, 2, 3))
    return torch.stack([brightness, contrast, colour, sharpness, (colour < 1e-3).float()], dim=1)


def free_result(make: MakeViews) -> Callable[[], None]:
    """The same without its result, whose memory is free again when the next one begins."""

    def run() -> None:
        make()

    return run


def compare(case: Case, rates: dict[str, float], seconds: Timings) -> list[dict[str, object]]:
    """The rows of one case, of pictures a second."""
    rows = []
    for peer, target in case.targets.items():
        benchmark = f"augment {case.name} against {peer}"
        if peer not in rates:
            rows.append(skipped(benchmark, f"{peer} is not installed"))
            continue
        rows.append(
            row(
                benchmark,
                ours=rates["ours"],
                peer=rates[peer],
                unit="pictures/s",
                ratio=rates["ours"] / rates[peer],
                target=target,
                spread=seconds.spread(peer, "ours"),
            )
        )
    return rows


def print_crossover(rounds: int) -> None:
    """Print the rates of whole batches and of OpenCV side by side; what `opencv_views.FASTER_FROM` comes from."""
    print(f"\n{'views, 256 pictures':28}{'whole batch':>13}{'OpenCV':>13}   pictures/s")
    usual = opencv_views.FASTER_FROM
    for size in (16, 24, 32, 48, 64, 96):
        for blur in (0.0, 0.5):
            case = Case("", made_up_pictures(256, size, size), size, blur, {})
            ways = {"whole batch": run_from(size + 1, case), "OpenCV": run_from(size, case)}
            seconds = interleaved_seconds(ways, rounds=rounds, clock=time.process_time)
            print(f"{f'{size} px, blur {blur:g}':28}" + "".join(f"{256 / value:13.0f}" for value in seconds.values()))
    opencv_views.FASTER_FROM = usual


def run_from(faster_from: int, case: Case) -> Callable[[], None]:
    """Ours, with OpenCV from that size on."""
    make = build_ours(case)

    def run() -> None:
        opencv_views.FASTER_FROM = faster_from
        make()

    return run


if __name__ == "__main__":
    main()
