"""k-means on features of MGTA's size, labels included, against faiss on all rows, with equal iterations.

    python benchmarks/kmeans.py [--rows 60000] [--dim 2048] [--clusters 100 300] [--rounds 3] [--sklearn]

The features are made up: rectified, of a few hundred overlapping classes, with a spectrum that falls as a network's
does. faiss stays with its number of iterations; we stop early where no label changes any more. With --sklearn its
KMeans takes part outside competition. About 8 minutes on 2 cores; needs faiss-cpu, else its rows are skipped.
"""

import argparse
import importlib
from collections.abc import Callable

import common
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from rayssl.clustering import kmeans

TARGETS = {100: 2.8, 300: 2.2}
NUM_ITERATIONS = 25
ROUNDING = 1e-6
"""Share by which two inertias of the same clusters may differ."""


def main() -> None:
    """Measure, print a table and the rows."""
    options = parse_options()
    common.print_machine("faiss-cpu", "scikit-learn")
    print(f"features: {options.rows} x {options.dim}, float32; {NUM_ITERATIONS} iterations\n")
    features = make_features(options.rows, options.dim)
    rows: list[dict[str, object]] = []
    for num_clusters in options.clusters:
        contestants = build_contestants(features, num_clusters, with_sklearn=options.sklearn)
        inertias: dict[str, float] = {}
        seconds = common.interleaved_seconds(
            {name: keep_result(run, name, inertias) for name, run in contestants.items()}, rounds=options.rounds
        )
        for name, value in seconds.items():
            print(f"k={num_clusters:4} {name:12} {value:8.2f} s   inertia {inertias[name]:.6g}")
        rows += compare(num_clusters, seconds, inertias)
    print()
    common.print_rows(rows)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--clusters", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each contestant")
    parser.add_argument("--sklearn", action="store_true", help="time scikit-learn's KMeans too (minutes)")
    return parser.parse_args()


def make_features(num_rows: int, dim: int) -> Tensor:
    """Rows of 400 overlapping classes in 200 latent directions of falling variance, mixed and rectified."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.arange(1, 201).float() ** -0.5
    classes = torch.randint(0, 400, (num_rows,), generator=generator)
    latent = 0.7 * torch.randn(400, 200, generator=generator)[classes] + torch.randn(num_rows, 200, generator=generator)
    mixing = torch.randn(200, dim, generator=generator) / scales.norm()
    features = (latent * scales) @ mixing
    features += 0.3 * torch.randn(num_rows, dim, generator=generator)
    return features.relu_()


def build_contestants(features: Tensor, num_clusters: int, *, with_sklearn: bool) -> dict[str, Callable[[], float]]:
    """Name -> a run with labels of all rows, which gives its inertia."""
    matrix = features.numpy()

    def run_ours() -> float:
        return kmeans(features, num_clusters, max_iterations=NUM_ITERATIONS, tolerance=0).inertia

    def run_faiss() -> float:
        faiss = importlib.import_module("faiss")
        clustering = faiss.Kmeans(
            features.shape[1], num_clusters, niter=NUM_ITERATIONS, max_points_per_centroid=len(features), seed=0
        )
        clustering.train(matrix)
        square_distances, _ = clustering.index.search(matrix, 1)
        return float(square_distances.sum(dtype="float64"))

    def run_sklearn() -> float:
        return float(
            KMeans(num_clusters, n_init=1, max_iter=NUM_ITERATIONS, tol=0, random_state=0).fit(matrix).inertia_
        )

    contestants: dict[str, Callable[[], float]] = {"ours": run_ours}
    if common.installed_version("faiss-cpu"):
        contestants["faiss"] = run_faiss
    if with_sklearn:
        contestants["scikit-learn"] = run_sklearn
    return contestants


def keep_result(run: Callable[[], float], name: str, results: dict[str, float]) -> Callable[[], None]:
    """The run, its result put where it can be read after the timing."""

    def run_and_keep() -> None:
        results[name] = run()

    return run_and_keep


def compare(num_clusters: int, seconds: common.Timings, inertias: dict[str, float]) -> list[dict[str, object]]:
    """The rows of one number of clusters."""
    time, quality = f"kmeans k={num_clusters}", f"kmeans k={num_clusters} inertia"
    if "faiss" not in seconds:
        return [common.skipped(name, "faiss-cpu is not installed") for name in (time, quality)]
    ratio = seconds["faiss"] / seconds["ours"]
    quality_ratio = inertias["ours"] / inertias["faiss"]
    target = TARGETS.get(num_clusters, min(TARGETS.values()))
    return [
        common.row(
            time,
            ours=seconds["ours"],
            peer=seconds["faiss"],
            unit="s",
            ratio=ratio,
            target=target,
            spread=seconds.spread("faiss", "ours"),
        ),
        common.row(
            quality,
            ours=inertias["ours"],
            peer=inertias["faiss"],
            unit="squared distance",
            ratio=quality_ratio,
            target=1 + ROUNDING,
            at_most=True,
        ),
    ]


if __name__ == "__main__":
    main()
