"""Features are computed once, and what is found is what would have been computed."""

import multiprocessing
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from rayssl.backbones import Backbone
from rayssl.data import BadFile
from rayssl.data.pictures import Plan
from rayssl.evaluate import ShuffledLabels
from rayssl.evaluation import Evaluation, KnnConfig, LinearProbeConfig, VocLowShotConfig, VocSvmConfig
from rayssl.evaluation.feature_files import FeatureFolder
from rayssl.evaluation.feature_kinds import CenterViews, GoyalPool, MeanPool, Pool, Views, WholeViews
from rayssl.evaluation.feature_store import FeatureStore
from tests.evaluation.test_linear_probe import TinyEncoder
from tests.evaluation.test_protocols import CPU, DATA, Colours, measure

PROBE = LinearProbeConfig(blocks=(1, 3), epochs=2, batch_size=32)
KNN = KnnConfig(blocks=(1, 3), k=(5,))
SVM = VocSvmConfig(blocks=(1, 3), costs=(1.0,))
LOW_SHOT = VocLowShotConfig(blocks=(1, 3), positives=(1,), samples=2, costs=(1.0,))
VIEWS = CenterViews(32, 32)


class CountingEncoder(TinyEncoder):
    """Counts the pictures that it sees."""

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__()
        self.num_seen = 0
        self.layers[0].register_forward_pre_hook(lambda _, inputs: self._count(inputs[0]))

    def _count(self, images: Tensor) -> None:
        self.num_seen += len(images)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


def extract(
    store: FeatureStore,
    encoder: Backbone,
    pictures: Colours,
    *,
    views: Views = VIEWS,
    blocks: tuple[int, ...] = (1, 3),
    pool: Pool = MeanPool(),  # noqa: B008
    rows: np.ndarray | None = None,
) -> dict[int, Tensor]:
    rows = np.arange(len(pictures)) if rows is None else rows
    return store.extract(encoder, [(pictures, rows)], views=views, blocks=blocks, pool=pool, device=CPU)[0]


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


# ---- once ----


@pytest.mark.parametrize(("first", "second"), [(PROBE, KNN), (SVM, LOW_SHOT), (LOW_SHOT, SVM), (KNN, KNN)])
def test_a_second_protocol_runs_the_encoder_no_more(first: Evaluation, second: Evaluation, store: FeatureStore) -> None:
    several = first in (SVM, LOW_SHOT)
    train, test = Colours(60, seed=0, several=several), Colours(50, seed=1, several=several)
    encoder = CountingEncoder()
    alone = [measure(each, encoder, train, test) for each in (first, second)]
    encoder.num_seen = 0
    assert measure(first, encoder, train, test, features=store) == alone[0]
    assert 110 <= encoder.num_seen <= 111  # a blank picture tells how large features are
    encoder.num_seen = 0
    assert measure(second, encoder, train, test, features=store) == alone[1]
    assert encoder.num_seen == 0


def test_seeds_parts_and_shuffled_labels_share_one_pass(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, expected_blocks=PROBE.blocks)
    train, test = Colours(60, seed=0), Colours(50, seed=1)
    shuffled = [ShuffledLabels(each, seed=0, part=part) for part, each in enumerate((train, test))]
    encoder = CountingEncoder()
    for part in PROBE.parts(2):
        measure(part, encoder, train, test, features=store)
        measure(part, encoder, *shuffled, features=store)
    dict(PROBE.evaluate(encoder, train, test, data=DATA, seed=7, device=CPU, features=store))
    assert encoder.num_seen <= 110 + 2  # blank ones


def test_other_blocks_are_added_without_touching_those_that_are_there(store: FeatureStore, tmp_path: Path) -> None:
    pictures, encoder = Colours(40, seed=0), CountingEncoder()
    extract(store, encoder, pictures, blocks=(2,))
    before = {path: path.stat().st_ino for path in files_in(tmp_path)}
    both = extract(store, encoder, pictures, blocks=(2, 4))
    assert encoder.num_seen == 80
    assert len(files_in(tmp_path)) == 2
    assert all(path.stat().st_ino == inode for path, inode in before.items())
    expected = extract(FeatureStore(None), encoder, pictures, blocks=(2, 4))
    assert all(torch.equal(both[block], expected[block]) for block in (2, 4))


def test_half_precision_is_decided_and_kept_as_in_memory(store: FeatureStore, tmp_path: Path) -> None:
    pictures, encoder = Colours(40, seed=0), CountingEncoder()
    numbers = 40 * (3 * 16 * 16 + 6 * 4 * 4)  # of the maps of B1 and B3 of 32 px views, which no pooling reduces

    def features(store: FeatureStore) -> dict[int, Tensor]:
        sides = [(pictures, np.arange(40))]
        return store.extract(
            encoder, sides, views=VIEWS, blocks=(1, 3), pool=GoyalPool(), memory_gib=2 * numbers / 2**30, device=CPU
        )[0]

    expected, kept, found = (features(each) for each in (FeatureStore(None), store, store))
    assert all(expected[block].dtype == torch.float16 for block in (1, 3))
    for block, rounded in expected.items():
        assert torch.equal(kept[block], rounded) and torch.equal(found[block], rounded)
    assert [path.name for path in files_in(tmp_path)] == ["goyal-9216-b1-float16.npy", "goyal-9216-b3-float16.npy"]


