"""VOC07 classification: linear SVMs on each block's features (PSL, Table 9; MGTA, Table 2)."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field

from rayssl.backbones import Backbone
from rayssl.clustering.rows import Group
from rayssl.data import DataConfig, Pictures
from rayssl.evaluation.base import Sanity
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation.linear_svm import COSTS
from rayssl.evaluation.multi_label import MultiLabelEvaluation, fitting_group
from rayssl.evaluation.svm import evaluate_svm


class VocSvmConfig(MultiLabelEvaluation):
    """One linear SVM a class on each frozen block, its cost chosen by cross-validation (Goyal et al. 2019)."""

    name: Literal["voc07_svm"] = "voc07_svm"
    costs: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=COSTS, min_length=1)
    """LinearSVC's C to choose from (Goyal et al.: 1e-7..1e2 by decades and 0.5^4..0.5^19)."""
    folds: int = Field(default=3, ge=2)
    """Of the cross-validation."""

    @property
    def least_rows(self) -> tuple[int, int]:
        """Positives and negatives that a class needs among the training pictures: one for each fold."""
        return self.folds, self.folds

    def evaluate_shared(
        self,
        encoder: Backbone,
        train: Pictures,
        test: Pictures,
        *,
        data: DataConfig,
        seed: int,
        device: torch.device,
        features: FeatureStore,
        group: Group,
    ) -> Iterator[tuple[str, float]]:
        """Yield `voc07_svm/b4/map` and `voc07_svm/b4/ap/CLASS` for each block, and `voc07_svm/best/map`.

        Average precision is the area under the interpolated curve, in [0, 1]. The best block is chosen on the test set,
        as PSL does; MGTA takes B4 (res4).

        Raises:
            ConfigError: If the features don't fit `feature_cache_gib`.
        """
        assert train.targets is not None
        group = fitting_group(train, test, group)
        classes = [train.targets.classes[number] for number in self.told_classes(train, test).indices]
        train_targets, test_targets = self.own_targets(train, test, group=group, device=device)
        best = 0.0
        for block, train_features, test_features in self.features_of(
            encoder, train, test, data=data, device=device, features=features, group=group
        ):
            result = evaluate_svm(
                train_features.to(device),
                train_targets,
                test_features.to(device),
                test_targets,
                costs=self.costs,
                num_folds=self.folds,
                seed=seed,
                group=group,
            )
            del train_features, test_features  # the next block's are copied while this frame waits
            yield f"{self.name}/b{block}/map", result.mean
            for name, precision in zip(classes, result.average_precision.tolist(), strict=True):
                yield f"{self.name}/b{block}/ap/{name}", precision
            best = max(best, result.mean)
        yield f"{self.name}/best/map", best

    def sanity(self, train: Pictures, test: Pictures) -> Sanity:
        """What a measurement with shuffled labels must not exceed."""
        return self.shuffled_map(f"{self.name}/best/map", train, test)

    def describe(self, train: Pictures, test: Pictures) -> str:
        """Say in a sentence or two what the numbers mean: the settings, and the level of chance."""
        return (
            f"voc07_svm: mean average precision of linear SVMs on at most {self.max_features:,} features of whole "
            f"pictures, the cost of each class by {self.folds}-fold cross-validation over {len(self.costs)}; "
            f"{self.data_sentence(train, test)}."
        )
