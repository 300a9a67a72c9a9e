"""Runs on a real Ray: the numbers of a plain process, killed workers and drivers, mistakes that come back."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from rayssl.cluster.board import ProgressBoard, describe_loss, put_up_board
from rayssl.cluster.claims import claimed
from rayssl.cluster.environment import ray_cluster
from rayssl.cluster.train import run_on_ray, work_on_ray
from rayssl.cluster.trainer import build_trainer
from rayssl.config import ClusterConfig, ExperimentConfig
from rayssl.errors import ClusterError, DataError
from rayssl.experiment import run_experiment
from rayssl.report import Report
from rayssl.runs import open_run
from rayssl.runtime import EpochDone
from tests.conftest import SMALL, SmallRun
from tests.methods.mgta_parts import SMALL as SMALL_MGTA

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, in this process
]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray on this machine for all tests of this file."""
    with ray_cluster(ClusterConfig(workers=2), nested=True):
        yield


def on_ray(config: ExperimentConfig, events: list[object] | None = None) -> Report:
    shown = [] if events is None else events
    return run_on_ray(config, open_run(config).path, tracking_uri=None, show=shown.append)


def weights(report: Report) -> dict[str, torch.Tensor]:
    return torch.load(report.folder / "encoder.pt", weights_only=True)


def assert_same(one: Report, other: Report) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    for row, their_row in zip(one.history, other.history, strict=True):
        assert {**row, "images_per_second": 0} == {**their_row, "images_per_second": 0}
    assert one.metrics == other.metrics


def worker_processes() -> list[int]:
    """Process ids of Ray Train's workers on this machine that belong to this process's cluster."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            is_worker = path.read_bytes().startswith(b"ray::RayTrainWorker")
        except OSError:  # it has ended meanwhile
            continue
        if is_worker and _descends_from(int(path.parent.name), os.getpid()):
            found.append(int(path.parent.name))
    return found


def _descends_from(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def test_one_worker_on_ray_gives_the_numbers_of_a_plain_process(small_run: SmallRun, ray_here: None) -> None:
    plain = run_experiment(small_run.config())
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert_same(on_ray(small_run.config("cluster.workers=1")), plain)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(small_run: SmallRun, ray_here: None) -> None:
    """SIGKILL in stage 2, two workers: bit for bit what the undisturbed run gives.

    A checkpoint that Ray does not know, as if a driver had died just after it was written, is gone afterwards.
    """
    undisturbed = on_ray(small_run.config("cluster.workers=2"))
    killed: list[int] = []
    unknown: list[Path] = []

    class Killer(list[object]):
        """Kills one worker when the first epoch of stage 2 is shown."""

        def append(self, event: object) -> None:
            if isinstance(event, EpochDone) and event.row["stage"] == 2 and not killed:
                newest = max(small_run.storage.glob("*/ray"), key=lambda path: path.stat().st_mtime)
                unknown.append(newest / "checkpoint_2999-01-01_00-00-00.000000")
                unknown[0].mkdir()
                killed.append(worker_processes()[-1])
                os.kill(killed[0], signal.SIGKILL)
            super().append(event)

    events = Killer()
    disturbed = on_ray(small_run.config("cluster.workers=2", "cluster.max_failures=2"), events)
    assert killed
    assert any("going on from" in str(event) for event in events)
    assert_same(disturbed, undisturbed)
    assert not unknown[0].exists()
    assert list(unknown[0].parent.glob("checkpoint_*[0-9]"))


def test_what_a_killed_command_had_claimed_is_given_back(ray_here: None, tmp_path: Path) -> None:
    """An elastic run would wait three minutes for it."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    coordinator = get_or_create_autoscaling_coordinator()

    def reserved(claim: str) -> bool:
        return bool(ray.get(coordinator.get_reserved_resources.remote(claim)))

    for claim in ("train-dead", "train-other"):
        ray.get(coordinator.request_resources.remote(requester_id=claim, resources=[{"CPU": 1}], expire_after_s=600))
    (tmp_path / "ray_claim").write_text("train-dead\n")
    assert reserved("train-dead")
    trainer = SimpleNamespace(train_run_context=SimpleNamespace(run_id="new"))
    with claimed(trainer, tmp_path):
        assert not reserved("train-dead")
        assert reserved("train-other")
        assert (tmp_path / "ray_claim").read_text() == "train-new\n"
    assert not list(tmp_path.iterdir())
    ray.get(coordinator.cancel_request.remote("train-other"))


