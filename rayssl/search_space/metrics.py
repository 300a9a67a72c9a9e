"""Which numbers the epochs of a run will give, known before it starts."""

from rayssl.config import ExperimentConfig
from rayssl.methods import PSLConfig

LOWER_IS_BETTER = frozenset({"loss", "reconstruction", "triplet"})


def reported_metrics(config: ExperimentConfig) -> list[str]:
    """Names of what at least one epoch will report, the most useful ones first."""
    return [*_held_out_metrics(config), *_training_metrics(config), "feature/std", "feature/effective_rank"]


def why_not_reported(metric: str, config: ExperimentConfig) -> str | None:
    """Say what keeps a run from reporting a metric that other runs do; None if nothing is known to."""
    if not metric.startswith(("probe/", "knn/")):
        return None
    if config.data.validation_fraction == 0:
        return "it is measured on pictures held out: data.validation_fraction must be greater than 0, got 0"
    switch = metric.split("/", maxsplit=1)[0]
    return None if getattr(config.online, switch) else f"online.{switch} must be true, got false"


def _held_out_metrics(config: ExperimentConfig) -> list[str]:
    if config.data.validation_fraction == 0:
        return []
    probes = ["probe/best/top1", *(f"probe/b{block}/top1" for block in range(1, _last_block(config) + 1))]
    neighbours = ["knn/k20/top1", "knn/k200/top1"]
    return [*(probes if config.online.probe else []), *(neighbours if config.online.knn else [])]


def _training_metrics(config: ExperimentConfig) -> list[str]:
    return ["loss", "accuracy"] if isinstance(config.method, PSLConfig) else ["loss", "reconstruction", "triplet"]


def _last_block(config: ExperimentConfig) -> int:
    return max(stage.blocks[-1] for stage in config.method.stages) if isinstance(config.method, PSLConfig) else 5
