"""Batches of P clusters x K images for the batch-hard triplet loss."""

from dataclasses import dataclass

import numpy as np

# Keeps these draws apart from the other uses of a run's seed.
_PK_STREAM = 4


@dataclass(frozen=True)
class PKPlan:
    """The batches of one epoch, and what they leave out.

    Attributes:
        batches: Row numbers, int64 (num_batches, P * K). A batch is P groups, side by side, of K images of one cluster;
            its clusters are distinct. With W workers, of which P is a multiple, worker r takes the r-th of W equal
            slices of each batch: whole groups.
        num_dropped_groups: Groups that found no batch.
        num_dropped_images: Images that are in no batch because of that.
        num_singletons: Clusters of a single image; it has no positive, so they are left out.
    """

    batches: np.ndarray
    num_dropped_groups: int
    num_dropped_images: int
    num_singletons: int


def pk_batches(labels: np.ndarray, *, num_classes: int, num_instances: int, seed: int, epoch: int) -> PKPlan:
    """Plans one epoch: every image once, but for what makes up whole groups and whole batches.

    Each cluster is shuffled and cut into groups of K. Its last group is filled up with other images of the cluster; an
    image occurs twice in a group only if its cluster has fewer than K. As few groups are dropped as any plan could.
    Where the groups of a cluster don't all find a batch, the filled-up one goes first, since it costs fewest images.

    Args:
        labels: Each image's cluster, integers (N,), at least 0; numbers may be missing.
        num_classes: P, the distinct clusters of a batch, at least 2.
        num_instances: K, the images of each, at least 2.
        seed: Of the run, or of one of its networks.
        epoch: From 0; each has other groups and batches.

    Returns:
        The plan; it depends on nothing but the arguments.

    Raises:
        ValueError: If P or K is below 2, the labels are not integers of shape (N,) from 0 on, or fewer than P clusters
            have two images.

    Source: Hermans et al. 2017, section 2 (the batches); MGTA, section 3.3.1. Hermans et al. draw P clusters and K
    images of each at random; here an epoch covers its images.
    """
    _check(labels, num_classes, num_instances)
    generator = np.random.default_rng([seed, _PK_STREAM, epoch])
    clusters = _shuffled_clusters(labels, generator)
    usable = [cluster for cluster in clusters if len(cluster) > 1]
    if len(usable) < num_classes:
        raise ValueError(
            f"num_classes: a batch takes {num_classes} clusters of at least 2 images, got {len(usable)} such clusters "
            f"among {len(clusters)}. Lower num_classes, or cluster more images or into another number of clusters."
        )
    groups = [_cut_into_groups(cluster, num_instances) for cluster in usable]
    schedule = _schedule(np.array([len(each) for each in groups]), num_classes, generator)
    batches = _fill(schedule, groups)
    return PKPlan(
        # A cluster's filled-up group was its last; nothing of that order stays.
        batches=generator.permutation(batches),
        num_dropped_groups=sum(len(each) for each in groups) - schedule.size,
        num_dropped_images=sum(len(each) for each in usable) - len(np.unique(batches)),
        num_singletons=len(clusters) - len(usable),
    )


def _check(labels: np.ndarray, num_classes: int, num_instances: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes: must be at least 2, or no image has a negative, got {num_classes}")
    if num_instances < 2:
        raise ValueError(f"num_instances: must be at least 2, or no image has a positive, got {num_instances}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels: must be integers of shape (N,), got {labels.dtype} of shape {labels.shape}")
    if labels.size and labels.min() < 0:
        raise ValueError(f"labels: every image must be in a cluster, numbered from 0, got {labels.min()}")


def _shuffled_clusters(labels: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """The images of each cluster, in random order; clusters ascend."""
    shuffled = generator.permutation(len(labels))
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return np.split(grouped, np.flatnonzero(np.diff(labels[grouped])) + 1) if len(labels) else []


def _cut_into_groups(images: np.ndarray, num_instances: int) -> np.ndarray:
    """Groups of a shuffled cluster, (ceil(n / K), K).

    What the last one lacks comes from the cluster's beginning, which is another group if there are K images; smaller
    clusters go round, so that their images occur equally often to within one.
    """
    num_groups = -(-len(images) // num_instances)
    return np.resize(images, (num_groups, num_instances))


def _schedule(num_groups: np.ndarray, num_classes: int, generator: np.random.Generator) -> np.ndarray:
    """Which clusters meet in which batch: (num_batches, P), distinct in a row, each at most `num_groups` times.

    Systematic sampling (Madow 1949): a cluster with g groups left enters the next of R batches with probability g / R.
    Those with as many groups as there are batches left are therefore sure to enter, and the plan always comes out.
    """
    num_batches = _count_batches(num_groups, num_classes)
    left = np.minimum(num_groups, num_batches)
    surplus = left.sum() - num_classes * num_batches
    dropped = generator.choice(np.repeat(np.arange(len(left)), left), surplus, replace=False)
    left -= np.bincount(dropped, minlength=len(left))
    rows = []
    for batches_left in range(num_batches, 0, -1):
        # The groups left, a cluster's side by side on a line of length P * R; P points R apart meet a cluster once.
        order = generator.permutation(len(left))
        points = generator.integers(batches_left) + batches_left * np.arange(num_classes)
        taken = order[np.searchsorted(np.cumsum(left[order]), points, side="right")]
        left[taken] -= 1
        rows.append(taken)
    return np.stack(rows)


def _count_batches(num_groups: np.ndarray, num_classes: int) -> int:
    """The most batches B that there can be: a cluster serves at most B of them, so sum(min(groups, B)) >= P * B."""
    num_batches = int(num_groups.sum()) // num_classes
    while (served := int(np.minimum(num_groups, num_batches).sum()) // num_classes) < num_batches:
        num_batches = served
    return num_batches


def _fill(schedule: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Puts each cluster's next group where the schedule names it: (num_batches, P) to (num_batches, P * K)."""
    remaining = [iter(each) for each in groups]
    chosen = [next(remaining[cluster]) for cluster in schedule.ravel()]
    return np.stack(chosen).reshape(len(schedule), -1).astype(np.int64, copy=False)
