"""Time and agreement of our linear SVMs with scikit-learn's LinearSVC: 20 classes x 5 costs of one fold.

    python benchmarks/svm.py [--rows 5011] [--features 9216] [--classes 20] [--test-rows 4952]

Made-up features that have gone through a ReLU, of VOC07's size; targets that a plane tells most of the time, a
twentieth of them positive. LinearSVC gets the float64 copy that it would make, before its clock starts; we get
float32. Its tolerance is its default, 1e-4, ours is the package's. Ours runs before the first cost and after each of
its five, and the median counts; seconds are CPU seconds of one thread. Some minutes, nearly all LinearSVC's; 2.3 GB.
"""

import argparse
import statistics
import time
import warnings

import numpy as np
import torch
from common import print_machine, print_rows, row
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor

from rayssl.evaluation.svm import LinearSvms, average_precision, fit_svms, l2_normalize

COSTS = (0.0001, 0.001, 0.01, 0.1, 1.0)
"""Larger ones favour us: LinearSVC takes more and more steps."""


def main() -> None:
    """Measure, print a table and the rows."""
    options = parse_options()
    torch.set_num_threads(1)
    print_machine("scikit-learn")
    print(f"one fold: {options.classes} classes x {len(COSTS)} costs, {options.rows} x {options.features}\n")
    features, targets = made_up_pictures(options.rows + options.test_rows, options.features, options.classes)
    train, test = features[: options.rows], features[options.rows :]
    train_targets, test_targets = targets[: options.rows], targets[options.rows :]

    seconds, svms = fit_ours(train, train_targets)
    own_seconds, peer_seconds, greatest = [seconds], 0.0, 0.0
    values = svms.decision_values(test)  # (M, classes, costs)
    table = train.double().numpy()
    for place, cost in enumerate(COSTS):
        results = [fit_peer(table, labels, cost) for labels in train_targets.T.numpy()]
        seconds = sum(spent for spent, _ in results)
        unfinished = sum(svm.n_iter_ >= svm.max_iter for _, svm in results)
        planes = torch.from_numpy(np.concatenate([svm.coef_ for _, svm in results]))
        scores = torch.cat([part.double() @ planes.T for part in test.split(512)])  # an intercept ranks nothing
        difference = largest_difference(values[..., place], scores, test_targets)
        print(
            f"cost {cost:<6g} LinearSVC {seconds:7.1f} s, {unfinished} of {options.classes} stopped early; "
            f"average precision differs by at most {difference:.1e}",
            flush=True,
        )
        peer_seconds, greatest = peer_seconds + seconds, max(greatest, difference)
        own_seconds.append(fit_ours(train, train_targets)[0])
    print(f"ours, all costs: {', '.join(f'{seconds:.2f}' for seconds in own_seconds)} s\n")
    print_rows(compare(statistics.median(own_seconds), peer_seconds, greatest, options))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=5011, help="training pictures")
    parser.add_argument("--features", type=int, default=9216)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--test-rows", type=int, default=4952, help="pictures on which average precision is compared")
    return parser.parse_args()


def made_up_pictures(num_rows: int, num_features: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Normalised features (N, D) float32 with a decaying spectrum, and targets 1 or -1, (N, num_classes)."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(num_rows, 128, generator=generator) * torch.arange(1, 129) ** -0.7
    features = latent @ torch.randn(128, num_features, generator=generator) / 4
    for part in features.split(512):
        part.add_(0.5 * torch.randn(part.shape, generator=generator) + 0.3).clamp_(min=0)
    l2_normalize(features, out=features)
    scores = latent @ (torch.randn(128, num_classes, generator=generator) * torch.arange(1, 129)[:, None] ** 0.4)
    scores = scores / scores.std(0) + 0.7 * torch.randn(scores.shape, generator=generator)
    return features, torch.where(scores > scores.quantile(0.95, dim=0), 1, -1)


def fit_ours(features: Tensor, targets: Tensor) -> tuple[float, LinearSvms]:
    """Fit all classes and costs; seconds and hyperplanes."""
    start = time.process_time()
    svms = fit_svms(features, targets, COSTS)
    return time.process_time() - start, svms


def fit_peer(features: np.ndarray, labels: np.ndarray, cost: float) -> tuple[float, LinearSVC]:
    """Fit one problem; seconds and SVM."""
    svm = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=0)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted in the table
        svm.fit(features, labels)
    return time.process_time() - start, svm


def largest_difference(values: Tensor, scores: Tensor, targets: Tensor) -> float:
    """Largest difference in average precision of any class between two rankings, (M, classes) each."""
    columns = zip(values.T, scores.T, targets.T, strict=True)
    return max(abs(average_precision(ours, labels) - average_precision(peer, labels)) for ours, peer, labels in columns)


def compare(
    own_seconds: float, peer_seconds: float, difference: float, options: argparse.Namespace
) -> list[dict[str, object]]:
    """Give the rows: time, and the greatest difference in average precision."""
    name = f"svm {options.classes} classes x {len(COSTS)} costs, {options.rows} x {options.features}"
    return [
        row(name, ours=own_seconds, peer=peer_seconds, unit="s", ratio=peer_seconds / own_seconds, target=8.0),
        row(
            f"{name}, greatest difference in AP",
            ours=difference,
            peer=0.0,
            unit="AP",
            ratio=difference,
            target=1e-4,
            at_most=True,
        ),
    ]


if __name__ == "__main__":
    main()
