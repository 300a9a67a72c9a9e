"""Measurements of an encoder. A new one: a file, and its config in the union below."""

from typing import Annotated

from pydantic import Field

from rayssl.evaluation.base import (
    Evaluation,
    GroupEvaluation,
    Outcome,
    Sanity,
    SharedEvaluation,
    balanced_subset,
    chance_level,
    listed_pictures,
    merge_parts,
)
from rayssl.evaluation.detection import DetectionConfig
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation.features import extract_features, feature_statistics, pool_block, run_blocks, unchanged
from rayssl.evaluation.knn import knn_top1
from rayssl.evaluation.knn_protocol import KnnConfig
from rayssl.evaluation.linear_heads import fit_linear_heads, top1
from rayssl.evaluation.linear_probe import LinearProbeConfig, evaluate_linear_probe
from rayssl.evaluation.online import OnlineConfig, OnlineEvaluation
from rayssl.evaluation.semi_supervised import SemiSupervisedConfig
from rayssl.evaluation.voc_low_shot import VocLowShotConfig
from rayssl.evaluation.voc_svm import VocSvmConfig

AnyEvaluation = Annotated[
    LinearProbeConfig | KnnConfig | VocSvmConfig | VocLowShotConfig | SemiSupervisedConfig | DetectionConfig,
    Field(discriminator="name"),
]

__all__ = [
    "AnyEvaluation",
    "DetectionConfig",
    "Evaluation",
    "FeatureStore",
    "GroupEvaluation",
    "KnnConfig",
    "LinearProbeConfig",
    "OnlineConfig",
    "OnlineEvaluation",
    "Outcome",
    "Sanity",
    "SemiSupervisedConfig",
    "SharedEvaluation",
    "VocLowShotConfig",
    "VocSvmConfig",
    "balanced_subset",
    "chance_level",
    "evaluate_linear_probe",
    "extract_features",
    "feature_statistics",
    "fit_linear_heads",
    "knn_top1",
    "listed_pictures",
    "merge_parts",
    "pool_block",
    "run_blocks",
    "top1",
    "unchanged",
]
