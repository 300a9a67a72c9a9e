"""A model of the communication in a training step, and the two numbers of this machine that it needs."""

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessException

from rayssl.errors import ClusterError

_MIB = 2**20
_BACKWARD_SHARE = 2 / 3
"""Of a step's arithmetic: the gradients by the inputs and by the weights cost as much as the forward pass each."""
_LARGE, _SMALL = 16 * _MIB, 4
_ROUNDS = 7


@dataclass(frozen=True)
class Network:
    """What connects the workers."""

    bandwidth: float
    """Bytes a second that a worker sends to the next one."""
    latency: float
    """Seconds that a message takes beside its bytes."""
    overlap: float = 0.0
    """Share of the gradients' communication, in [0, 1], that can go on during the backward pass; 0: none."""
    has_trees: bool = False
    """Whether sums may take trees where they are quicker than the ring, as NCCL's do; gloo's don't."""
    source: str = "given"
    """Where the numbers come from."""


def waiting_seconds(
    network: Network,
    num_workers: int,
    gradient_bytes: int,
    *,
    computation: float,
    bucket_mib: float,
    num_batchnorms: int = 0,
) -> float:
    """What a worker waits for the others in a training step, seconds.

    Args:
        network: What connects them.
        num_workers: How many they are, at least 1.
        gradient_bytes: Gradients of a worker, which DistributedDataParallel sums.
        computation: Seconds of the step without communication.
        bucket_mib: MiB of gradients that are sent at a time (`cluster.bucket_mib`).
        num_batchnorms: Layers that normalise by the batch of all workers. In each, a gather forwards, N - 1 messages
            round the ring, and a sum backwards have to be waited for; their bytes are few.
    """
    if num_workers == 1:
        return 0.0

    def total_seconds(num_bytes: int) -> float:
        return all_reduce_seconds(
            num_bytes,
            num_workers,
            bandwidth=network.bandwidth,
            latency=network.latency,
            num_messages=num_buckets(num_bytes, bucket_mib),
            has_trees=network.has_trees,
        )

    layer = (num_workers - 1) * network.latency + total_seconds(0)
    gradients = exposed_seconds(total_seconds(gradient_bytes), computation, overlap=network.overlap)
    return gradients + num_batchnorms * layer


def all_reduce_seconds(
    num_bytes: float,
    num_workers: int,
    *,
    bandwidth: float,
    latency: float,
    num_messages: int = 1,
    has_trees: bool = False,
) -> float:
    """Seconds of an all-reduce.

    Ring: 2 (N - 1) / N x bytes / bandwidth + 2 (N - 1) x latency for each message. Two binary trees, each for half of
    the bytes: 2 x bytes / bandwidth + 2 ceil(log2 N) x latency for each message.

    Args:
        num_bytes: What is summed, on each worker.
        num_workers: N, at least 1; nothing is sent by one worker.
        bandwidth: Bytes a second, above 0.
        latency: Seconds, at least 0.
        num_messages: Pieces that the bytes are sent in.
        has_trees: Whether the quicker one of the two is taken, not always the ring.

    Raises:
        ValueError: If a number is out of its range.

    Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (the ring);
    Sanders, Speck and Träff 2009, "Two-tree algorithms for full bandwidth broadcast, reduction and scan".
    """
    if num_workers < 1:
        raise ValueError(f"num_workers: must be at least 1, got {num_workers}")
    if bandwidth <= 0 or latency < 0:
        raise ValueError(f"bandwidth must be above 0 and latency at least 0, got {bandwidth} and {latency}")
    turns, levels = 2 * (num_workers - 1), math.ceil(math.log2(num_workers))
    ring = turns / num_workers * num_bytes / bandwidth + num_messages * turns * latency
    tree = 2 * num_bytes / bandwidth + num_messages * 2 * levels * latency
    return min(ring, tree) if has_trees and num_workers > 1 else ring


def exposed_seconds(communication: float, computation: float, *, overlap: float) -> float:
    """What is left of a step's communication when `overlap` of it hides behind the backward pass, seconds."""
    return communication - min(overlap * communication, _BACKWARD_SHARE * computation)


def num_buckets(num_bytes: int, bucket_mib: float) -> int:
    """Messages in which DistributedDataParallel sends that many bytes of gradients, at least 1.

    It closes a bucket with the weight that fills it, so that large weights make fewer. A smaller first bucket is what
    torch makes only where no size is asked for; the runtimes ask for one.

    Args:
        num_bytes: Of all gradients.
        bucket_mib: Size of a bucket, MiB, above 0.
    """
    return max(1, math.ceil(num_bytes / (bucket_mib * _MIB)))


def measure_network() -> Network:
    """Time all-reduces between two processes (gloo), or two GPUs (NCCL), of this machine.

    Raises:
        ClusterError: If the two can't talk to each other.
    """
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() > 1
    with TemporaryDirectory() as folder:
        try:
            torch.multiprocessing.spawn(_time_messages, args=(folder, on_gpus), nprocs=2)
        except (ProcessException, OSError, RuntimeError) as error:
            raise ClusterError(
                f"two processes of this machine can't talk to each other ({error}). Give --bandwidth-gbit instead."
            ) from error
        large, small = (float(word) for word in (Path(folder) / "seconds").read_text().split())
    latency = small / 2  # 2 (N - 1) messages with N = 2
    which = "two GPUs of this machine, NCCL" if on_gpus else "two processes of this machine, gloo"
    return Network(_LARGE / max(large - small, 1e-9), latency, has_trees=on_gpus, source=f"measured between {which}")


def _time_messages(rank: int, folder: str, on_gpus: bool) -> None:
    """What each of the two does; the first one writes the median seconds of a large and of a small message."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    distributed.init_process_group(
        "nccl" if on_gpus else "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    medians = [statistics.median(_seconds(num_bytes, device) for _ in range(_ROUNDS)) for num_bytes in (_LARGE, _SMALL)]
    if rank == 0:
        (Path(folder) / "seconds").write_text(" ".join(map(str, medians)))
    distributed.barrier()
    distributed.destroy_process_group()


def _seconds(num_bytes: int, device: torch.device) -> float:
    values = torch.zeros(num_bytes // 4, device=device)
    distributed.all_reduce(values[:1])  # so that both start together
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    distributed.all_reduce(values)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
