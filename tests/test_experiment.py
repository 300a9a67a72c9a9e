"""Whole runs in one process: what they leave behind, that seeds decide them, and that they go on where they stopped."""

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rayssl.config import load_config
from rayssl.errors import CheckpointError, ConfigError, DataError, RunStopped
from rayssl.experiment import build_encoder, run_experiment
from rayssl.report import Report
from rayssl.runs import RunFolder, _fingerprint, finished_run, newest_run, open_run
from rayssl.runtime import LocalRuntime
from rayssl.training.checkpoints import Cursor, load_checkpoint
from tests.conftest import SmallRun
from tests.dying import DyingRuntime, Interrupted


class SlowRuntime(LocalRuntime):
    """Writes an epoch's checkpoint only when the stage's last epoch is trained, then dies."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, num_threads=1)
        self._may_write = threading.Event()
        self._is_late = False

    def report(
        self,
        metrics: Mapping[str, float],
        save: Callable[[Path], None] | None = None,
        *,
        in_background: bool = False,
    ) -> None:
        def save_late(folder: Path) -> None:
            self._may_write.wait()
            assert save is not None
            save(folder)

        self._is_late |= in_background
        super().report(metrics, save_late if in_background else save, in_background=in_background)

    def settle(self) -> None:
        self._may_write.set()
        super().settle()
        if self._is_late:
            raise Interrupted


def open_run_name(recipe: str) -> str:
    """The id that a recipe's first run gets."""
    config = load_config(recipe)
    return f"{config.name}-{_fingerprint(config)}"


def weights(report: Report) -> dict[str, torch.Tensor]:
    return torch.load(report.folder / "encoder.pt", weights_only=True)


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in history]


def test_a_run_leaves_all_that_it_promises(small_run: SmallRun) -> None:
    report = run_experiment(small_run.config())
    assert [row["stage"] for row in report.history] == [1, 2, 2, 3]
    assert {f"linear_probe/b{block}/top1" for block in range(1, 6)} <= report.metrics.keys()
    assert {f"random/linear_probe/b{block}/top1" for block in range(1, 6)} <= report.metrics.keys()
    files = {path.name for path in report.folder.iterdir()}
    assert {"config.yaml", "history.jsonl", "report.md", "report.json", "encoder.pt", "stage-1", "stage-3"} <= files
    assert [json.loads(line) for line in (report.folder / "history.jsonl").read_text().splitlines()] == report.history
    for number in (1, 2, 3):
        assert load_checkpoint(report.folder / f"stage-{number}").cursor.stage == number
    assert equal(load_checkpoint(report.folder / "stage-3").backbone, weights(report))
    reloaded = load_config(report.folder / "config.yaml")
    assert reloaded == small_run.config()


def test_each_stage_trains_its_blocks_and_no_others(small_run: SmallRun) -> None:
    config = small_run.config()
    report = run_experiment(config)
    before = build_encoder(config).state_dict()
    trained = [{"conv1", "bn1", "layer1", "layer2"}, {"layer1", "layer2", "layer3"}, {"layer2", "layer3", "layer4"}]
    for number, names in enumerate(trained, start=1):
        after = load_checkpoint(report.folder / f"stage-{number}").backbone
        changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
        assert changed == names
        before = after


def test_one_seed_gives_one_result_and_another_seed_another(small_run: SmallRun) -> None:
    first = run_experiment(small_run.config())
    again = run_experiment(small_run.config())
    other = run_experiment(small_run.config("seed=1"))
    assert again.folder.name == f"{first.folder.name}-2"
    assert equal(weights(first), weights(again))
    assert without_times(first.history) == without_times(again.history)
    assert first.metrics == again.metrics
    assert not equal(weights(first), weights(other))


@pytest.mark.parametrize(
    "reports", [1, 2, 3, 4], ids=["after stage 1", "inside stage 2", "after stage 2", "at the end"]
)
def test_a_run_that_died_goes_on_and_ends_as_if_it_had_not(small_run: SmallRun, reports: int) -> None:
    whole = run_experiment(small_run.config("name=whole"))
    config = small_run.config()
    run = open_run(config)
    with pytest.raises(Interrupted):
        run_experiment(config, DyingRuntime(run.path, after=reports))
    report = run_experiment(config)
    assert report.folder == run.path
    assert equal(weights(report), weights(whole))
    assert without_times(report.history) == without_times(whole.history)
    assert report.metrics == whole.metrics


