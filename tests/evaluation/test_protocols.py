"""The protocols as a whole, on pictures in memory whose classes are colours."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.svm import LinearSVC
from torch import Tensor
from torchvision.models import resnet18

from rayssl.backbones import Backbone, ResNetConfig
from rayssl.data import BadFile, DigitsConfig, Targets
from rayssl.data.pictures import Plan
from rayssl.evaluate import ShuffledLabels
from rayssl.evaluation import (
    Evaluation,
    KnnConfig,
    LinearProbeConfig,
    SemiSupervisedConfig,
    VocLowShotConfig,
    VocSvmConfig,
    knn_top1,
    merge_parts,
)
from rayssl.evaluation.average_precision import average_precision
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation.linear_svm import l2_normalize
from rayssl.evaluation.multi_label import random_average_precision
from rayssl.evaluation.papers import NUMBERS, paper_number, paper_numbers
from tests.evaluation.test_linear_probe import TinyEncoder

CPU = torch.device("cpu")
DATA = DigitsConfig(image_size=32)


class Colours:
    """Noise with more red, green or blue; with `several`, each channel by itself, as three classes."""

    side = 32

    def __init__(self, count: int, *, seed: int, several: bool = False) -> None:
        random = np.random.default_rng(seed)
        self.windows = random.integers(0, 160, (count, 3, self.side, self.side))
        bright = random.random((count, 3)) < 0.4
        self.labels = random.integers(0, 3, count)
        self.classes: tuple[str, ...] = ("red", "green", "blue")
        self.targets: Targets | None = None
        if several:
            self.windows += 60 * bright[:, :, None, None]
            self.labels, names, self.classes = np.full(count, -1), self.classes, ()
            self.targets = Targets(names, np.where(bright, 1, -1).astype(np.int8))
        else:
            self.windows[np.arange(count), self.labels] += 60
        self.numbers = np.arange(count)
        self.bad_files: list[BadFile] = []

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.windows.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, plan: Plan) -> Iterator[Tensor]:
        for indices, _ in plan:
            yield torch.from_numpy(self.windows[indices].astype(np.uint8))


LABELLED: list[Evaluation] = [
    LinearProbeConfig(blocks=(1, 3), epochs=4, batch_size=32),
    LinearProbeConfig(blocks=(1, 3), epochs=4, batch_size=32, views="augmented"),
    KnnConfig(blocks=(1, 3), k=(5, 9)),
    SemiSupervisedConfig(fraction=0.2, epochs=4, batch_size=16, learning_rate=0.05),
]
SEVERAL: list[Evaluation] = [
    VocSvmConfig(blocks=(1, 3), costs=(0.01, 1.0)),
    VocLowShotConfig(blocks=(1, 3), positives=(1, 2), samples=2, costs=(1.0,)),
]


@pytest.fixture
def encoder() -> Backbone:
    torch.manual_seed(0)
    return TinyEncoder().train()


def measure(
    evaluation: Evaluation, encoder: Backbone, train: Any, test: Any, *, features: FeatureStore | None = None
) -> dict[str, float]:
    """The metrics; without a store, features are computed in memory."""
    features = features or FeatureStore(None)
    return dict(evaluation.evaluate(encoder, train, test, data=DATA, seed=0, device=CPU, features=features))


def name_of(evaluation: Evaluation) -> str:
    return f"{evaluation.name}-{getattr(evaluation, 'views', '')}"


@pytest.mark.parametrize("evaluation", LABELLED + SEVERAL, ids=name_of)
def test_a_protocol_leaves_the_encoder_alone_repeats_itself_and_keeps_its_names(
    evaluation: Evaluation, encoder: Backbone
) -> None:
    several = evaluation in SEVERAL
    train, test = Colours(120, seed=0, several=several), Colours(90, seed=1, several=several)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    random_state = torch.get_rng_state()
    assert evaluation.unfit(train, test) is None
    metrics = measure(evaluation, encoder, train, test)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert encoder.training and all(parameter.requires_grad for parameter in encoder.parameters())
    assert all(name.startswith(f"{evaluation.name}/") and 0 <= value <= 1 for name, value in metrics.items())
    parts = [measure(part, encoder, train, test) for part in evaluation.parts(2)]
    assert list(merge_parts(parts).items()) == list(metrics.items())  # in the same order, too
    assert evaluation.sanity(train, test).metric in metrics
    assert evaluation.describe(train, test).startswith(f"{evaluation.name}: ")


@pytest.mark.parametrize("evaluation", LABELLED[:3] + SEVERAL, ids=name_of)
def test_classes_are_told_and_shuffled_labels_are_at_chance(evaluation: Evaluation, encoder: Backbone) -> None:
    several = evaluation in SEVERAL
    train, test = Colours(240, seed=0, several=several), Colours(300, seed=1, several=several)
    expected = evaluation.sanity(train, test)
    assert measure(evaluation, encoder, train, test)[expected.metric] > expected.bound
    shuffled = [ShuffledLabels(each, seed=0, part=part) for part, each in enumerate((train, test))]
    assert measure(evaluation, encoder, *shuffled)[expected.metric] <= expected.bound


def test_pictures_that_do_not_fit_are_refused_with_the_reason() -> None:
    one, several = Colours(20, seed=0), Colours(20, seed=0, several=True)
    for evaluation in LABELLED:
        assert "several classes each: take voc07_svm" in str(evaluation.unfit(several, several))
    for evaluation in SEVERAL:
        assert "data.name=voc2007" in str(evaluation.unfit(one, one))
    one.classes, one.labels = (), np.full(20, -1)
    assert "no labels" in str(LABELLED[0].unfit(one, one))


def test_a_dialect_fills_in_what_is_not_said_and_explicit_keys_win() -> None:
    moco = LinearProbeConfig(dialect="moco")
    assert (moco.blocks, moco.learning_rate, moco.weight_decay, moco.epochs) == ((5,), 30, 0, 100)
    assert [share * moco.epochs for share in moco.milestones] == [60, 80]
    vissl = LinearProbeConfig(dialect="vissl", weight_decay=0.0)
    assert (vissl.batchnorm, vissl.weight_decay, vissl.epochs) == ("affine", 0, 28)
    assert LinearProbeConfig.model_validate(moco.model_dump()) == moco
    with pytest.raises(ValidationError, match="'goyal', 'vissl' or 'moco'"):
        LinearProbeConfig.model_validate({"dialect": "simclr"})


def test_knn_is_the_vote_over_averaged_maps(encoder: Backbone) -> None:
    train, test = Colours(40, seed=0), Colours(30, seed=1)
    metrics = measure(KnnConfig(blocks=(2,), k=(7,)), encoder, train, test)
    mean, deviation = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    encoder.eval()
    with torch.no_grad():
        maps = [encoder((torch.from_numpy(each.windows) / 255 - mean) / deviation, 2) for each in (train, test)]
    features = [each.mean((2, 3)) for each in maps]
    labels = [torch.from_numpy(each.labels) for each in (train, test)]
    expected = knn_top1(features[0], labels[0], features[1], labels[1], k=(7,), num_classes=3)
    assert metrics["knn/b2/k7/top1"] == expected[7]


def test_the_svm_protocol_is_linearsvc_on_normalised_features(encoder: Backbone) -> None:
    """One cost, so that nothing is chosen; difficult pictures are negatives in training and left out in the test."""
    train, test = Colours(80, seed=0, several=True), Colours(60, seed=1, several=True)
    assert train.targets is not None and test.targets is not None
    train.targets.values[:5, 0] = test.targets.values[:7, 0] = 0
    config = VocSvmConfig(blocks=(3,), costs=(1.0,))
    metrics = measure(config, encoder, train, test)
    ((_, train_features, test_features),) = config.features_of(
        encoder, train, test, data=DATA, device=CPU, features=FeatureStore(None)
    )
    torch.testing.assert_close(l2_normalize(train_features), train_features, rtol=1e-4, atol=1e-6)
    signs = np.where(train.targets.values[:, 0] == 1, 1, -1)
    model = LinearSVC(C=1.0, class_weight={1: 2, -1: 1}, max_iter=2000, tol=1e-6, random_state=0)
    scores = model.fit(train_features.double().numpy(), signs).decision_function(test_features.double().numpy())
    counted = test.targets.values[:, 0] != 0
    expected = average_precision(scores[counted], test.targets.values[counted, 0])
    assert metrics["voc07_svm/b3/ap/red"] == pytest.approx(expected, abs=1e-4)
    values = [metrics[f"voc07_svm/b3/ap/{name}"] for name in ("red", "green", "blue")]
    assert metrics["voc07_svm/b3/map"] == metrics["voc07_svm/best/map"] == pytest.approx(np.mean(values))


def test_a_class_without_pictures_is_left_out_and_named(encoder: Backbone) -> None:
    train, test = Colours(60, seed=0, several=True), Colours(60, seed=1, several=True)
    assert train.targets is not None
    train.targets.values[:, 1] = -1
    config = VocSvmConfig(blocks=(1,), costs=(1.0,))
    metrics = measure(config, encoder, train, test)
    assert not any("green" in name for name in metrics)
    assert "2 classes, without green (too few pictures)" in config.describe(train, test)
    train.targets.values[:] = -1
    assert "no class has 3 positive and 3 negative" in str(config.unfit(train, test))


def test_low_shot_leaves_out_numbers_that_some_class_has_too_few_pictures_for() -> None:
    train, test = Colours(100, seed=0, several=True), Colours(20, seed=1, several=True)
    config = VocLowShotConfig()
    assert config.possible_positives(train, test) == (1, 2)
    assert "too few pictures for 4, 8, 16, 32, 64, 96" in config.describe(train, test)


def test_random_rankings_reach_a_little_more_than_the_share_of_positives() -> None:
    """Half of 4,000 rows: the interpolated curve lies just above one half."""
    targets = np.where(np.arange(4000) % 2, 1, -1).astype(np.int8)[:, None]
    assert random_average_precision(targets).mean() == pytest.approx(0.51, abs=0.01)


def test_labelled_lists_are_balanced_nested_and_seeded() -> None:
    train = Colours(300, seed=0)
    small, large = (SemiSupervisedConfig(fraction=share).chosen_pictures(train, seed=3) for share in (0.04, 0.1))
    assert list(small) == ["labelled-4-percent"]
    few, many = small["labelled-4-percent"], large["labelled-10-percent"]
    assert np.bincount(train.labels[few]).tolist() == [4, 4, 4]
    assert set(few) <= set(many)
    other = SemiSupervisedConfig(fraction=0.04).chosen_pictures(train, seed=4)["labelled-4-percent"]
    assert set(other) != set(few)


def test_fine_tuning_learns_what_the_labels_say(encoder: Backbone) -> None:
    train, test = Colours(200, seed=0), Colours(200, seed=1)
    config = SemiSupervisedConfig(fraction=0.5, epochs=25, batch_size=32, learning_rate=0.4)
    metrics = measure(config, encoder, train, test)
    assert metrics["semi_supervised/50_percent/top1"] > 0.6
    assert metrics["semi_supervised/50_percent/top5"] == 1.0  # there are three classes


def test_torchvisions_weights_give_torchvisions_logits(tmp_path: Any) -> None:
    from rayssl.sources import load_encoder

    torch.manual_seed(1)
    model = resnet18(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    encoder = load_encoder(ResNetConfig(depth=18), tmp_path / "resnet18.pth", seed=0).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.fc(encoder(images).mean((2, 3))), model(images), rtol=1e-4, atol=1e-4)


def test_the_papers_numbers_are_those_of_their_tables() -> None:
    cell = paper_number("linear_probe/b4/top1", data="imagenet", row="Rotation+PSL")
    assert cell is not None
    assert (cell.percent, cell.table) == (53.3, "PSL Table 6")
    assert [each.percent for each in paper_numbers("voc07_svm/b4/map", data="voc2007")] == [8.0, 23.8, 29.7, 31.3, 52.8]
    assert paper_numbers("linear_probe/b4/top1", data="cifar10") == []
    assert len({(each.metric, each.data, each.row) for each in NUMBERS}) == len(NUMBERS)
