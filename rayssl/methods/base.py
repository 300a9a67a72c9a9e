"""What a pre-training method is to the rest: an encoder and a list of stages to be trained one after another."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from rayssl.backbones import Backbone
from rayssl.data import Pictures
from rayssl.data.loaders import TrainLoader
from rayssl.runtime import Runtime
from rayssl.training.loop import StageSchedule
from rayssl.training.optimizers import AnyOptimizer
from rayssl.training.stage import TrainedStage


@dataclass(frozen=True)
class StagePlan:
    """A stage ready to be trained."""

    stage: TrainedStage
    """The module: what it trains, its task and its loss; on the runtime's device."""
    loader: TrainLoader
    """This worker's share of every batch."""
    optimizer: AnyOptimizer
    """Settings of the stage's optimiser."""
    facts: Mapping[str, float]
    """Numbers known before the stage is trained, recorded once."""
    warnings: tuple[str, ...] = ()
    """What the person who waits should know of them."""
    pictures: tuple[Path, ...] = ()
    """Files drawn for this stage by rank 0, to be recorded with it."""
    measured: bool = True
    """Whether the stage changes the encoder that the run results in, so that measuring it tells something."""


class Method(Protocol):
    """A method bound to its encoder."""

    encoder: Backbone
    """The encoder that the run results in."""
    num_stages: int

    def name_of(self, index: int) -> str:
        """What stage `index` (from 0) is called in the record: stage-1, baseline, round-3; stages may share a name."""

    def settings_of(self, index: int) -> Mapping[str, Any]:
        """The stage's own settings, by dotted keys; stages that share a name share them."""

    def prepare(self, index: int, pictures: Pictures, runtime: Runtime, *, optimizer: AnyOptimizer) -> StagePlan:
        """Make stage `index` ready, on all workers alike; after `load_state` of a checkpoint inside the stage, as it
        was.
        """

    def schedule(self, index: int) -> StageSchedule:
        """Where stage `index` stands in the run."""

    def remarks(self, index: int, row: Mapping[str, float]) -> list[str]:
        """What the person who waits should know of an epoch's numbers, of stage `index`."""

    def draw(self, index: int, pictures: Pictures, runtime: Runtime) -> tuple[Path, ...]:
        """Draw what stage `index` has trained, on rank 0 alone; the files, to be recorded with it."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold beside the encoder."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""

    def compared_encoders(self) -> dict[str, Backbone]:
        """Encoders to be evaluated beside the result, by the prefix of their metrics, such as "baseline/"."""
