"""The supervised reference of the papers' tables: the pictures' own labels as targets, end to end."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from rayssl.data.buffers import Buffers
from rayssl.data.loaders import Batch
from rayssl.errors import DataError
from rayssl.recipe_file import parse_section
from rayssl.tasks.augmented_views import AugmentationLevel, augmented_view
from rayssl.tasks.base import TaskConfig, TaskLoss, TaskSetting, Views


class SupervisedConfig(TaskConfig):
    """Tell the pictures' classes. No pretext: it needs labels, and its encoder is what the others are measured by."""

    name: Literal["supervised"] = "supervised"

    def parse_level(self, level: object) -> AugmentationLevel:
        """See `TaskConfig`."""
        return parse_section(AugmentationLevel, level)

    def build(self, level: AugmentationLevel, setting: TaskSetting) -> "SupervisedTask":
        """Make the task.

        Raises:
            DataError: If the pictures have no labels.
        """
        if not setting.classes:
            raise DataError(
                "method.task.name: supervised needs pictures with labels, and these have none. Put them into one "
                "folder for each class, or choose another task."
            )
        return SupervisedTask(level, setting)


class SupervisedTask:
    """Classification; see `PretextTask`. Pictures without a label take no part in the loss."""

    examples_per_image = 1

    def __init__(self, level: AugmentationLevel, setting: TaskSetting) -> None:
        self.chance = 1 / len(setting.classes)
        self._num_classes = len(setting.classes)
        self._level = level
        self._image_size = setting.image_size
        self._buffers = Buffers()

    def make_views(self, batch: Batch) -> Views:
        """One view of each picture, and its label."""
        views = augmented_view(
            batch.images, batch.draws, self._level, image_size=self._image_size, buffers=self._buffers
        )
        return Views(views, batch.labels.to(views.device, non_blocking=True))

    def build_head(self, channels: int, blocks: Sequence[nn.Module]) -> nn.Module:
        """One linear layer from the pooled map to the classes."""
        return nn.Linear(channels, self._num_classes)

    def compute_loss(self, head: nn.Module, feature_map: Tensor, targets: Tensor) -> TaskLoss:
        """Cross entropy over the classes, on the global average of the map."""
        logits = head(feature_map.mean((2, 3))).float()
        has_label = targets >= 0
        count = has_label.sum().clamp(min=1)
        loss = functional.cross_entropy(logits, targets, ignore_index=-1, reduction="sum") / count
        right = (logits.detach().argmax(1) == targets) & has_label
        return TaskLoss(loss, {"accuracy": right.sum() / count})

    def facts(self) -> dict[str, float]:
        """Nothing beyond the labels."""
        return {}
