"""Searches that lose a process, a node or a worker, or are told to stop, end as if nothing had happened."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rayssl.cluster.environment import ray_cluster
from rayssl.cluster.train import run_on_ray
from rayssl.config import ClusterConfig, load_config
from rayssl.experiment import run_experiment
from rayssl.runs import open_run
from rayssl.search_report import read_records
from tests.conftest import SMALL

ROOT = Path(__file__).parent.parent.parent
RATES = (0.1, 0.05)
NUM_EPOCHS = 7
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def write_study(folder: Path, tune: str) -> Path:
    """Two learning rates, trained to the end and each on its own, so that a trial has one outcome in any order."""
    fixed = dict(text.split("=", 1) for text in SMALL if not text.startswith("evaluations"))
    fixed |= {"data.limit": "1000", "training.batch_size": "16", "method.stages.1.epochs": str(NUM_EPOCHS - 2)}
    lines = "".join(f"  {key}: {value}\n" for key, value in fixed.items())
    path = folder / "losses.yaml"
    path.write_text(
        f"recipe: demo-psl\nset:\n{lines}  evaluations: []\n  storage_path: {folder / 'runs'}\n"
        f"  cluster.max_failures: 3\nsearch:\n  optimizer.learning_rate: {{grid_search: {list(RATES)}}}\n"
        f"tune: {{metric: loss, mode: min, num_samples: 1, scheduler: none, {tune}}}\nreuse: false\n"
    )
    return path


class Search:
    """`rayssl search` as a process whose lines are read."""

    def __init__(self, study: Path, *options: str, address: str | None = None) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if address is not None:
            environment |= {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-m", "rayssl", "search", str(study), *options]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []

    def read_until(self, pattern: str) -> str:
        """The next line that has the pattern."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return self.lines[-1]
        raise AssertionError("\n".join(self.lines))

    def end(self) -> int:
        """Read what is left; its exit code."""
        assert self.process.stdout is not None
        self.lines += [line.rstrip("\n") for line in self.process.stdout]
        return self.process.wait()

    def has(self, pattern: str) -> bool:
        return any(re.search(pattern, line) for line in self.lines)

    def processes(self, title: str) -> list[int]:
        """Processes of the cluster that this search has started whose title begins so."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if path.read_bytes().startswith(title.encode()) and _descends(int(path.parent.name), self.process.pid):
                    found.append(int(path.parent.name))
            except OSError:  # it has ended meanwhile
                continue
        return found


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == ancestor


def losses_in_plain_processes(folder: Path, again: Path) -> dict[str, list[float]]:
    """The losses of each trial's epochs, trained once more without Ray."""
    return {
        path.parent.name: [row["loss"] for row in run_experiment(load_config(path, [f"storage_path={again}"])).history]
        for path in sorted(folder.glob("trials/*/config.yaml"))
    }


def losses_on_workers(folder: Path, again: Path) -> dict[str, list[float]]:
    """The same, each trial as a run of its own on two workers."""
    losses = {}
    with ray_cluster(ClusterConfig(workers=2)):
        for path in sorted(folder.glob("trials/*/config.yaml")):
            config = load_config(path, [f"storage_path={again}"])
            report = run_on_ray(config, open_run(config).path, tracking_uri=None, show=lambda event: None)
            losses[path.parent.name] = [row["loss"] for row in report.history]
    return losses