def test_accumulated_gradients_train_as_whole_batches_do_but_for_batchnorm(small_run: SmallRun) -> None:
    """Four steps, each of two halves: BatchNorm normalises a half by itself, so that losses are near but not equal."""
    whole = run_experiment(small_run.config("evaluations=[]"))
    halves = run_experiment(small_run.config("evaluations=[]", "training.accumulate=2"))
    assert whole.folder != halves.folder
    losses = [[row["loss"] for row in report.history] for report in (whole, halves)]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    assert losses[1] != losses[0]


def test_a_run_from_before_gradients_could_be_accumulated_keeps_its_folder() -> None:
    """Its id is that of the README's demo, made by a version without the setting."""
    assert open_run_name("demo-psl") == "demo-psl-d59154d0"


def test_a_checkpoint_holds_its_moment_however_late_it_is_written(small_run: SmallRun) -> None:
    """That of stage 2's first epoch, written after its second one: what goes on from it trains the second one again."""
    whole = run_experiment(small_run.config("name=whole"))
    config = small_run.config()
    run = open_run(config)
    with pytest.raises(Interrupted):
        run_experiment(config, SlowRuntime(run.path))
    newest = load_checkpoint(LocalRuntime(run.path).checkpoints()[0])
    assert newest.cursor == Cursor(1, 1)
    report = run_experiment(config)
    assert equal(weights(report), weights(whole))
    assert without_times(report.history) == without_times(whole.history)


