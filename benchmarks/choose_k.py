"""The number of clusters by the Calinski-Harabasz score over ten values, against scikit-learn's KMeans and score.

    python benchmarks/choose_k.py [--rows 20000] [--dim 512] [--rounds 3]

The features have a known number of clusters, 60, which both must find. About 4 minutes on 2 cores.
"""

import argparse

import common
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import calinski_harabasz_score
from torch import Tensor

from rayssl.clustering import choose_num_clusters

NUM_PLANTED = 60
GRID = [20, 30, 40, 50, 60, 70, 80, 100, 120, 150]
ROUNDING = 1e-6
"""Share by which two scores of the same clusters may differ."""


def main() -> None:
    """Measure, print a table and the rows."""
    options = parse_options()
    common.print_machine("scikit-learn")
    print(f"features: {options.rows} x {options.dim}, float32; {NUM_PLANTED} clusters; grid {GRID}\n")
    features = make_features(options.rows, options.dim)
    scores: dict[str, dict[int, float]] = {}

    def run_ours() -> None:
        scores["ours"] = choose_num_clusters(features, GRID).scores

    def run_sklearn() -> None:
        scores["scikit-learn"] = score_with_sklearn(features)

    seconds = common.interleaved_seconds({"ours": run_ours, "scikit-learn": run_sklearn}, rounds=options.rounds)
    for name, values in scores.items():
        curve = "  ".join(f"{number}: {score:.1f}" for number, score in values.items())
        print(f"{name:12} {seconds[name]:8.2f} s   chose {best_number(values)}   {curve}")
    chosen = best_number(scores["ours"])
    ours, peer = scores["ours"][chosen], scores["scikit-learn"][chosen]
    ratio = seconds["scikit-learn"] / seconds["ours"]
    print()
    common.print_rows(
        [
            common.row(
                "choose_k",
                ours=seconds["ours"],
                peer=seconds["scikit-learn"],
                unit="s",
                ratio=ratio,
                target=8.0,
                spread=seconds.spread("scikit-learn", "ours"),
            ),
            common.row(
                "choose_k score",
                ours=ours,
                peer=peer,
                unit=f"CH at k={chosen}",
                ratio=ours / peer,
                target=1 - ROUNDING,
            ),
            common.row(
                "choose_k number",
                ours=chosen,
                peer=NUM_PLANTED,
                unit="clusters",
                ratio=float(chosen == NUM_PLANTED),
                target=1.0,
            ),
        ]
    )


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each contestant")
    return parser.parse_args()


def make_features(num_rows: int, dim: int) -> Tensor:
    """Balls of radius about 1 whose centres are about 2 apart."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(NUM_PLANTED, dim, generator=generator) * 2 / (2 * dim) ** 0.5
    members = torch.randint(0, NUM_PLANTED, (num_rows,), generator=generator)
    return centers[members] + torch.randn(num_rows, dim, generator=generator) / dim**0.5


def score_with_sklearn(features: Tensor) -> dict[int, float]:
    """Number -> score, with scikit-learn's defaults: one greedy k-means++ start each."""
    matrix = features.numpy()
    return {
        number: float(calinski_harabasz_score(matrix, KMeans(number, random_state=0).fit_predict(matrix)))
        for number in GRID
    }


def best_number(scores: dict[int, float]) -> int:
    """The number with the highest score."""
    return max(scores, key=scores.__getitem__)


if __name__ == "__main__":
    main()
