"""What a pretext task gives a stage: inputs and targets made from pictures, a head, a loss, and the chance level."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from rayssl.data.loaders import Batch
from rayssl.schema import Config


@dataclass(frozen=True)
class TaskSetting:
    """What a task has to know of the rest of the recipe."""

    image_size: int
    """Side of the views, in pixels."""
    batch_size: int
    """Examples a step, over all workers."""
    workers: int = 1
    """How many share a step."""
    sync_batchnorm: bool = False
    """Whether BatchNorm spans all of them."""
    classes: tuple[str, ...] = ()
    """The pictures' classes, for the supervised reference; empty if they have none, or before they are listed."""
    eval_resize: int | None = None
    """Short side from which views without augmentation take the centre, in pixels; None: image_size."""
    parts: int | None = None
    """Pieces that a step is cut into, so that each worker may take several in turn: where the number of workers may
    change, or gradients are accumulated; None: a piece for each worker."""
    accumulate: int = 1
    """Of these, how many each worker takes if all are there."""


@dataclass(frozen=True)
class Views:
    """What the network sees and what it has to tell, for one step of one worker."""

    inputs: Tensor
    """Normalised float views, (V, 3, S, S)."""
    targets: Tensor
    """What is to be told: classes, int64 (N,), or what else the task's loss compares with."""


@dataclass(frozen=True)
class TaskLoss:
    """The outcome of one step."""

    loss: Tensor
    """Scalar with gradient, the mean over this worker's examples."""
    metrics: Mapping[str, Tensor]
    """Scalars without gradient that are averaged over an epoch: `accuracy`, the share of this worker's examples whose
    target was told rightly, and what else the task measures."""


class PretextTask(Protocol):
    """One level of a pretext task (G1..G3 of PSL, section 3.3)."""

    chance: float
    """Accuracy of guessing; losses of different levels can't be compared, accuracies beside chance can."""
    examples_per_image: int
    """Examples of a batch that one picture makes: 1, but for rotation in all angles at once."""

    def make_views(self, batch: Batch) -> Views:
        """Turn a worker's pictures into views and targets; random only through `batch.draws`."""

    def build_head(self, channels: int, blocks: Sequence[nn.Module]) -> nn.Module:
        """Make the stage's head g_i for a feature map of `channels` channels, the last of `blocks`, B1 and up."""

    def compute_loss(self, head: nn.Module, feature_map: Tensor, targets: Tensor) -> TaskLoss:
        """Apply the head to the stage's last feature map (V, C, H, W) and compare with the targets."""

    def facts(self) -> dict[str, float]:
        """Numbers about the task itself that a run records once, such as distances between permutations."""


class TaskConfig(Config):
    """What all tasks' configs have in common; `Any` is the task's own level, which `parse_level` makes."""

    is_mean_over_images: ClassVar[bool] = True
    """Whether a step's loss is the mean of its pictures' own losses, so that it may be computed piece by piece."""

    @abstractmethod
    def parse_level(self, level: object) -> Any:
        """Check the settings of one stage's level.

        Raises:
            ValidationError: If they break a rule; see `parse_section`.
        """

    @abstractmethod
    def build(self, level: Any, setting: TaskSetting) -> PretextTask:
        """Make the task at one level."""

    def examples_per_image(self, level: Any) -> int:
        """As the task's own, without building it."""
        return 1

    def check(self, level: Any, setting: TaskSetting) -> None:
        """Refuse what does not go together with the rest of the recipe.

        Raises:
            ValueError: With the key, the rule, the value and the way out.
        """