def assert_undisturbed(place: Path, undisturbed: Callable[[Path, Path], dict[str, list[float]]]) -> None:
    """The one search of a place has all trials with the values of undisturbed runs, and so has MLflow, each once."""
    (folder,) = (place / "runs").glob("search-losses-*")
    assert (folder / "results.md").exists()
    records = read_records(folder / "trials")
    assert {(each.status, each.epoch) for each in records.values()} == {("finished", NUM_EPOCHS)}
    losses = undisturbed(folder, place / "again")
    assert {name: record.value for name, record in records.items()} == {name: row[-1] for name, row in losses.items()}

    client = MlflowClient(f"sqlite:///{place / 'runs' / 'mlflow.db'}")
    (experiment,) = (each for each in client.search_experiments() if each.name == "rayssl")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = {run.info.run_name.split("/")[1]: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert len(runs) == len(children) + 1
    recorded = {
        name: [(row.step, row.value) for row in client.get_metric_history(run.info.run_id, "loss")]
        for name, run in children.items()
    }
    assert {name: sorted(rows) for name, rows in recorded.items()} == {
        name: list(enumerate(row, start=1)) for name, row in losses.items()
    }


def test_a_trial_whose_process_is_killed_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    search = Search(write_study(tmp_path, "workers: 1, concurrency: 1"))
    search.read_until(r"^trial t001 epoch 3/")
    (process,) = search.processes("ray::ImplicitFunc")
    os.kill(process, signal.SIGKILL)
    assert search.end() == 0, search.lines
    assert search.has(r"^trial t001: warning: crashed: .*; starting again from the last checkpoint$")
    assert_undisturbed(tmp_path, losses_in_plain_processes)


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A cluster of two nodes on this machine, a CPU each; the second one can be taken away."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_a_search_that_loses_a_node_goes_on_and_uses_the_one_that_comes_instead(
    two_nodes: object, tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    assert isinstance(two_nodes, Cluster)
    second = two_nodes.add_node(num_cpus=1)
    search = Search(write_study(tmp_path, "workers: 1"), address=two_nodes.address)
    for name in ("t000", "t001"):  # one of them on each node
        search.read_until(rf"^trial {name} epoch")
    two_nodes.remove_node(second, allow_graceful=False)
    time.sleep(5)
    two_nodes.add_node(num_cpus=1)
    assert search.end() == 0, search.lines
    assert search.has(r"^trial t00\d: warning: crashed: .*; starting again from the last checkpoint$")
    assert_undisturbed(tmp_path, losses_in_plain_processes)


def test_trials_of_several_workers_stand_the_loss_of_one_and_say_which(tmp_path: Path) -> None:
    search = Search(write_study(tmp_path, "workers: 2, concurrency: 1"))
    search.read_until(r"^trial t001 epoch 3/")
    os.kill(search.processes("ray::RayTrainWorker")[-1], signal.SIGKILL)
    assert search.end() == 0, search.lines
    assert search.has(r"^trial t001: warning: worker \d \(on .*\) was lost; starting again from the last checkpoint$")
    assert_undisturbed(tmp_path, losses_on_workers)


@pytest.mark.parametrize(("workers", "undisturbed"), [(1, losses_in_plain_processes), (2, losses_on_workers)])
def test_a_search_that_is_told_to_stop_ends_in_order_and_the_same_command_goes_on(
    workers: int, undisturbed: Callable[[Path, Path], dict[str, list[float]]], tmp_path: Path
) -> None:
    """SIGTERM, as from a scheduler that takes the machine back; 50 steps an epoch, so that it strikes inside of one."""
    study = write_study(tmp_path, f"workers: {workers}, concurrency: 1")
    first = Search(study)
    first.read_until(r"^trial t000 epoch 3/")
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == 143
    assert first.lines[-1] == f"stopped; nothing is lost, go on with: rayssl search {study}"
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (experiment,) = (each for each in client.search_experiments() if each.name == "rayssl")
    assert {run.info.status for run in client.search_runs([experiment.experiment_id])} == {"KILLED"}

    second = Search(study)
    assert second.end() == 0, second.lines
    assert second.has("^going on with it: 0 of 2 trials are over$")
    (log,) = (tmp_path / "runs").glob("search-losses-*/trials/t000/log.txt")
    assert re.search(r"going on from .*: stage 2, after \d epochs and \d+ steps of it", log.read_text())
    assert not second.has(r"^trial t000 epoch [123]/")
    assert_undisturbed(tmp_path, undisturbed)
