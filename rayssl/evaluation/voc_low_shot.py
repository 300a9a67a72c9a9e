"""VOC07 low-shot classification: linear SVMs that see a few positives of each class (Goyal et al. 2019, 6.1)."""

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
from rayssl.evaluation.svm_low_shot import NEGATIVES_A_POSITIVE, NUM_POSITIVES, evaluate_low_shot


class VocLowShotConfig(MultiLabelEvaluation):
    """Linear SVMs on k positives and 19 k negatives of each class, for several k and samples.

    As in the reference, the cost is the one that does best on the test pictures, which is optimistic.
    """

    name: Literal["voc07_low_shot"] = "voc07_low_shot"
    positives: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=NUM_POSITIVES, min_length=1)
    """Numbers k of positives; those for which some class has too few pictures are left out."""
    samples: int = Field(default=5, ge=1)
    """Samples of each k; their mean and deviation are given."""
    costs: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=COSTS, min_length=1)
    """LinearSVC's C to choose from."""

    @property
    def least_rows(self) -> tuple[int, int]:
        """Positives and negatives that a class needs among the training pictures, for the smallest k."""
        return min(self.positives), NEGATIVES_A_POSITIVE * min(self.positives)

    def possible_positives(self, train: Pictures, test: Pictures) -> tuple[int, ...]:
        """The k for which every class that is told has enough pictures."""
        targets = self.train_targets(train)[:, list(self.told_classes(train, test).indices)]
        most = min((targets == 1).sum(0).min(), (targets == -1).sum(0).min() // NEGATIVES_A_POSITIVE)
        return tuple(k for k in self.positives if k <= most)

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
        """Yield `voc07_low_shot/b4/k8/map`, its `_std` over samples, and `voc07_low_shot/best/k8/map`.

        Raises:
            ConfigError: If the features don't fit `feature_cache_gib`.
        """
        group = fitting_group(train, test, group)
        train_targets, test_targets = self.own_targets(train, test, group=group, device=device)
        possible = self.possible_positives(train, test)
        best = dict.fromkeys(possible, 0.0)
        for block, train_features, test_features in self.features_of(
            encoder, train, test, data=data, device=device, features=features, group=group
        ):
            results = evaluate_low_shot(
                train_features.to(device),
                train_targets,
                test_features.to(device),
                test_targets,
                num_positives=possible,
                num_samples=self.samples,
                costs=self.costs,
                seed=seed,
                group=group,
            )
            del train_features, test_features  # the next block's are copied while this frame waits
            for k, result in results.items():
                yield f"{self.name}/b{block}/k{k}/map", result.mean
                if self.samples > 1:
                    yield f"{self.name}/b{block}/k{k}/map_std", result.deviation
                best[k] = max(best[k], result.mean)
        for k, value in best.items():
            yield f"{self.name}/best/k{k}/map", value

    def sanity(self, train: Pictures, test: Pictures) -> Sanity:
        """What a measurement with shuffled labels must not exceed; the cost is chosen on the test pictures."""
        most = max(self.possible_positives(train, test))
        return self.shuffled_map(f"{self.name}/best/k{most}/map", train, test)

    def describe(self, train: Pictures, test: Pictures) -> str:
        """Say in a sentence or two what the numbers mean: the settings, and the level of chance."""
        possible = self.possible_positives(train, test)
        left_out = [str(k) for k in self.positives if k not in possible]
        without = f" (too few pictures for {', '.join(left_out)})" if left_out else ""
        return (
            f"voc07_low_shot: mean average precision of linear SVMs on {', '.join(map(str, possible))} positives of a "
            f"class{without} and {NEGATIVES_A_POSITIVE} times as many negatives, {self.samples} samples, the cost "
            f"chosen on the test pictures; {self.data_sentence(train, test)}."
        )
