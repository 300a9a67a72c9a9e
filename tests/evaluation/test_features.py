import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayssl.backbones import Backbone
from rayssl.errors import ConfigError
from rayssl.evaluation.features import cache_dtype, extract_features, feature_statistics, run_blocks, unchanged

CPU = torch.device("cpu")


class TinyBackbone(Backbone):
    """Five blocks of convolution, BatchNorm and ReLU; each halves the map."""

    def __init__(self, channels: tuple[int, ...] = (4, 6, 8, 10, 12)) -> None:
        super().__init__()
        inputs = (3, *channels[:-1])
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in zip(inputs, channels, strict=True)
        )
        self.set_blocks(tuple(self.layers), channels)


def global_average(feature_map: Tensor, block: int) -> Tensor:
    return feature_map.mean(dim=(2, 3))


@pytest.fixture
def backbone() -> TinyBackbone:
    torch.manual_seed(0)
    return TinyBackbone()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# ---- running blocks ----


def test_every_map_is_the_next_block_of_the_one_before(backbone: TinyBackbone, images: Tensor) -> None:
    backbone.eval()
    maps = run_blocks(backbone, images)
    assert torch.equal(maps[0], backbone.blocks[0](images))
    for below, block, above in zip(maps[:-1], backbone.blocks[1:], maps[1:], strict=True):
        assert torch.equal(above, block(below))


def test_blocks_above_the_last_one_are_not_run(backbone: TinyBackbone, images: Tensor) -> None:
    called = []
    for number, block in enumerate(backbone.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: called.append(number))
    assert len(run_blocks(backbone, images, last_block=3)) == 3
    extract_features(backbone, [images], blocks=[2], pool=global_average, device=CPU)
    assert called == [1, 2, 3, 1, 2]


@pytest.mark.parametrize("last_block", [0, 6])
def test_a_block_that_does_not_exist_is_refused(backbone: TinyBackbone, images: Tensor, last_block: int) -> None:
    with pytest.raises(ValueError, match=r"must be 1\.\.5"):
        run_blocks(backbone, images, last_block=last_block)


# ---- extraction ----


@pytest.mark.parametrize("num_images", [None, 7])
def test_features_of_batches_are_those_of_each_picture_alone(
    backbone: TinyBackbone, images: Tensor, num_images: int | None
) -> None:
    features = extract_features(
        backbone, images.split(3), blocks=[1, 4], pool=global_average, device=CPU, num_images=num_images
    )
    assert sorted(features) == [1, 4]
    backbone.eval()
    for block in (1, 4):
        alone = [backbone(image[None], last_block=block).mean(dim=(2, 3))[0] for image in images]
        torch.testing.assert_close(features[block], torch.stack(alone))


def test_extraction_neither_learns_nor_changes_the_mode_of_any_part(backbone: TinyBackbone, images: Tensor) -> None:
    backbone.train()
    backbone.blocks[0].eval()
    modes = [part.training for part in backbone.modules()]
    with unchanged(backbone):
        extract_features(backbone, [images], blocks=[5], pool=global_average, device=CPU)
        assert [part.training for part in backbone.modules()] == modes


@pytest.mark.parametrize("num_images", [None, 7])
def test_extracted_features_can_be_trained_on(backbone: TinyBackbone, images: Tensor, num_images: int | None) -> None:
    """Tensors made in inference mode can't be saved for a backward pass; these must be ordinary ones."""
    features = extract_features(backbone, [images], blocks=[5], pool=global_average, device=CPU, num_images=num_images)[
        5
    ]
    assert not features.is_inference()
    linear = nn.Linear(features.shape[1], 2)
    linear(features).sum().backward()
    assert linear.weight.grad is not None


def test_the_callers_generator_is_not_run_in_inference_mode(backbone: TinyBackbone, images: Tensor) -> None:
    modes = []

    def batches() -> Iterator[Tensor]:
        modes.append(torch.is_inference_mode_enabled())
        yield images
        modes.append(torch.is_inference_mode_enabled())

    extract_features(backbone, batches(), blocks=[1], pool=global_average, device=CPU)
    assert modes == [False, False]


def test_half_precision_features_are_the_rounded_ones(backbone: TinyBackbone, images: Tensor) -> None:
    exact, rounded = (
        extract_features(backbone, [images], blocks=[3], pool=global_average, device=CPU, dtype=dtype)[3]
        for dtype in (torch.float32, torch.float16)
    )
    assert torch.equal(rounded, exact.half())


@pytest.mark.parametrize("num_images", [6, 8])
def test_a_wrong_number_of_pictures_is_refused(backbone: TinyBackbone, images: Tensor, num_images: int) -> None:
    with pytest.raises(ValueError, match=str(num_images)):
        extract_features(backbone, images.split(4), blocks=[1], pool=global_average, device=CPU, num_images=num_images)


def test_no_batches_and_unknown_blocks_are_refused(backbone: TinyBackbone, images: Tensor) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        extract_features(backbone, [], blocks=[1], pool=global_average, device=CPU)
    with pytest.raises(ValueError, match="some of 1..5"):
        extract_features(backbone, [images], blocks=[0, 1], pool=global_average, device=CPU)