# ---- never the wrong ones ----


def other_weight() -> Backbone:
    encoder = CountingEncoder()
    with torch.no_grad():
        weight = encoder.get_parameter("layers.0.0.weight").view(-1)
        weight[3] = weight[3].nextafter(torch.tensor(1e9))
    return encoder


def other_statistics() -> Backbone:
    encoder = CountingEncoder()
    encoder.get_buffer("layers.0.1.running_mean")[0] += 1
    return encoder


def other_structure() -> Backbone:
    """The same tensors, but another network."""
    encoder = CountingEncoder()
    convolution = encoder.get_submodule("layers.0.0")
    assert isinstance(convolution, torch.nn.Conv2d)
    convolution.stride = (1, 1)
    return encoder


@pytest.mark.parametrize("other", [other_weight, other_statistics, other_structure, lambda: CountingEncoder(seed=1)])
def test_another_encoder_does_not_hit(other: Callable[[], Backbone], store: FeatureStore) -> None:
    pictures = Colours(40, seed=0)
    extract(store, CountingEncoder(), pictures)
    encoder = other()
    found = extract(store, encoder, pictures)
    expected = extract(FeatureStore(None), encoder, pictures)
    assert all(torch.equal(found[block], expected[block]) for block in (1, 3))


@pytest.mark.parametrize(
    ("views", "pool", "seed", "rows"),
    [
        (CenterViews(32, 36), MeanPool(), 0, np.arange(40)),
        (CenterViews(16, 16), MeanPool(), 0, np.arange(40)),
        (WholeViews(32), MeanPool(), 0, np.arange(40)),
        (VIEWS, GoyalPool(), 0, np.arange(40)),
        (VIEWS, MeanPool(), 1, np.arange(40)),
        (VIEWS, MeanPool(), 0, np.arange(39)),
        (VIEWS, MeanPool(), 0, np.arange(40)[::-1]),
    ],
    ids=["resize", "size", "whole", "pool", "pictures", "fewer", "order"],
)
def test_other_pictures_views_and_poolings_do_not_hit(
    views: Views, pool: Pool, seed: int, rows: np.ndarray, store: FeatureStore
) -> None:
    encoder = CountingEncoder()
    extract(store, encoder, Colours(40, seed=0))
    encoder.num_seen = 0
    extract(store, encoder, Colours(40, seed=seed), views=views, pool=pool, rows=rows)
    assert encoder.num_seen == len(rows)


@pytest.mark.parametrize("size", [0, 5, 100, 200, -1])
def test_a_file_that_was_cut_off_is_computed_again(size: int, store: FeatureStore, tmp_path: Path) -> None:
    pictures, encoder = Colours(40, seed=0), CountingEncoder()
    expected = extract(FeatureStore(None), encoder, pictures)
    extract(store, encoder, pictures)
    damaged = files_in(tmp_path)[1]
    os.truncate(damaged, size if size >= 0 else damaged.stat().st_size - 1)
    encoder.num_seen = 0
    for num_passes in (1, 0):
        found = extract(store, encoder, pictures)
        assert all(torch.equal(found[block], expected[block]) for block in (1, 3))
        assert encoder.num_seen == 40 * num_passes
        encoder.num_seen = 0


def test_writing_to_features_changes_neither_the_file_nor_others(store: FeatureStore, tmp_path: Path) -> None:
    pictures, encoder = Colours(40, seed=0), CountingEncoder()
    mine, others = (extract(store, encoder, pictures) for _ in range(2))
    before = [path.read_bytes() for path in files_in(tmp_path)]
    expected = others[1].clone()
    mine[1].fill_(7)
    assert torch.equal(others[1], expected)
    assert [path.read_bytes() for path in files_in(tmp_path)] == before


def test_one_block_at_a_time_is_copied_for_its_normalisation(store: FeatureStore) -> None:
    train, test = Colours(40, seed=0, several=True), Colours(30, seed=1, several=True)
    config = VocSvmConfig(blocks=(1, 2, 3), costs=(1.0,))
    copies: list[weakref.ref[Tensor]] = []
    for _, one, other in config.features_of(CountingEncoder(), train, test, data=DATA, device=CPU, features=store):
        assert not any(copy() is not None for copy in copies)
        copies += [weakref.ref(one), weakref.ref(other)]
        del one, other
    assert len(copies) == 6


