"""Random resized crops: their results and their distribution against torchvision."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from rayssl.data.augment import Draws, draw_resized_crop, resized_crop, to_float
from tests.data.random_batches import HEIGHT, WIDTH, assert_close, random_bytes, random_images


@pytest.mark.parametrize("size", [9, 24, 70])
def test_resized_crop_equals_torchvision(size: int) -> None:
    """Boxes that shrink, enlarge and keep each side, down to one pixel."""
    images = random_images(12)
    boxes = draw_resized_crop(Draws(0, 0, 0, batch_size=12), HEIGHT, WIDTH)
    boxes[:4] = torch.tensor([[0, 0, HEIGHT, WIDTH], [3, 4, 24, 24], [36, 51, 1, 1], [5, 0, 2, 50]])
    expected = [
        tv.resized_crop(image, *box.tolist(), size=[size, size], antialias=True)
        for image, box in zip(images, boxes, strict=True)
    ]
    assert_close(resized_crop(images, boxes, size), torch.stack(expected))


def test_resized_crop_of_bytes_is_that_of_the_floats() -> None:
    images = random_bytes()
    boxes = draw_resized_crop(Draws(0, 0, 0, batch_size=6), HEIGHT, WIDTH)
    assert torch.equal(resized_crop(images, boxes, 16), resized_crop(to_float(images), boxes, 16))


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(64, 64, (0.08, 1.0)), (40, 60, (0.2, 1.0)), (60, 20, (0.9, 1.0))]
)
def test_boxes_are_distributed_as_those_of_torchvision(height: int, width: int, scale: tuple[float, float]) -> None:
    """The last shape leaves the fallback as the only choice for many samples."""
    count = 2500
    boxes = draw_resized_crop(Draws(0, 0, 0, batch_size=count), height, width, scale=scale)
    assert boxes.dtype == torch.int64
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor([height, width])).all()

    torch.manual_seed(0)
    image, transform = torch.empty(3, height, width), v2.RandomResizedCrop(8, scale=scale)
    theirs = torch.tensor([list(transform.make_params([image]).values()) for _ in range(count)])
    ours, reference = statistics(boxes), statistics(theirs)
    # Five standard errors of the difference of two means; what is constant may differ by rounding only.
    errors = 5 * (ours.var(0) / count + reference.var(0) / count).sqrt() + 1e-6
    assert (ours.mean(0) - reference.mean(0)).abs().le(errors).all()
    for quantile in (0.25, 0.75):
        expected = reference.quantile(quantile, dim=0)
        torch.testing.assert_close(ours.quantile(quantile, dim=0), expected, atol=1.5, rtol=0.05)


def statistics(boxes: Tensor) -> Tensor:
    """Of each box: the four numbers, the area, the logarithm of the aspect; (N, 6)."""
    values = boxes.double()
    area, log_ratio = values[:, 2] * values[:, 3], (values[:, 3] / values[:, 2]).log()
    return torch.cat((values, area[:, None], log_ratio[:, None]), dim=1)


def test_boxes_keep_to_the_asked_area_and_aspect() -> None:
    """On large images rounding is small, so that the ranges themselves can be seen."""
    boxes = draw_resized_crop(Draws(0, 0, 0, batch_size=3000), 1000, 1000, scale=(0.1, 0.3), ratio=(0.5, 1.5)).double()
    areas, ratios = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 3] / boxes[:, 2]
    assert areas.min().item() == pytest.approx(0.1, abs=0.002)
    assert areas.max().item() == pytest.approx(0.3, abs=0.002)
    assert areas.mean().item() == pytest.approx(0.2, abs=0.005)
    assert ratios.min().item() == pytest.approx(0.5, abs=0.01)
    assert ratios.max().item() == pytest.approx(1.5, abs=0.01)
    assert ratios.log().mean().item() == pytest.approx(math.log(0.75) / 2, abs=0.03)


@pytest.mark.parametrize(("height", "width", "expected"), [(100, 10, [43, 0, 13, 10]), (10, 100, [0, 43, 10, 13])])
def test_images_too_narrow_for_any_box_give_the_central_one(height: int, width: int, expected: list[int]) -> None:
    boxes = draw_resized_crop(Draws(0, 0, 0, batch_size=4), height, width, scale=(0.9, 1.0))
    assert boxes.tolist() == [expected] * 4