@pytest.mark.parametrize(
    ("question", "place"),
    [
        (2, "in stage 1, epoch 1, after 8 of 14 steps"),
        (4, "before stage 2"),
        (6, "in stage 2, epoch 2, after 8 of 14 steps"),
        (8, "in stage 2, epoch 3, after 0 of 14 steps"),
    ],
)
def test_a_run_that_was_asked_to_stop_goes_on_where_it_was(small_run: SmallRun, question: int, place: str) -> None:
    """14 steps an epoch, a question every 4 steps, and where a stage follows another."""
    overrides = ["training.batch_size=16", "evaluations=[]"]
    whole = run_experiment(small_run.config("name=whole", *overrides))
    config = small_run.config(*overrides)
    run = open_run(config)
    asked: list[int] = []

    def is_asked_to_stop() -> bool:
        asked.append(1)
        return len(asked) == question

    with pytest.raises(RunStopped, match=f"stopped {place}; the same command goes on from there"):
        run_experiment(config, LocalRuntime(run.path, num_threads=1, is_asked_to_stop=is_asked_to_stop))
    report = run_experiment(config)
    assert report.folder == run.path
    assert equal(weights(report), weights(whole))
    assert without_times(report.history) == without_times(whole.history)


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit"])
def test_a_damaged_checkpoint_is_left_for_the_one_before_it(small_run: SmallRun, damage: str) -> None:
    whole = run_experiment(small_run.config("name=whole"))
    config = small_run.config()
    run = open_run(config)
    with pytest.raises(Interrupted):
        run_experiment(config, DyingRuntime(run.path, after=3))
    newest, _ = LocalRuntime(run.path).checkpoints()
    content = bytearray((newest / "tensors.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "tensors.pt").write_bytes(content[: len(content) // 3] if damage == "truncated" else content)
    shown: list[object] = []
    report = run_experiment(config, LocalRuntime(run.path, num_threads=1, show=shown.append))
    assert any(str(line).startswith(f"warning: {newest}: can't be read") for line in shown)
    assert equal(weights(report), weights(whole))
    assert without_times(report.history) == without_times(whole.history)


def test_checkpoints_that_are_damaged_one_after_the_other_are_survived(small_run: SmallRun) -> None:
    """All in the first stage, so that no stage's end is there; and two checkpoints are kept."""
    overrides = ["method.stages.0.epochs=6"]
    whole = run_experiment(small_run.config("name=whole", *overrides))
    config = small_run.config(*overrides)
    run = open_run(config)
    for reports in (3, 1, 1):
        with pytest.raises(Interrupted):
            run_experiment(config, DyingRuntime(run.path, after=reports))
        newest = LocalRuntime(run.path).checkpoints()[0]
        (newest / "tensors.pt").write_bytes(b"")
    report = run_experiment(config)
    assert equal(weights(report), weights(whole))
    assert without_times(report.history) == without_times(whole.history)


def test_if_no_resume_checkpoint_is_whole_the_run_goes_on_from_the_end_of_a_stage(small_run: SmallRun) -> None:
    whole = run_experiment(small_run.config("name=whole"))
    config = small_run.config()
    run = open_run(config)
    with pytest.raises(Interrupted):
        run_experiment(config, DyingRuntime(run.path, after=3))
    for folder in LocalRuntime(run.path).checkpoints():
        (folder / "tensors.pt").write_bytes(b"")
    last = max(run.path.glob("stage-*"))
    shown: list[object] = []
    report = run_experiment(config, LocalRuntime(run.path, num_threads=1, show=shown.append))
    assert any(str(line).startswith(f"going on from {last}: stage") for line in shown)
    assert equal(weights(report), weights(whole))
    assert without_times(report.history) == without_times(whole.history)


def test_without_any_whole_checkpoint_the_run_says_so(small_run: SmallRun) -> None:
    config = small_run.config()
    run = open_run(config)
    with pytest.raises(Interrupted):
        run_experiment(config, DyingRuntime(run.path, after=2))
    for folder in (*LocalRuntime(run.path).checkpoints(), *run.path.glob("stage-*")):
        (folder / "tensors.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="can't be read"):
        run_experiment(config)


def test_fresh_leaves_the_unfinished_run_alone(small_run: SmallRun) -> None:
    config = small_run.config()
    run = open_run(config)
    assert open_run(config) == run
    assert open_run(config, fresh=True).run_id == f"{run.run_id}-2"


def test_runs_are_found_again_by_their_config_and_by_their_recipes_name(small_run: SmallRun) -> None:
    config = small_run.config()
    assert finished_run(config) is None
    assert newest_run("demo-psl", storage_path=small_run.storage) is None
    first = run_experiment(config).folder
    assert finished_run(config) == RunFolder(first)
    second = open_run(config)  # begun, not finished
    assert second.path != first
    assert finished_run(config) == RunFolder(first)
    assert newest_run("demo-psl", storage_path=small_run.storage) == second
    assert newest_run("demo", storage_path=small_run.storage) is None
    assert newest_run("/nowhere", storage_path=small_run.storage) is None  # a path, and no name


def test_a_run_in_use_is_refused(small_run: SmallRun) -> None:
    run = open_run(small_run.config())
    with run.locked(), pytest.raises(ConfigError, match="being trained by another process"), run.locked():
        pass


def test_pictures_without_labels_train_and_say_what_was_skipped(small_run: SmallRun, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(80):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    report = run_experiment(small_run.config("data.name=folder", f"data.root={folder}"))
    assert report.metrics == {}
    assert any("no labels" in note for note in report.notes)
    assert "feature/std" in report.history[-1]
    assert "probe/best/top1" not in report.history[-1]


def test_spoiled_pictures_are_left_out_and_listed(small_run: SmallRun, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for number in range(100):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    (folder / "class0" / "text.jpg").write_text("this is no picture")
    config = small_run.config("data.name=folder", f"data.root={folder}", "data.max_bad_fraction=0.05")
    report = run_experiment(config)
    assert "text.jpg" in (report.folder / "bad_files.txt").read_text()
    assert any("1 pictures can't be read" in note for note in report.notes)
    strict = small_run.config("data.name=folder", f"data.root={folder}", "data.max_bad_fraction=0.0")
    with pytest.raises(DataError, match=r"text\.jpg"):
        run_experiment(strict)


def test_views_larger_than_the_pictures_are_refused_before_training(small_run: SmallRun) -> None:
    with pytest.raises(DataError, match=r"data\.image_size: 64 is larger than the pictures"):
        run_experiment(small_run.config("data.image_size=64"))


def test_end_to_end_is_one_stage_over_all_blocks(small_run: SmallRun) -> None:
    config = small_run.config("method.stages=[{blocks: [1, 2, 3, 4, 5], epochs: 1, level: {angles: 4}}]")
    report = run_experiment(config)
    before, after = build_encoder(config).state_dict(), weights(report)
    assert {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])} == {
        "conv1",
        "bn1",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
    }
