"""Permutation sets: far apart, nested, the same everywhere, and kept on disk only as a convenience."""

import hashlib
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import rayssl.tasks.permutations
from rayssl.tasks.permutations import count_permutations, hamming_summary, permutation_set

ALL_OF_NINE = np.array(list(permutations(range(9))), dtype=np.uint8)


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Away from the user's own cache; one for the module, so that a set is made once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "rayssl"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own; where its files lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "rayssl"


def no_search(*_: object) -> NDArray[np.uint8]:
    raise AssertionError("the sequence should have come from the cache")


def assert_each_is_the_farthest(chosen: Tensor, candidates: NDArray[np.uint8]) -> None:
    """The rule, word by word: the largest smallest distance first, then the largest sum of distances."""
    rows = chosen.numpy().astype(np.uint8)
    for count in range(1, len(rows)):
        to_all = np.stack([(candidates != row).sum(1) for row in rows[:count]])
        to_next = (rows[:count] != rows[count]).sum(1)
        ranks = 1000 * to_all.min(0) + to_all.sum(0)  # sums stay below 1000 here
        assert 1000 * to_next.min() + to_next.sum() == ranks.max()


@pytest.mark.parametrize(("count", "mean", "minimum"), [(2000, 8.004, 4), (1000, 8.008, 5), (500, 8.016, 5)])
def test_the_papers_sets_are_eight_tiles_apart_and_never_close(count: int, mean: float, minimum: int) -> None:
    """Table 1's averages; no set of this size can have larger ones: 8 + 8 / (P - 1) (Plotkin's bound)."""
    found_mean, found_minimum = hamming_summary(permutation_set(count))
    assert found_mean == pytest.approx(mean, abs=1e-3)
    assert found_mean <= 8 + 8 / (count - 1)
    assert found_minimum >= minimum


def test_a_shorter_set_is_the_beginning_of_a_longer_one(cache: Path) -> None:
    """Section 3.3.1, C1 within C2 within C3; each made from nothing, not cut from what the cache has."""
    sets = {}
    for count in (20, 40, 80):
        sets[count] = permutation_set(count)
        for file in cache.iterdir():
            file.unlink()
    assert torch.equal(sets[20], sets[40][:20])
    assert torch.equal(sets[40], sets[80][:40])


def test_four_tiles_are_taken_by_the_rule_until_none_is_left() -> None:
    chosen = permutation_set(24, grid=2)
    candidates = np.array(list(permutations(range(4))), dtype=np.uint8)
    assert_each_is_the_farthest(chosen, candidates)
    assert {tuple(row) for row in chosen.tolist()} == set(permutations(range(4)))


def test_nine_tiles_are_taken_by_the_rule() -> None:
    assert_each_is_the_farthest(permutation_set(12, seed=3), ALL_OF_NINE)


def test_sixteen_tiles_are_taken_from_many_candidates() -> None:
    """With 2^18 candidates of 16! the set is about as far apart as it can be: at most 15 + 15 / (P - 1)."""
    mean, minimum = hamming_summary(permutation_set(100, grid=4))
    assert 15 < mean <= 15 + 15 / 99
    assert minimum >= 13


@pytest.mark.parametrize("grid", [2, 3, 4])
def test_rows_are_permutations_and_differ(grid: int) -> None:
    rows = permutation_set(20, grid=grid)
    assert rows.dtype == torch.int64
    assert torch.equal(rows.sort(1).values, torch.arange(grid * grid).expand(20, -1))
    assert len(rows.unique(dim=0)) == 20


def test_the_seed_decides_the_set() -> None:
    assert torch.equal(permutation_set(30, seed=1), permutation_set(30, seed=1))
    sets = [permutation_set(30, seed=seed) for seed in range(3)]
    assert len({tuple(rows.flatten().tolist()) for rows in sets}) == 3


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (2, "87cdfa15db4e"),
        (3, "c9c15d44a182"),
        (4, "f3e75b85c93b"),
    ],
)
def test_the_set_is_the_same_on_every_machine(grid: int, expected: str) -> None:
    """Golden: sha256 of the first 20 rows as bytes. If it has to change, rename the files in the cache too."""
    content = permutation_set(20, grid=grid).to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(content).hexdigest()[:12] == expected


