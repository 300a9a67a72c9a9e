"""Collapse is named when the features show it, and only then."""

import pytest
import torch

from rayssl.evaluation.collapse import collapse_warnings
from rayssl.evaluation.features import feature_statistics


def measured(features: torch.Tensor) -> dict[str, float]:
    return {f"feature/{name}": value for name, value in feature_statistics(features).items()}


@pytest.mark.parametrize(
    ("features", "named"),
    [
        (torch.ones(50, 8) + 1e-3 * torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), ["complete"]),
        (torch.randn(50, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(1, 8), ["dimensional"]),
        (torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), []),
        (torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).relu(), []),
    ],
    ids=["the same features", "one direction", "all directions", "after a ReLU"],
)
def test_each_kind_of_collapse_is_named(features: torch.Tensor, named: list[str]) -> None:
    assert [warning.split()[0] for warning in collapse_warnings(measured(features))] == named


def test_numbers_that_were_not_measured_are_no_collapse() -> None:
    assert collapse_warnings({"loss": 1.0}) == []
