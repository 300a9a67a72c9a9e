"""Searches on a real Ray: weak trials are stopped, the best recipe repeats its value, a killed search goes on."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayssl.cluster.proposals import import_optuna
from rayssl.config import load_config
from rayssl.errors import ConfigError
from rayssl.experiment import run_experiment
from rayssl.search_report import TrialRecord, best_trial, importance, read_records, table
from rayssl.search_space import load_study
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
    def test_a_killed_search_goes_on_and_no_trial_is_run_twice(self, tmp_path: Path) -> None:
        study = write_study(tmp_path)
        first = subprocess.Popen(command(study), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("trial t001 epoch"):
                first.kill()
                break
        first.wait()
        time.sleep(5)
        second = subprocess.run(command(study, "--resume"), cwd=ROOT, check=True, capture_output=True, text=True)
        (folder,) = (tmp_path / "runs").glob("search-tiny-*")
        records = read_records(folder / "trials")
        assert [record.status for record in records.values()] == ["finished", "finished", "stopped", "stopped"]
        assert "trial t000 epoch 1/" not in second.stdout
        runs = mlflow_runs(tmp_path)
        assert len(runs) == 5
        assert not [name for name, status, _, _ in runs if status == "RUNNING"]


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