def test_a_mistake_that_only_workers_see_comes_back_as_itself(small_run: SmallRun, ray_here: None) -> None:
    with pytest.raises(DataError, match=r"data\.root"):
        on_ray(small_run.config("cluster.workers=1", "data.name=folder", "data.root=/nowhere"))


def test_what_a_bug_said_on_a_worker_is_kept_with_its_traceback(
    small_run: SmallRun, ray_here: None, tmp_path: Path
) -> None:
    """Of a pod that is gone nothing else remains."""
    config = small_run.config("cluster.workers=1", "cluster.max_failures=0")

    def work_with_a_bug(*_: object) -> None:
        raise AttributeError("no such attribute")

    with pytest.raises(ClusterError, match=r"ended with: .*no such attribute\. .*error\.txt has all that it said"):
        work_on_ray(work_with_a_bug, config, tmp_path, tracking_uri=None, show=lambda _: None)
    text = (tmp_path / "error.txt").read_text()
    assert "Traceback" in text and "in work_with_a_bug" in text


def snapshot(*names: str) -> str:
    return json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]})


@pytest.mark.parametrize(
    ("content", "is_moved"),
    [
        (snapshot("checkpoint_1", "checkpoint_2"), False),
        (snapshot("checkpoint_0", "checkpoint_1"), True),
        (snapshot("checkpoint_1")[:-9], True),
        ("", True),
        ("[]", True),
    ],
)
def test_a_list_of_checkpoints_that_would_stop_ray_is_moved_aside(
    content: str, is_moved: bool, ray_here: None, tmp_path: Path
) -> None:
    listed = tmp_path / "ray" / "checkpoint_manager_snapshot.json"
    for number in (1, 2):
        (tmp_path / "ray" / f"checkpoint_{number}").mkdir(parents=True)
    listed.write_text(content)
    board = put_up_board(60.0)
    build_trainer(print, {"board": board}, ClusterConfig(), storage_path=str(tmp_path))
    assert listed.exists() != is_moved
    assert len(ray.get(board.take.remote())) == is_moved


@pytest.mark.slow
def test_a_run_goes_on_though_rays_list_of_its_checkpoints_is_damaged(small_run: SmallRun, ray_here: None) -> None:
    config = small_run.config("cluster.workers=1", "evaluations=[]")
    whole = on_ray(config)
    listed = whole.folder / "ray" / "checkpoint_manager_snapshot.json"
    for damaged in (listed.read_text()[:100], snapshot("checkpoint_that_is_gone")):
        (whole.folder / "report.json").unlink()
        listed.write_text(damaged)
        events: list[object] = []
        assert_same(on_ray(config, events), whole)
        assert any("moved aside" in str(event) for event in events)
        assert any("going on from" in str(event) for event in events)
        assert not any(isinstance(event, EpochDone) for event in events)
        assert len(list(listed.parent.glob("checkpoint_*[0-9]"))) == 2


@pytest.mark.parametrize("has_dashboard", [True, False])
def test_the_cleaner_that_asks_the_dashboard_works_only_where_there_is_one(
    has_dashboard: bool, ray_here: None, tmp_path: Path
) -> None:
    trainer = build_trainer(
        print, {"board": None}, ClusterConfig(), storage_path=str(tmp_path), has_dashboard=has_dashboard
    )
    callbacks = [type(callback).__name__ for callback in trainer._create_default_callbacks()]
    assert ("PlacementGroupCleanerCallback" in callbacks) == has_dashboard
    assert {"BackendSetupCallback", "UserCallbackHandler"} <= set(callbacks)


