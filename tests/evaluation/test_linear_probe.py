import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from rayssl.backbones import Backbone
from rayssl.data import BadFile, DigitsConfig, Targets
from rayssl.data.pictures import Plan
from rayssl.errors import ConfigError, RaysslError
from rayssl.evaluation import AnyEvaluation, Evaluation
from rayssl.evaluation.base import balanced_subset, chance_level
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation.features import pool_block
from rayssl.evaluation.linear_heads import LinearHeads, fit_linear_heads, top1
from rayssl.evaluation.linear_probe import LinearProbeConfig, evaluate_linear_probe

CPU = torch.device("cpu")


# ---- pooling ----


@pytest.mark.parametrize(
    ("block", "channels", "side", "pooling", "num_features"),
    [
        (1, 64, 112, (10, 10, 4), 9216),
        (2, 256, 56, (16, 8, 0), 9216),
        (3, 512, 28, (13, 5, 0), 8192),
        (4, 1024, 14, (8, 3, 0), 9216),
        (5, 2048, 7, (6, 1, 0), 8192),
    ],
)
def test_a_resnet50s_maps_at_224_are_pooled_as_goyal_does(
    block: int, channels: int, side: int, pooling: tuple[int, int, int], num_features: int
) -> None:
    """Kernel, stride and padding of the protocol, as windows summed one by one over a map with a rim of zeros."""
    feature_map = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    kernel, stride, padding = pooling
    padded = functional.pad(feature_map, [padding] * 4).double()
    starts = range(0, padded.shape[-1] - kernel + 1, stride)
    windows = [padded[..., y : y + kernel, x : x + kernel].sum(dim=(2, 3)) / kernel**2 for y in starts for x in starts]
    pooled = pool_block(feature_map, block)
    assert pooled.shape == (1, num_features)
    torch.testing.assert_close(pooled, torch.stack(windows, dim=2).flatten(1).float())
    torch.testing.assert_close(pooled, functional.avg_pool2d(feature_map, kernel, stride, padding).flatten(1))


@pytest.mark.parametrize(
    ("block", "channels", "size", "cells"),
    [
        (2, 64, (56, 56), 12 * 12),  # ResNet-18 at 224
        (2, 512, (56, 56), 4 * 4),  # RevNet-50
        (5, 3328, (7, 7), 1),
        (1, 64, (32, 32), 12 * 12),  # ResNet with the small stem
        (5, 512, (4, 4), 4 * 4),
        (4, 256, (2, 2), 2 * 2),  # the map's own side, where 6 x 6 would repeat cells
        (3, 512, (3, 9), 3 * 4),
        (5, 20000, (3, 3), 1),
    ],
)
def test_other_maps_are_averaged_to_about_as_many_features(
    block: int, channels: int, size: tuple[int, int], cells: int
) -> None:
    assert pool_block(torch.rand(2, channels, *size), block).shape == (2, channels * cells)


def test_adaptive_cells_are_means_of_their_part_of_the_map() -> None:
    feature_map = torch.arange(2 * 2304 * 16, dtype=torch.float32).view(
        2, 2304, 4, 4
    )  # side floor(sqrt(9216/2304)) = 2
    quarters = [
        feature_map[:, :, rows, columns].mean(dim=(2, 3))
        for rows in (slice(0, 2), slice(2, 4))
        for columns in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(pool_block(feature_map, 4), torch.stack(quarters, dim=2).flatten(1))


def test_memory_layout_does_not_change_the_features() -> None:
    feature_map = torch.rand(2, 64, 32, 32)
    last = feature_map.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pool_block(last, 1), pool_block(feature_map, 1))


def test_pooling_refuses_a_block_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"must be 1\.\.5, got 6"):
        pool_block(torch.rand(1, 4, 4, 4), 6)


# ---- fitting ----


