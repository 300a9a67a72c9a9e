"""A plan: what each stage costs, and the sums."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class StageCost:
    """One stage of PSL, or the baseline, a round (both halves) or the final stage of MGTA."""

    name: str
    pictures: int
    """Pictures that it trains on; in a round, those of both halves."""
    images_per_step: int
    """Pictures of a step, over all workers."""
    steps_per_epoch: int
    """Of all parts that are trained one after another."""
    epochs: int
    step_seconds: float
    """A step with its communication, and waiting for pictures if they come too slowly."""
    communication_seconds: float
    """The part of it in which a worker waits for the others."""
    preparing_seconds: float
    """Before the first step: features and clusters of the pictures."""
    measuring_seconds: float
    """Online probes, over all epochs."""
    synchronized_bytes: int
    """Gradients that the workers sum in a step."""
    memory_bytes: int
    """Of a worker, at its peak."""
    examples_per_second: float
    """Views or pictures trained on, over all workers."""

    @property
    def steps(self) -> int:
        """In all epochs."""
        return self.steps_per_epoch * self.epochs

    @property
    def seconds(self) -> float:
        """The whole stage."""
        return self.steps * self.step_seconds + self.preparing_seconds + self.measuring_seconds

    @property
    def communication_share(self) -> float:
        """Of a step's time, in [0, 1]."""
        return self.communication_seconds / self.step_seconds


@dataclass(frozen=True)
class Plan:
    """What a run costs with a number of workers."""

    recipe: str
    num_workers: int
    device: str
    """cpu or cuda: what a worker trains on."""
    stages: tuple[StageCost, ...]
    start_seconds: float
    """Decoding before the first step."""
    assumptions: tuple[str, ...]
    """Everything that is not counted or measured, a sentence each."""

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def seconds(self) -> float:
        """From the start to the end of the last stage; without the evaluations at the end."""
        return self.start_seconds + sum(stage.seconds for stage in self.stages)

    @property
    def device_hours(self) -> float:
        """Hours of all workers together."""
        return self.num_workers * self.seconds / 3600

    @property
    def memory_bytes(self) -> int:
        """Of a worker, in the largest stage."""
        return max(stage.memory_bytes for stage in self.stages)

    def as_dict(self) -> dict[str, object]:
        """Plain data, the sums included."""
        stages = [
            {**asdict(stage), "seconds": stage.seconds, "communication_share": stage.communication_share}
            for stage in self.stages
        ]
        sums = {name: getattr(self, name) for name in ("steps", "seconds", "device_hours", "memory_bytes")}
        return {**asdict(self), "stages": stages, **sums}


def to_json(plans: list[Plan]) -> str:
    """One document for all plans."""
    return json.dumps({"plans": [plan.as_dict() for plan in plans]}, indent=1)
