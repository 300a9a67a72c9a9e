"""Can the order be told without looking at what the tiles show? Linear classifiers on their surface say no.

The pictures show any part of a scene that was turned by an angle drawn uniformly: no cell then has a content of its
own, such as sky above, and whatever a classifier finds, the task has put there. Classifiers see of each tile what a
shortcut would be made of: its border, its colours, and the energy of differences along eight directions, which
resampling leaves behind. How borders of neighbours match, which is the puzzle itself, is hidden from them by dealing
the tiles of pictures in the same order anew: matching tiles vary together, and that shows even in linear classifiers.
"""

import io
import zipfile
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

from rayssl.data.augment import Draws
from rayssl.tasks.jigsaw import JigsawTask
from tests.tasks.task_batches import as_batch
from tests.tasks.test_rotation_leaks import energies, noise_pictures, turned_by_any_angle

NUM_PERMUTATIONS = 8
IMAGENETTE = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenette128.zip"


@pytest.fixture(scope="module", autouse=True)
def quiet_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, since arrays are small here, and a cache apart from the user's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


def photographs(count: int) -> Tensor:
    """Pictures from all classes, read without unpacking the archive; uint8 (count, 3, 128, 128)."""
    pictures = []
    with zipfile.ZipFile(IMAGENETTE) as archive:
        names = sorted(name for name in archive.namelist() if "/train/" in name and name.endswith(".jpg"))
        for name in names[:: len(names) // count][:count]:
            with Image.open(io.BytesIO(archive.read(name))) as image:
                pictures.append(np.array(image.convert("RGB").resize((128, 128))))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def parts(pictures: Tensor, side: int, copies: int, seed: int = 0) -> Tensor:
    """Squares of `side` pixels from anywhere in the pictures, `copies` of each; uint8 (N * copies, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(pictures.shape[-1] - side + 1, (copies, len(pictures), 2), generator=generator).tolist()
    return torch.stack(
        [
            picture[:, top : top + side, left : left + side]
            for copy in places
            for picture, (top, left) in zip(pictures, copy, strict=True)
        ]
    )


def statistics(puzzles: Tensor) -> dict[str, Tensor]:
    """Two descriptions of puzzles (N, 9, 3, S, S), (N, F): one of few strong numbers a tile, one with its border."""
    tiles = puzzles.flatten(0, 1)
    sides = [tiles[:, :, 0], tiles[:, :, -1], tiles[:, :, :, 0], tiles[:, :, :, -1]]
    colours = [tiles.mean((2, 3)), tiles.std((2, 3))]
    lines = [side.mean(2) for side in sides] + [side.square().mean(2) for side in sides]
    few = torch.cat([energies(tiles), *colours, *lines], dim=1)
    everything = torch.cat([few, *(side.flatten(1) for side in sides)], dim=1)
    return {"few": few.view(len(puzzles), -1), "all": everything.view(len(puzzles), -1)}


def dealt_anew(puzzles: Tensor, targets: Tensor) -> Tensor:
    """Puzzles whose tiles come from nine pictures in the same order, so that no two of them match each other."""
    dealt = puzzles.clone()
    for target in range(NUM_PERMUTATIONS):
        alike = (targets == target).nonzero().squeeze(1)
        for position in range(9):
            dealt[alike, position] = puzzles[alike.roll(position), position]
    return dealt


def told(pictures: Tensor, **settings: bool) -> dict[str, float]:
    """Accuracies of linear classifiers on each description, of the half that they did not learn from."""
    task = JigsawTask(NUM_PERMUTATIONS, image_size=32, **settings)
    views = task.make_views(as_batch(pictures, Draws(0, 0, 0, batch_size=len(pictures))))
    puzzles, targets = views.inputs.unflatten(0, (len(pictures), 9)), views.targets
    half = len(pictures) // 2
    puzzles = torch.cat([dealt_anew(puzzles[rows], targets[rows]) for rows in (slice(half), slice(half, None))])
    scores = {}
    for name, values in statistics(puzzles).items():
        features = StandardScaler().fit_transform(values.numpy())
        classifier = LogisticRegression(C=0.01, max_iter=300, tol=1e-3).fit(features[:half], targets[:half])
        scores[name] = float(classifier.score(features[half:], targets[half:]))
    return scores


@pytest.fixture(scope="module", params=["noise", "noise, reduced", "photographs", "photographs, reduced"])
def pictures(request: pytest.FixtureRequest) -> Tensor:
    """3,000 pictures: of 32 px, cut as they are, or of 46 px, which the task reduces to 37 first.

    Noise has no way up, and looks the same everywhere, without being turned.
    """
    side = 46 if request.param.endswith("reduced") else 32
    if request.param.startswith("noise"):
        return noise_pictures(3000, side)
    if not IMAGENETTE.exists():
        pytest.skip(f"{IMAGENETTE.name} is not beside the repository")
    return parts(turned_by_any_angle(photographs(500)), side, copies=6)


@pytest.mark.parametrize("normalize_tiles", [True, False])
def test_nothing_but_the_tiles_content_tells_the_order(pictures: Tensor, normalize_tiles: bool) -> None:
    """Within 3 points of chance, 3.5 standard deviations of the score of 1,500 puzzles.

    Reducing pictures by so little leaves a trace of where a pixel lay between those of the original: some 2 points,
    measured on 12,000 pictures of white noise and of photographs, where tiles are not normalised.
    """
    for name, score in told(pictures, normalize_tiles=normalize_tiles).items():
        assert score == pytest.approx(1 / NUM_PERMUTATIONS, abs=0.03), name


def test_light_from_above_is_caught_and_hidden_by_normalising_tiles() -> None:
    """A sky in every picture: the same measurement tells the rows that tiles come from, until each is normalised."""
    light = torch.linspace(90, 0, 32)[:, None]
    pictures = (noise_pictures(3000, 32) / 255 * 160 + light).to(torch.uint8)
    assert min(told(pictures, normalize_tiles=False).values()) > 0.9
    assert max(told(pictures, normalize_tiles=True).values()) < 1 / NUM_PERMUTATIONS + 0.03