def blobs(num_images: int, *, dim: int = 20, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Four classes around the first four unit vectors, with features of very different scales and means."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (num_images,), generator=generator)
    features = torch.eye(4, dim)[labels] + noise * torch.randn(num_images, dim, generator=generator)
    return features * torch.logspace(-2, 2, dim) + torch.linspace(-10, 10, dim), labels


def fit(train: dict[int, Tensor], labels: Tensor, **settings: object) -> LinearHeads:
    arguments: dict = {"num_classes": 4, "epochs": 30, "batch_size": 64, "seed": 0, "device": CPU} | settings
    return fit_linear_heads(train, labels, **arguments)


@pytest.mark.parametrize(("noise", "lowest", "highest"), [(0.1, 0.999, 1.0), (0.5, 0.7, 0.95)])
def test_a_probe_is_as_accurate_as_logistic_regression(noise: float, lowest: float, highest: float) -> None:
    """On separable and on noisy classes, within 2.5 percentage points of scikit-learn on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, train_labels = blobs(800, noise=noise, seed=0)
    test, test_labels = blobs(2000, noise=noise, seed=1)
    reference = make_pipeline(StandardScaler(), LogisticRegression()).fit(train.numpy(), train_labels.numpy())
    expected = reference.score(test.numpy(), test_labels.numpy())
    accuracy = top1(fit({3: train}, train_labels), {3: test}, test_labels)[3]
    assert lowest <= expected <= highest
    assert accuracy == pytest.approx(expected, abs=0.025)


def test_shuffled_labels_are_told_by_chance() -> None:
    features, labels = blobs(3000, noise=0.1, seed=0)
    shuffled = labels[torch.randperm(3000, generator=torch.Generator().manual_seed(5))]
    heads = fit({5: features[:1000]}, shuffled[:1000], epochs=5)
    accuracy = top1(heads, {5: features[1000:]}, shuffled[1000:])[5]
    assert accuracy == pytest.approx(0.25, abs=3 * math.sqrt(0.25 * 0.75 / 2000))


def test_five_heads_trained_together_equal_heads_trained_alone() -> None:
    train = {block: blobs(150, dim=4 + 3 * block, noise=0.5, seed=0)[0] for block in range(1, 6)}
    labels = blobs(150, noise=0.5, seed=0)[1]
    together = fit(train, labels, epochs=6).state_dict()
    for block, features in train.items():
        alone = fit({block: features}, labels, epochs=6).state_dict()
        assert all(torch.equal(tensor, together[name]) for name, tensor in alone.items())
        assert len(alone) == len(together) // 5


def test_every_step_is_nesterov_sgd_with_decay_at_the_scheduled_rate() -> None:
    """Whole-batch training without milestones in between, against the update written out by hand."""
    features, labels = blobs(40, dim=6, noise=0.5, seed=0)
    heads = fit({2: features}, labels, epochs=4, learning_rate=0.5, batch_size=40, weight_decay=0.01, milestones=(0.5,))
    weight = next(LinearHeads({2: 6}, 4, seed=0).parameters()).detach().double()
    bias = torch.zeros(4, dtype=torch.float64)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    whole = features.double()
    inputs = (whole - whole.mean(0)) / (whole.var(0, correction=0) + 1e-5).sqrt()
    for rate in (0.5, 0.5, 0.05, 0.05):
        error = ((inputs @ weight.T + bias).softmax(1) - functional.one_hot(labels, 4)) / 40
        gradients = [error.T @ inputs + 0.01 * weight, error.sum(0) + 0.01 * bias]
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        weight, bias = (p - rate * (g + 0.9 * v) for p, g, v in zip((weight, bias), gradients, velocity, strict=True))
    trained = heads.state_dict()
    torch.testing.assert_close(trained["heads.b2.linear.weight"].double(), weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trained["heads.b2.linear.bias"].double(), bias, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trained["heads.b2.norm.running_mean"].double(), whole.mean(0), atol=1e-5, rtol=1e-5)


def test_with_channels_given_their_cells_are_normalised_as_batchnorm2d_does() -> None:
    """Goyal et al.'s SpatialBN: one mean and deviation for all cells of a channel."""
    maps = torch.randn(32, 3, 4, 4) * torch.tensor([1.0, 5.0, 0.1])[:, None, None] + 2
    heads = LinearHeads({4: 48}, 10, channels={4: 3}).train()
    reference = torch.nn.BatchNorm2d(3, affine=False)
    expected = heads.get_submodule("heads.b4.linear")(reference(maps).flatten(1))
    torch.testing.assert_close(heads({4: maps.flatten(1)})[4], expected)


def test_a_seed_decides_everything_and_the_global_generator_nothing() -> None:
    features, labels = blobs(100, noise=0.5, seed=0)
    first = fit({1: features}, labels, epochs=3).state_dict()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = fit({1: features}, labels, epochs=3).state_dict()
    other = fit({1: features}, labels, epochs=3, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["heads.b1.linear.weight"], other["heads.b1.linear.weight"])


def test_initial_weights_have_deviation_one_hundredth_and_no_bias() -> None:
    parameters = dict(LinearHeads({4: 500}, 100, seed=3).named_parameters())
    assert list(parameters) == ["heads.b4.linear.weight", "heads.b4.linear.bias"]  # none of the normalisation
    weight, bias = parameters.values()
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=2e-4)
    assert not bias.any()
    first, _, second, _ = LinearHeads({1: 8, 2: 8}, 3).parameters()
    assert not torch.equal(first, second)


