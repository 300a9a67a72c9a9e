"""PSL, progressive stage-wise learning: a list of stages over overlapping blocks, tasks from easy to hard.

PSL, SL, PSL_f, the end-to-end baseline and greedy training are such lists, so ablations are configs (paper, Tables 5
and 6).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator
from torch import Tensor

from rayssl.backbones import NUM_BLOCKS, AnyBackbone, Backbone
from rayssl.data import Pictures
from rayssl.data.loaders import TrainLoader
from rayssl.methods.base import StagePlan
from rayssl.recipe_file import flatten, parse_each
from rayssl.runtime import Runtime
from rayssl.schema import Config
from rayssl.tasks import AnyTask, TaskSetting
from rayssl.training.loop import StageSchedule
from rayssl.training.optimizers import AnyOptimizer
from rayssl.training.stage import Stage
from rayssl.training.sync_batchnorm import synchronize_batchnorm

Block = Annotated[int, Field(ge=1, le=NUM_BLOCKS)]


class PSLStageConfig(Config):
    """One stage S_i."""

    blocks: tuple[Block, ...] = Field(min_length=1)
    """Blocks that the stage trains, one after another: S1..S3 of the paper are [1,2,3], [2,3,4], [3,4,5]."""
    epochs: int = Field(ge=1)
    """Passes over the training pictures (the paper: 60)."""
    level: Annotated[Any, WithJsonSchema({"type": "object", "title": "Level of the task, such as {angles: 4}"})]
    """The task's level of difficulty G_i; its fields are the task's."""

    @field_validator("blocks")
    @classmethod
    def _consecutive(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if any(after != before + 1 for before, after in zip(blocks, blocks[1:], strict=False)):
            raise ValueError(f"must follow one another upwards, such as [2, 3, 4], got {list(blocks)}")
        return blocks


class PSLConfig(Config):
    """Progressive stage-wise learning (PSL, sections 3.2 to 3.4)."""

    name: Literal["psl"] = "psl"
    task: AnyTask
    """The pretext task."""
    gradient: Literal["stage", "full"] = "stage"
    """stage: a stage trains its own blocks; full: every block executed so far (PSL_f, section 4.5)."""
    schedule_scope: Literal["stage", "run"] = "stage"
    """stage: the learning-rate schedule restarts with every stage; run: one schedule over all of them
    ("without restart", section 4.1)."""
    frozen_batchnorm: Literal["eval", "batch"] = "eval"
    """eval: frozen blocks keep their BatchNorm statistics; batch: they normalise by the batch and go on averaging."""
    stages: tuple[PSLStageConfig, ...] = Field(min_length=1)
    """One after another."""

    @field_validator("stages")
    @classmethod
    def _check_levels(cls, stages: tuple[PSLStageConfig, ...], info: ValidationInfo) -> tuple[PSLStageConfig, ...]:
        """Check each level by the task's own rules."""
        task = info.data.get("task")
        if task is None:  # the task's own mistake is reported already
            return stages
        levels = parse_each(task.parse_level, {(index, "level"): stage.level for index, stage in enumerate(stages)})
        return tuple(stage.model_copy(update={"level": level}) for stage, level in zip(stages, levels, strict=True))

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        """A stage can't stand on blocks that nothing has trained, unless it trains them."""
        reached = 0
        for index, stage in enumerate(self.stages):
            first, last = stage.blocks[0], stage.blocks[-1]
            if first > reached + 1:
                raise ValueError(
                    f"stages.{index}.blocks: must start at {reached + 1} or below, because stage {index + 1} stands on "
                    f"block {reached + 1} and nothing has trained it, got {list(stage.blocks)}"
                )
            if last < reached:
                raise ValueError(
                    f"stages.{index}.blocks: must end at {reached} or above, because the stages before have trained "
                    f"blocks 1 to {reached}, got {list(stage.blocks)}"
                )
            reached = last
        return self

    def check(self, setting: TaskSetting) -> None:
        """Every worker gets the same number of pictures, and every picture all its views, in every step.

        Raises:
            ValueError: If the batch can't be shared out so, or a task refuses the setting.
        """
        if setting.accumulate > 1 and self.parts_of_a_step(setting) is None:
            what = (
                "BatchNorm is synchronised" if self.task.is_mean_over_images else f"the loss of {self.task.name} looks"
            )
            raise ValueError(
                f"training.accumulate: must be 1 where {what} across the whole batch, got {setting.accumulate}. Lower "
                "training.batch_size, or raise cluster.workers"
            )
        for index, stage in enumerate(self.stages):
            copies = self.task.examples_per_image(stage.level)
            shares = self.parts_of_a_step(setting) or setting.workers
            if setting.batch_size % (shares * copies):
                pieces = f" x {setting.accumulate} pieces (training.accumulate)" if setting.accumulate > 1 else ""
                raise ValueError(
                    f"training.batch_size: must be a multiple of {shares * copies} ({shares // setting.accumulate} "
                    f"workers{pieces} x {copies} views a picture in method.stages.{index}), got {setting.batch_size}"
                )
            self.task.check(stage.level, setting)

    def parts_of_a_step(self, setting: TaskSetting) -> int | None:
        """Pieces whose gradients are added up; None: one a worker, as it is unless more are asked for.

        A loss, or BatchNorm, that looks across the whole batch can't be taken to pieces.
        """
        return setting.parts if self.task.is_mean_over_images and not setting.sync_batchnorm else None

    def check_backbone(self, backbone: AnyBackbone, image_size: int) -> None:
        """Any will do."""

    def build(self, encoder: Backbone, setting: TaskSetting, *, seed: int) -> "PSL":
        """Bind the method to an encoder."""
        return PSL(self, encoder, setting, seed=seed)


