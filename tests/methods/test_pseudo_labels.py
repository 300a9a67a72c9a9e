"""Pseudo labels: embeddings as they should be, planted clusters found, and numbers about them by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import calinski_harabasz_score, normalized_mutual_info_score
from torch import Tensor

from rayssl.data.augment import normalize, to_float
from rayssl.errors import TrainingError
from rayssl.methods import pseudo_labels
from rayssl.methods.pseudo_labels import (
    Labelling,
    Whitening,
    agreement,
    describe_sizes,
    extract_embeddings,
    label_pictures,
    renumber,
    size_warnings,
    write_histogram,
)
from rayssl.runtime import LocalRuntime
from tests.methods.mgta_parts import SIDE, MemoryPictures, small_encoder


def planted(num_clusters: int, count: int = 120) -> Tensor:
    """Clusters far from each other; picture i lies in cluster i modulo their number."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(num_clusters, 6, generator=generator) * 20
    return centers[torch.arange(count) % num_clusters] + torch.randn(count, 6, generator=generator)


def label(
    features: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    *,
    clusters: int | Sequence[int],
    whitening: Whitening = None,
    seed: int = 0,
) -> Labelling:
    monkeypatch.setattr(pseudo_labels, "extract_embeddings", lambda *_, **__: features)
    return label_pictures(
        small_encoder(),
        MemoryPictures(len(features)),
        np.arange(len(features)),
        clusters=clusters,
        whitening=whitening,
        image_size=SIDE,
        eval_resize=SIDE,
        seed=seed,
        runtime=LocalRuntime(Path(), num_threads=1),
    )


def test_embeddings_are_averages_of_plain_views_in_eval_mode() -> None:
    pictures, encoder = MemoryPictures(7), small_encoder().train()
    indices = np.array([5, 0, 3])
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    found = extract_embeddings(
        encoder,
        pictures,
        indices,
        image_size=SIDE,
        eval_resize=SIDE,
        runtime=LocalRuntime(Path(), num_threads=1),
    )
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    encoder.eval()
    expected = [encoder(normalize(to_float(pictures.pixels[i : i + 1]))).mean((2, 3))[0] for i in indices]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


@pytest.mark.parametrize("whitening", [None, True, 4])
def test_planted_clusters_are_found(monkeypatch: pytest.MonkeyPatch, whitening: Whitening) -> None:
    labelling = label(planted(5), monkeypatch, clusters=5, whitening=whitening)
    assert normalized_mutual_info_score(labelling.labels, np.arange(120) % 5) == pytest.approx(1)
    assert labelling.labels.dtype == np.int64
    assert labelling.warnings == ()
    sizes = {"num": 5, "smallest": 24, "median": 24, "largest": 24, "singletons": 0}
    assert {name: labelling.facts[f"clusters/{name}"] for name in sizes} == sizes


def test_the_score_is_scikit_learns_and_the_inertia_that_of_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    features = planted(4)
    labelling = label(features, monkeypatch, clusters=6)
    rows, labels = features.double().numpy(), labelling.labels
    score = calinski_harabasz_score(rows, labels)
    assert labelling.facts["clusters/calinski_harabasz"] == pytest.approx(score, rel=1e-3)
    inertia = sum(((rows[labels == k] - rows[labels == k].mean(0)) ** 2).sum() for k in range(6))
    assert labelling.facts["clusters/inertia"] == pytest.approx(inertia, rel=1e-3)


def test_a_grid_gives_the_planted_number_and_the_whole_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    labelling = label(planted(5), monkeypatch, clusters=(3, 5, 8))
    assert labelling.num_clusters == 5
    curve = {number: labelling.facts[f"clusters/ch_k{number}"] for number in (3, 5, 8)}
    assert max(curve, key=lambda number: curve[number]) == 5
    assert labelling.facts["clusters/calinski_harabasz"] == curve[5]
    assert labelling.warnings == ()


def test_the_best_number_at_the_grids_edge_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = label(planted(5), monkeypatch, clusters=(5, 8)).warnings
    assert "the best number, 5, is at the edge of the grid [5, 8]" in text


def test_a_seed_decides_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(120, 6, generator=torch.Generator().manual_seed(3))
    first, again, other = (label(features, monkeypatch, clusters=9, seed=seed).labels for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("features", "reason"),
    [(torch.full((20, 3), float("nan")), "must be finite numbers"), (torch.ones(20, 3), "in which the features vary")],
)
def test_embeddings_that_can_not_be_clustered_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, features: Tensor, reason: str
) -> None:
    with pytest.raises(TrainingError, match=f"no pseudo labels can be made of the embeddings .*{reason}"):
        label(features, monkeypatch, clusters=3, whitening=True)


def test_embeddings_at_one_point_are_one_cluster_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    labelling = label(torch.ones(20, 3), monkeypatch, clusters=3)
    assert any("clusters are empty" in text for text in labelling.warnings)
    assert any("one cluster holds 100% of the pictures" in text for text in labelling.warnings)


def test_clusters_are_numbered_as_they_come() -> None:
    assert renumber(np.array([7, 2, 2, 9, 7, 0])).tolist() == [0, 1, 1, 2, 0, 3]


def test_sizes_are_those_of_clusters_with_pictures() -> None:
    labels = np.array([0, 0, 0, 2, 4, 4])
    assert describe_sizes(labels) == {
        "clusters/num": 3,
        "clusters/smallest": 1,
        "clusters/median": 2,
        "clusters/largest": 3,
        "clusters/singletons": 1,
    }


def test_a_cluster_of_more_than_half_is_told() -> None:
    assert size_warnings(np.array([0, 0, 1, 2])) == ()
    (text,) = size_warnings(np.array([0, 0, 0, 1, 2]))
    assert text.startswith("one cluster holds 60% of the pictures")


def test_agreement_is_over_what_both_have_labelled() -> None:
    labels = np.array([0, 0, 1, 1, -1, 2])
    others = np.array([5, 5, 3, 3, 4, -1])
    assert agreement(labels, others) == pytest.approx(1)
    mixed = np.array([0, 1, 0, 1, 0, 1])
    assert agreement(labels, mixed) == pytest.approx(
        normalized_mutual_info_score(labels[[0, 1, 2, 3, 5]], [0, 1, 0, 1, 1])
    )
    assert agreement(labels, np.full(6, -1)) is None


def test_a_histogram_counts_clusters_by_powers_of_two(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(6), [1, 2, 3, 3, 4, 9])
    lines = write_histogram(labels, tmp_path / "new" / "sizes.txt").read_text().splitlines()
    assert lines[0] == "22 pictures in 6 clusters of 1 to 9"
    counts = [line.rsplit(maxsplit=2)[1:] for line in lines[3:]]
    assert counts == [["1", "#"], ["3", "###"], ["1", "#"], ["1", "#"]]
    assert [line[:15].strip() for line in lines[3:]] == ["1", "2 - 3", "4 - 7", "8 - 15"]
