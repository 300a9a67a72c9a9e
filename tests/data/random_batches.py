"""What the tests of the operations on batches share: random images, and how close results must be."""

import torch
from torch import Tensor

HEIGHT, WIDTH = 37, 52


def random_images(count: int = 6, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def random_bytes(count: int = 6, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def middle(images: Tensor) -> Tensor:
    return torch.tensor([images.shape[2] / 2, images.shape[3] / 2]).expand(len(images), 2)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)