def test_the_summary_is_that_of_all_pairs() -> None:
    rows = permutation_set(500)[::7]
    pairs = [int((rows[i] != rows[j]).sum()) for i in range(len(rows)) for j in range(i)]
    mean, minimum = hamming_summary(rows)
    assert mean == pytest.approx(sum(pairs) / len(pairs))
    assert minimum == min(pairs)


def test_the_summary_is_the_same_however_many_rows_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = permutation_set(500)
    whole = hamming_summary(rows)
    monkeypatch.setattr(rayssl.tasks.permutations, "_ROWS", 64)
    assert hamming_summary(rows) == pytest.approx(whole)


def test_a_swap_a_cycle_and_a_repetition_differ_in_two_three_and_no_tiles() -> None:
    identity, swap, cycle = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0, 2, 3]), torch.tensor([1, 2, 0, 3])
    assert hamming_summary(torch.stack((identity, swap))) == (2, 2)
    assert hamming_summary(torch.stack((identity, cycle))) == (3, 3)
    assert hamming_summary(torch.stack((identity, swap, cycle))) == (pytest.approx((2 + 3 + 2) / 3), 2)
    assert hamming_summary(torch.stack((swap, cycle, swap)))[1] == 0


def test_a_second_call_reads_what_the_first_one_wrote(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = permutation_set(24, grid=2, seed=5)
    (file,) = cache.iterdir()
    assert file.name == f"permutations-2-5-{hashlib.sha256(file.read_bytes()).hexdigest()}.npy"
    monkeypatch.setattr(rayssl.tasks.permutations, "_spread_out", no_search)
    assert torch.equal(permutation_set(24, grid=2, seed=5), first)
    assert torch.equal(permutation_set(7, grid=2, seed=5), first[:7])
    with pytest.raises(AssertionError, match="from the cache"):
        permutation_set(7, grid=2, seed=55)


def test_a_longer_sequence_takes_the_place_of_a_shorter_one(cache: Path) -> None:
    permutation_set(5, grid=2)
    (short,) = cache.iterdir()
    longer = permutation_set(12, grid=2)
    (file,) = cache.iterdir()
    assert file != short
    assert np.array_equal(np.load(file), longer.numpy())


@pytest.mark.parametrize("content", [b"", b"nonsense", None], ids=["empty", "no array", "one bit flipped"])
def test_a_damaged_file_is_replaced(cache: Path, content: bytes | None) -> None:
    expected = permutation_set(10, grid=2)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if content is None else content)
    assert torch.equal(permutation_set(10, grid=2), expected)
    assert [each.read_bytes() for each in cache.iterdir()] == [whole]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where the folder would have to be made."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(permutation_set(10, grid=2)) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_no_error_and_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    assert len(permutation_set(10, grid=2)) == 10
    assert list(cache.iterdir()) == []


def test_a_user_without_a_home_gets_the_set_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert len(permutation_set(10, grid=2)) == 10


def test_without_the_variable_the_cache_lies_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    permutation_set(3, grid=2)
    assert len(list((tmp_path / ".cache" / "rayssl").iterdir())) == 1


@pytest.mark.parametrize(
    ("count", "grid", "seed", "message"),
    [
        (0, 3, 0, r"num_permutations must be in \[1, 362880\] for 3 x 3 tiles, got 0"),
        (25, 2, 0, r"num_permutations must be in \[1, 24\] for 2 x 2 tiles, got 25"),
        (2**18 + 1, 4, 0, r"num_permutations must be in \[1, 262144\] for 4 x 4 tiles, got 262145"),
        (10, 5, 0, "grid must be 2, 3 or 4, got 5"),
        (10, 2, -1, "seed must be at least 0, got -1"),
    ],
)
def test_a_set_that_does_not_exist_is_refused(count: int, grid: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        permutation_set(count, grid=grid, seed=seed)


def test_there_are_as_many_as_the_factorial_says() -> None:
    assert [count_permutations(grid) for grid in (2, 3, 4)] == [24, len(ALL_OF_NINE), 2**18]


def test_one_permutation_has_no_distance() -> None:
    with pytest.raises(ValueError, match=r"at least two permutations \(P, T\) needed, got \(1, 9\)"):
        hamming_summary(permutation_set(1))
