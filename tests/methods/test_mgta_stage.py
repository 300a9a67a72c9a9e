"""The loss of MGTA's stages against a slow one by hand, and the signs of collapse in it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rayssl.backbones.autoencoder import AutoEncoder
from rayssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Draws
from rayssl.data.loaders import Batch
from rayssl.losses import Reduction
from rayssl.methods.mgta_stage import (
    AutoEncoderStage,
    AutoEncoderTask,
    TripletTerm,
    collapse_warnings,
    draw_reconstructions,
)
from rayssl.tasks.augmented_views import AugmentationLevel, augmented_view
from tests.methods.mgta_parts import SIDE, small_encoder

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
PICTURES = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5])
"""Pictures 0 and 5 are in the batch twice."""


def make_stage(triplet: TripletTerm | None, reduction: Reduction = "mean") -> AutoEncoderStage:
    task = AutoEncoderTask(AugmentationLevel(smallest_crop=0.5), image_size=SIDE)
    return AutoEncoderStage(AutoEncoder(small_encoder()), task, triplet=triplet, reduction=reduction).eval()


def triplets_by_hand(embeddings: Tensor, margin: float) -> list[float]:
    """Equation 6, pair by pair; a positive is another picture of the cluster."""
    rows = embeddings.double().tolist()
    terms = []
    for anchor in range(len(rows)):
        others = range(len(rows))
        same = [i for i in others if LABELS[i] == LABELS[anchor] and PICTURES[i] != PICTURES[anchor]]
        different = [i for i in others if LABELS[i] != LABELS[anchor]]
        farthest = max(math.dist(rows[anchor], rows[i]) for i in same)
        nearest = min(math.dist(rows[anchor], rows[i]) for i in different)
        terms.append(margin + farthest - nearest)
    return terms


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_reconstruction_plus_lambda_times_the_triplets(reduction: Reduction) -> None:
    """Equation 8. Metrics are means in any case, so that runs can be compared."""
    stage = make_stage(TripletTerm(0.7, 0.3), reduction)
    inputs = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    outcome = stage(inputs, torch.stack([LABELS, PICTURES], 1))
    embeddings = stage.network.encoder(inputs).mean((2, 3))
    terms = [max(0.0, term) for term in triplets_by_hand(embeddings, 0.3)]
    error = float(np.square(stage.network(inputs).detach().double().numpy() - inputs.double().numpy()).sum())
    numbers = {"sum": error + 0.7 * sum(terms), "mean": error / inputs.numel() + 0.7 * sum(terms) / 8}
    assert outcome.loss.item() == pytest.approx(numbers[reduction], rel=1e-4)
    assert outcome.metrics["reconstruction"].item() == pytest.approx(error / inputs.numel(), rel=1e-4)
    assert outcome.metrics["triplet"].item() == pytest.approx(sum(terms) / 8, rel=1e-4)
    assert outcome.metrics["active_triplets"].item() == sum(term > 0 for term in terms) / 8
    assert not any(value.requires_grad for value in outcome.metrics.values())


def test_the_baseline_has_no_triplets() -> None:
    stage = make_stage(None)
    inputs = torch.randn(4, 3, SIDE, SIDE)
    outcome = stage(inputs, torch.zeros(4, 2, dtype=torch.int64))
    assert outcome.metrics.keys() == {"reconstruction"}
    torch.testing.assert_close(outcome.loss, (stage.network(inputs) - inputs).square().mean())


def test_all_of_the_auto_encoder_is_trained_and_nothing_else() -> None:
    stage = make_stage(TripletTerm(1.0, "soft")).train()
    stage(torch.randn(8, 3, SIDE, SIDE), torch.stack([LABELS, PICTURES], 1)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.parameters())
    assert {id(p) for p in stage.parameters()} == {id(p) for p in stage.network.parameters()}
    assert stage.head.state_dict() == {}
    assert len(stage.moving_buffers()) == len(list(stage.network.buffers()))


def test_the_target_is_the_augmented_view_itself_with_label_and_number() -> None:
    task = AutoEncoderTask(AugmentationLevel(smallest_crop=0.5), image_size=SIDE)
    images = torch.randint(256, (4, 3, 20, 20), dtype=torch.uint8)
    labels, numbers = torch.tensor([1, 1, 0, 0]), torch.tensor([7, 3, 9, 5])
    views = task.make_views(Batch(images, Draws(0, 1, 2, batch_size=4), numbers, labels))
    draws = Draws(0, 1, 2, batch_size=4)
    expected = augmented_view(images, draws, AugmentationLevel(smallest_crop=0.5), image_size=SIDE)
    assert torch.equal(views.inputs, expected)
    assert torch.equal(views.targets, torch.tensor([[1, 7], [1, 3], [0, 9], [0, 5]]))
    assert task.chance is None


@pytest.mark.parametrize(
    ("row", "margin", "is_told"),
    [
        ({"triplet": 0.3, "active_triplets": 1.0}, 0.3, True),
        ({"triplet": 0.3029, "active_triplets": 1.0}, 0.3, True),
        ({"triplet": 0.304, "active_triplets": 1.0}, 0.3, False),
        ({"triplet": 0.3, "active_triplets": 0.9}, 0.3, False),
        ({"triplet": math.log(2), "active_triplets": 0.4}, "soft", True),
        ({"triplet": 0.6, "active_triplets": 0.4}, "soft", False),
        ({"reconstruction": 0.3}, 0.3, False),
    ],
)
def test_a_loss_that_is_stuck_at_its_margin_is_told(row: dict[str, float], margin: float, is_told: bool) -> None:
    assert bool(collapse_warnings(row, margin)) == is_told


def test_embeddings_at_one_point_are_told() -> None:
    """What collapse really gives: with all weights of the last layer zero, every embedding is the same."""
    stage = make_stage(TripletTerm(1.0, 0.3))
    with torch.no_grad():
        for parameter in stage.network.encoder.layer4.parameters():
            parameter.zero_()
    outcome = stage(torch.randn(8, 3, SIDE, SIDE), torch.stack([LABELS, PICTURES], 1))
    row = {name: value.item() for name, value in outcome.metrics.items()}
    (text,) = collapse_warnings(row, 0.3)
    assert "stuck at 0.3000" in text


def test_reconstructions_lie_below_their_originals_in_natural_colours(tmp_path: Path) -> None:
    network = AutoEncoder(small_encoder()).train()
    buffers = [buffer.clone() for buffer in network.buffers()]
    with torch.no_grad():
        network.decoder.get_parameter("output.weight").zero_()  # so that it gives the mean colour
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    white = (torch.ones(3, 3, SIDE, SIDE) - mean) / deviation
    path = draw_reconstructions(network, white, tmp_path / "folder" / "drawn.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (2 * (SIDE + 2) + 2, 3 * (SIDE + 2) + 2, 3)
    assert (pixels[2 : SIDE + 2, 2 : SIDE + 2] == 255).all()
    expected = np.round(255 * np.array(IMAGENET_MEAN))
    assert (pixels[SIDE + 4 : -2, 2 : SIDE + 2] == expected).all()
    assert network.training
    assert all(torch.equal(a, b) for a, b in zip(buffers, network.buffers(), strict=True))
