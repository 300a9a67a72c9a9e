"""The benchmark programs' own arithmetic, by closed forms, and their conventions; nothing is timed here."""

import importlib
import inspect
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from rayssl.backbones import ResNetConfig
from rayssl.tasks import RotationConfig, RotationLevel, TaskSetting

HERE = Path(__file__).parent.parent / "benchmarks"
PROGRAMS = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("common", "run", "faults"))
PEERS = ("albumentations", "faiss", "kornia", "lightly", "memcnn")


@pytest.fixture(autouse=True)
def _beside_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs import each other by their plain names, as they do when one is run."""
    monkeypatch.syspath_prepend(HERE)


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_says_how_it_is_called_and_imports_without_its_peers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for peer in PEERS:
        monkeypatch.setitem(sys.modules, peer, None)
    program = load(name)
    assert f"python benchmarks/{name}.py" in inspect.getdoc(program)  # type: ignore[operator]
    assert callable(program.main)


# Rows


@pytest.mark.parametrize(("ratio", "at_most", "met"), [(1.9, False, False), (2.0, False, True), (1.9, True, True)])
def test_a_row_says_whether_its_target_is_met(ratio: float, at_most: bool, met: bool) -> None:
    row = load("common").row("it", ours=1.0, peer=ratio, unit="s", ratio=ratio, target=2.0, at_most=at_most)
    assert row["met"] is met


def test_rows_are_told_from_other_lines_by_their_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    common = load("common")
    row = common.row("it", ours=1 / 3, peer=1.0, unit="s", ratio=3.0, target=2.0)
    common.print_rows([row, common.skipped("other", "no GPU")])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith('{"benchmark"') for line in lines)
    assert [json.loads(line).get("skipped") for line in lines] == [None, "no GPU"]


def test_contestants_take_turns_and_the_first_turn_does_not_count() -> None:
    """A clock that goes on by a contestant's own seconds whenever it runs, by more in the first turn."""
    now, calls = [0.0], []

    def contestant(name: str, seconds: float) -> None:
        calls.append(name)
        now[0] += seconds if calls.count(name) > 1 else 100

    runs = {name: lambda name=name, s=s: contestant(name, s) for name, s in (("a", 1.0), ("b", 3.0))}
    medians = load("common").interleaved_seconds(runs, rounds=3, clock=lambda: now[0])
    assert calls == ["a", "b"] * 4
    assert medians == {"a": 1.0, "b": 3.0}


# FLOPs


def resnet50_macs(side: int) -> list[list[int]]:
    """Multiplications of each convolution of B1..B5 for one picture, in order, from the shapes in He et al., table 1.

    As in torchvision, the 3x3 convolution of a unit has its stride. The first unit's second entry is its shortcut.
    """
    size = side // 2
    blocks = [[size * size * 64 * 3 * 49]]
    size, inputs = size // 2, 64
    for planes, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        macs = []
        for unit in range(count):
            out = size // stride if unit == 0 else size
            macs.append(size * size * inputs * planes)
            if unit == 0:
                macs.append(out * out * inputs * 4 * planes)
            macs += [out * out * planes * planes * 9, out * out * planes * 4 * planes]
            size, inputs = out, 4 * planes
        blocks.append(macs)
    return blocks


def stage_flops(macs: Sequence[Sequence[int]], blocks: Sequence[int]) -> int:
    """A forward pass of all, a gradient by the weights and one by the input of each convolution that is trained.

    Nothing asks for the gradient by what enters the stage: its first convolution's, and the shortcut's beside it.
    """
    first, last = blocks[0], blocks[-1]
    forward = sum(sum(block) for block in macs[:last])
    trained = sum(sum(block) for block in macs[first - 1 : last])
    unneeded = macs[0][0] if first == 1 else sum(macs[first - 1][:2])
    return 2 * (forward + 2 * trained - unneeded)


