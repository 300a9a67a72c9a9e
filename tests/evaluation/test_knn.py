import math

import pytest
import torch
from torch import Tensor

from rayssl.evaluation import knn as knn_module
from rayssl.evaluation.knn import knn_top1


def clusters(num_images: int, *, seed: int, noise: float = 1.2) -> tuple[Tensor, Tensor]:
    """Noisy points around four directions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (num_images,), generator=generator)
    return torch.eye(4, 6)[labels] + noise * torch.randn(num_images, 6, generator=generator), labels


def slow_knn(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, k: int, temperature: float
) -> float:
    """One picture and one neighbour at a time, in Python floats."""
    num_correct = 0
    for query, label in zip(test.tolist(), test_labels.tolist(), strict=True):
        similarities = []
        for voter, voter_label in zip(train.tolist(), train_labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, voter, strict=True))
            similarities.append((dot / (math.hypot(*query) * math.hypot(*voter)), voter_label))
        votes = dict.fromkeys(range(4), 0.0)
        for similarity, voter_label in sorted(similarities, reverse=True)[:k]:
            votes[voter_label] += math.exp(similarity / temperature)
        num_correct += max(votes, key=lambda name: votes[name]) == label
    return num_correct / len(test)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_accuracy_equals_a_vote_counted_one_neighbour_at_a_time(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, train_labels = clusters(60, seed=0)
    test, test_labels = clusters(40, seed=1)
    monkeypatch.setattr(knn_module, "_MOST_SIMILARITIES", 7 * 60)  # chunks of 7, the last of 5
    result = knn_top1(train, train_labels, test, test_labels, k=(1, 5, 20), temperature=temperature, num_classes=4)
    for k in (1, 5, 20):
        assert result[k] == slow_knn(train, train_labels, test, test_labels, k=k, temperature=temperature)
    assert len(set(result.values())) > 1


def test_more_neighbours_than_pictures_means_all() -> None:
    train, train_labels = clusters(30, seed=0)
    test, test_labels = clusters(50, seed=1)
    result = knn_top1(train, train_labels, test, test_labels, k=(30, 31, 200), num_classes=4)
    assert result[30] == result[31] == result[200]
    assert result[30] == slow_knn(train, train_labels, test, test_labels, k=30, temperature=0.07)


def test_every_picture_is_its_own_nearest_neighbour() -> None:
    features, labels = clusters(100, seed=2)
    assert knn_top1(features, labels, features, labels, k=[1], num_classes=4) == {1: 1.0}


def test_the_length_of_a_feature_does_not_matter() -> None:
    train, train_labels = clusters(80, seed=0)
    test, test_labels = clusters(80, seed=1)
    lengths = torch.rand(80, 1, generator=torch.Generator().manual_seed(3)) + 0.1
    scaled = knn_top1(train * lengths, train_labels, test / lengths, test_labels, k=(5,), num_classes=4)
    assert scaled == knn_top1(train, train_labels, test, test_labels, k=(5,), num_classes=4)


def test_pictures_without_a_label_neither_vote_nor_count() -> None:
    train, train_labels = clusters(80, seed=0)
    test, test_labels = clusters(60, seed=1)
    train_labels[::3] = -1
    test_labels[::4] = -1
    masked = knn_top1(train, train_labels, test, test_labels, k=(5, 200), num_classes=4)
    voters, counted = train_labels >= 0, test_labels >= 0
    assert masked == knn_top1(
        train[voters], train_labels[voters], test[counted], test_labels[counted], k=(5, 200), num_classes=4
    )


def test_half_precision_features_are_accepted() -> None:
    features, labels = clusters(50, seed=2)
    assert knn_top1(features.half(), labels, features.half(), labels, k=[1], num_classes=4) == {1: 1.0}


def test_shuffled_labels_are_told_by_chance() -> None:
    features, labels = clusters(2000, seed=0, noise=0.2)
    shuffled = labels[torch.randperm(2000, generator=torch.Generator().manual_seed(9))]
    accuracy = knn_top1(features[:1000], shuffled[:1000], features[1000:], shuffled[1000:], k=(20,), num_classes=4)[20]
    assert accuracy == pytest.approx(0.25, abs=3 * math.sqrt(0.25 * 0.75 / 1000))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"k": ()}, "k: must"), ({"k": (0, 5)}, "k: must"), ({"temperature": 0.0}, "temperature: must be above 0")],
)
def test_impossible_settings_are_refused(arguments: dict, message: str) -> None:
    features, labels = clusters(10, seed=0)
    with pytest.raises(ValueError, match=message):
        knn_top1(features, labels, features, labels, num_classes=4, **arguments)


def test_a_set_without_labels_is_refused() -> None:
    features, labels = clusters(10, seed=0)
    with pytest.raises(ValueError, match="test_labels"):
        knn_top1(features, labels, features, torch.full((10,), -1), num_classes=4)
