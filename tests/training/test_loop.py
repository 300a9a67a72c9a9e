"""The training loop: it learns, it counts right, it stops on a broken loss, and two workers do as one."""

import copy
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

from rayssl.backbones import Backbone, ResNetConfig
from rayssl.data import BadFile, Targets
from rayssl.data.loaders import Batch, TrainLoader
from rayssl.data.pictures import Plan
from rayssl.runtime import LocalRuntime, Progress
from rayssl.tasks import RotationTask, TaskLoss
from rayssl.training.loop import StageSchedule, StageStopped, TrainingError, train_stage
from rayssl.training.optimizers import CosineScheduleConfig, SGDConfig
from rayssl.training.stage import Stage
from tests.two_workers import run_on_two_workers

SIDE = 12


class MemoryPictures:
    """Pictures with a bright upper end on a noisy ground, (N, 3, SIDE, SIDE): their angle is easy to tell."""

    def __init__(self, count: int = 64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(100, (count, 3, SIDE, SIDE), generator=generator).to(torch.uint8)
        self.pixels[:, :, : SIDE // 2] += 150
        self.side = SIDE
        self.labels = np.zeros(count, dtype=np.int64)
        self.classes: tuple[str, ...] = ()
        self.bad_files: list[BadFile] = []
        self.targets: Targets | None = None
        self.numbers = np.arange(len(self.labels))
        self.fingerprint = ""

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, plan: Plan) -> Iterator[Tensor]:
        for indices, _ in plan:
            yield self.pixels[torch.from_numpy(indices)]


def small_backbone() -> Backbone:
    torch.manual_seed(0)
    return ResNetConfig(depth=18, width=4, stem="small").build()


def make_stage(backbone: Backbone, blocks: list[int] | None = None, frozen_batchnorm: str = "eval") -> Stage:
    blocks = blocks or [1, 2, 3]
    for number, block in enumerate(backbone.blocks, start=1):
        block.requires_grad_(number in blocks)
    torch.manual_seed(1)
    task = RotationTask(4, image_size=8, copies="one")
    return Stage(backbone, blocks, task, frozen_batchnorm=frozen_batchnorm)


def train(
    stage: Stage,
    folder: Path,
    *,
    settings: SGDConfig | None = None,
    epochs: int = 1,
    precision: str = "fp32",
    count: int = 64,
) -> list[dict[str, float]]:
    settings = settings or SGDConfig(learning_rate=0.05)
    runtime = LocalRuntime(folder)
    loader = TrainLoader(
        MemoryPictures(count), images_per_step=16, seed=0, rank=runtime.rank, world_size=runtime.world_size
    )
    schedule = StageSchedule(1, 3, epochs, epochs_before=0, epochs_run=3 * epochs, scope="stage")
    return list(
        train_stage(
            stage,
            loader,
            runtime,
            settings.build(stage),
            settings=settings,
            schedule=schedule,
            precision=precision,
        )
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls_and_the_accuracy_leaves_chance(tmp_path: Path, precision: str) -> None:
    settings = SGDConfig(learning_rate=0.1)
    metrics = train(make_stage(small_backbone()), tmp_path, settings=settings, epochs=15, precision=precision)
    assert metrics[-1]["loss"] < 0.6 * metrics[0]["loss"]
    assert metrics[-1]["accuracy"] > 0.7 > metrics[0]["accuracy"]
    assert {row["chance"] for row in metrics} == {0.25}
    assert all(row["images_per_second"] > 0 for row in metrics)


def test_bf16_computes_in_half_precision_and_keeps_weights_and_loss_in_float32(tmp_path: Path) -> None:
    stage = make_stage(small_backbone(), [2, 3])
    seen: list[torch.dtype] = []
    for block in (*stage.frozen, *stage.trained):
        convolution = next(module for module in block.modules() if isinstance(module, nn.Conv2d))
        convolution.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    metrics = train(stage, tmp_path, precision="bf16", count=16)
    assert seen == 3 * [torch.bfloat16]
    assert {p.dtype for p in stage.parameters()} == {torch.float32}
    assert metrics[0]["loss"] == pytest.approx(np.log(4), abs=1)


def test_the_numbers_of_an_epoch_are_those_of_a_loop_written_by_hand(tmp_path: Path) -> None:
    """Loss, accuracy and rate of each epoch, and the weights after it."""
    settings = SGDConfig(learning_rate=0.03, schedule=CosineScheduleConfig(warmup=0.25))
    stage = make_stage(small_backbone(), [2, 3])
    twin = make_stage(small_backbone(), [2, 3])
    found = train(stage, tmp_path, settings=settings, epochs=2)

    optimizer = settings.build(twin)
    twin.train()
    loader = TrainLoader(MemoryPictures(), images_per_step=16, seed=0)
    for epoch in range(2):
        losses, accuracies = [], []
        for step, batch in enumerate(loader.epoch(epoch)):
            done = (4 * epoch + step) / 8
            rate = 0.03 * (done / 0.25 if done < 0.25 else 0.5 * (1 + np.cos(np.pi * (done - 0.25) / 0.75)))
            views = twin.task.make_views(batch)
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = float(rate)
            optimizer.zero_grad()
            outcome = twin(views.inputs, views.targets)
            outcome.loss.backward()
            optimizer.step()
            losses.append(outcome.loss.item())
            accuracies.append(outcome.metrics["accuracy"].item())
        assert found[epoch]["loss"] == pytest.approx(np.mean(losses), rel=1e-3)
        assert found[epoch]["accuracy"] == pytest.approx(np.mean(accuracies))
        assert found[epoch]["learning_rate"] == pytest.approx(float(rate))
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(stage.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)


def test_epochs_of_later_stages_see_other_views_than_those_of_earlier_ones(tmp_path: Path) -> None:
    """The loader is asked for the epochs of the run, not of the stage."""
    asked = []

    class Recording(TrainLoader):
        def epoch(
            self, epoch: int, *, first_step: int = 0, device: torch.device | None = None
        ) -> Generator[Batch, None, None]:
            asked.append(epoch)
            return super().epoch(epoch, first_step=first_step, device=device)

    stage = make_stage(small_backbone())
    settings = SGDConfig()
    loader = Recording(MemoryPictures(16), images_per_step=16, seed=0)
    schedule = StageSchedule(1, 3, epochs=4, epochs_before=3, epochs_run=9, scope="stage")
    epochs = train_stage(
        stage,
        loader,
        LocalRuntime(tmp_path),
        settings.build(stage),
        settings=settings,
        schedule=schedule,
        precision="fp32",
        start_epoch=1,
    )
    assert len(list(epochs)) == 3
    assert asked == [4, 5, 6]


def test_a_stage_goes_on_after_an_epoch_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    settings = SGDConfig(learning_rate=0.05)
    schedule = StageSchedule(0, 1, epochs=3, epochs_before=0, epochs_run=3, scope="stage")
    loader = TrainLoader(MemoryPictures(), images_per_step=16, seed=0)
    runtime = LocalRuntime(tmp_path)

    def run(stage: Stage, optimizer: torch.optim.Optimizer, start: int = 0) -> Iterator[dict[str, float]]:
        return train_stage(
            stage,
            loader,
            runtime,
            optimizer,
            settings=settings,
            schedule=schedule,
            precision="fp32",
            start_epoch=start,
        )

    whole = make_stage(small_backbone())
    optimizer = settings.build(whole)
    rows, saved = [], {}
    for row in run(whole, optimizer):
        rows.append(row)
        if len(rows) == 1:
            saved = copy.deepcopy({"stage": whole.state_dict(), "optimizer": optimizer.state_dict()})

    resumed = make_stage(small_backbone())
    resumed.load_state_dict(saved["stage"])
    optimizer = settings.build(resumed)
    optimizer.load_state_dict(saved["optimizer"])
    assert [row["loss"] for row in run(resumed, optimizer, start=1)] == [row["loss"] for row in rows[1:]]
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


def stop_and_go_on(folder: Path, *, stop_after: int | None, pictures: int = 160) -> dict[str, Any]:
    """Train two epochs of ten steps, or of fewer pictures, stopped at a question if any, and taken up by a new stage.

    Returns:
        Losses and accuracies of the epochs that came to their end, the weights, and where it was stopped.
    """
    settings = SGDConfig(learning_rate=0.05)
    schedule = StageSchedule(0, 1, epochs=2, epochs_before=0, epochs_run=2, scope="stage")
    asked: list[int] = []

    def is_asked_to_stop() -> bool:
        asked.append(1)
        return len(asked) == stop_after

    runtime = LocalRuntime(folder, is_asked_to_stop=is_asked_to_stop)
    loader = TrainLoader(
        MemoryPictures(pictures), images_per_step=16, seed=0, rank=runtime.rank, world_size=runtime.world_size
    )
    rows: list[dict[str, float]] = []
    stop, state = None, {}
    for _attempt in range(2):
        backbone = small_backbone()
        stage = make_stage(backbone, [2, 3], "batch")
        optimizer = settings.build(stage)
        if stop is not None:  # a checkpoint has rank 0's
            (state,) = runtime.gather(state)[:1]
            backbone.load_state_dict(state["backbone"])
            stage.head.load_state_dict(state["head"])
            optimizer.load_state_dict(state["optimizer"])
        try:
            rows += train_stage(
                stage,
                loader,
                runtime,
                optimizer,
                settings=settings,
                schedule=schedule,
                precision="fp32",
                start_epoch=stop.epoch if stop else 0,
                start_step=stop.step if stop else 0,
                unfinished=stop.unfinished if stop else None,
            )
            break
        except StageStopped as stopped:
            stop = stopped
            state = {
                "backbone": copy.deepcopy(backbone.state_dict()),
                "head": stage.head.state_dict(),
                "optimizer": copy.deepcopy(optimizer.state_dict()),
            }
    return {
        "rows": [[row["loss"], row["accuracy"]] for row in rows],
        "weights": backbone.state_dict(),
        "stop": [stop.epoch, stop.step] if stop else None,
    }


def test_a_stage_goes_on_in_the_middle_of_an_epoch_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Questions are asked at steps 4 and 8, and where an epoch begins after another."""
    whole, stopped = (stop_and_go_on(tmp_path, stop_after=number) for number in (None, 2))
    assert stopped["stop"] == [0, 8]
    assert stopped["rows"] == whole["rows"]
    assert all(torch.equal(stopped["weights"][name], tensor) for name, tensor in whole["weights"].items())


def test_a_stage_of_short_epochs_stops_between_them(tmp_path: Path) -> None:
    """Otherwise nobody would be asked in epochs of so few steps."""
    whole, stopped = (stop_and_go_on(tmp_path, stop_after=number, pictures=48) for number in (None, 1))
    assert stopped["stop"] == [1, 0]
    assert stopped["rows"] == whole["rows"]
    assert all(torch.equal(stopped["weights"][name], tensor) for name, tensor in whole["weights"].items())


def stop_as_one_of_two(_rank: int, folder: Path) -> dict[str, Any]:
    return {str(number): stop_and_go_on(folder, stop_after=number) for number in (None, 2)}


def test_two_workers_go_on_in_the_middle_of_an_epoch_each_with_its_own_statistics(tmp_path: Path) -> None:
    for results in run_on_two_workers(partial(stop_as_one_of_two, folder=tmp_path), tmp_path):
        whole, stopped = results["None"], results["2"]
        assert stopped["stop"] == [0, 8]
        assert stopped["rows"] == whole["rows"]
        assert all(torch.equal(stopped["weights"][name], tensor) for name, tensor in whole["weights"].items())


def train_in_parts(parts: int, folder: Path) -> dict[str, Any]:
    """An epoch of four steps, each cut into parts, shared by whoever is here."""
    backbone = small_backbone()
    stage, settings, runtime = make_stage(backbone), SGDConfig(learning_rate=0.05), LocalRuntime(folder)
    loader = TrainLoader(
        MemoryPictures(96), images_per_step=24, seed=0, rank=runtime.rank, world_size=runtime.world_size, parts=parts
    )
    schedule = StageSchedule(0, 1, 1, epochs_before=0, epochs_run=1, scope="stage")
    optimizer = settings.build(stage)
    (row,) = train_stage(stage, loader, runtime, optimizer, settings=settings, schedule=schedule, precision="fp32")
    return {"loss": row["loss"], "parameters": dict(backbone.named_parameters()), "own": loader.own_parts}


def work_in_three_parts(_rank: int, folder: Path) -> dict[str, Any]:
    result = train_in_parts(3, folder)
    return {**result, "parameters": {name: value.detach() for name, value in result["parameters"].items()}}


def test_a_step_in_parts_gives_the_same_on_any_number_of_workers(tmp_path: Path) -> None:
    """Three parts on one worker and, two and one, on two; a reference without the loop: each part by itself."""
    alone = train_in_parts(3, tmp_path)
    first, second = run_on_two_workers(partial(work_in_three_parts, folder=tmp_path), tmp_path)
    assert (first["own"], second["own"]) == ([0, 1], [2])
    assert first["loss"] == second["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    for name, parameter in alone["parameters"].items():
        torch.testing.assert_close(first["parameters"][name], parameter.detach(), rtol=1e-4, atol=1e-6)
        assert torch.equal(first["parameters"][name], second["parameters"][name])

    backbone = small_backbone()
    stage = make_stage(backbone)
    settings = SGDConfig(learning_rate=0.05)
    optimizer = settings.build(stage)
    loaders = [TrainLoader(MemoryPictures(96), images_per_step=24, seed=0, rank=i, world_size=3) for i in range(3)]
    stage.train()
    for step, batches in enumerate(zip(*(loader.epoch(0) for loader in loaders), strict=True)):
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * settings.schedule.scale(step / 4)
        views = [stage.task.make_views(batch) for batch in batches]
        losses = [stage(each.inputs.contiguous(memory_format=torch.channels_last), each.targets).loss for each in views]
        torch.stack(losses).mean().backward()
        optimizer.step()
    for name, parameter in backbone.named_parameters():
        torch.testing.assert_close(parameter, alone["parameters"][name], rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_and_says_where(tmp_path: Path) -> None:
    settings = SGDConfig(learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"stage 2, epoch 1, step [23], at learning rate 1e\+30\. Lower opt"):
        train(make_stage(small_backbone()), tmp_path, settings=settings)


def test_the_rate_in_the_message_is_that_of_the_broken_step(tmp_path: Path) -> None:
    """Not that of the step at which it was found out."""
    settings = SGDConfig(learning_rate=1e30, schedule=CosineScheduleConfig(warmup=0.9))
    with pytest.raises(TrainingError) as caught:
        train(make_stage(small_backbone()), tmp_path, settings=settings, count=256)
    words = str(caught.value).replace(",", "").split()
    step = int(words[words.index("step") + 1])
    assert 1 < step < 10
    assert float(words[words.index("rate") + 1].rstrip(".")) == pytest.approx(1e30 * (step - 1) / 16 / 0.9, rel=1e-4)


def test_progress_is_shown_while_an_epoch_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayssl.training.loop._PROGRESS_SECONDS", -1.0)
    shown: list[object] = []
    runtime = LocalRuntime(tmp_path, show=shown.append)
    stage, settings = make_stage(small_backbone()), SGDConfig()
    loader = TrainLoader(MemoryPictures(), images_per_step=16, seed=0)
    schedule = StageSchedule(2, 3, epochs=1, epochs_before=4, epochs_run=5, scope="stage")
    optimizer = settings.build(stage)
    list(train_stage(stage, loader, runtime, optimizer, settings=settings, schedule=schedule, precision="fp32"))
    assert shown == [Progress(2, 3, 0, 1, quarter / 4) for quarter in (1, 2, 3, 4)]


def work_as_one_of_two(rank: int, folder: str) -> None:
    """What each of two workers does: train in both modes of the frozen blocks, then meet a broken loss."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results: dict[str, object] = {}
    for mode in ("eval", "batch"):
        backbone = small_backbone()
        rows = train(make_stage(backbone, [2, 3], mode), Path(folder), epochs=2)
        results[mode] = ([[row["loss"], row["accuracy"]] for row in rows], backbone.state_dict())
    stage = make_stage(small_backbone())
    if rank == 1:  # of the last step of an epoch alone
        stage.register_forward_hook(break_fourth_loss())
    try:
        train(stage, Path(folder))
    except TrainingError as error:
        results["error"] = str(error)
    torch.save(results, f"{folder}/rank{rank}.pt")
    distributed.barrier()  # none leaves while another one still talks to it
    distributed.destroy_process_group()


def break_fourth_loss() -> Callable[[nn.Module, object, TaskLoss], None]:
    calls = []

    def hook(_module: nn.Module, _inputs: object, outcome: TaskLoss) -> None:
        calls.append(1)
        if len(calls) == 4:
            outcome.loss.data.fill_(torch.nan)

    return hook


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(work_as_one_of_two, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_two_workers_end_with_one_network(two_workers: list[dict[str, tuple]], mode: str) -> None:
    """Parameters and BatchNorm statistics alike, of frozen blocks too: the next stage freezes the same everywhere."""
    (rows, state), (other_rows, other_state) = (results[mode] for results in two_workers)
    assert rows == other_rows
    assert [name for name, tensor in state.items() if not torch.equal(tensor, other_state[name])] == []
    frozen_moved = not torch.equal(state["bn1.running_mean"], small_backbone().state_dict()["bn1.running_mean"])
    assert frozen_moved == (mode == "batch")


def test_two_workers_learn_what_one_learns(two_workers: list[dict[str, tuple]], tmp_path: Path) -> None:
    """The same views and batches; only BatchNorm sees halves of them, so numbers are near, not equal."""
    rows = train(make_stage(small_backbone(), [2, 3]), tmp_path, epochs=2)
    losses = [loss for loss, _ in two_workers[0]["eval"][0]]
    assert losses == pytest.approx([row["loss"] for row in rows], abs=0.15)


def test_a_broken_loss_on_one_worker_stops_both(two_workers: list[dict[str, object]]) -> None:
    """Also in the last step, after which the other one would wait for an answer that never comes."""
    messages = [results["error"] for results in two_workers]
    assert messages[0] == messages[1]
    assert "epoch 1, step 4" in str(messages[0])
