"""The plan of a run: closed forms of its model, counts that equal the run's own, and what it says of mistakes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed, nn

from rayssl.backbones import RevNetConfig
from rayssl.config import ExperimentConfig, load_config
from rayssl.data import open_pictures
from rayssl.errors import ClusterError, ConfigError, DataError
from rayssl.experiment import build_encoder, run_experiment
from rayssl.plan import (
    Network,
    SyntheticPictures,
    all_reduce_seconds,
    exposed_seconds,
    measure_network,
    num_buckets,
    plan_experiment,
    plan_experiments,
)
from rayssl.plan.memory import SavedBytes, storages
from rayssl.runtime import LocalRuntime
from tests.conftest import SmallRun

MGTA = [
    "data.image_size=8",
    "data.limit=300",
    "backbone.width=4",
    "method.baseline.epochs=2",
    "method.rounds.count=2",
    "method.rounds.epochs=1",
    "method.final.epochs=1",
    "method.clusters=8",
    "method.triplet.classes=4",
    "method.triplet.instances=4",
    "training.batch_size=64",
    "online.images=40",
    "cluster.workers=0",
    "evaluations=[]",
]


def small_mgta(*overrides: str) -> ExperimentConfig:
    return load_config("demo-mgta", [*MGTA, *overrides])


def test_a_ring_sends_almost_twice_the_bytes_whatever_its_length() -> None:
    """Two workers send each half and its sum, once: N bytes. Many send nearly 2 N. One sends nothing."""
    assert all_reduce_seconds(1000, 1, bandwidth=10, latency=5) == 0
    assert all_reduce_seconds(1000, 2, bandwidth=10, latency=0) == pytest.approx(100)
    assert all_reduce_seconds(1000, 4, bandwidth=10, latency=0) == pytest.approx(150)
    assert all_reduce_seconds(1000, 10**6, bandwidth=10, latency=0) == pytest.approx(200, rel=1e-5)


def test_each_message_goes_round_the_ring_twice() -> None:
    assert all_reduce_seconds(0, 8, bandwidth=1, latency=1e-3) == pytest.approx(14e-3)
    assert all_reduce_seconds(0, 8, bandwidth=1, latency=1e-3, num_messages=3) == pytest.approx(42e-3)


def test_trees_are_taken_where_they_are_quicker() -> None:
    """Few bytes: 2 x 3 levels in place of 14 messages; many bytes: the ring's 14 / 8 of them in place of twice."""
    small = all_reduce_seconds(0, 8, bandwidth=1, latency=1e-3, has_trees=True)
    assert small == pytest.approx(6e-3)
    large = all_reduce_seconds(1e9, 8, bandwidth=1e6, latency=1e-6, has_trees=True)
    assert large == all_reduce_seconds(1e9, 8, bandwidth=1e6, latency=1e-6) == pytest.approx(1750, rel=1e-3)


def test_synchronised_batchnorm_waits_in_every_layer(small_run: SmallRun) -> None:
    """With 4 workers each of them gathers in 3 messages and sums in 6; the bytes of gradients cost nothing here."""
    config = small_run.config("training.sync_batchnorm=true", "method.stages.0.blocks=[1]")
    first = plan_experiment(config, num_workers=4, calibration_steps=1, bandwidth=1e30, latency=1e-3).stages[0]
    assert first.communication_seconds == pytest.approx(6e-3 + 1 * 9e-3)  # B1 has one BatchNorm


