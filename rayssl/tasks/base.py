"""What a pretext task gives a stage: inputs and targets made from pictures, a head, a loss, and the chance level."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from rayssl.data.augment import Draws


@dataclass(frozen=True)
class Views:
    """What the network sees and what it has to tell, for one step of one worker."""

    inputs: Tensor
    """Normalised float views, (V, 3, S, S)."""
    targets: Tensor
    """Class of each view, int64 (V,)."""


@dataclass(frozen=True)
class TaskLoss:
    """The outcome of one step."""

    loss: Tensor
    """Scalar with gradient, the mean over this worker's views."""
    correct: Tensor
    """Number of views whose target was told rightly, a scalar without gradient."""


class PretextTask(Protocol):
    """One level of a pretext task (G1..G3 of PSL, section 3.3)."""

    chance: float
    """Accuracy of guessing; losses of different levels can't be compared, accuracies beside chance can."""
    views_per_image: int
    """Views that one picture contributes to a batch."""

    def make_views(self, images: Tensor, draws: Draws) -> Views:
        """Turn uint8 windows (N, 3, W, W) into views and targets; random only through `draws`."""

    def build_head(self, channels: int) -> nn.Module:
        """Make the stage's head g_i for a feature map of `channels` channels."""

    def compute_loss(self, head: nn.Module, feature_map: Tensor, targets: Tensor) -> TaskLoss:
        """Apply the head to the stage's last feature map (V, C, H, W) and compare with the targets."""