def test_chosen_rows_train_as_if_the_others_were_not_there() -> None:
    features, labels = blobs(90, noise=0.5, seed=0)
    rows = torch.arange(0, 90, 3)
    labels[1::3] = -1
    heads = fit({2: features}, labels, epochs=3, rows=rows).state_dict()
    expected = fit({2: features[rows]}, labels[rows], epochs=3).state_dict()
    assert all(torch.equal(heads[name], expected[name]) for name in heads)


@pytest.mark.parametrize("num_images", [2, 65, 129])
def test_no_batch_is_left_with_a_single_picture(num_images: int) -> None:
    """BatchNorm can't normalise one; 65 and 129 are one more than a whole number of batches."""
    features, labels = blobs(num_images, noise=0.5, seed=0)
    fit({1: features}, labels, epochs=1)


def test_features_in_half_precision_train_as_their_rounded_values() -> None:
    features, labels = blobs(100, noise=0.5, seed=0)
    half = fit({1: features.half()}, labels, epochs=3).state_dict()
    rounded = fit({1: features.half().float()}, labels, epochs=3).state_dict()
    assert all(torch.equal(half[name], rounded[name]) for name in half)


def test_features_that_are_not_finite_are_reported_with_their_block() -> None:
    features, labels = blobs(100, noise=0.5, seed=0)
    broken = features.clone()
    broken[7, 3] = math.nan
    with pytest.raises(RaysslError, match=r"loss of B4 is not finite in epoch 1 at learning rate 0\.01"):
        fit({3: features, 4: broken}, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 4], r"must be 0\.\.3, got 0\.\.4"),
        ([0, -1, 2], r"got -1\.\.2"),
        ([0, 1], "3 rows for 2 labels"),
        ([], "at least two"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit({1: torch.rand(3, 5)}, torch.tensor(labels, dtype=torch.int64))


def test_accuracy_is_the_share_of_labelled_pictures_told_rightly() -> None:
    """A head that copies its input, and rows whose largest entry is known."""
    heads = LinearHeads({1: 4, 2: 4}, 4).train()
    with torch.no_grad():
        heads.get_parameter("heads.b1.linear.weight").copy_(torch.eye(4))
        heads.get_parameter("heads.b2.linear.weight").copy_(-torch.eye(4))
    labels = torch.tensor([0, 1, 2, 3, -1, 0])
    features = torch.eye(4)[[0, 1, 2, 0, 1, 0]]
    accuracies = top1(heads, {1: features, 2: features}, labels, batch_size=2)
    assert accuracies == {1: 4 / 5, 2: 0.0}  # 0 is also the highest of the negated rows of class 1, 2 and 3
    assert heads.training
    with pytest.raises(ValueError, match="at least one"):
        top1(heads, {1: features}, torch.full((6,), -1))


# ---- subsets and chance ----


def test_a_balanced_subset_has_as_many_of_every_class_and_all_of_small_ones() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [-1] * 20 + [2] * 30)[torch.randperm(103)]
    chosen = balanced_subset(labels, 5, seed=0)
    assert labels[chosen].bincount().tolist() == [5, 3, 5]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_balanced_subsets_are_nested_seeded_and_uniform() -> None:
    labels = torch.arange(40) % 2
    small, large = (set(balanced_subset(labels, size, seed=1).tolist()) for size in (4, 10))
    assert small < large
    assert small == set(balanced_subset(labels, 4, seed=1).tolist())
    counts = torch.stack([balanced_subset(labels, 5, seed=seed) for seed in range(400)]).flatten().bincount()
    assert counts.min() > 60  # 100 expected, deviation 8.7
    assert counts.max() < 140


