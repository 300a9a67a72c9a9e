"""Pre-training methods. A new one: a file, and its config in the union below."""

from typing import Annotated

from pydantic import Field

from rayssl.methods.base import Method, StagePlan
from rayssl.methods.mgta import MGTA
from rayssl.methods.mgta_config import MGTAConfig
from rayssl.methods.psl import PSL, PSLConfig, PSLStageConfig

AnyMethod = Annotated[PSLConfig | MGTAConfig, Field(discriminator="name")]

__all__ = ["MGTA", "PSL", "AnyMethod", "MGTAConfig", "Method", "PSLConfig", "PSLStageConfig", "StagePlan"]