class PSL:
    """The method bound to an encoder; see `PSLConfig`."""

    def __init__(self, config: PSLConfig, encoder: Backbone, setting: TaskSetting, *, seed: int) -> None:
        self.encoder = encoder
        self.num_stages = len(config.stages)
        self._config = config
        self._setting = setting
        self._seed = seed

    def build_stage(self, index: int) -> Stage:
        """Freeze what the stage does not train and put a new head on its last block."""
        stage = self._config.stages[index]
        first = 1 if self._config.gradient == "full" else stage.blocks[0]
        last = stage.blocks[-1]
        for number, block in enumerate(self.encoder.blocks, start=1):
            block.requires_grad_(first <= number <= last)
        # A head of its own seed: a run that resumes in stage 3 must make the head that the uninterrupted run made.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed * 1000 + index)
            task = self._config.task.build(stage.level, self._setting)
            return Stage(self.encoder, range(first, last + 1), task, frozen_batchnorm=self._config.frozen_batchnorm)

    def name_of(self, index: int) -> str:
        """Stages are numbered from 1."""
        return f"stage-{index + 1}"

    def settings_of(self, index: int) -> dict[str, Any]:
        """Blocks, epochs and level."""
        return flatten(self._config.stages[index])

    def prepare(self, index: int, pictures: Pictures, runtime: Runtime, *, optimizer: AnyOptimizer) -> StagePlan:
        """The stage on the runtime's device, and shuffled batches of all pictures."""
        stage = self.build_stage(index).to(runtime.device)
        stage.head.to(memory_format=torch.channels_last)  # the encoder's layout is the caller's choice
        if self._setting.sync_batchnorm:
            synchronize_batchnorm((stage, self.encoder, *self.encoder.blocks), runtime.device)
        loader = TrainLoader(
            pictures,
            images_per_step=self._setting.batch_size // stage.task.examples_per_image,
            seed=self._seed,
            rank=runtime.rank,
            world_size=runtime.world_size,
            parts=self._config.parts_of_a_step(self._setting),
        )
        return StagePlan(stage, loader, optimizer, stage.task.facts())

    def remarks(self, index: int, row: Mapping[str, float]) -> list[str]:
        """Nothing."""
        return []

    def draw(self, index: int, pictures: Pictures, runtime: Runtime) -> tuple[Path, ...]:
        """Nothing."""
        return ()

    def state(self) -> dict[str, Tensor]:
        """Nothing beside the encoder: heads are the stages' own."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def compared_encoders(self) -> dict[str, Backbone]:
        """None."""
        return {}

    def schedule(self, index: int) -> StageSchedule:
        """The stage's epochs, and those before it."""
        epochs = [stage.epochs for stage in self._config.stages]
        return StageSchedule(
            index, self.num_stages, epochs[index], sum(epochs[:index]), sum(epochs), self._config.schedule_scope
        )