def test_unusable_pictures_are_still_known_where_features_are_found(store: FeatureStore) -> None:
    """A streamed set learns of them only while it is read."""

    class Broken(Colours):
        def batches(self, plan: Plan) -> Iterator[Tensor]:
            self.bad_files.append(BadFile("a.jpg", "truncated"))
            yield from super().batches(plan)

    encoder = CountingEncoder()
    for _ in range(2):
        pictures = Broken(40, seed=0)
        extract(store, encoder, pictures)
        assert pictures.bad_files == [BadFile("a.jpg", "truncated")]
    assert encoder.num_seen == 40


# ---- several at once ----


class SlowColours(Colours):
    """Says that a pass has begun, and takes its time."""

    def __init__(self, begun: Path) -> None:
        super().__init__(40, seed=0)
        self._begun = begun

    def batches(self, plan: Plan) -> Iterator[Tensor]:
        self._begun.touch()
        time.sleep(0.5)
        yield from super().batches(plan)


def compute_slowly(folder: Path, begun: Path) -> None:
    extract(FeatureStore(folder), CountingEncoder(), SlowColours(begun))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_second_process_waits_for_the_first_and_takes_what_it_has_computed(tmp_path: Path) -> None:
    other = multiprocessing.get_context("spawn").Process(
        target=compute_slowly, args=(tmp_path / "features", tmp_path / "begun")
    )
    other.start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "begun").exists():
        assert other.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    encoder, pictures = CountingEncoder(), Colours(40, seed=0)
    found = extract(FeatureStore(tmp_path / "features"), encoder, pictures)
    assert encoder.num_seen == 0
    other.join()
    assert other.exitcode == 0
    expected = extract(FeatureStore(None), encoder, pictures)
    assert all(torch.equal(found[block], expected[block]) for block in (1, 3))


def test_without_locks_two_that_compute_the_same_do_no_harm(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one begins and ends while the first is at its pictures."""
    monkeypatch.setattr("rayssl.evaluation.feature_files._lock", lambda file, *, wait: True)
    results = []

    class Meanwhile(Colours):
        def batches(self, plan: Plan) -> Iterator[Tensor]:
            results.append(extract(store, CountingEncoder(), Colours(40, seed=0)))
            yield from super().batches(plan)

    results += [
        extract(store, CountingEncoder(), Meanwhile(40, seed=0)),
        extract(store, CountingEncoder(), Colours(40, seed=0)),
    ]
    for block in (1, 3):
        assert all(torch.equal(each[block], results[0][block]) for each in results)
    assert len(files_in(tmp_path)) == 2
    assert not list(tmp_path.rglob("building-*"))


# ---- room ----


def test_what_was_not_used_for_longest_is_deleted_first(store: FeatureStore, tmp_path: Path) -> None:
    pictures = Colours(400, seed=0)
    encoders = [CountingEncoder(seed) for seed in range(3)]
    for age, encoder in enumerate(encoders):
        extract(store, encoder, pictures)
        newest = max((tmp_path / "features").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1000 + age, 1000 + age))
    mapped = extract(store, encoders[0], pictures)  # used again, so the second is now the oldest
    each = sum(path.stat().st_size for path in files_in(tmp_path)) / 3
    store.shrink(2.5 * each / 2**30)
    assert len(files_in(tmp_path)) == 4
    for encoder in encoders:
        encoder.num_seen = 0
    for number in (0, 2, 1):
        extract(store, encoders[number], pictures)
    assert [encoder.num_seen for encoder in encoders] == [0, 400, 0]
    expected = extract(FeatureStore(None), encoders[0], pictures)
    store.shrink(0)
    assert not (tmp_path / "features").exists()
    assert torch.equal(mapped[3], expected[3])
    store.shrink(0)


def test_what_is_being_computed_is_not_deleted(store: FeatureStore, tmp_path: Path) -> None:
    extract(store, CountingEncoder(), Colours(40, seed=0))
    (path,) = (tmp_path / "features").iterdir()
    with FeatureFolder(path, 40).locked():
        store.shrink(0)
    assert len(files_in(tmp_path)) == 2


def test_on_a_full_disk_features_are_computed_in_memory_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, encoder = Colours(40, seed=0), CountingEncoder()
    expected = extract(FeatureStore(None), encoder, pictures)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    shown: list[object] = []
    found = extract(FeatureStore(tmp_path / "features", show=shown.append), encoder, pictures)
    assert all(torch.equal(found[block], expected[block]) for block in (1, 3))
    assert files_in(tmp_path) == []
    assert shown == [
        f"note: features are computed in memory: {tmp_path / 'features'} can't be used (No space left on device)"
    ]


def test_so_they_are_where_the_folder_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown: list[object] = []
    store = FeatureStore(tmp_path / "file" / "features", show=shown.append)
    assert extract(store, CountingEncoder(), Colours(40, seed=0))[1].shape == (40, 3)
    assert len(shown) == 1
    store.shrink(0)