def test_flops_of_the_stages_are_those_of_the_convolutions_shapes() -> None:
    stage_step = load("stage_step")
    scene = stage_step.Scene(torch.device("cpu"), 64, 32, "fp32")
    task = RotationConfig(copies="one").build(RotationLevel(angles=4), TaskSetting(64, 32))
    macs = resnet50_macs(64)
    for blocks in ((1, 2, 3), (3, 4, 5)):
        counted = stage_step.count_flops(ResNetConfig(depth=50), blocks, task, scene)
        channels = {3: 512, 5: 2048}[blocks[-1]]
        head = 3 * 2 * channels * 4
        assert counted == 32 * (stage_flops(macs, blocks) + head)


def test_shares_of_flops_are_the_known_ones() -> None:
    """They were worked out before, by other means."""
    stage_step = load("stage_step")
    macs = resnet50_macs(64)
    flops = {name: stage_flops(macs, blocks) for name, blocks in stage_step.STAGES.items()}
    ratios = stage_step.flop_ratios(flops)
    assert ratios == pytest.approx({"S1": 0.438, "S2": 0.785, "S3": 0.863}, abs=1e-3)


def test_a_stage_trains_its_own_blocks_and_no_others() -> None:
    stage_step = load("stage_step")
    task = RotationConfig(copies="one").build(RotationLevel(angles=4), TaskSetting(32, 4))
    scene = stage_step.Scene(torch.device("cpu"), 32, 4, "fp32")
    backbone = ResNetConfig(depth=18, width=4).build()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    stage = stage_step.build_stage(backbone, (2, 3, 4), task, scene.device, scene.side)
    loss = stage_step.training_step(stage, stage_step.make_views(task, scene), scene)()
    assert loss.isfinite()
    moved = {name.split(".")[0] for name, tensor in backbone.state_dict().items() if not tensor.equal(before[name])}
    assert moved == {"layer1", "layer2", "layer3"}


# Utilisation


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA H200 NVL", 835.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40", None),
        ("NVIDIA A1000 Laptop GPU", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_cards_peak_is_found_by_whole_words_of_its_name(card: str, peak: float | None) -> None:
    assert load("stage_step").peak_tflops(card) == peak


def test_utilisation_is_flops_a_second_in_peaks() -> None:
    utilisation = load("stage_step").utilisation
    assert utilisation(5e12, 0.1, 100.0) == pytest.approx(0.5)
    assert utilisation(5e12, 0.1, None) is None


# Powers


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 2.0])
def test_the_power_of_a_power_law_is_found(power: float) -> None:
    sizes = (3, 6, 12, 24)
    assert load("growth").fitted_power(sizes, [7 * size**power for size in sizes]) == pytest.approx(power)


def test_growth_is_judged_by_time_and_by_memory() -> None:
    growth = load("growth")
    found = growth.Growth("it", "images", (1, 2, 4, 8), [1.0, 2.0, 4.0, 8.0], [1.0, 4.0, 16.0, 64.0], 1.0)
    time, memory = growth.compare(found)
    assert (time["ratio"], time["met"]) == (pytest.approx(1.0), True)
    assert (memory["ratio"], memory["met"]) == (pytest.approx(2.0), False)