@pytest.mark.parametrize(("workers", "bandwidth", "latency"), [(0, 1.0, 0.0), (2, 0.0, 0.0), (2, 1.0, -1.0)])
def test_a_model_of_nonsense_is_refused(workers: int, bandwidth: float, latency: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        all_reduce_seconds(1, workers, bandwidth=bandwidth, latency=latency)


def test_communication_hides_behind_two_thirds_of_the_step_at_most() -> None:
    assert exposed_seconds(0.3, 3.0, overlap=0.0) == pytest.approx(0.3)
    assert exposed_seconds(0.3, 3.0, overlap=1.0) == pytest.approx(0.0)
    assert exposed_seconds(0.3, 3.0, overlap=0.5) == pytest.approx(0.15)
    assert exposed_seconds(5.0, 3.0, overlap=1.0) == pytest.approx(3.0)


@pytest.mark.parametrize("bucket_mib", [0.5, 1, 25])
def test_gradients_are_sent_in_torchs_buckets(bucket_mib: float) -> None:
    """Its own function parts as many small weights, whose sizes fill a bucket of each of these sizes exactly."""
    cap = int(bucket_mib * 2**20)
    for num_bytes in (4096, cap, cap + 4096, 3 * cap):
        weights = [torch.empty(1024) for _ in range(num_bytes // 4096)]
        buckets, _ = distributed._compute_bucket_assignment_by_size(weights, [cap])
        assert num_buckets(num_bytes, bucket_mib) == len(buckets)
    assert num_buckets(0, bucket_mib) == 1


def test_smaller_buckets_are_more_messages(small_run: SmallRun) -> None:
    """Bytes cost nothing here, a message of two workers 2 ms there and back."""
    plans = {}
    for mib in (25, 0.01):
        config = small_run.config(f"cluster.bucket_mib={mib}")
        plans[mib] = plan_experiment(config, num_workers=2, calibration_steps=1, bandwidth=1e30, latency=1e-3)
    for large, small in zip(plans[25].stages, plans[0.01].stages, strict=True):
        assert large.communication_seconds == pytest.approx(2e-3)
        assert small.communication_seconds == pytest.approx(2e-3 * math.ceil(large.synchronized_bytes / (0.01 * 2**20)))
        assert small.communication_seconds > large.communication_seconds


def test_what_autograd_holds_is_counted_once_and_only_while_it_is_held() -> None:
    """A tanh keeps its result, a product both factors; x y and x z share x."""
    x, y, z = (torch.ones(250, requires_grad=True) * 1 for _ in range(3))
    saved = SavedBytes()
    with saved.watched():
        total = (x * y).sum() + (x * z).sum()
    assert saved.peak == 3 * 1000
    total.backward()
    with saved.watched():
        x.detach().requires_grad_().tanh().sum().backward()
    assert saved.peak == 3 * 1000  # the first graph is gone


def test_weights_that_autograd_holds_are_not_counted_again() -> None:
    layer, inputs = nn.Linear(50, 10, bias=False), torch.ones(5, 50)
    weights = {layer.weight.untyped_storage().data_ptr()}
    everything, others = SavedBytes(), SavedBytes(weights)
    for saved in (everything, others):
        with saved.watched():
            layer(inputs.clone().requires_grad_())
    assert everything.peak - others.peak == 4 * layer.weight.numel()


def test_a_network_that_rebuilds_its_activations_is_seen_to_hold_less() -> None:
    """Units of RevNet are rebuilt one after another in the backward pass; at no time all of them are held."""
    peaks = {}
    for depth, reversible in ((50, True), (101, True), (50, False)):
        network = RevNetConfig(depth=depth, width=16, reversible=reversible).build()
        saved = SavedBytes(storages(network.parameters()))
        with saved.watched():
            network(torch.ones(2, 3, 32, 32)).mean().backward()
        peaks[depth, reversible] = saved.peak
    assert peaks[50, True] < 0.5 * peaks[50, False]
    assert peaks[101, True] < 1.1 * peaks[50, True]


def test_pictures_are_those_that_the_run_would_have(small_run: SmallRun) -> None:
    config = small_run.config()
    splits = config.data.build(seed=config.seed)
    plan = plan_experiment(config, num_workers=1, calibration_steps=1)
    assert {stage.pictures for stage in plan.stages} == {len(splits.train)}


def test_steps_are_those_that_the_run_makes(small_run: SmallRun) -> None:
    """The run's own loops count them."""
    config = small_run.config("online.every=5", "evaluations=[]")
    counted: list[int] = []

    class Counting(LocalRuntime):
        def wrap(self, module: nn.Module) -> nn.Module:
            counted.append(0)
            module.register_forward_hook(lambda *_: counted.__setitem__(-1, counted[-1] + 1))
            return module

    run_experiment(config, Counting(small_run.storage / "counted", num_threads=1))
    plan = plan_experiment(config, num_workers=1, calibration_steps=1)
    assert [stage.steps for stage in plan.stages] == counted
    assert plan.steps == sum(counted)


def test_stages_send_four_bytes_for_each_weight_that_they_train(small_run: SmallRun) -> None:
    """Counted by torchvision's names of the blocks: B1 conv1 and bn1, B2 layer1, ...; heads are one linear layer."""
    config = small_run.config("method.stages.0.blocks=[1]", "method.stages.1.blocks=[2]", "method.stages.2.blocks=[3]")
    weights = dict(build_encoder(config).named_parameters())
    plan = plan_experiment(config, num_workers=2, calibration_steps=1, bandwidth=1e9, latency=0.0)
    for stage, layers, angles in zip(plan.stages, (["conv1", "bn1"], ["layer1"], ["layer2"]), (2, 4, 8), strict=True):
        names = [name for name in weights if name.split(".")[0] in layers]
        features = [weights[name].shape[0] for name in names][-1]
        head = features * angles + angles
        assert stage.synchronized_bytes == 4 * (sum(weights[name].numel() for name in names) + head)
    alone = plan_experiment(config, num_workers=1, calibration_steps=1)
    assert {stage.synchronized_bytes for stage in alone.stages} == {0}


def test_communication_follows_the_model(small_run: SmallRun) -> None:
    plan = plan_experiment(small_run.config(), num_workers=4, calibration_steps=1, bandwidth=1e6, latency=1e-3)
    for stage in plan.stages:
        assert stage.communication_seconds == pytest.approx(1.5 * stage.synchronized_bytes / 1e6 + 6e-3)
        assert 0 < stage.communication_share < 1


def test_what_is_measured_is_positive_and_more_workers_hold_less(small_run: SmallRun) -> None:
    config = small_run.config("data.limit=1500", "training.batch_size=256")
    one, four = plan_experiments(config, [1, 4], calibration_steps=1, bandwidth=1e12, latency=0.0)
    for alone, shared in zip(one.stages, four.stages, strict=True):
        assert alone.steps == shared.steps
        assert min(alone.step_seconds, shared.step_seconds, alone.measuring_seconds, one.start_seconds) > 0
        assert alone.memory_bytes > shared.memory_bytes > alone.memory_bytes / 4
    assert one.seconds == pytest.approx(one.start_seconds + sum(stage.seconds for stage in one.stages))
    assert four.device_hours == pytest.approx(4 * four.seconds / 3600)
    assert one.memory_bytes == max(stage.memory_bytes for stage in one.stages)


def test_what_a_worker_holds_grows_in_proportion_to_its_batch(small_run: SmallRun) -> None:
    """Beside a constant part, the weights."""
    plans = [
        plan_experiment(small_run.config(f"training.batch_size={size}"), num_workers=1, calibration_steps=1)
        for size in (16, 32, 64)
    ]
    for few, some, many in zip(*(plan.stages for plan in plans), strict=True):
        growth = some.memory_bytes - few.memory_bytes
        assert growth > 0
        assert many.memory_bytes - some.memory_bytes == pytest.approx(2 * growth, rel=0.02)


def test_a_counted_speed_gives_times_in_proportion(small_run: SmallRun) -> None:
    """Nothing is timed, so the times are exact: half the speed or twice the share take twice as long."""
    config = small_run.config()

    def seconds(speed: float, workers: int) -> float:
        plan = plan_experiment(config, num_workers=workers, flops_per_second=speed, bandwidth=1e30)
        return sum(stage.step_seconds for stage in plan.stages)

    assert seconds(1e9, 1) == pytest.approx(2 * seconds(2e9, 1))
    assert seconds(1e9, 1) == pytest.approx(2 * seconds(1e9, 2))


def test_counted_memory_is_that_of_a_real_step(small_run: SmallRun) -> None:
    """Few pictures are counted and scaled up; the whole batch is weighed."""
    config = small_run.config()
    weighed = plan_experiment(config, num_workers=1, calibration_steps=1)
    counted = plan_experiment(config, num_workers=1, flops_per_second=1e9)
    for one, other in zip(weighed.stages, counted.stages, strict=True):
        assert other.memory_bytes == pytest.approx(one.memory_bytes, rel=0.05)


def test_a_number_of_pictures_stands_for_the_pictures(small_run: SmallRun) -> None:
    """1,000, of which the limit leaves 256 and the hold-out 230, no matter where data.root points."""
    config = small_run.config("data.name=folder", "data.root=nowhere")
    plan = plan_experiment(config, num_workers=1, num_pictures=1000, calibration_steps=1)
    assert {stage.pictures for stage in plan.stages} == {230}
    assert any("1,000 were given" in sentence for sentence in plan.assumptions)


def test_missing_pictures_name_the_way_out(small_run: SmallRun) -> None:
    config = small_run.config("data.name=folder", "data.root=nowhere")
    with pytest.raises(DataError, match=r"data\.root.*--pictures N"):
        plan_experiment(config, num_workers=1)


def test_streamed_pictures_bound_the_step_by_their_decoding(small_run: SmallRun, tmp_path: Path) -> None:
    """One process that decodes large pictures for a tiny network is too slow for it."""
    generator = np.random.default_rng(0)
    for number in range(80):
        path = tmp_path / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(path)
    data = ["data.name=folder", f"data.root={tmp_path}", "training.batch_size=16", "online.images=20"]
    cached = plan_experiment(small_run.config(*data), num_workers=1, calibration_steps=1)
    assert cached.start_seconds > 0
    streamed = small_run.config(*data, "data.cache_gib=0", "data.loader_workers=1")
    plan = plan_experiment(streamed, num_workers=1, calibration_steps=1)
    assert plan.start_seconds == 0
    assert len({stage.step_seconds for stage in plan.stages}) == 1  # decoding bounds all of them alike
    assert min(stage.step_seconds for stage in plan.stages) > max(stage.step_seconds for stage in cached.stages)


def test_a_recipe_that_can_not_be_shared_out_is_refused_as_by_the_run(small_run: SmallRun) -> None:
    config = small_run.config()
    with pytest.raises(ConfigError) as planned:
        plan_experiment(config, num_workers=3, bandwidth=1e9)
    with pytest.raises(ConfigError) as loaded:
        small_run.config("cluster.workers=3")
    rule = "must be a multiple of 3 (3 workers x 1 views a picture in method.stages.0), got 64"
    assert str(planned.value) == f"with 3 workers: training.batch_size: {rule}"
    assert rule in str(loaded.value)


def test_a_gpu_that_is_not_there_is_not_guessed(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = small_run.config("cluster.gpus_per_worker=1")
    with pytest.raises(ClusterError, match="--tflops"):
        plan_experiment(config, num_workers=1)
    with pytest.raises(ConfigError, match="--bandwidth-gbit"):
        plan_experiment(config, num_workers=2, flops_per_second=1e12)
    plan = plan_experiment(config, num_workers=1, flops_per_second=1e12)
    assert plan.device == "cuda"


def test_mgta_is_planned_round_by_round() -> None:
    plan = plan_experiment(small_mgta(), num_workers=1, calibration_steps=1)
    assert [stage.name for stage in plan.stages] == ["baseline", "round-1", "round-2", "final"]
    baseline, first, second, final = plan.stages
    assert [stage.pictures for stage in plan.stages] == [baseline.pictures] * 4
    assert baseline.preparing_seconds == 0
    assert min(first.preparing_seconds, final.preparing_seconds) > 0
    # 135 pictures of a half in 8 clusters: 7 x 17 and 16, in groups of 4 that are filled up: 7 x 5 + 4 = 39, of which a
    # batch takes 4 groups: 9 batches. All 270: 6 x 34 and 2 x 33, so 8 x 9 groups: 18 batches.
    assert first.steps == second.steps == final.steps == 18
    assert first.images_per_step == 16
    assert baseline.memory_bytes > first.memory_bytes  # 64 pictures a step, and 16


def test_mgta_with_too_few_pictures_is_refused_as_by_the_run() -> None:
    with pytest.raises(ConfigError, match=r"method\.clusters: must be at most"):
        plan_experiment(small_mgta("method.clusters=200"), num_workers=1, calibration_steps=1)


def test_synthetic_pictures_look_like_real_ones_to_a_loader(tmp_path: Path) -> None:
    config = load_config("demo-psl")
    images = config.data.build(seed=0).train
    real = open_pictures(
        images,
        tmp_path,
        resize=config.data.decode_size,
        cache_bytes=2**30,
        max_bad_fraction=0.0,
        num_workers=0,
        is_builder=True,
        barrier=lambda: None,
    )
    synthetic = SyntheticPictures(len(real), side=real.side, classes=real.classes)
    plan = [(np.array([3, 1, 4]), np.full(3, 0.5))]
    (one,), (other,) = list(real.batches(plan)), list(synthetic.batches(plan))
    assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
    assert (len(synthetic), synthetic.labels.dtype) == (len(real), real.labels.dtype)
    assert set(synthetic.labels) == set(real.labels)


@pytest.mark.slow
def test_two_processes_of_this_machine_give_a_network() -> None:
    network = measure_network()
    assert isinstance(network, Network)
    assert 1e7 < network.bandwidth < 1e12
    assert 1e-7 < network.latency < 1
