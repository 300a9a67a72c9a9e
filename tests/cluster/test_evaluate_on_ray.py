"""An evaluation on Ray's workers gives the numbers of one process."""

import pytest

from rayssl.evaluate_config import load_evaluation
from rayssl.launch_evaluation import evaluate
from tests.conftest import SmallRun

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def test_two_workers_share_the_blocks_and_agree_with_one_process(small_run: SmallRun) -> None:
    settings = [
        f"storage_path={small_run.storage}",
        "data={name: digits, image_size: 8, limit: 200}",
        "backbone={name: resnet, depth: 18, width: 4, stem: small}",
        "evaluation.k=[5]",
        "keep_features_gib=0",  # else the workers would find those of the first call
    ]
    reports = []
    for workers in (0, 2):
        config, source, _ = load_evaluation("random:resnet18", "knn", [*settings, f"cluster.workers={workers}"])
        reports.append(evaluate(config, source, show=lambda event: None))
    assert reports[0].metrics == pytest.approx(reports[1].metrics, abs=0.02)
    assert set(reports[0].metrics) == set(reports[1].metrics)
