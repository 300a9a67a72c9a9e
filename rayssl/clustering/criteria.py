"""What is told about clusters: how well they are separated, and how far two labellings agree."""

import torch
from torch import Tensor

from rayssl.clustering.rows import Group, add_rows, share_rows, square_distances


@torch.no_grad()
def calinski_harabasz(features: Tensor, labels: Tensor, *, group: Group = None) -> float:
    """The variance ratio: (tr B / tr W) (N - K) / (K - 1), higher for better separated clusters.

    B is the scatter of the clusters' means around the mean of all rows, W that of the rows around their cluster's
    mean. K counts the clusters that have a row. Equal to scikit-learn's `calinski_harabasz_score`.

    Args:
        features: This worker's rows, (N_r, D), floats.
        labels: Their clusters, (N_r,), whole numbers from 0.
        group: The workers that hold the rows, see the package; None: this process alone.

    Returns:
        The score over all workers' rows, at least 0; 1 if rows don't vary within their clusters.

    Raises:
        ValueError: If labels don't fit the features, there are not 2 to N - 1 clusters, or features are not (N, D)
            or not finite.

    Source: Calinski and Harabasz 1974, equation 3; MGTA, section 3.
    """
    rows = share_rows(features, group)
    is_fit = labels.shape == (len(rows.values),) and not labels.is_floating_point() and bool((labels >= 0).all())
    if int(rows.workers.sum(torch.tensor(not is_fit, device=rows.mean.device).long())) > 0:
        raise ValueError(
            "labels: must be whole numbers from 0, one for each of this worker's "
            f"{len(rows.values)} rows, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    labels = labels.to(rows.mean.device).long()
    largest = labels.max() if len(labels) > 0 else torch.tensor(0, device=labels.device)
    num_labels = int(rows.workers.gather(largest).max()) + 1
    sums = torch.zeros(num_labels, rows.values.shape[1], dtype=torch.float64, device=labels.device)
    add_rows(sums, rows.values, labels)
    counts = rows.workers.sum(torch.bincount(labels, minlength=num_labels))
    num_clusters = int((counts > 0).sum())
    if not 1 < num_clusters < rows.num_rows:
        raise ValueError(
            f"labels: must name from 2 to {rows.num_rows - 1} clusters, one fewer than there are rows, "
            f"got {num_clusters}"
        )
    means = (rows.workers.sum(sums) / counts.clamp(min=1)[:, None]).float()
    distances = square_distances(rows.values, means, labels)
    within = rows.workers.sum(distances.sum(dtype=torch.float64)).item()
    between = (counts[:, None] * (means - rows.mean).double().square()).sum().item()
    return variance_ratio(between, within, num_clusters=num_clusters, num_rows=rows.num_rows)


def variance_ratio(between: float, within: float, *, num_clusters: int, num_rows: int) -> float:
    """The score from the scatters: 1 where rows don't vary within clusters (scikit-learn's rule), nan if undefined."""
    if not 1 < num_clusters < num_rows:
        return float("nan")
    if within <= 0:
        return 1.0
    return (between / within) * (num_rows - num_clusters) / (num_clusters - 1)


def normalized_mutual_information(labels_a: Tensor, labels_b: Tensor) -> float:
    """How far two labellings of the same rows agree, whatever their clusters are called.

    Args:
        labels_a: (N,), whole numbers.
        labels_b: (N,), of the same rows in the same order.

    Returns:
        From 0 (independent) to 1 (the same but for names): the mutual information over the mean of both entropies.

    Raises:
        ValueError: If the labellings are not two vectors of one length, at least 1.

    Source: scikit-learn's `normalized_mutual_info_score`.
    """
    from sklearn.metrics import normalized_mutual_info_score

    if labels_a.dim() != 1 or labels_a.shape != labels_b.shape or len(labels_a) == 0:
        raise ValueError(
            "labels: must be two vectors of one length, at least 1, "
            f"got shapes {tuple(labels_a.shape)} and {tuple(labels_b.shape)}"
        )
    return float(normalized_mutual_info_score(labels_a.cpu().numpy(), labels_b.cpu().numpy()))
