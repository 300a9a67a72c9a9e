"""The sentences below a plan: what was measured how, what is taken for granted and what is left out."""

import torch

from rayssl.config import ExperimentConfig
from rayssl.methods import MGTAConfig
from rayssl.plan.network import Network


def assumptions(
    config: ExperimentConfig, num_workers: int, network: Network, *, flops_per_second: float | None
) -> tuple[str, ...]:
    """For one number of workers; those about the pictures are `Material.notes`.

    Args:
        config: The recipe.
        num_workers: How many share a step.
        network: What connects them.
        flops_per_second: Speed of a worker; None: steps were timed.
    """
    told = [_steps(config, flops_per_second), _memory(config, flops_per_second)]
    if num_workers > 1:
        ways = "in a ring or two trees" if network.has_trees else "in a ring"
        told.append(
            f"Network: sums {ways}, {8e-9 * network.bandwidth:.3g} Gbit/s and {1e6 * network.latency:.3g} us a message "
            f"({network.source}); {network.overlap:.0%} of it can hide behind the backward pass."
        )
    if isinstance(config.method, MGTAConfig):
        told.append("Clusters: of equal sizes; k-means is timed on random features, which take it many iterations.")
    told.append(
        "Left out: starting the workers, checkpoints, gathers of embeddings, the evaluations at the end"
        + ("." if flops_per_second is None else ", and of probes and clusters all but the forward passes.")
    )
    return tuple(told)


def _steps(config: ExperimentConfig, flops_per_second: float | None) -> str:
    if flops_per_second is not None:
        speed = f"{flops_per_second / 1e12:g} TFLOP/s a worker"
        return f"Steps: operations counted on few pictures and taken at {speed}, whatever its share of a batch."
    threads = config.cluster.cpus_per_worker
    where = torch.cuda.get_device_name() if config.cluster.gpus_per_worker > 0 else f"CPU threads: {threads}"
    return (
        f"Steps: timed in one process of this machine ({where}) with a worker's share of a batch; workers are taken "
        "not to slow each other down."
    )


def _memory(config: ExperimentConfig, flops_per_second: float | None) -> str:
    if config.cluster.gpus_per_worker > 0 and flops_per_second is None:
        return "Memory: the most that torch's allocator held; the CUDA context comes on top."
    return (
        "Memory: weights, gradients, the optimiser's state, other networks, and what autograd saves; pictures, what "
        "an operation needs for itself, Python and the libraries come on top."
    )
