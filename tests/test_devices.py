"""The same work on a CPU and, where there is one, on a GPU: a run that dies and goes on, clusters, probes, views."""

import pytest
import torch

from rayssl.clustering import kmeans
from rayssl.data.augment import Draws
from rayssl.errors import ConfigError
from rayssl.evaluation import LinearProbeConfig
from rayssl.evaluation.linear_probe import evaluate_linear_probe
from rayssl.experiment import local_runtime, run_experiment
from rayssl.runs import open_run
from rayssl.tasks.augmented_views import AugmentationLevel, augmented_view
from tests.conftest import SmallRun
from tests.dying import DyingRuntime, Interrupted

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
TASKS = {
    "rotation": ["method.task.copies=one"],
    "jigsaw": [
        "data.image_size=16",
        "method.task={name: jigsaw, grid: 2}",
        *(f"method.stages.{number}.level={{num_permutations: {4 * (number + 1)}}}" for number in range(3)),
    ],
    "simclr": [
        "method.task={name: simclr}",
        *(f"method.stages.{number}.level={{color_strength: 0.5}}" for number in range(3)),
    ],
    "moco": [
        "method.task={name: moco, queue_size: 128, batchnorm_splits: 2}",
        *(f"method.stages.{number}.level={{color_strength: 0.5, blur: 0.5}}" for number in range(3)),
    ],
}
SETTINGS = {
    "rotation": [],
    "jigsaw": ["training.precision=bf16"],
    "simclr": ["optimizer={name: lars, learning_rate: 0.1}", "training.precision=bf16"],
    "moco": ["backbone={name: revnet, depth: 50, width: 8, stem: small}"],
}


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_dies_in_its_second_stage_goes_on_there(task: str, device: str, small_run: SmallRun) -> None:
    settings = [*TASKS[task], *SETTINGS[task], f"cluster.gpus_per_worker={int(device == 'cuda')}", "evaluations=[]"]
    whole = run_experiment(small_run.config(*settings, "name=whole"))
    config = small_run.config(*settings)
    run = open_run(config)
    with pytest.raises(Interrupted):
        run_experiment(config, DyingRuntime(run.path, after=2, use_gpu=device == "cuda"))
    events: list[object] = []
    report = run_experiment(config, local_runtime(config, run.path, show=events.append))
    assert any("stage 2, after 1 epochs" in str(event) for event in events)
    for row, wanted in zip(report.history, whole.history, strict=True):
        # On a GPU sums come in any order, and bfloat16 rounds what differs.
        assert row["loss"] == pytest.approx(wanted["loss"], rel=0 if device == "cpu" else 0.05)
    weights, wanted_weights = (torch.load(each.folder / "encoder.pt", weights_only=True) for each in (report, whole))
    assert all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point())
    if device == "cpu":
        assert all(torch.equal(tensor, wanted_weights[name]) for name, tensor in weights.items())


def test_bfloat16_is_refused_where_torch_would_leave_gradients_unwritten(small_run: SmallRun) -> None:
    """Weights of 1e27 were seen, which no loss tells of: they meet nothing but zeros in training."""
    tiny = [*TASKS["jigsaw"], "data.image_size=8", "evaluations=[]"]
    with pytest.raises(ConfigError, match=r"training\.precision: must be fp32 on CPUs .* a single pixel"):
        run_experiment(small_run.config(*tiny, "training.precision=bf16"))
    run_experiment(small_run.config(*tiny))


@pytest.mark.gpu
@pytest.mark.parametrize("task", TASKS)
def test_a_gpu_gives_the_cpus_losses(task: str, small_run: SmallRun) -> None:
    """The first epoch's, before rounding has had time to grow."""
    settings = [*TASKS[task], *SETTINGS[task], "evaluations=[]", "online.every=9"]
    first, second = (
        run_experiment(small_run.config(*settings, f"cluster.gpus_per_worker={number}")).history[0]["loss"]
        for number in (0, 1)
    )
    assert second == pytest.approx(first, rel=0.05)


@pytest.mark.gpu
def test_a_gpus_clusters_and_probes_are_the_cpus() -> None:
    generator = torch.Generator().manual_seed(0)
    places = 4 * torch.randn(10, 32, generator=generator)
    labels = torch.randint(10, (4000,), generator=generator)
    features = places[labels] + torch.randn(4000, 32, generator=generator)
    on_cpu, on_gpu = kmeans(features, 10, seed=3), kmeans(features.cuda(), 10, seed=3)
    assert float(on_gpu.inertia) == pytest.approx(float(on_cpu.inertia), rel=1e-3)

    def probe(device: str) -> dict[str, float]:
        return dict(
            evaluate_linear_probe(
                LinearProbeConfig(blocks=(5,), epochs=5),
                {5: features[:3000]},
                labels[:3000],
                {5: features[3000:]},
                labels[3000:],
                num_classes=10,
                channels={5: 32},
                seed=0,
                device=torch.device(device),
            )
        )

    assert probe("cuda")["linear_probe/b5/top1"] == pytest.approx(probe("cpu")["linear_probe/b5/top1"], abs=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize(("window", "size"), [(40, 32), (256, 224)])
def test_a_gpus_views_are_the_cpus_to_a_few_levels(window: int, size: int) -> None:
    level = AugmentationLevel(color_strength=1.0, gray=0.2, blur=0.5)
    images = torch.randint(256, (8, window, window, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    there, here = (
        augmented_view(images.permute(0, 3, 1, 2).to(device), Draws(0, 0, 0, batch_size=8), level, image_size=size)
        for device in ("cuda", "cpu")
    )
    assert (there.cpu() - here).abs().mean() < 0.02  # a level of 255 is 0.017 once it is normalised
    assert there.shape == here.shape == (8, 3, size, size)
