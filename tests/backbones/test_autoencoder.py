"""The decoder against Table 1, counted by hand, and against the encoder that it mirrors."""

import pytest
import torch
from torch import Tensor, nn

from rayssl.backbones import ResNetConfig
from rayssl.backbones.autoencoder import AutoEncoder, check_side

# Table 1, last layer of the encoder first: input channels of a unit's three convolutions, output of the row, units.
TABLE_1 = [(2048, 512, 512, 1024, 3), (1024, 256, 256, 512, 6), (512, 128, 128, 256, 4), (256, 64, 64, 64, 3)]


def resnet50_autoencoder() -> AutoEncoder:
    """The paper's network without storage: shapes and counts cost nothing."""
    with torch.device("meta"):
        return AutoEncoder(ResNetConfig(depth=50).build())


def small_autoencoder(depth: int = 18, stem: str = "small", width: int = 8) -> AutoEncoder:
    torch.manual_seed(0)
    return AutoEncoder(ResNetConfig.model_validate({"depth": depth, "stem": stem, "width": width}).build())


def transposed_convolutions(unit: nn.Module) -> list[nn.ConvTranspose2d]:
    """Those of a unit in order, without its shortcut's."""
    return [m for m in unit.get_submodule("branch").children() if isinstance(m, nn.ConvTranspose2d)]


def count_of_table_1() -> int:
    """Weights of each convolution, 2 of each BatchNorm's channels, and the output layer with its bias."""
    total = 8 * 8 * 64 * 3 + 3
    for outer, inner, _, row_output, num_units in TABLE_1:
        for unit in range(num_units):
            output = row_output if unit == num_units - 1 else outer
            total += outer * inner + 9 * inner * inner + inner * output + 2 * (inner + inner + output)
        total += outer * row_output + 2 * row_output
    return total


def test_the_decoder_of_resnet50_has_the_parameters_of_table_1() -> None:
    """23.50 M, beside the encoder's 23.51 M (spec 2.1)."""
    autoencoder = resnet50_autoencoder()
    num_parameters = sum(p.numel() for p in autoencoder.decoder.parameters())
    assert num_parameters == count_of_table_1() == 23_502_851
    assert round(sum(p.numel() for p in autoencoder.encoder.parameters()) / 1e6, 2) == 23.51


def test_the_convolutions_of_resnet50s_decoder_have_the_input_channels_of_table_1() -> None:
    decoder = resnet50_autoencoder().decoder
    rows = list(decoder.children())[:4]
    for row, (first, second, third, output, num_units) in zip(rows, TABLE_1, strict=True):
        branches = [transposed_convolutions(unit) for unit in row.children()]
        assert [[c.in_channels for c in branch] for branch in branches] == [[first, second, third]] * num_units
        assert [branch[-1].out_channels for branch in branches] == [first] * (num_units - 1) + [output]


def sides_after_each_part(autoencoder: AutoEncoder, images: Tensor) -> list[tuple[int, int]]:
    """(channels, side) of what enters the decoder and of what leaves each of its parts."""
    features = autoencoder.encoder(images)
    shapes = [features.shape]
    for part in autoencoder.decoder:
        features = part(features)
        shapes.append(features.shape)
    return [(shape[1], shape[-1]) for shape in shapes if shape[-1] == shape[-2]]


def test_resnet50_at_224_passes_the_sides_of_table_1() -> None:
    shapes = sides_after_each_part(resnet50_autoencoder(), torch.zeros(2, 3, 224, 224, device="meta"))
    assert shapes == [(2048, 7), (1024, 14), (512, 28), (256, 56), (64, 56), (64, 112), (3, 224)]


def test_resnet18_at_224_passes_the_same_sides_with_its_own_channels() -> None:
    with torch.device("meta"):
        autoencoder = AutoEncoder(ResNetConfig(depth=18).build())
    shapes = sides_after_each_part(autoencoder, torch.zeros(2, 3, 224, 224, device="meta"))
    assert shapes == [(512, 7), (256, 14), (128, 28), (64, 56), (64, 56), (64, 112), (3, 224)]


def test_the_small_stem_is_mirrored_without_interpolation() -> None:
    shapes = sides_after_each_part(small_autoencoder(), torch.zeros(2, 3, 32, 32))
    assert shapes == [(64, 4), (32, 8), (16, 16), (8, 32), (8, 32), (8, 32), (3, 32)]


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 96), ("imagenet", 64), ("imagenet", 32), ("small", 32)])
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_an_untrained_reconstruction_is_near_the_mean_colour_in_the_size_of_its_picture(
    depth: int, stem: str, side: int
) -> None:
    """The first loss is about the pictures' variance, 1."""
    images = torch.randn(2, 3, side, side)
    reconstruction = small_autoencoder(depth, stem)(images)
    assert reconstruction.shape == images.shape
    assert nn.functional.mse_loss(reconstruction, images).item() == pytest.approx(images.var().item(), rel=0.05)


def test_pictures_need_not_be_square() -> None:
    images = torch.randn(2, 3, 64, 32)
    assert small_autoencoder(stem="imagenet")(images).shape == images.shape


