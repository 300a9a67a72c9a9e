"""The benchmark programs' own arithmetic, by closed forms, and their conventions; nothing is timed here."""

import importlib
import inspect
import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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


def test_it_is_said_how_long_each_program_takes() -> None:
    words = (inspect.getdoc(load("run")) or "").split()
    assert [name for name in PROGRAMS if name not in words] == []


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
    assert medians.rounds == {"a": [1.0] * 3, "b": [3.0] * 3}


def test_a_spread_is_of_ratios_within_a_round() -> None:
    """The machine is twice as slow in the second round, for both, and the ratio of the medians stays what it is."""
    timings = load("common").Timings({"a": [1.0, 2.0, 1.0], "b": [3.0, 6.0, 4.0]})
    assert dict(timings) == {"a": 1.0, "b": 4.0}
    assert timings.spread("b", "a") == (3.0, 4.0)
    assert timings.spread_of(lambda seconds: seconds["a"] + seconds["b"]) == (4.0, 8.0)


@pytest.mark.parametrize(("count", "low"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (10, 1), (20, 5), (30, 9)])
def test_the_interval_of_a_median_is_that_of_the_sign_test(count: int, low: int) -> None:
    """The places are those of published tables (95 %); of fewer than 6 values not even the range is as sure."""
    assert load("common").median_interval([float(value) for value in range(count)]) == (low, count - 1 - low)


def test_a_row_without_a_target_judges_nothing() -> None:
    row = load("common").row("it", ours=1.0, peer=2.0, unit="s", ratio=0.5, target=None, spread=(0.4, 2 / 3))
    assert row == {"benchmark": "it", "ours": 1.0, "peer": 2.0, "unit": "s", "ratio": 0.5, "spread": [0.4, 0.6667]}


# The page


def test_rows_old_and_new_stand_on_one_page() -> None:
    common, run = load("common"), load("run")
    old = {"benchmark": "old", "ours": 2.0, "peer": 6.0, "unit": "s", "ratio": 3.0, "target": 2.0, "met": True}
    new = common.row("new", ours=3.0, peer=1.0, unit="s", ratio=3.0, target=2.0, at_most=True, spread=(2.5, 4.0))
    told = common.row("told", ours=1.0, peer=1.0, unit="s", ratio=1.0, target=None)
    rows = [old, new, told, common.skipped("none", "no GPU")]
    lines = run.page({"it": {"setting": ["machine: M"], "rows": rows}}).splitlines()
    table = lines[lines.index("|---|---|---|---|---|---|---|") + 1 :][:4]
    assert table == [
        "| old | 2 s | 6 s | 3 |  | 2 | yes |",
        "| new | 3 s | 1 s | 3 | 2.5 to 4 | at most 2 | **no** |",
        "| told | 1 s | 1 s | 1 |  |  |  |",
        "| none | | | | | | skipped: no GPU |",
    ]
    assert "## gpu_step.py" in lines and "## run.py" not in lines  # without results, and no benchmark


def test_rows_of_a_program_that_fails_now_are_kept_but_not_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load("run")
    row = {"benchmark": "it", "ours": 2.0, "peer": 6.0, "unit": "s", "ratio": 3.0, "target": 2.0, "met": True}
    programs = {"broken": f"print({json.dumps(row)!r}); raise SystemExit(1)", "whole": f"print({json.dumps(row)!r})"}
    for name, text in programs.items():
        (tmp_path / f"{name}.py").write_text(text)
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"broken": {"setting": [], "rows": [{**row, "benchmark": "stale"}]}}))
    for name, path in (("HERE", tmp_path), ("RESULTS", results), ("PAGE", tmp_path / "page.md")):
        monkeypatch.setattr(run, name, path)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    with pytest.raises(SystemExit, match="no result from: broken"):
        run.main()
    printed = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["benchmark"] for line in printed[2:]] == ["it"]
    assert "| stale |" in (tmp_path / "page.md").read_text()


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


def test_the_parts_of_what_two_processes_take_are_all_of_it() -> None:
    growth = load("growth")
    seconds = dict(zip(growth.WAYS, (10.0, 6.0, 6.5, 8.0), strict=True))
    parts = [part(seconds) for part in growth.PARTS.values()]
    assert parts == pytest.approx([5.0, 1.0, 0.5, 1.5])
    assert sum(parts) == pytest.approx(seconds[growth.SHARED])


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


def test_equal_clusters_are_equally_good_to_rounding() -> None:
    """A last digit of float32 less is no worse result, a hundred thousandth is."""
    compare, seconds = load("kmeans").compare, load("common").Timings({"ours": [1.0], "faiss": [3.0]})
    for excess, is_met in ((1.2e-7, True), (1e-5, False)):
        _, quality = compare(100, seconds, {"ours": 1 + excess, "faiss": 1.0})
        assert quality["met"] is is_met


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


