"""Runs a function in two real processes that form a group."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed


def run_on_two_workers(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """Call `function(rank)` in each of two gloo workers; what they give (tensors and plain data), by rank."""
    torch.multiprocessing.spawn(_work, args=(function, str(folder)), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def _work(rank: int, function: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(function(rank), f"{folder}/rank{rank}.pt")
    distributed.barrier()  # none leaves while another one still talks to it
    distributed.destroy_process_group()