def test_an_empty_subset_is_refused_or_given() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        balanced_subset(torch.zeros(3, dtype=torch.int64), 0, seed=0)
    assert balanced_subset(torch.full((3,), -1), 2, seed=0).tolist() == []


@pytest.mark.parametrize(
    ("labels", "level"), [([0, 1, 2, 3], 0.25), ([0, 0, 0, 1], 0.75), ([1, -1, -1, 2], 0.5), ([-1], 0.2), ([], 0.2)]
)
def test_chance_is_always_naming_the_most_frequent_class(labels: list[int], level: float) -> None:
    assert chance_level(torch.tensor(labels, dtype=torch.int64), 5) == level


# ---- the whole evaluation ----


def probe_data(noise: float = 0.5) -> tuple[dict[int, Tensor], Tensor, dict[int, Tensor], Tensor]:
    """Block 2 tells the classes, block 4 is noise."""
    train, train_labels = blobs(300, noise=noise, seed=0)
    test, test_labels = blobs(400, noise=noise, seed=1)
    return (
        {2: train, 4: torch.randn(300, 5)},
        train_labels,
        {2: test, 4: torch.randn(400, 5)},
        test_labels,
    )


def test_one_repetition_gives_each_block_and_the_best() -> None:
    config = LinearProbeConfig(blocks=(2, 4), epochs=10, batch_size=32)
    metrics = dict(evaluate_linear_probe(config, *probe_data(), num_classes=4, seed=0, device=CPU))
    assert list(metrics) == ["linear_probe/b2/top1", "linear_probe/b4/top1", "linear_probe/best/top1"]
    assert metrics["linear_probe/best/top1"] == metrics["linear_probe/b2/top1"] > 0.7
    assert metrics["linear_probe/b4/top1"] < 0.4


def test_repetitions_draw_other_subsets_and_give_a_deviation() -> None:
    config = LinearProbeConfig(blocks=(2,), epochs=10, batch_size=32, labels_per_class=5, seeds=3)
    metrics = dict(evaluate_linear_probe(config, *probe_data(), num_classes=4, seed=0, device=CPU))
    assert list(metrics) == ["linear_probe/b2/top1", "linear_probe/b2/top1_std", "linear_probe/best/top1"]
    assert 0 < metrics["linear_probe/b2/top1_std"] < 0.2
    again = dict(evaluate_linear_probe(config, *probe_data(), num_classes=4, seed=0, device=CPU))
    assert again == metrics


def test_pictures_without_a_label_change_nothing() -> None:
    train, train_labels, test, test_labels = probe_data()
    unlabelled = torch.full((20,), -1)
    more = {block: torch.cat([features, torch.full_like(features[:20], 1e9)]) for block, features in train.items()}
    config = LinearProbeConfig(blocks=(2,), epochs=3)
    with_them = evaluate_linear_probe(
        config, more, torch.cat([train_labels, unlabelled]), test, test_labels, num_classes=4, seed=0, device=CPU
    )
    without = evaluate_linear_probe(config, train, train_labels, test, test_labels, num_classes=4, seed=0, device=CPU)
    assert dict(with_them) == dict(without)


def test_the_rate_is_for_256_pictures_and_scaled_to_the_batch() -> None:
    train, train_labels, test, test_labels = probe_data()
    config = LinearProbeConfig(blocks=(2,), epochs=1, batch_size=64, learning_rate=1e9, weight_decay=0)
    with pytest.raises(RaysslError, match=r"learning rate 2\.5e\+08"):
        train[2][0, 0] = math.inf
        dict(evaluate_linear_probe(config, train, train_labels, test, test_labels, num_classes=4, seed=0, device=CPU))