def test_the_cache_is_as_precise_as_fits() -> None:
    gib = 2**30
    assert cache_dtype(gib // 4, 1, limit_gib=1) == torch.float32
    assert cache_dtype(gib // 4 + 1, 1, limit_gib=1) == torch.float16
    assert cache_dtype(gib // 2, 1, limit_gib=1) == torch.float16
    with pytest.raises(ConfigError, match="feature_cache_gib.*train_limit"):
        cache_dtype(gib // 2 + 1, 1, limit_gib=1)


# ---- the encoder stays as it is ----


def test_a_network_left_alone_passes_and_gets_its_flags_back(backbone: TinyBackbone, images: Tensor) -> None:
    backbone.train()
    backbone.blocks[1].requires_grad_(False)
    modes = [part.training for part in backbone.modules()]
    flags = [parameter.requires_grad for parameter in backbone.parameters()]
    with unchanged(backbone):
        backbone.eval().requires_grad_(False)
        backbone(images)
    assert [part.training for part in backbone.modules()] == modes
    assert [parameter.requires_grad for parameter in backbone.parameters()] == flags


def test_a_drift_of_batchnorm_statistics_is_caught_by_name(backbone: TinyBackbone, images: Tensor) -> None:
    backbone.train()
    names = r"layers\.0\.1\.num_batches_tracked.*layers\.0\.1\.running_mean"
    with pytest.raises(RuntimeError, match=names), unchanged(backbone):
        backbone(images)


def test_the_smallest_change_of_one_weight_is_caught_and_nothing_else_named(backbone: TinyBackbone) -> None:
    with pytest.raises(RuntimeError, match=r": layers\.2\.0\.weight$"), unchanged(backbone), torch.no_grad():
        weight = backbone.get_parameter("layers.2.0.weight").view(-1)
        weight[3] = weight[3].nextafter(torch.tensor(math.inf))


def test_bits_are_compared_and_not_values(backbone: TinyBackbone) -> None:
    """A nan differs from itself and 0 equals -0, but only as values."""
    with torch.no_grad():
        backbone.get_parameter("layers.0.0.bias").fill_(math.nan)
        backbone.get_parameter("layers.1.0.bias").fill_(0.0)
    with unchanged(backbone):
        pass
    with pytest.raises(RuntimeError, match=r": layers\.1\.0\.bias$"), unchanged(backbone), torch.no_grad():
        backbone.get_parameter("layers.1.0.bias").neg_()


def test_channels_last_weights_and_vanished_buffers_are_compared_too(backbone: TinyBackbone) -> None:
    backbone.to(memory_format=torch.channels_last)
    with unchanged(backbone):
        pass
    with pytest.raises(RuntimeError, match=r": layers\.0\.1\.running_mean$"), unchanged(backbone):
        backbone.get_submodule("layers.0.1").register_buffer("running_mean", None)


def test_an_exception_inside_is_not_hidden_and_modes_come_back(backbone: TinyBackbone, images: Tensor) -> None:
    backbone.train()
    with pytest.raises(KeyError), unchanged(backbone):
        backbone(images)
        backbone.eval()
        raise KeyError
    assert all(part.training for part in backbone.modules())


# ---- signs of collapse ----


def test_identical_features_have_no_deviation_and_no_rank() -> None:
    features = torch.randn(1, 64).expand(100, 64)
    statistics = feature_statistics(features)
    assert statistics["std"] == pytest.approx(0, abs=1e-6)
    assert statistics["effective_rank"] == 0


def test_isotropic_features_have_deviation_one() -> None:
    features = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert feature_statistics(features)["std"] == pytest.approx(1, abs=0.01)


def test_the_deviation_does_not_depend_on_the_features_scale() -> None:
    features = torch.rand(200, 16, generator=torch.Generator().manual_seed(0))
    assert feature_statistics(1000 * features)["std"] == pytest.approx(feature_statistics(features)["std"])


def with_spectrum(singular_values: list[float], *, num_rows: int, num_dims: int) -> Tensor:
    """Features whose centred matrix has these singular values, around a mean far from 0."""
    random = np.random.default_rng(0)
    left = random.normal(size=(num_rows, len(singular_values)))
    left = np.linalg.qr(left - left.mean(axis=0))[0]  # the columns' span holds no constant, so neither do they
    right = np.linalg.qr(random.normal(size=(num_dims, len(singular_values))))[0]
    return torch.from_numpy(left * singular_values @ right.T + 5.0)


@pytest.mark.parametrize(("num_rows", "num_dims"), [(60, 30), (30, 60)])
@pytest.mark.parametrize("rank", [1, 4, 20])
def test_k_equal_directions_have_effective_rank_k(rank: int, num_rows: int, num_dims: int) -> None:
    features = with_spectrum([3.0] * rank, num_rows=num_rows, num_dims=num_dims)
    assert feature_statistics(features)["effective_rank"] == pytest.approx(rank, rel=1e-9)


def test_effective_rank_is_the_exponential_of_the_spectrums_entropy() -> None:
    features = with_spectrum([8.0, 4.0, 2.0, 2.0], num_rows=50, num_dims=9)
    entropy = 0.5 * math.log(2) + 0.25 * math.log(4) + 2 * 0.125 * math.log(8)
    assert feature_statistics(features)["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-6)


def test_features_that_are_not_finite_give_nan() -> None:
    features = torch.ones(4, 3)
    features[1, 2] = math.inf
    assert all(math.isnan(value) for value in feature_statistics(features).values())
    with pytest.raises(ValueError, match="at least 1"):
        feature_statistics(torch.ones(0, 3))
