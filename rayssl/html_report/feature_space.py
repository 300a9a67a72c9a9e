"""What a network's features say of held-out pictures: who is near whom, and a map in two dimensions."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rayssl.backbones import Backbone
from rayssl.config import ExperimentConfig
from rayssl.data import Pictures
from rayssl.data.loaders import plain_views
from rayssl.evaluation.features import extract_features
from rayssl.html_report.figures import COLOURS, NEUTRAL

_FEWEST_FOR_TSNE = 100
_PERPLEXITY = 30
_VIEWS_AT_ONCE = 125


def block_features(config: ExperimentConfig, encoder: Backbone, pictures: Pictures, *, block: int) -> Tensor:
    """The block's map averaged over all places, of every picture's centre view: (N, C), on the CPU."""
    device = torch.device("cuda" if config.cluster.gpus_per_worker > 0 and torch.cuda.is_available() else "cpu")
    views = _views(config, pictures, np.arange(len(pictures)), device)
    features = extract_features(
        encoder.to(device), views, blocks=[block], pool=lambda map_, _: map_.mean((2, 3)), device=device
    )
    return features[block]


def centre_views(config: ExperimentConfig, pictures: Pictures, rows: Sequence[int]) -> Iterator[Tensor]:
    """The normalised views (3, S, S) that features are taken of, one after another."""
    for views in _views(config, pictures, np.array(rows), torch.device("cpu")):
        yield from views


def neighbours(features: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """The most similar others of each row by cosine.

    Args:
        features: (N, D), at least two rows.
        count: How many; fewer if there are not as many others.

    Returns:
        Rows and cosines, both (N, count), the nearest first.
    """
    directions = functional.normalize(features.float(), dim=1)
    similarities = directions @ directions.T
    similarities.fill_diagonal_(-torch.inf)
    cosines, rows = similarities.topk(min(count, len(features) - 1), dim=1)
    return rows, cosines


def same_class_share(rows: Tensor, labels: Tensor) -> float:
    """Share of the neighbours (N, K) that are of the row's class; labels (N,), those without one (-1) don't count."""
    pairs = labels[rows]
    counted = (labels[:, None] >= 0) & (pairs >= 0)
    return ((pairs == labels[:, None]) & counted).sum().item() / max(1, counted.sum().item())


def choose_queries(labels: np.ndarray, count: int) -> np.ndarray:
    """Rows of `count` pictures: the first of each class in turn as long as there are classes, else evenly spaced."""
    classes, first = np.unique(labels, return_index=True)
    first = first[classes >= 0]
    if len(first) >= count:
        return first[np.linspace(0, len(first) - 1, count).astype(int)]
    others = np.setdiff1d(np.arange(len(labels)), first)
    missing = min(count - len(first), len(others))
    return np.concatenate([first, others[np.linspace(0, len(others) - 1, missing).astype(int)]])


def project(features: Tensor, *, seed: int) -> tuple[np.ndarray, str]:
    """Features (N, D) in two dimensions: points (N, 2), and the method, t-SNE or, of few pictures, PCA."""
    rows = functional.normalize(features.float(), dim=1).numpy()
    if len(rows) >= _FEWEST_FOR_TSNE:
        from sklearn.manifold import TSNE

        found = TSNE(2, perplexity=_PERPLEXITY, init="pca", random_state=seed).fit_transform(rows)
        return found, "t-SNE"
    centred = rows - rows.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:2].T, "PCA"


def class_colours(labels: np.ndarray, classes: Sequence[str]) -> tuple[list[str], list[tuple[str, str, bool]]]:
    """A colour for each row, and the legend: the most frequent classes, all others in grey."""
    frequent = [label for label, _ in Counter(labels[labels >= 0].tolist()).most_common(len(COLOURS))]
    colours = {label: COLOURS[index] for index, label in enumerate(sorted(frequent))}
    entries = [(classes[label], colour, False) for label, colour in colours.items()]
    if any(label not in colours for label in labels.tolist()):
        entries.append(("other classes" if colours else "without classes", NEUTRAL, False))
    return [colours.get(label, NEUTRAL) for label in labels.tolist()], entries


def _views(config: ExperimentConfig, pictures: Pictures, rows: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    return plain_views(
        pictures,
        rows,
        image_size=config.data.image_size,
        eval_resize=config.data.eval_resize,
        batch_size=_VIEWS_AT_ONCE,
        device=device,
    )