def test_the_picture_has_a_column_a_piece(tmp_path: Path) -> None:
    growth = load("growth")
    found = [
        growth.Growth(piece, "images", (1, 2, 4, 8), [1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 1.0], 1.0)
        for piece in ("one", "other")
    ]
    for name in ("a.svg", "b.svg"):
        growth.draw(found, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text.count('id="axes_') == 4
    assert text == (tmp_path / "b.svg").read_text()  # so that a measurement alone changes it


# Peers that are written out


def test_nt_xent_of_the_plain_loop_is_the_packages() -> None:
    from rayssl.losses import nt_xent_loss

    views = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    plain = load("gpu_step").plain_nt_xent(*views, temperature=0.3)
    assert plain.item() == pytest.approx(nt_xent_loss(*views, temperature=0.3).item(), rel=1e-5)


def test_the_plain_head_has_the_size_of_lightlys(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_step = load("gpu_step")
    monkeypatch.setattr(gpu_step, "installed_version", lambda package: None)
    name, head, _ = gpu_step.lightly_parts()
    assert "torch loop" in name
    assert sum(parameter.numel() for parameter in head.parameters()) == 2048 * 2048 + 2 * 2048 + 2048 * 128 + 2 * 128


def test_steps_on_a_gpu_of_unequal_size_or_start_are_refused() -> None:
    gpu_step = load("gpu_step")
    gpu_step.check_equal_size(nn.Linear(100, 100), nn.Linear(100, 100))
    with pytest.raises(RuntimeError, match="as many parameters, got 10,100 and 10,000"):
        gpu_step.check_equal_size(nn.Linear(100, 100), nn.Linear(100, 100, bias=False))
    gpu_step.check_equal_start({"a": math.log(255), "b": 5.0}, batch=128)
    for loss in (4.0, math.nan):
        with pytest.raises(RuntimeError, match="b: must start near a loss of 5.54"):
            gpu_step.check_equal_start({"a": math.log(255), "b": loss}, batch=128)


def test_plain_kmeans_parts_two_far_clusters_whichever_rows_it_starts_from() -> None:
    """Rows at a distance of 1 on either side of 10 and of -10."""
    features = torch.tensor([[9.0], [11.0], [-9.0], [-11.0]])
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0]):
        assert load("gpu_pieces").plain_kmeans(features[order], 2, iterations=10) == pytest.approx(4.0, rel=1e-3)


# Epochs under Ray


def test_the_first_and_the_last_epoch_of_a_run_do_not_count() -> None:
    course = load("ray_overhead").Course(called=0.0, began=5.0, reports=[20.0, 21.0, 23.0, 26.0, 99.0])
    assert course.startup == 5.0
    assert course.epochs == [1.0, 2.0, 3.0]
    assert statistics.median(course.epochs) == 2.0


def test_a_clocked_runtime_reports_as_its_own_and_notes_when_it_was_done() -> None:
    reported: list[dict[str, float]] = []
    runtime = SimpleNamespace(rank=3, report=lambda metrics, save: reported.append(metrics))
    clocked = load("ray_overhead").Clocked(runtime)
    clocked.report({"loss": 1.0})
    clocked.report({"loss": 2.0})
    assert clocked.rank == 3
    assert reported == [{"loss": 1.0}, {"loss": 2.0}]
    assert clocked.moments == sorted(clocked.moments)
    assert len(clocked.moments) == 2


# Equal work


def contestant(module: ModuleType, **changes: object) -> object:
    values = {"steps": 4, "encoder_parameters": 100, "head_parameters": 10_000, "losses": [math.log(255), 5.0]}
    return module.Contestant(epoch=lambda: 0.0, **{**values, **changes})


def test_loops_of_equal_work_may_be_compared() -> None:
    module = load("pretrain_loop")
    module.check_equal_work({"a": contestant(module), "b": contestant(module, head_parameters=10_001)}, batch=128)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 5},
        {"encoder_parameters": 101},
        {"head_parameters": 10_100},
        {"losses": [math.log(255), math.nan]},
        {"losses": [3.0, 3.0]},
    ],
    ids=str,
)
def test_loops_of_different_work_are_refused(changes: dict[str, object]) -> None:
    module = load("pretrain_loop")
    with pytest.raises(RuntimeError, match="b: must"):
        module.check_equal_work({"a": contestant(module), "b": contestant(module, **changes)}, batch=128)


def test_parameters_are_counted() -> None:
    assert load("pretrain_loop").count_parameters(nn.Linear(3, 5)) == 3 * 5 + 5


def test_without_lightly_its_rows_say_so() -> None:
    rows = load("pretrain_loop").compare({"ours, fp32": 1.0, "ours, bf16": 1.0})
    assert [row["skipped"] for row in rows] == ["lightly is not installed"] * 2


def test_the_faster_of_lightlys_ways_counts() -> None:
    seconds = {"ours, fp32": 1.0, "ours, bf16": 0.5, "lightly, 0 loaders": 3.0, "lightly, 2 loaders": 2.0}
    assert [row["ratio"] for row in load("pretrain_loop").compare(seconds)] == [2.0, 4.0]
