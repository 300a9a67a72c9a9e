"""Pretext tasks. A new one: a file, and its config in the union below."""

from rayssl.tasks.base import PretextTask, TaskConfig, TaskLoss, TaskSetting, Views
from rayssl.tasks.rotation import RotationConfig, RotationLevel, RotationTask

AnyTask = RotationConfig

__all__ = [
    "AnyTask",
    "PretextTask",
    "RotationConfig",
    "RotationLevel",
    "RotationTask",
    "TaskConfig",
    "TaskLoss",
    "TaskSetting",
    "Views",
]
