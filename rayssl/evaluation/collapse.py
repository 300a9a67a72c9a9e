"""Warnings by name when a network's features collapse, read off the numbers of an epoch."""

from collections.abc import Mapping

_LEAST_STD = 0.05
"""`feature/std` is about 1 for features that use all directions alike, and .3 to .8 in healthy runs of ours."""
_LEAST_RANK = 2.0


def collapse_warnings(metrics: Mapping[str, float]) -> list[str]:
    """Say which kind of collapse an epoch's numbers show, if any.

    Args:
        metrics: Of an epoch; `feature/std` and `feature/effective_rank` are looked at where they are (see
            `feature_statistics`).

    Returns:
        A sentence each for complete collapse (all pictures get the same feature) and dimensional collapse (features
        differ in hardly more than one direction; Jing et al. 2022).
    """
    warnings = []
    if metrics.get("feature/std", 1.0) < _LEAST_STD:
        warnings.append(
            f"complete collapse: feature/std is {metrics['feature/std']:.3f}, below {_LEAST_STD}: all pictures get "
            "nearly the same feature. Lower the learning rate, or look whether the task can be solved by a constant."
        )
    elif metrics.get("feature/effective_rank", _LEAST_RANK) < _LEAST_RANK:
        warnings.append(
            f"dimensional collapse: feature/effective_rank is {metrics['feature/effective_rank']:.1f}, below "
            f"{_LEAST_RANK:.0f}: features differ in hardly more than one direction."
        )
    return warnings
