"""MoCo v2: find the key of the same picture beside a queue of other pictures' keys (He, Chen et al. 2020)."""

import copy
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rayssl.collectives import gather_rows
from rayssl.data.buffers import Buffers
from rayssl.data.loaders import Batch
from rayssl.losses import info_nce_logits
from rayssl.recipe_file import parse_section
from rayssl.tasks.augmented_views import AugmentationLevel, two_views
from rayssl.tasks.base import TaskConfig, TaskLoss, TaskSetting, Views


class MoCoConfig(TaskConfig):
    """Tell a picture's key from those of a long queue of other pictures."""

    is_mean_over_images: ClassVar[bool] = False
    name: Literal["moco"] = "moco"
    queue_size: int = Field(default=65_536, ge=2)
    """Keys of earlier steps to tell the right one from; a multiple of training.batch_size."""
    key_momentum: float = Field(default=0.999, ge=0, lt=1)
    """How slowly the key encoder follows: the share of itself that it keeps in a step."""
    temperature: float = Field(default=0.2, gt=0)
    """Divides the cosine similarities (MoCo v2: .2)."""
    projection_dim: int = Field(default=128, ge=2)
    """Outputs of the projection head, a perceptron with one hidden layer as wide as the features."""
    batchnorm_splits: int = Field(default=8, ge=1)
    """Groups of pictures that the key encoder normalises apart where there is one worker; with several, a group each.
    Were a key normalised together with what its query was, the statistics would give the pair away."""

    def parse_level(self, level: object) -> AugmentationLevel:
        """See `TaskConfig`."""
        return parse_section(AugmentationLevel, level)

    def check(self, level: AugmentationLevel, setting: TaskSetting) -> None:
        """The queue is replaced in whole batches, and groups are equal and large enough for their statistics."""
        batch_size = setting.batch_size
        if self.queue_size % batch_size:
            nearest = max(1, round(self.queue_size / batch_size)) * batch_size
            raise ValueError(
                f"method.task.queue_size: must be a multiple of training.batch_size, {batch_size}, got "
                f"{self.queue_size}. The nearest is {nearest}."
            )
        if setting.sync_batchnorm:
            raise ValueError(
                "training.sync_batchnorm: must be false with moco, whose keys must not be normalised together with "
                "their queries, got true"
            )
        if setting.workers == 1 and (batch_size % self.batchnorm_splits or batch_size // self.batchnorm_splits < 2):
            raise ValueError(
                f"method.task.batchnorm_splits: must divide training.batch_size, {batch_size}, into groups of 2 or "
                f"more pictures, got {self.batchnorm_splits}"
            )

    def build(self, level: AugmentationLevel, setting: TaskSetting) -> "MoCoTask":
        """Make the task at one level."""
        return MoCoTask(self, level, setting)


class MoCoTask:
    """MoCo v2 at one level; see `MoCoConfig` and `PretextTask`."""

    examples_per_image = 1

    def __init__(self, config: MoCoConfig, level: AugmentationLevel, setting: TaskSetting) -> None:
        self.chance = 1 / (1 + config.queue_size)
        self._config = config
        self._level = level
        self._image_size = setting.image_size
        self._buffers = Buffers()
        self._num_groups = config.batchnorm_splits if setting.workers == 1 else 1

    def make_views(self, batch: Batch) -> Views:
        """A view of each picture for the query encoder and, as the targets, another one for the key encoder."""
        views = two_views(batch, self._level, image_size=self._image_size, buffers=self._buffers)
        query, key = views.chunk(2)
        return Views(query, key.contiguous(memory_format=torch.channels_last))

    def build_head(self, channels: int, blocks: Sequence[nn.Module]) -> "MoCoHead":
        """The projection head, with the key encoder and the queue of this stage."""
        return MoCoHead(self._config, channels, blocks, num_groups=self._num_groups)

    def compute_loss(self, head: nn.Module, feature_map: Tensor, targets: Tensor) -> TaskLoss:
        """InfoNCE of this worker's queries; then the keys of all workers join the queue."""
        assert isinstance(head, MoCoHead)
        query = head.projection(feature_map.mean((2, 3))).float()
        key = head.encode_keys(targets)
        logits = info_nce_logits(query, key, head.queue, temperature=self._config.temperature)
        head.enqueue(gather_rows(key))
        right = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        accuracy = (logits.detach().argmax(1) == right).float().mean()
        return TaskLoss(functional.cross_entropy(logits, right), {"accuracy": accuracy})

    def facts(self) -> dict[str, float]:
        """Nothing beyond the level."""
        return {}


class MoCoHead(nn.Module):
    """The query's projection head, the key encoder and the queue: all that a stage has beside its encoder.

    The key encoder starts as a copy, parameters and buffers, of the blocks as they are at the stage's start. Then its
    parameters follow the query encoder's and its BatchNorm statistics are its own. Frozen blocks are the same in both.

    Args:
        config: Momentum, sizes.
        channels: Of the last block's map.
        blocks: All blocks that run; those with parameters to train are followed.
        num_groups: Groups that this worker's part of a shuffled batch is normalised in.
    """

    queue: Tensor
    """Keys of earlier steps, normalised, (K, D)."""

    def __init__(self, config: MoCoConfig, channels: int, blocks: Sequence[nn.Module], *, num_groups: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, config.projection_dim)
        )
        trained = tuple(block for block in blocks if any(p.requires_grad for p in block.parameters()))
        self.key_blocks = nn.ModuleList(copy.deepcopy(trained)).requires_grad_(False)
        self.key_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.register_buffer("queue", functional.normalize(torch.randn(config.queue_size, config.projection_dim)))
        # Tuples: parts of the encoder, which the head looks at but does not own.
        self._frozen = tuple(block for block in blocks if block not in trained)
        self._trained = trained
        self._momentum = config.key_momentum
        self._num_groups = num_groups
        self._num_steps = 0

    @torch.no_grad()
    def encode_keys(self, views: Tensor) -> Tensor:
        """Let the key encoder follow, then project and normalise (N, 3, S, S) views to keys (N, D).

        The pictures of all workers are shuffled before and put back in order afterwards, so that none is normalised
        with the neighbours that its query had ("shuffling BN").
        """
        if self.training:
            self._follow()
        everyone = gather_rows(views)
        # The same order on all workers, and after a restart.
        order = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(self._num_steps))
        order = order.to(views.device, non_blocking=True)
        num_workers = len(everyone) // len(views)
        rank = torch.distributed.get_rank() if num_workers > 1 else 0
        mine = everyone[order.chunk(num_workers)[rank]]
        features = mine.contiguous(memory_format=torch.channels_last)
        for block in self._frozen:  # in eval mode, where a batch has no statistics of its own
            features = block(features)
        keys = gather_rows(torch.cat([self._key(group) for group in features.chunk(self._num_groups)]))
        in_order = torch.empty_like(keys).index_copy_(0, order, keys)
        return in_order.chunk(num_workers)[rank]

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by these, (B, D), the same on every worker."""
        batches = len(self.queue) // len(keys)
        first = (self._num_steps % batches) * len(keys)
        self.queue[first : first + len(keys)] = keys
        self._num_steps += 1

    def get_extra_state(self) -> Tensor:
        """Steps so far, for a checkpoint: where the queue goes on, and the next shuffle."""
        return torch.tensor(self._num_steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a checkpoint."""
        self._num_steps = int(state)

    def _key(self, features: Tensor) -> Tensor:
        for block in self.key_blocks:
            features = block(features)
        return functional.normalize(self.key_projection(features.mean((2, 3))).float())

    def _follow(self) -> None:
        """Move the key encoder's parameters a little towards the query encoder's."""
        pairs = list(zip(self._parameters_of(self.key_blocks), self._parameters_of(self._trained), strict=True))
        pairs += zip(self.key_projection.parameters(), self.projection.parameters(), strict=True)
        keys, queries = zip(*pairs, strict=True)
        torch._foreach_lerp_(list(keys), list(queries), 1 - self._momentum)

    @staticmethod
    def _parameters_of(blocks: Sequence[nn.Module] | nn.ModuleList) -> Iterator[nn.Parameter]:
        for block in blocks:
            yield from block.parameters()
