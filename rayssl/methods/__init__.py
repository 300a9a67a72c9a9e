"""Pre-training methods. A new one: a file, and its config in the union below."""

from rayssl.methods.base import Method, StagePlan
from rayssl.methods.psl import PSL, PSLConfig, PSLStageConfig

AnyMethod = PSLConfig

__all__ = ["PSL", "AnyMethod", "Method", "PSLConfig", "PSLStageConfig", "StagePlan"]
