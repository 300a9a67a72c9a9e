"""SimCLR: find the other view of the same picture among all views of the batch (Chen et al. 2020; PSL 3.3.3)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rayssl.collectives import gather_rows
from rayssl.data.buffers import Buffers
from rayssl.data.loaders import Batch
from rayssl.losses import nt_xent_logits
from rayssl.recipe_file import parse_section
from rayssl.tasks.augmented_views import AugmentationLevel, two_views
from rayssl.tasks.base import TaskConfig, TaskLoss, TaskSetting, Views


class SimCLRConfig(TaskConfig):
    """Tell two views of a picture from views of all other pictures."""

    is_mean_over_images: ClassVar[bool] = False
    name: Literal["simclr"] = "simclr"
    temperature: float = Field(default=0.1, gt=0)
    """Divides the cosine similarities (SimCLR: .1 for ImageNet, .5 for small pictures)."""
    projection_dim: int = Field(default=128, ge=2)
    """Outputs of the projection head, a perceptron with one hidden layer as wide as the features."""

    def parse_level(self, level: object) -> AugmentationLevel:
        """See `TaskConfig`."""
        return parse_section(AugmentationLevel, level)

    def build(self, level: AugmentationLevel, setting: TaskSetting) -> "SimCLRTask":
        """Make the task at one level."""
        return SimCLRTask(self, level, setting)


class SimCLRTask:
    """SimCLR at one level; see `SimCLRConfig` and `PretextTask`.

    The loss looks across the projections of all workers, so that it is the same for any number of them, if
    `training.sync_batchnorm` is on.
    """

    examples_per_image = 1

    def __init__(self, config: SimCLRConfig, level: AugmentationLevel, setting: TaskSetting) -> None:
        self.chance = 1 / (2 * setting.batch_size - 1)
        self._config = config
        self._level = level
        self._image_size = setting.image_size
        self._buffers = Buffers()

    def make_views(self, batch: Batch) -> Views:
        """Two views of each of N pictures: first all first ones, then all second ones, (2N, 3, S, S); no targets."""
        views = two_views(batch, self._level, image_size=self._image_size, buffers=self._buffers)
        return Views(views, views.new_empty(0))

    def build_head(self, channels: int, blocks: Sequence[nn.Module]) -> nn.Module:
        """The projection head: Linear, BatchNorm, ReLU, Linear."""
        return nn.Sequential(
            nn.Linear(channels, channels, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, self._config.projection_dim),
        )

    def compute_loss(self, head: nn.Module, feature_map: Tensor, targets: Tensor) -> TaskLoss:
        """NT-Xent over the views of all workers; a view's place alone says which other one is its own."""
        view_a, view_b = head(feature_map.mean((2, 3))).float().chunk(2)
        logits, others = nt_xent_logits(gather_rows(view_a), gather_rows(view_b), temperature=self._config.temperature)
        accuracy = (logits.detach().argmax(1) == others).float().mean()
        return TaskLoss(functional.cross_entropy(logits, others), {"accuracy": accuracy})

    def facts(self) -> dict[str, float]:
        """Nothing beyond the level."""
        return {}
