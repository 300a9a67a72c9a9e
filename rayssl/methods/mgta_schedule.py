"""MGTA as a list of stages: who labels which pictures for whom, for how long, and how the pictures are halved."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from rayssl.methods.mgta_config import MGTAConfig

Network = Literal[1, 2]
Half = Literal["all", "D1", "D2"]

# Keeps these draws apart from the other uses of a run's seed.
_HALVES_STREAM = 11


@dataclass(frozen=True)
class MGTAStage:
    """One stage of the run."""

    name: str
    """baseline, round-1, ..., final; the two halves of a round share one."""
    trained: Network
    """The network that is trained."""
    labeller: Network | None
    """The network whose clusters it is trained by; None: by reconstruction alone."""
    half: Half
    """The pictures that are labelled and trained on."""
    round: int
    """From 1; the baseline's and the final round's is 0."""
    epochs: int
    triplet_weight: float
    """Lambda; 0 in the baseline."""


def list_stages(config: "MGTAConfig") -> tuple[MGTAStage, ...]:
    """The run as a list: who labels what for whom (section 4.2), and for how long."""
    rounds = config.rounds
    stages = [MGTAStage("baseline", 2, None, "all", 0, config.baseline.epochs, 0.0)]
    for number, weight in enumerate(rounds.triplet_weights, start=1):
        name = f"round-{number}"
        stages.append(MGTAStage(name, 2, 1, "D2", number, rounds.epochs, weight))
        stages.append(MGTAStage(name, 1, 2, "D1", number, rounds.epochs, weight))
    if rounds.count:
        stages.append(MGTAStage("final", 2, 1, "all", 0, config.final.epochs, rounds.lambda_[1]))
    return tuple(stages)


def split_pictures(stage: MGTAStage, count: int, *, seed: int, resplit: bool) -> np.ndarray:
    """The pictures that a stage labels and trains on.

    D1 and D2 have no picture in common and are equal within one.

    Args:
        stage: Names the half.
        count: Number of all pictures.
        seed: Of the run.
        resplit: Whether every round has halves of its own.

    Returns:
        Their numbers, int64, ascending; they depend on nothing but the arguments.
    """
    if stage.half == "all":
        return np.arange(count)
    draw = stage.round if resplit else 1
    order = np.random.default_rng([seed, _HALVES_STREAM, draw]).permutation(count)
    return np.sort(order[: count // 2] if stage.half == "D1" else order[count // 2 :])
