"""A stage as a module: the blocks it trains, its head and its loss; the blocks below only feed it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rayssl.backbones import Backbone
from rayssl.data.loaders import Batch
from rayssl.tasks.base import PretextTask, TaskLoss, Views


class StageTask(Protocol):
    """What the training loop has to know of a stage's task; pretext tasks are such."""

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing; None where no accuracy is measured."""

    @property
    def examples_per_image(self) -> int:
        """Examples of a batch that one picture makes."""

    def make_views(self, batch: Batch) -> Views:
        """Turn a worker's pictures into inputs and targets; random only through `batch.draws`."""


class TrainedStage(nn.Module):
    """What the training loop trains: it takes the inputs and targets of its task's views and gives a `TaskLoss`."""

    task: StageTask
    head: nn.Module
    """What the stage has beside its encoder, dropped at its end."""
    last_block: int
    """The highest block of the encoder that is run."""
    frozen: tuple[nn.Module, ...] = ()
    """Blocks that are run but not trained."""
    frozen_batchnorm: str = "eval"
    """Whether the frozen blocks' BatchNorm statistics stay ("eval") or move ("batch")."""

    def moving_buffers(self) -> list[Tensor]:
        """BatchNorm statistics that training moves: of what is trained, and of all with `frozen_batchnorm` "batch"."""
        frozen = self.frozen if self.frozen_batchnorm == "batch" else ()
        layers = [layer for part in (self, *frozen) for layer in part.modules() if isinstance(layer, _BatchNorm)]
        return [buffer for layer in layers for buffer in layer.buffers()]


class Stage(TrainedStage):
    """One learning stage S_i of PSL (sections 3.2 and 3.4, Algorithm 1).

    The input is always the image. Blocks below the trained ones run without autograd, blocks above are not
    run. Only the trained blocks and the head are registered, so that `parameters()` is what the optimiser moves
    and what a distributed wrapper synchronises.

    Args:
        backbone: The network that the run trains; its blocks are shared, not copied.
        trained_blocks: Consecutive block numbers, e.g. (2, 3, 4).
        task: The stage's pretext task at its level.
        frozen_batchnorm: "eval" keeps the statistics of the blocks below fixed; "batch" lets them normalise
            by the batch and go on averaging, as a plain `train()` would.
    """

    def __init__(
        self, backbone: Backbone, trained_blocks: Sequence[int], task: PretextTask, *, frozen_batchnorm: str = "eval"
    ) -> None:
        super().__init__()
        self.task: PretextTask = task
        first, last = trained_blocks[0], trained_blocks[-1]
        self.trained = nn.ModuleList(backbone.blocks[first - 1 : last])
        self.head = task.build_head(backbone.block_channels[last - 1], backbone.blocks[:last])
        self.frozen = backbone.blocks[: first - 1]  # a tuple: kept out of parameters() and state_dict()
        self.last_block = last
        self.frozen_batchnorm = frozen_batchnorm

    def train(self, mode: bool = True) -> "Stage":
        """Set the trained blocks to `mode`; the frozen ones stay in eval mode unless `frozen_batchnorm` is "batch"."""
        super().train(mode)
        for block in self.frozen:
            block.train(mode and self.frozen_batchnorm == "batch")
        return self

    def forward(self, inputs: Tensor, targets: Tensor) -> TaskLoss:
        """Run B1 up to the stage's last block, then the head, and compare with the targets."""
        features = inputs
        with torch.no_grad():
            for block in self.frozen:
                features = block(features)
        for block in self.trained:
            features = block(features)
        return self.task.compute_loss(self.head, features, targets)


@contextmanager
def frozen_unchanged(stage: TrainedStage) -> Iterator[None]:
    """Check that the blocks below the stage leave it as they entered it, bit for bit.

    With `frozen_batchnorm: batch` their running statistics may move and only parameters are compared.

    Raises:
        RuntimeError: If a frozen parameter or buffer changed; that is a bug, not a user's mistake.
    """
    before = [tensor.clone() for _, tensor in _frozen_tensors(stage)]
    yield
    changed = [
        name for (name, tensor), old in zip(_frozen_tensors(stage), before, strict=True) if not torch.equal(tensor, old)
    ]
    if changed:
        raise RuntimeError(f"frozen tensors changed during the stage: {', '.join(changed)}")


def _frozen_tensors(stage: TrainedStage) -> list[tuple[str, Tensor]]:
    tensors: list[tuple[str, Tensor]] = []
    for number, block in enumerate(stage.frozen, start=1):
        tensors += [(f"b{number}.{name}", p.detach()) for name, p in block.named_parameters()]
        if stage.frozen_batchnorm == "eval":
            tensors += [(f"b{number}.{name}", buffer) for name, buffer in block.named_buffers()]
    return tensors
