"""Measurements spread over the workers of a group, so that none is idle while others measure."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import distributed

from rayssl.backbones import Backbone
from rayssl.clustering.rows import Group
from rayssl.data import DataConfig, Pictures
from rayssl.evaluation.base import Evaluation, SharedEvaluation, merge_parts
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.runtime import Runtime

Subject = TypeVar("Subject")


def measure_all(
    measure: Callable[[Subject, Evaluation, Group], dict[str, float]],
    items: Sequence[tuple[Subject, Evaluation]],
    runtime: Runtime,
) -> list[dict[str, float]]:
    """Measure every item with all workers; each worker gets all items' metrics, in order.

    What `SharedEvaluation`s measure, all workers measure together, one item after another. The other items are spread
    over the workers, whole, or in parts where there are fewer items than workers.

    Args:
        measure: Called with an item's subject, its evaluation or a part of that, and the workers that measure it
            together; None: this one alone.
        items: What is measured, and how; the same on all workers.
        runtime: The workers.
    """
    group = distributed.group.WORLD if runtime.world_size > 1 else None
    is_shared = [group is not None and isinstance(evaluation, SharedEvaluation) for _, evaluation in items]
    num_parts = max(1, runtime.world_size // max(1, is_shared.count(False)))
    pieces = [
        (number, part)
        for number, (_, evaluation) in enumerate(items)
        if not is_shared[number]
        for part in evaluation.parts(num_parts)
    ]
    results = runtime.map(lambda piece: measure(items[piece[0]][0], piece[1], None), pieces, patiently=True)
    found: list[list[dict[str, float]]] = [[] for _ in items]
    for (number, _), result in zip(pieces, results, strict=True):
        found[number].append(result)
    for number, (subject, evaluation) in enumerate(items):
        if is_shared[number]:
            found[number].append(measure(subject, evaluation, group))
    return [merge_parts(parts) for parts in found]


def measure_frozen(
    evaluation: Evaluation,
    encoder: Backbone,
    train: Pictures,
    test: Pictures,
    *,
    data: DataConfig,
    seed: int,
    device: torch.device,
    features: FeatureStore,
    group: Group,
) -> dict[str, float]:
    """The metrics of one encoder; see `Evaluation.evaluate`.

    Args:
        evaluation: How it is measured.
        encoder: See there, as for the other arguments.
        train: As there.
        test: As there.
        data: As there.
        seed: As there.
        device: As there.
        features: As there.
        group: The workers that make this measurement together, if it is a `SharedEvaluation`; None: this one alone.
    """
    if group is None:
        results = evaluation.evaluate(encoder, train, test, data=data, seed=seed, device=device, features=features)
        return dict(results)
    assert isinstance(evaluation, SharedEvaluation)
    shared = evaluation.evaluate_shared(
        encoder, train, test, data=data, seed=seed, device=device, features=features, group=group
    )
    return dict(shared)
