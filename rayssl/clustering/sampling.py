"""Where k-means starts: clusters of a projected sample of all workers' rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayssl.clustering.rows import Rows, add_rows, take_rows
from rayssl.clustering.seeding import cluster_points

_LEAST_SAMPLE = 4096
_SAMPLES_PER_CLUSTER = 64
_PROJECTED_DIM = 64


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows drawn from all workers', projected to few dimensions."""

    rows: Tensor
    """Those of this worker: numbers among its own rows, (S_r,)."""
    places: Tensor
    """Their places in the sample, (S_r,)."""
    points: Tensor
    """The whole sample on every worker, (S, P), float32, around 0, in random order; P is at most 64."""


def draw_sample(rows: Rows, *, num_clusters: int, seed: int) -> Sample:
    """Draw rows by their number among all, so that the sample is the same on any number of workers.

    The rows are projected onto the directions in which they vary most, found by one step of a randomised subspace
    iteration (Halko et al. 2011, algorithm 4.3). Distances between clusters suffer little, and all that is done with
    the sample costs little beside one pass over the rows. Only the projected sample travels between workers.

    Args:
        rows: All workers' rows.
        num_clusters: Most clusters that are to be found; decides how many rows are drawn.
        seed: Decides which.

    Returns:
        The sample, of all rows if there are few.
    """
    device = rows.values.device
    size = min(rows.num_rows, _sample_size(num_clusters))
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randperm(rows.num_rows, generator=generator)[:size] - rows.first_row
    places = ((numbers >= 0) & (numbers < len(rows.values))).nonzero().flatten()
    own, places = numbers[places].to(device), places.to(device)
    directions = _main_directions(rows, own, generator)
    points = torch.zeros(size, directions.shape[1], device=device)
    for block, values in take_rows(rows.values, own):
        points[places[block]] = values.sub_(rows.mean) @ directions
    return Sample(own, places, rows.workers.sum(points))


def sample_clusters(rows: Rows, sample: Sample, numbers: Sequence[int], *, seed: int) -> dict[int, Tensor]:
    """Cluster the sample into each of several numbers of clusters, the numbers spread over the workers.

    One worker clusters and sends the labels, so that other rounding elsewhere can't lead the workers apart. The draws
    of a number depend on it and on the seed alone, not on which worker makes them.

    Args:
        rows: All workers' rows.
        sample: Of them, drawn for at least the largest number; what is drawn for more than a number is left out.
        numbers: Numbers of clusters, each once.
        seed: Decides the draws.

    Returns:
        Number -> labels of the sample's first points, (S_k,), int64, the same on every worker.
    """
    workers = rows.workers
    labels = {
        number: sample.places.new_zeros(min(len(sample.points), _sample_size(number)), dtype=torch.int64)
        for number in numbers
    }
    # Starts of more clusters take longer: dealt out from the largest on, no worker gets all of these.
    for number in sorted(numbers, reverse=True)[workers.rank :: workers.size]:
        points = sample.points[: len(labels[number])]
        labels[number] = cluster_points(points, number, torch.Generator().manual_seed(seed))
    return {number: workers.sum(each) for number, each in labels.items()}


def starting_centers(rows: Rows, sample: Sample, labels: Tensor, num_clusters: int) -> Tensor:
    """The means of the sample's clusters in all dimensions.

    Args:
        rows: All workers' rows.
        sample: Of them.
        labels: Of its first points, (S_k,), from `sample_clusters`.
        num_clusters: Number of clusters, K.

    Returns:
        (K, D), float32, the same on every worker.
    """
    is_used = sample.places < len(labels)
    sums = torch.zeros(num_clusters, rows.values.shape[1], dtype=torch.float64, device=labels.device)
    add_rows(sums, rows.values, labels[sample.places[is_used]], sample.rows[is_used])
    return (rows.workers.sum(sums) / torch.bincount(labels, minlength=num_clusters)[:, None]).float()


def _sample_size(num_clusters: int) -> int:
    return max(_LEAST_SAMPLE, _SAMPLES_PER_CLUSTER * num_clusters)


def _main_directions(rows: Rows, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Orthonormal columns near the first principal directions of the chosen rows, (D, 64); all where D is less."""
    dim, device = rows.values.shape[1], rows.values.device
    if dim <= _PROJECTED_DIM:
        return torch.eye(dim, device=device)
    random = torch.randn(dim, _PROJECTED_DIM, generator=generator).to(device)
    images = torch.zeros(dim, _PROJECTED_DIM, dtype=torch.float64, device=device)
    for _, values in take_rows(rows.values, chosen):
        centred = values.sub_(rows.mean)
        images += centred.T @ (centred @ random)
    return torch.linalg.qr(rows.workers.sum(images)).Q.float()
