"""What MGTA does differently from other methods: labels between the stages, and rounds of two halves."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rayssl.config import ExperimentConfig
from rayssl.methods import MGTA, Method, MGTAConfig
from rayssl.methods.mgta_schedule import split_pictures
from rayssl.plan.passes import Passes
from rayssl.plan.result import StageCost


def invent_labels(method: Method, index: int, config: ExperimentConfig, num_pictures: int) -> None:
    """Give MGTA clusters of equal sizes, as a checkpoint would, so that a stage can be prepared without features."""
    if not isinstance(method, MGTA) or not isinstance(config.method, MGTAConfig):
        return
    stage = method.stages[index]
    if stage.labeller is None:
        return
    indices = split_pictures(stage, num_pictures, seed=config.seed, resplit=config.method.rounds.resplit)
    labels = np.full(num_pictures, -1, dtype=np.int64)
    labels[indices] = np.arange(len(indices)) % config.method.cluster_numbers[-1]
    decoder = {name: value for name, value in method.state().items() if name.startswith("n2.decoder.")}
    encoder = method.encoder.state_dict()
    method.load_state(
        {
            "prepared": torch.tensor(index),
            f"labels.n{stage.labeller}": torch.from_numpy(labels),
            **decoder,
            **{name.replace("n2.", "n1.", 1): value for name, value in decoder.items()},
            **{f"n1.encoder.{name}": value for name, value in encoder.items()},
            **{f"baseline.{name}": value for name, value in encoder.items()},
        }
    )


def labelling_seconds(method: Method, index: int, config: ExperimentConfig, passes: Passes) -> tuple[int, float]:
    """Pictures that are labelled for a stage, and the seconds that it takes one process; 0 and 0 without labels."""
    if not isinstance(method, MGTA) or not isinstance(config.method, MGTAConfig):
        return 0, 0.0
    stage = method.stages[index]
    if stage.labeller is None:
        return 0, 0.0
    count = len(split_pictures(stage, passes.material.num_train, seed=0, resplit=False))
    seconds = count * passes.forward_seconds() + passes.clustering_seconds(count, config.method.cluster_numbers)
    if index > 1:  # the other network clusters them too, for comparison
        seconds += count * passes.forward_seconds()
        seconds += passes.clustering_seconds(count, config.method.cluster_numbers[-1:])
    return count, seconds


def join_halves(costs: Sequence[StageCost]) -> tuple[StageCost, ...]:
    """Add up stages that share a name, the halves of a round, which are trained one after another."""
    joined: dict[str, StageCost] = {}
    for cost in costs:
        first = joined.get(cost.name)
        if first is None:
            joined[cost.name] = cost
            continue
        steps = first.steps_per_epoch + cost.steps_per_epoch

        def mean(name: str, one: StageCost = first, other: StageCost = cost, steps: int = steps) -> float:
            both = (each.steps_per_epoch * float(getattr(each, name)) for each in (one, other))
            return sum(both) / steps

        joined[cost.name] = replace(
            first,
            pictures=first.pictures + cost.pictures,
            steps_per_epoch=steps,
            step_seconds=mean("step_seconds"),
            communication_seconds=mean("communication_seconds"),
            preparing_seconds=first.preparing_seconds + cost.preparing_seconds,
            measuring_seconds=first.measuring_seconds + cost.measuring_seconds,
            memory_bytes=max(first.memory_bytes, cost.memory_bytes),
            examples_per_second=mean("examples_per_second"),
        )
    return tuple(joined.values())