def course(epochs: list[float], **changes: object) -> object:
    """The first and the last epoch are not to count."""
    history = [{"epoch": 1, "loss": 1.5, "images_per_second": epochs[0]}]
    values = {"recording": [e / 10 for e in epochs], "reporting": [e / 5 for e in epochs], "history": history}
    return load("ray_overhead").Course(startup=5.0, epochs=epochs, **{**values, **changes})


def test_epochs_under_ray_are_compared_pair_by_pair() -> None:
    """The machine is ten times as slow in one pair, which is no matter to the pairs' ratios."""
    plain, ray = course([9.0, 1.0, 10.0, 1.0, 99.0]), course([1.0, 1.02, 10.2, 1.04, 50.0])
    rows = load("ray_overhead").compare({"plain": plain, "ray": ray})
    assert (rows[0]["ratio"], rows[0]["spread"], rows[0]["met"]) == (1.02, [1.02, 1.04], True)
    assert [row["ratio"] for row in rows[1:]] == [0.1, 0.2] * 2
    assert all("target" not in row for row in rows[1:])


def test_runs_that_differ_only_by_the_clock_did_equal_work() -> None:
    ray_overhead = load("ray_overhead")
    plain, other = course([1.0, 2.0, 3.0]), course([1.0], history=[{"epoch": 1, "loss": 1.6}])
    ray_overhead.check_equal_work({"plain": plain, "ray": course([2.0, 2.0, 2.0])})
    with pytest.raises(RuntimeError, match="ray: must leave the history"):
        ray_overhead.check_equal_work({"plain": plain, "ray": other})


def test_two_that_train_in_turns_never_train_at_once(tmp_path: Path) -> None:
    ray_overhead = load("ray_overhead")
    turns = {name: ray_overhead.Turns(tmp_path, name, other) for name, other in (("a", "b"), ("b", "a"))}
    trained: list[str] = []

    def train(name: str) -> None:
        turns[name].take()
        for _ in range(3):
            trained.append(name)
            turns[name].give()
            if len(trained) < 6:
                turns[name].take()

    turns["b"].give()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, ("b", "a")))
    assert trained == ["a", "b"] * 3


def test_nobody_waits_for_one_that_has_failed(tmp_path: Path) -> None:
    ray_overhead = load("ray_overhead")
    ray_overhead.Turns(tmp_path, "a", "b").end()
    with pytest.raises(RuntimeError, match="b: waits for a turn, but 'a' has ended"):
        ray_overhead.Turns(tmp_path, "b", "a").take()


def test_a_clocked_runtime_reports_as_its_own_and_tells_what_an_epoch_is_made_of(tmp_path: Path) -> None:
    ray_overhead = load("ray_overhead")
    reported: list[dict[str, float]] = []
    runtime = SimpleNamespace(rank=3, report=lambda metrics, save, in_background: reported.append(metrics))
    recorded: list[dict[str, float]] = []
    tracker = SimpleNamespace(log_metrics=lambda metrics, step: recorded.append(metrics), uri="there")
    tracker.child = lambda name, reopen: tracker
    clocked = ray_overhead.Clocked(runtime, ray_overhead.Turns(tmp_path, "alone", "alone"))
    clocked_tracker = ray_overhead.ClockedTracker(tracker, clocked.note_recording)
    for loss in (1.0, 2.0):
        clocked_tracker.child("stage-1").log_metrics({"loss": loss}, step=1)
        clocked.report({"loss": loss})
    assert (clocked.rank, clocked_tracker.uri) == (3, "there")
    assert reported == recorded == [{"loss": 1.0}, {"loss": 2.0}]
    for epoch, recording, reporting in zip(clocked.epochs, clocked.recording, clocked.reporting, strict=True):
        assert 0 < recording + reporting <= epoch


# What a search costs


def test_a_searchs_overhead_is_its_wall_time_less_training() -> None:
    """Two trials of 1 s in 20 s, of which the cluster's start takes 5, the first trial 6 and the second 2."""
    search_overhead = load("search_overhead")
    course = search_overhead.Course(called=100.0, cluster_up=105.0, trials_ended=[111.0, 113.0], returned=120.0)
    overheads = course.overheads(1.0)
    assert overheads == {"whole": [9.0], "first": [5.0], "later": [1.0]}
    rows = search_overhead.compare(overheads, 1.0)
    assert [row["ratio"] for row in rows] == [9.0, 5.0, 1.0]
    assert [row.get("met") for row in rows] == [False, None, None]