def test_a_block_without_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no features of \[3\]"):
        dict(evaluate_linear_probe(LinearProbeConfig(blocks=(2, 3)), *probe_data(), num_classes=4, seed=0, device=CPU))


class ColouredSquares:
    """Pictures of one colour and some noise; the colour is the class."""

    side = 40
    classes: tuple[str, ...] = ("red", "green", "blue")

    def __init__(self, num_images: int, *, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.labels = random.integers(-1, 3, num_images)
        self.bad_files: list[BadFile] = []
        self.targets: Targets | None = None
        self.numbers = np.arange(len(self.labels))
        self.fingerprint = str(seed)
        self._windows = random.integers(0, 200, (num_images, 3, self.side, self.side))
        labelled = np.flatnonzero(self.labels >= 0)
        self._windows[labelled, self.labels[labelled]] += 50

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, plan: Plan) -> Iterator[Tensor]:
        for indices, _ in plan:
            yield torch.from_numpy(self._windows[indices].astype(np.uint8))


class TinyEncoder(Backbone):
    def __init__(self) -> None:
        super().__init__()
        channels = (3, 3, 6, 6, 6)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in zip((3, *channels[:-1]), channels, strict=True)
        )
        self.set_blocks(tuple(self.layers), channels)


def test_an_encoder_in_train_mode_is_measured_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    encoder = TinyEncoder().train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    config: Evaluation = LinearProbeConfig(blocks=(1, 3), epochs=8, batch_size=16, train_limit=100)
    train, test = ColouredSquares(200, seed=0), ColouredSquares(120, seed=1)
    data = DigitsConfig(image_size=32)
    metrics = dict(config.evaluate(encoder, train, test, data=data, seed=0, device=CPU, features=FeatureStore(None)))
    assert list(metrics) == ["linear_probe/b1/top1", "linear_probe/b3/top1", "linear_probe/best/top1"]
    assert metrics["linear_probe/b1/top1"] > 0.8
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert encoder.training
    assert encoder.layers[0].training


def test_the_description_names_settings_and_chance() -> None:
    train, test = ColouredSquares(20, seed=0), ColouredSquares(5, seed=1)
    test.labels = np.array([0, 0, 1, 2, -1])
    text = LinearProbeConfig(blocks=(1, 3), train_limit=1000, labels_per_class=5, seeds=3).describe(train, test)
    for part in ("B1, B3", "28 epochs", "0.01", "at most 1,000 pictures, 5 of each class", "3 repetitions", "50.0%"):
        assert part in text


def test_features_beyond_the_memory_limit_are_refused_before_they_are_computed() -> None:
    config = LinearProbeConfig(feature_cache_gib=1e-6)
    pictures, data, features = ColouredSquares(50, seed=0), DigitsConfig(image_size=32), FeatureStore(None)
    with pytest.raises(ConfigError, match="feature_cache_gib"):
        dict(config.evaluate(TinyEncoder(), pictures, pictures, data=data, seed=0, device=CPU, features=features))


# ---- config ----


class Recipe(BaseModel):
    evaluations: tuple[AnyEvaluation, ...]


def test_an_evaluation_is_chosen_by_its_name() -> None:
    recipe = Recipe.model_validate({"evaluations": [{"name": "linear_probe", "epochs": 3}]})
    assert recipe.evaluations == (LinearProbeConfig(epochs=3),)
    with pytest.raises(ValidationError, match="does not match any of the expected tags: 'linear_probe'"):
        Recipe.model_validate({"evaluations": [{"name": "linear_prob"}]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": ()}, "at least one, each once"),
        ({"blocks": (1, 1)}, "each once"),
        ({"blocks": (0, 1)}, "greater than or equal to 1"),
        ({"milestones": (0.5, 0.5)}, "milestones: must increase"),
        ({"milestones": (1.0,)}, "less than 1"),
        ({"epoch": 3}, "Extra inputs"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LinearProbeConfig(**settings)


def test_the_defaults_are_the_papers() -> None:
    config = LinearProbeConfig()
    assert [share * config.epochs for share in config.milestones] == pytest.approx([8, 16, 24])
    assert (config.learning_rate, config.batch_size, config.momentum, config.weight_decay) == (0.01, 256, 0.9, 1e-4)
