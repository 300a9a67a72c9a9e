"""Can the angle be told without looking at the picture? Linear classifiers on what resampling leaves behind say no.

The pictures are turned by an angle drawn uniformly before the task sees them: nothing in them then says which way is
up, and whatever a classifier finds, the task has put there. Classifiers see the views' border, colours, and the energy
of differences along eight directions, which tell black corners and the blur of interpolation.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from rayssl.data.augment import Draws
from rayssl.tasks import RotationTask
from tests.tasks.task_batches import as_batch

VIEW = 32
CIFAR10 = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10.tar.xz"

# Pixels that a difference takes from its neighbours: along rows, columns, diagonals; first and second order, far ones.
DIFFERENCES = [
    (((0, 0), -1), ((0, 1), 1)),
    (((0, 0), -1), ((1, 0), 1)),
    (((0, 0), -1), ((1, 1), 1)),
    (((0, 1), -1), ((1, 0), 1)),
    (((0, 0), 1), ((0, 1), -2), ((0, 2), 1)),
    (((0, 0), 1), ((1, 0), -2), ((2, 0), 1)),
    (((0, 0), 1), ((1, 1), -2), ((2, 2), 1)),
    (((0, 2), 1), ((1, 1), -2), ((2, 0), 1)),
]


def turned_by_any_angle(pictures: Tensor, seed: int = 0) -> Tensor:
    """Uint8 pictures (N, 3, S, S), each turned by its own angle, cropped to what is whole at every angle."""
    angles = torch.rand(len(pictures), generator=torch.Generator().manual_seed(seed)) * 360
    inside = int(pictures.shape[-1] / 2**0.5) - 1
    return torch.stack(
        [
            tv.center_crop(tv.rotate(picture, angle, interpolation=InterpolationMode.BILINEAR), [inside, inside])
            for picture, angle in zip(pictures, angles.tolist(), strict=True)
        ]
    )


def noise_pictures(count: int, side: int, seed: int = 0) -> Tensor:
    """Pictures with a photograph's spectrum, 1/f, whose colours change slowly; uint8 (count, 3, side, side)."""
    frequencies = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None, :])
    frequencies[0, 0] = 1 / side
    white = torch.fft.rfft2(torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(seed)))
    grey = torch.fft.irfft2(white[:, :1] / frequencies, s=(side, side))
    blobs = torch.fft.irfft2(white[:, 1:] * torch.exp(-((frequencies * side / 3) ** 2)), s=(side, side))
    noise = grey / grey.std() + blobs / blobs.std()
    return (127 + 40 * noise).clamp(0, 255).to(torch.uint8)


def cifar10_pictures(count: int) -> Tensor:
    """The first pictures of the archive, read without unpacking it; uint8 (count, 3, 32, 32)."""
    pictures = []
    with tarfile.open(CIFAR10) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".jpg") else None
            if file is not None:
                pictures.append(np.array(Image.open(io.BytesIO(file.read())).convert("RGB")))
            if len(pictures) == count:
                break
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def energies(views: Tensor) -> Tensor:
    """Mean squared differences of the grey (V, S, S) along each direction, their logarithms, and these centred."""
    grey = views.mean(1)
    side = grey.shape[-1] - 2
    found = []
    for taps in DIFFERENCES:
        difference = sum(weight * grey[:, y : y + side, x : x + side] for (y, x), weight in taps)
        assert isinstance(difference, Tensor)
        found.append(difference.square().mean((1, 2)))
    plain = torch.stack(found, dim=1)
    logs = (plain + 1e-6).log()
    return torch.cat([plain, logs, logs - logs.mean(1, keepdim=True)], dim=1)


def statistics(views: Tensor) -> dict[str, Tensor]:
    """Two descriptions of the views, (V, F): one of few strong numbers, one of all."""
    rows = torch.arange(VIEW) + 0.5 - VIEW / 2
    disc = (rows[:, None] ** 2 + rows[None, :] ** 2 < (VIEW / 2 - 3) ** 2).float()
    quarter = VIEW // 4
    corners = [
        energies(views[:, :, rows, columns])
        for rows in (slice(quarter), slice(-quarter, None))
        for columns in (slice(quarter), slice(-quarter, None))
    ]
    few = torch.cat([energies(views), energies(views * disc), sum(corners[1:], corners[0])], dim=1)
    border = [views[:, :, 0], views[:, :, -1], views[:, :, :, 0], views[:, :, :, -1]]
    colours = [views.mean((2, 3)), views.std((2, 3))]
    return {"energies": few, "all": torch.cat([few, *colours, *(b.flatten(1) for b in border)], dim=1)}


def told(pictures: Tensor, corners: str) -> dict[str, float]:
    """Accuracies of linear classifiers on each description, of the half that they did not learn from.

    The angle is one of eight; "odd" is whether it is an odd multiple of 45 degrees, the easier question where views
    differ in their corners or in their sharpness.
    """
    task = RotationTask(8, image_size=VIEW, copies="one", corners=corners)
    views = task.make_views(as_batch(pictures, Draws(0, 0, 0, batch_size=len(pictures))))
    half = len(pictures) // 2
    scores = {}
    for name, values in statistics(views.inputs).items():
        features = StandardScaler().fit_transform(values.numpy())
        for question, targets in (("angle", views.targets.numpy()), ("odd", views.targets.numpy() % 2)):
            classifier = LogisticRegression(C=0.1, max_iter=300, tol=1e-3).fit(features[:half], targets[:half])
            scores[f"{question} from {name}"] = float(classifier.score(features[half:], targets[half:]))
    return scores


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Arrays are small here: more threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["noise, enlarged", "noise", "cifar10, enlarged"])
def pictures(request: pytest.FixtureRequest) -> Tensor:
    """3,000 pictures: of 33 px (from 48) and 21 px (from 32), enlarged by the task, or of 49 px (from 72)."""
    if request.param == "noise, enlarged":
        return turned_by_any_angle(noise_pictures(3000, 48))
    if request.param == "noise":
        return turned_by_any_angle(noise_pictures(3000, 72))
    if not CIFAR10.exists():
        pytest.skip(f"{CIFAR10.name} is not beside the repository")
    return turned_by_any_angle(cifar10_pictures(3000))


@pytest.mark.parametrize("corners", ["inside", "mask"])
def test_nothing_but_the_picture_tells_the_angle(pictures: Tensor, corners: str) -> None:
    """Within 3 points of chance, 3.5 standard deviations of the score of 1,500 views.

    Odd from even is told a little better (by 5 points, measured on 9,000 views) in noise that is not enlarged: its
    own square grid of pixels shows. In photographs, smoother at that scale, it does not.
    """
    for question, score in told(pictures, corners).items():
        chance, most = (1 / 8, 0.03) if question.startswith("angle") else (1 / 2, 0.08)
        assert score == pytest.approx(chance, abs=most), question


def test_black_corners_of_the_literal_geometry_are_caught(pictures: Tensor) -> None:
    """Section 4.1 taken literally: the same measurement tells odd multiples of 45 degrees, and so halves the choice."""
    scores = told(pictures, "paper")
    assert max(score for question, score in scores.items() if question.startswith("odd")) > 0.95
    assert max(score for question, score in scores.items() if question.startswith("angle")) > 0.2