def test_relative_paths_mean_on_workers_what_they_mean_here(
    small_run: SmallRun, ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train starts workers in a folder of its own."""
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "pictures" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    settings = ["data.name=folder", "data.root=pictures", "training.batch_size=16", "evaluations=[]"]
    report = on_ray(small_run.config("cluster.workers=1", *settings))
    assert len(report.history) == 4


def test_more_workers_than_the_cluster_has_are_refused(small_run: SmallRun, ray_here: None) -> None:
    with pytest.raises(ClusterError, match=r"cluster\.workers: 2 workers with 64 CPUs each need 128"):
        on_ray(small_run.config("cluster.workers=2", "cluster.cpus_per_worker=64"))


def test_a_cluster_that_is_not_there_is_one_clear_error() -> None:
    """In a process of its own: this one may be connected already."""
    code = (
        "from rayssl.cluster.environment import ray_cluster\n"
        "from rayssl.config import ClusterConfig\n"
        "with ray_cluster(ClusterConfig(address='127.0.0.1:1')): pass"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert "ClusterError: cluster.address: no Ray cluster can be reached at '127.0.0.1:1'" in result.stderr


HOSTS = {0: "10.0.0.1", 1: "10.0.0.2"}


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        (
            {0: "RuntimeError: Connection reset by peer", 1: "WorkerHealthCheckFailedError: actor died"},
            "worker 1 (on 10.0.0.2) was lost",
        ),
        (
            {0: "RuntimeError: Timed out waiting 60000ms for recv operation"},
            "worker 1 (on 10.0.0.2) does not answer any more, the others have waited for cluster.timeout_s",
        ),
        ({1: "RuntimeError: Connection closed by peer [10.0.0.1]:51081"}, "worker 0 (on 10.0.0.1) was lost"),
        ({1: "ValueError: a bug"}, "worker 1 (on 10.0.0.2) failed: ValueError: a bug"),
        ({2: "ValueError: a bug"}, "worker 2 (on an unknown node) failed: ValueError: a bug"),
    ],
)
def test_the_worker_to_blame_is_named(failures: dict[int, str], message: str) -> None:
    assert describe_loss(failures, HOSTS) == message


FOUR = {0: "10.0.0.1", 1: "10.0.0.1", 2: "10.0.0.2", 3: "10.0.0.2"}
TIMED_OUT = "RuntimeError: Timed out waiting 60000ms for recv operation to complete"


def test_of_many_workers_the_one_that_says_nothing_is_to_blame() -> None:
    """The group ends at the first failure, but the others have told that they were waiting."""
    told = describe_loss({0: TIMED_OUT}, FOUR, waiting=[0, 1, 3])
    assert told.startswith("worker 2 (on 10.0.0.2) does not answer any more")


@pytest.mark.parametrize(
    ("timeout_s", "message"), [(0.0, "worker 2 (on 10.0.0.2) does not answer any more"), (900.0, "worker 0 (on 10.0")]
)
def test_a_worker_that_others_were_ahead_of_is_to_blame_if_all_stood_still(timeout_s: float, message: str) -> None:
    """NCCL ends the workers that have waited, without a word: they look as if they were lost."""
    board = ProgressBoard(timeout_s=timeout_s)
    for rank, host in FOUR.items():
        board.join(rank, 4, host)
        board.stops_at(rank, (3, 4 if rank == 2 else 8))
    board.note_loss({0: "ActorDiedError: the actor died unexpectedly"})
    assert taken(board)[0].startswith(f"warning: {message}")


def test_all_workers_stop_at_the_first_place_that_none_has_passed() -> None:
    board = ProgressBoard()
    assert not board.stops_at(1, (0, 4)) and not board.stops_at(0, (0, 8))  # the first worker is ahead
    board.stop()
    assert not board.stops_at(1, (0, 8))  # the second one catches up
    assert board.stops_at(0, (1, 4)) and board.stops_at(1, (1, 4))
    board.stop()  # asked again and again, until the run has ended
    assert board.stops_at(1, (1, 4))


def test_workers_of_a_larger_group_that_are_gone_put_off_no_stop() -> None:
    """An elastic run that lost half of its workers in the middle of an epoch, and goes on from its checkpoint."""
    board = ProgressBoard()
    for rank in range(4):
        board.stops_at(rank, (3, 900))
    for rank in range(2):
        board.join(rank, 2, f"10.0.0.{rank}")
    assert not board.stops_at(0, (3, 4)) and not board.stops_at(1, (3, 4))
    board.stop()
    assert board.stops_at(0, (3, 8)) and board.stops_at(1, (3, 8))


def taken(board: ProgressBoard) -> list[str]:
    return [pickle.loads(event) for event in board.take()]


def test_a_group_that_finds_no_room_after_a_loss_is_told_once() -> None:
    board = ProgressBoard(patience=0.0)
    for rank, host in HOSTS.items():
        board.join(rank, 2, host)
    board.note_loss({1: "WorkerHealthCheckFailedError: actor died"})
    first, second = taken(board)
    assert first == "warning: worker 1 (on 10.0.0.2) was lost; starting again from the last checkpoint"
    assert "there is no room for 2 workers yet" in second
    assert board.take() == []
    board.note_loss({1: "WorkerHealthCheckFailedError: actor died"})
    board.join(0, 2, HOSTS[0])
    assert len(board.take()) == 1


def ended_after_a_kill(
    command: list[str], stage: str, *, number: signal.Signals = signal.SIGKILL
) -> tuple[str, list[dict[str, torch.Tensor]]]:
    """Give a command twice: once whole, once ended by a signal when a line of `stage` shows and given again.

    Returns:
        What the last call printed, and the weights of both runs.
    """
    whole = subprocess.run([*command, "name=whole"], cwd=ROOT, check=True, capture_output=True, text=True)
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith(stage):
            first.send_signal(number)
            break
    rest = first.stdout.read()
    assert first.wait() == (143 if number == signal.SIGTERM else -number)
    assert ("the same command goes on from there" in rest) == (number == signal.SIGTERM)
    time.sleep(5)
    second = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    results = [
        torch.load(path, weights_only=True)
        for output in (whole.stdout, second.stdout)
        for path in [line.split()[-1] for line in output.splitlines() if line.startswith("checkpoint")]
    ]
    return second.stdout, results


@pytest.mark.slow
def test_a_killed_driver_is_started_again_and_goes_on_in_its_stage(small_run: SmallRun) -> None:
    """The whole command, SIGKILLed in stage 2 and given again."""
    command = [sys.executable, "-m", "rayssl", "pretrain", "demo-psl", *SMALL, "method.stages.1.epochs=4"]
    command += ["cluster.workers=2", f"storage_path={small_run.storage}"]
    shown, (whole, resumed) = ended_after_a_kill(command, "stage 2/3")
    assert "going on from" in shown
    assert "stage 1/3" not in shown
    assert "stage 2/3" in shown
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.slow
def test_a_terminated_driver_leaves_a_checkpoint_in_the_middle_of_an_epoch(small_run: SmallRun) -> None:
    """SIGTERM, as from a scheduler that takes the machine back; 72 steps an epoch, so that it strikes inside of one."""
    command = [sys.executable, "-m", "rayssl", "pretrain", "demo-psl", *SMALL, "method.stages.1.epochs=3"]
    command += ["data.limit=1300", "training.batch_size=16", "online.every=3", "evaluations=[]"]
    command += ["cluster.workers=2", f"storage_path={small_run.storage}"]
    shown, (whole, resumed) = ended_after_a_kill(command, "stage 2/3", number=signal.SIGTERM)
    assert " steps of it" in shown
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.slow
def test_a_worker_that_hangs_is_named_and_the_run_comes_to_its_end(small_run: SmallRun) -> None:
    """One of three stands still, as if a disk did not answer; its connections stay, so nobody notices at once."""
    command = [sys.executable, "-m", "rayssl", "pretrain", "demo-psl", *SMALL, "method.stages.1.epochs=8"]
    command += ["training.batch_size=48", "evaluations=[]", "cluster.workers=3", "cluster.timeout_s=15"]
    command += [f"storage_path={small_run.storage}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    hanging = None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("stage 2/3") and hanging is None:
            hanging = workers_of(process.pid)[0]
            os.kill(hanging, signal.SIGSTOP)
    assert process.wait() == 0, "".join(lines)
    warning, *_ = [line for line in lines if line.startswith("warning:")]
    assert re.match(r"warning: worker \d \(on .*\) does not answer any more", warning), warning
    assert hanging is not None and not Path(f"/proc/{hanging}").exists()


def workers_of(pid: int) -> list[int]:
    """Processes of Ray Train's workers below a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            worker = int(path.parent.name)
            if path.read_bytes().startswith(b"ray::RayTrainWorker") and pid in ancestors(worker):
                found.append(worker)
    return sorted(found)


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


@pytest.mark.slow
def test_mgta_killed_in_the_second_half_of_round_3_goes_on_there(small_run: SmallRun) -> None:
    """Stages: the baseline, three rounds of two halves, the final round; round 3's second half is the seventh."""
    command = [sys.executable, "-m", "rayssl", "pretrain", "mgta-small", *SMALL_MGTA, "method.rounds.count=3"]
    # Long rounds: workers go on for a moment after their driver is gone.
    command += ["method.rounds.epochs=16", "cluster.workers=2", f"storage_path={small_run.storage}"]
    shown, (whole, resumed) = ended_after_a_kill(command, "stage 7/8")
    assert "going on from" in shown
    assert "stage 6/8" not in shown
    assert "stage 7/8" in shown
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
