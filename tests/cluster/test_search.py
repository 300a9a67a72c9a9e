"""Searches on a real Ray: weak trials are stopped, the best recipe repeats its value, a killed search goes on."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayssl.cluster.environment import ray_cluster
from rayssl.cluster.proposals import import_optuna
from rayssl.cluster.schedulers import make_stopper
from rayssl.config import ClusterConfig, load_config
from rayssl.errors import ConfigError
from rayssl.experiment import run_experiment
from rayssl.search import SearchResult, search
from rayssl.search_report import TrialRecord, best_trial, importance, name_value, read_records, table, write_tables
from rayssl.search_space import Study, load_study
from tests.conftest import SMALL

ROOT = Path(__file__).parent.parent.parent
RAY = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def write_study(folder: Path) -> Path:
    """Two learning rates of which one learns nothing, and two lengths of the last stage; one trial after another."""
    pairs = [text.partition("=") for text in SMALL]
    fixed = "".join(f"  {key}: {value}\n" for key, _, value in pairs if key != "method.stages.2.epochs")
    path = folder / "tiny.yaml"
    path.write_text(
        f"recipe: demo-psl\nset:\n{fixed}  storage_path: {folder / 'runs'}\nsearch:\n"
        "  optimizer.learning_rate: {grid_search: [0.1, 1e-6]}\n  method.stages.2.epochs: {grid_search: [1, 2]}\n"
        "tune: {metric: loss, mode: min, num_samples: 1, reduction_factor: 2, workers: 1, concurrency: 1}\n"
    )
    return path


def command(study: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "rayssl", "search", str(study), *options]


def run_until(beginning: str, command: list[str], number: signal.Signals) -> "subprocess.CompletedProcess[str]":
    """Run a command until it prints a line that begins so, then send it a signal; gives what it printed."""
    # What a shell starts in the background ignores interruptions, and its children inherit that.
    listening = ["env", "--default-signal=INT", *command]
    with subprocess.Popen(
        listening, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(beginning):
                process.send_signal(number)
                break
        rest, errors = process.communicate()
    time.sleep(5)  # a killed driver's Ray needs a moment to notice
    return subprocess.CompletedProcess(command, process.returncode, "".join(lines) + rest, errors)


def mlflow_runs(folder: Path) -> list[tuple[str, str, str | None, dict[str, str]]]:
    """(name, status, the parent's name, tags) of every run."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    (experiment,) = (each for each in client.search_experiments() if each.name == "rayssl")
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    return [
        (run.info.run_name, run.info.status, names.get(run.data.tags.get("mlflow.parentRunId", "")), run.data.tags)
        for run in runs
    ]


class TestASearch:
    pytestmark = RAY

    def test_weak_trials_are_stopped_and_the_best_recipe_repeats_its_value(self, tmp_path: Path) -> None:
        study = write_study(tmp_path)
        result = subprocess.run(command(study), cwd=ROOT, check=True, capture_output=True, text=True)
        (folder,) = (tmp_path / "runs").glob("search-tiny-*")
        records = read_records(folder / "trials")

        # The rate of 1e-6 is worse after one epoch; the second trial of each rate takes over what the first trained.
        assert [record.status for record in records.values()] == ["finished", "finished", "stopped", "stopped"]
        assert [record.epoch for record in records.values()] == [4, 5, 1, 1]
        assert [record.reused_epochs for record in records.values()] == [0, 3, 0, 1]
        assert "Shared stages saved 4 of 11 epochs." in result.stdout
        assert len(re.findall(r"^trial t\d+ finished: loss", result.stdout, re.MULTILINE)) == 2
        assert len(re.findall(r"^trial t\d+ stopped: loss", result.stdout, re.MULTILINE)) == 2

        best = best_trial(list(records.values()), "min")
        assert best is not None
        assert (folder / "trials" / best.name / "report.json").exists()
        again = run_experiment(load_config(folder / "best.yaml", [f"storage_path={tmp_path / 'again'}"]))
        assert again.history[-1]["loss"] == best.value
        assert again.metrics == json.loads((folder / "trials" / best.name / "report.json").read_text())["metrics"]

        runs = mlflow_runs(tmp_path)
        children = {name: (status, tags["stopped_early"]) for name, status, parent, tags in runs if parent}
        assert children == {
            f"{folder.name}/t000": ("FINISHED", "false"),
            f"{folder.name}/t001": ("FINISHED", "false"),
            f"{folder.name}/t002": ("KILLED", "true"),
            f"{folder.name}/t003": ("KILLED", "true"),
        }
        assert [(name, status) for name, status, parent, _ in runs if parent is None] == [(folder.name, "FINISHED")]

    @pytest.mark.slow
    def test_a_search_that_is_interrupted_and_killed_goes_on_and_no_trial_is_run_twice(self, tmp_path: Path) -> None:
        study = write_study(tmp_path)
        first = run_until("trial t000 epoch", command(study), signal.SIGINT)
        assert first.returncode == 130
        told = f"interrupted; nothing is lost, go on with: rayssl search {study}\n"
        assert told in first.stderr
        assert not [name for name, status, _, _ in mlflow_runs(tmp_path) if status == "RUNNING"]
        run_until("trial t001 epoch", command(study), signal.SIGKILL)
        third = subprocess.run(command(study, "--resume"), cwd=ROOT, check=True, capture_output=True, text=True)
        (folder,) = (tmp_path / "runs").glob("search-tiny-*")
        records = read_records(folder / "trials")
        assert [record.status for record in records.values()] == ["finished", "finished", "stopped", "stopped"]
        assert "trial t000 epoch 1/" not in third.stdout
        assert [record.reused_epochs for record in records.values()] == [0, 3, 0, 1]
        runs = mlflow_runs(tmp_path)
        assert len(runs) == 5
        assert not [name for name, status, _, _ in runs if status == "RUNNING"]


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with ray_cluster(ClusterConfig(workers=2)):
        yield


def fake_trial(seconds: float = 0.0) -> Callable[..., None]:
    """Trials that train nothing: two of their eight epochs measure nothing, one trial crashes, one can't go on."""

    def run(study: Study, folder: Path, values: dict[str, Any], *, directory: Path) -> None:
        import tempfile
        import time

        from ray import tune

        name = tune.get_context().get_trial_name()
        own = folder / "trials" / name
        own.mkdir(parents=True, exist_ok=True)
        (own / "directory").write_text(str(directory))
        if name == "t001":
            raise RuntimeError("boom")
        if name == "t002":
            (own / "mistake.json").write_text(json.dumps("data.root: is gone"))
            return
        checkpoint = tune.get_checkpoint()
        done = int((Path(checkpoint.path) / "epoch").read_text()) if checkpoint else 0
        for epoch in range(done + 1, 9):
            time.sleep(seconds)
            if epoch in (3, 6):
                continue
            row = {"epoch": epoch, "epochs": 8, "reused_epochs": 0, "loss": values["optimizer.learning_rate"] / epoch}
            with tempfile.TemporaryDirectory() as temporary:
                (Path(temporary) / "epoch").write_text(str(epoch))
                tune.report(row, checkpoint=tune.Checkpoint.from_directory(temporary))

    return run


def search_by_fakes(folder: Path, monkeypatch: pytest.MonkeyPatch, tune: str, *, seconds: float = 0.0) -> SearchResult:
    path = folder / "fake.yaml"
    path.write_text(
        f"recipe: demo-psl\nset: {{storage_path: {folder / 'runs'}, evaluations: [], cluster.max_failures: 0, "
        "training.checkpoint_every: 1, method.stages.0.epochs: 4, method.stages.1.epochs: 2, "
        "method.stages.2.epochs: 2}\n"
        "search:\n  optimizer.learning_rate: {uniform: [0.1, 0.8]}\n"
        f"tune: {{metric: loss, mode: min, num_samples: 8, workers: 1, reduction_factor: 2, {tune}}}\n"
    )
    monkeypatch.setattr("rayssl.cluster.trial.run_trial", fake_trial(seconds))
    return search(load_study(path), show=lambda event: None)


class TestFakeTrials:
    pytestmark = RAY

    @pytest.mark.parametrize(
        "scheduler",
        ["asha", "hyperband", *(pytest.param(name, marks=pytest.mark.slow) for name in ("median", "pbt", "none"))],
    )
    def test_a_scheduler_stands_trials_that_fail_and_epochs_that_measure_nothing(
        self, scheduler: str, ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        result = search_by_fakes(tmp_path, monkeypatch, f"scheduler: {scheduler}")
        records = result.records
        assert sorted(records) == [f"t{number:03d}" for number in range(8)]
        assert records["t001"].status == "failed"
        assert records["t001"].message == "crashed: RuntimeError: boom (tune/t001/error.txt has all)"
        assert (result.folder / "tune" / "t001" / "error.txt").exists()
        assert (records["t002"].status, records["t002"].message) == ("failed", "data.root: is gone")
        others = {record.status for name, record in records.items() if name not in ("t001", "t002")}
        assert others == ({"finished"} if scheduler in ("pbt", "none") else {"finished", "stopped"})
        assert result.best is not None
        # Relative paths of a recipe mean in trials what they mean here, though a cluster's nodes start them elsewhere.
        assert (result.folder / "trials" / "t000" / "directory").read_text() == str(Path.cwd())
        assert result.best.status == "finished"
        assert {status for _, status, _, _ in mlflow_runs(tmp_path)} <= {"FINISHED", "KILLED", "FAILED"}

    @pytest.mark.slow
    def test_a_time_budget_ends_the_search_and_the_best_so_far_is_told(
        self, ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = "scheduler: none, concurrency: 1, time_budget_s: 40"
        result = search_by_fakes(tmp_path, monkeypatch, settings, seconds=6)
        assert [record.status for record in result.records.values()] == ["stopped"]
        assert result.notes[1] == "8 were asked for; the time budget of 40 s was over before."
        assert result.notes[2].startswith("No trial came to its end. The best of them is t000, at epoch ")
        assert result.recipe is not None
        assert load_config(result.recipe).name == "fake-best"


def test_a_trial_stops_when_a_number_is_good_enough(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path), ["tune.stop={loss: 0.5, accuracy: 0.9}"])
    stops = make_stopper(study)
    assert [stops("t000", {"loss": loss}) for loss in (0.6, 0.5)] == [False, True]
    assert [stops("t000", {"accuracy": accuracy}) for accuracy in (0.8, 0.9)] == [False, True]
    assert not stops("t000", {"epoch": 1})


def test_there_is_nothing_to_resume_before_a_search(tmp_path: Path) -> None:
    result = subprocess.run(
        command(write_study(tmp_path), "--resume"), cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "error: --resume: there is no search of this study in" in result.stderr


def test_a_dry_run_prints_samples_and_plan_and_starts_nothing(tmp_path: Path) -> None:
    result = subprocess.run(
        command(write_study(tmp_path), "--dry-run"), cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "4 trials, 1 at a time here, 5 epochs at most each; asha stops weak ones from epoch 1 on" in result.stdout
    assert "at most 18 epochs in all" in result.stdout
    assert not (tmp_path / "runs").exists()


def test_optuna_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"tune\.algorithm: optuna is not installed"):
        import_optuna()


def test_the_best_trial_is_a_finished_one_and_the_table_begins_with_the_best_value(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    values = study.samples()
    records = [
        TrialRecord("t000", values[0], "finished", 0.9),
        TrialRecord("t001", values[1], "stopped", 0.1),
        TrialRecord("t002", values[2], "finished", 0.5),
        TrialRecord("t003", values[3], "failed"),
    ]
    assert best_trial(records, "min") == records[2]
    assert best_trial(records, "max") == records[0]
    assert [row[0] for row in table(study, records)[1]] == ["t001", "t002", "t000", "t003"]


def test_long_choices_are_told_apart_in_the_table_and_written_in_full(tmp_path: Path) -> None:
    """Lists of stages begin alike."""
    study = load_study(ROOT / "search_spaces" / "psl_partition.yaml")
    samples = study.samples()
    cells = [name_value(study, "method.stages", values["method.stages"]) for values in samples]
    assert [cell.split()[0] for cell in cells] == [f"#{number}" for number in range(1, 8)]
    records = [TrialRecord(f"t{i:03d}", values, "finished", 0.5) for i, values in enumerate(samples)]
    with write_tables(study, records, tmp_path, notes=[])[0].open() as file:
        rows = list(csv.DictReader(file))
    assert [json.loads(row["method.stages"]) for row in rows] == [values["method.stages"] for values in samples]


def test_the_key_that_decides_has_nearly_all_importance(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    records = [
        TrialRecord(f"t{i:03d}", values, "finished", 1.0 if values["optimizer.learning_rate"] == 0.1 else 2.0)
        for i, values in enumerate(study.samples() * 3)
    ]
    shares = importance(study, records)
    assert next(iter(shares)) == "optimizer.learning_rate"
    assert shares["optimizer.learning_rate"] > 0.95
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(study, records[:5]) == {}
