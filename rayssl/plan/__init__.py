"""What a run will cost, before it is paid for: steps, time, memory and traffic of every stage.

    pictures (counted, some decoded) --+
    a few steps of each stage, timed --+--> seconds a step --> stages --> hours, device-hours
    a model of the all-reduce ---------+

The steps are those of `rayssl.training.loop`, on pictures made up, with the share of a batch that a worker would get.
"""

from rayssl.plan.calibration import SyntheticPictures
from rayssl.plan.estimate import plan_experiment, plan_experiments
from rayssl.plan.network import Network, all_reduce_seconds, exposed_seconds, measure_network, num_buckets
from rayssl.plan.result import Plan, StageCost, to_json

__all__ = [
    "Network",
    "Plan",
    "StageCost",
    "SyntheticPictures",
    "all_reduce_seconds",
    "exposed_seconds",
    "measure_network",
    "num_buckets",
    "plan_experiment",
    "plan_experiments",
    "to_json",
]
