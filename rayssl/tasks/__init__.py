"""Pretext tasks. A new one: a file, and its config in the union below."""

from typing import Annotated

from pydantic import Field

from rayssl.tasks.base import PretextTask, TaskConfig, TaskLoss, TaskSetting, Views
from rayssl.tasks.jigsaw import JigsawConfig
from rayssl.tasks.moco import MoCoConfig
from rayssl.tasks.rotation import RotationConfig, RotationLevel, RotationTask
from rayssl.tasks.simclr import SimCLRConfig
from rayssl.tasks.supervised import SupervisedConfig

AnyTask = Annotated[
    JigsawConfig | RotationConfig | SimCLRConfig | MoCoConfig | SupervisedConfig, Field(discriminator="name")
]

__all__ = [
    "AnyTask",
    "JigsawConfig",
    "MoCoConfig",
    "PretextTask",
    "RotationConfig",
    "RotationLevel",
    "RotationTask",
    "SimCLRConfig",
    "SupervisedConfig",
    "TaskConfig",
    "TaskLoss",
    "TaskSetting",
    "Views",
]