@pytest.mark.parametrize(("depth", "stem"), [(18, "imagenet"), (50, "imagenet"), (50, "small")])
def test_each_convolution_of_the_decoder_is_the_adjoint_of_its_convolution(depth: int, stem: str) -> None:
    """With the same weights <A x, y> = <x, A' y>, which pins down strides and paddings; all but the 8x8 layer."""
    autoencoder = small_autoencoder(depth, stem).double()
    for name in ("layer4", "layer3", "layer2", "layer1"):
        units = list(getattr(autoencoder.encoder, name))[::-1]
        for unit, mirrored in zip(units, getattr(autoencoder.decoder, name), strict=True):
            convolutions = [m for m in unit.children() if isinstance(m, nn.Conv2d)][::-1]
            transposed = transposed_convolutions(mirrored)
            if unit.downsample is not None:
                convolutions.append(unit.downsample[0])
                transposed.append(mirrored.shortcut[0])
            for convolution, twin in zip(convolutions, transposed, strict=True):
                assert_adjoint(convolution, twin)
    if stem == "small":
        output = autoencoder.decoder.output
        assert isinstance(output, nn.ConvTranspose2d)
        assert_adjoint(autoencoder.encoder.conv1, output)


@torch.no_grad()
def assert_adjoint(convolution: nn.Conv2d, transposed: nn.ConvTranspose2d) -> None:
    transposed.weight.copy_(convolution.weight)
    inputs = torch.randn(1, convolution.in_channels, 8, 8, dtype=torch.float64)
    outputs = torch.randn_like(convolution(inputs))
    back = transposed(outputs)
    assert back.shape == inputs.shape
    torch.testing.assert_close((convolution(inputs) * outputs).sum(), (inputs * back).sum())


def test_weights_start_with_the_spread_of_the_convolutions_that_they_mirror() -> None:
    autoencoder = small_autoencoder(50, width=32)
    for name, count in (("layer4", 9), ("layer3", 18), ("layer2", 12), ("layer1", 9)):
        encoder, decoder = getattr(autoencoder.encoder, name), getattr(autoencoder.decoder, name)
        convolutions = [m for u in list(encoder)[::-1] for m in list(u.children())[::-1] if isinstance(m, nn.Conv2d)]
        transposed = [m for unit in decoder for m in transposed_convolutions(unit)]
        assert len(convolutions) == len(transposed) == count
        for convolution, twin in zip(convolutions, transposed, strict=True):
            assert twin.weight.std().item() == pytest.approx(convolution.weight.std().item(), rel=0.1)


def test_embeddings_and_reconstruction_come_from_one_pass_through_the_encoder() -> None:
    autoencoder = small_autoencoder().eval()
    images = torch.randn(3, 3, 32, 32)
    expected = autoencoder.encoder(images).mean((2, 3)), autoencoder(images)
    passes: list[nn.Module] = []
    autoencoder.encoder.register_forward_hook(lambda module, *_: passes.append(module))
    embeddings, reconstruction = autoencoder.embed_and_reconstruct(images)
    assert len(passes) == 1
    assert embeddings.shape == (3, 64)
    torch.testing.assert_close((embeddings, reconstruction), expected)


def test_it_learns_two_pictures_by_heart() -> None:
    """A plain colour's error is the pictures' variance; some dozen steps must come to a tenth of it."""
    autoencoder = small_autoencoder(width=16)
    down, across = torch.meshgrid(torch.linspace(-2, 2, 16), torch.linspace(-2, 2, 16), indexing="ij")
    images = torch.stack([torch.stack([down, across, down * across]), torch.stack([across, -down, down + across])])
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=1e-2)
    for _ in range(30):
        loss = nn.functional.mse_loss(autoencoder(images), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in autoencoder.parameters())
    assert loss.item() < 0.1 * images.var().item()


@pytest.mark.parametrize(
    ("stem", "side", "message"),
    [
        ("imagenet", 84, "multiple of 32.*got 84; the nearest are 64 and 96"),
        ("imagenet", 225, "multiple of 32.*got 225; the nearest are 224 and 256"),
        ("imagenet", 31, "multiple of 32.*got 31; the nearest is 32"),
        ("imagenet", 0, "multiple of 32.*got 0; the nearest is 32"),
        ("small", 28, "multiple of 8.*got 28; the nearest are 24 and 32"),
        ("small", -8, "multiple of 8.*got -8; the nearest is 8"),
    ],
)
def test_sides_that_would_not_come_back_are_refused_with_the_nearest_that_do(
    stem: str, side: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_side(side, stem=stem)
    with pytest.raises(ValueError, match=message):
        small_autoencoder(stem=stem).check_side(side)


def test_sides_that_come_back_pass() -> None:
    for stem, stride in (("imagenet", 32), ("small", 8)):
        for multiple in (1, 3, 7):
            check_side(multiple * stride, stem=stem)


def test_pictures_of_another_side_do_not_pass_the_network() -> None:
    with pytest.raises(ValueError, match="nearest are 32 and 40"):
        small_autoencoder()(torch.randn(2, 3, 32, 36))


def test_an_encoder_that_is_no_resnet_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder: the decoder can only mirror a ResNet, got Flatten"):
        AutoEncoder(nn.Flatten())