def test_a_trial_must_leave_what_the_plain_run_leaves(tmp_path: Path) -> None:
    search_overhead = load("search_overhead")
    values = {"optimizer.learning_rate": 0.1}
    (tmp_path / "trials" / "one").mkdir(parents=True)
    (tmp_path / "trials" / "one" / "history.jsonl").write_text('{"loss": 1.0, "images_per_second": 5.0}\n')
    result = SimpleNamespace(folder=tmp_path, records={"one": SimpleNamespace(name="one", values=values)})
    study = SimpleNamespace(samples=lambda: [values])
    search_overhead.check_equal_work(result, study, [[{"loss": 1.0, "images_per_second": 7.0}]])
    with pytest.raises(RuntimeError, match="must hold the numbers of the same run"):
        search_overhead.check_equal_work(result, study, [[{"loss": 1.1, "images_per_second": 5.0}]])


# What a measurement costs


def test_a_measurement_is_told_as_a_share_of_a_whole_epoch() -> None:
    """Steps of 2 s are a tenth of an epoch; the recipe measures three times in four epochs of 20 s."""
    timings, online_cost = load("common").Timings, load("online_cost")
    seconds = timings({"steps": [2.0, 4.0, 2.0], "measurement": [1.0, 1.0, 1.0]})
    costs = [online_cost.Cost(f"stage-{i}", seconds, 0.1, *counts) for i, counts in enumerate([(2, 1), (2, 2)])]
    first, _, whole = online_cost.compare(costs)
    assert (first["ratio"], first["spread"], first["met"]) == (0.05, [0.025, 0.05], True)
    assert (whole["ours"], whole["peer"], whole["ratio"]) == (3.0, 80.0, 0.0375)


@pytest.mark.parametrize("changes", [{"probe/best/top1": 0.1}, {"knn/k20/top1": 0.0}, {"loss": math.nan}], ids=str)
def test_a_measurement_that_tells_nothing_is_refused(changes: dict[str, float]) -> None:
    found = {"probe/best/top1": 0.9, "knn/k20/top1": 0.9, "loss": 1.0}
    online_cost = load("online_cost")
    online_cost.check_work("stage-1", found)
    with pytest.raises(RuntimeError, match="stage-1: "):
        online_cost.check_work("stage-1", {**found, **changes})


# Planned against measured


def test_a_plan_is_as_good_as_it_is_close_on_either_side() -> None:
    rows = [load("scaling")._row("it", [100.0] * 2, [80.0, peer], 0.7, closeness=True) for peer in (80.0, 125.0)]
    assert [row["spread"] for row in rows] == [[0.8, 0.8], [0.8, 0.8]]


def test_runs_of_other_losses_are_refused() -> None:
    scaling = load("scaling")
    history = [{"stage": 1.0, "epoch": 1.0, "loss": 1.5, "images_per_second": 10.0}]
    scaling._check_equal_work(history, [{**history[0], "images_per_second": 20.0}])
    with pytest.raises(RuntimeError, match="Ray: must leave"):
        scaling._check_equal_work(history, [{**history[0], "loss": 1.51}])


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
    seconds = load("common").Timings({"ours, fp32": [1.0], "ours, bf16": [1.0]})
    rows = load("pretrain_loop").compare(seconds)
    assert [row["skipped"] for row in rows] == ["lightly is not installed"] * 2


def test_the_faster_of_lightlys_ways_counts() -> None:
    rounds = {"ours, fp32": [1, 2, 1], "ours, bf16": [0.5] * 3, "lightly, 0 loaders": [3.0] * 3}
    seconds = load("common").Timings({**rounds, "lightly, 2 loaders": [2.0] * 3})
    rows = load("pretrain_loop").compare(seconds)
    assert [row["ratio"] for row in rows] == [2.0, 4.0]
    assert [row["spread"] for row in rows] == [[1.0, 2.0], [4.0, 4.0]]


@pytest.fixture
def revnets() -> dict[str, nn.Module]:
    from rayssl.backbones.revnet import RevNet

    revnet_memory = load("revnet_memory")
    contestants = {"ours": True, "autograd": False}
    return {
        name: revnet_memory.seeded(lambda depth, it=it: RevNet(depth, width=8, reversible=it), 50)
        for name, it in contestants.items()
    }


def test_a_network_that_rebuilds_does_the_work_of_one_that_stores(revnets: dict[str, nn.Module]) -> None:
    load("revnet_memory").check_equal_work(revnets, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(("change", "what"), [("weights", "weights"), ("factor", "loss"), ("hook", "gradients")])
def test_networks_of_different_work_are_refused(revnets: dict[str, nn.Module], change: str, what: str) -> None:
    ours = revnets["ours"]
    if change == "weights":
        next(ours.parameters()).data.mul_(1.01)
    if change == "factor":
        ours.register_forward_hook(lambda module, inputs, output: 2 * output)
    if change == "hook":
        next(ours.parameters()).register_hook(lambda gradient: 1.01 * gradient)
    with pytest.raises(RuntimeError, match=f"ours: must .*{what}"):
        load("revnet_memory").check_equal_work(revnets, torch.randn(2, 3, 32, 32))
