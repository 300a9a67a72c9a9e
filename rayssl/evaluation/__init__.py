"""Measurements of an encoder. A new one: a file, and its config in the union below."""

from typing import Annotated

from pydantic import Field

from rayssl.evaluation.base import Evaluation, balanced_subset, chance_level
from rayssl.evaluation.features import extract_features, feature_statistics, pool_block, run_blocks, unchanged
from rayssl.evaluation.knn import knn_top1
from rayssl.evaluation.linear_heads import fit_linear_heads, top1
from rayssl.evaluation.linear_probe import LinearProbeConfig, evaluate_linear_probe
from rayssl.evaluation.online import OnlineConfig, OnlineEvaluation

AnyEvaluation = Annotated[
    LinearProbeConfig,
    Field(discriminator="name"),
]

__all__ = [
    "AnyEvaluation",
    "Evaluation",
    "LinearProbeConfig",
    "OnlineConfig",
    "OnlineEvaluation",
    "balanced_subset",
    "chance_level",
    "evaluate_linear_probe",
    "extract_features",
    "feature_statistics",
    "fit_linear_heads",
    "knn_top1",
    "pool_block",
    "run_blocks",
    "top1",
    "unchanged",
]
