"""Runs in object stores, a folder behind file:// and a server that speaks S3; machines differ by cache folder."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer

from rayssl.cli import main
from rayssl.errors import CheckpointError, ConfigError
from rayssl.experiment import local_runtime, run_experiment
from rayssl.launch import pretrain
from rayssl.object_store import ObjectStore
from rayssl.open_data import open_data
from rayssl.report import Report
from rayssl.runs import RunFolder, finished_run, locate, open_run
from rayssl.storage import split_run_address
from rayssl.training.checkpoints import Checkpoint, Cursor, load_checkpoint, save_checkpoint
from tests.conftest import SMALL, SmallRun

ROOT = Path(__file__).parent.parent
Machine = Callable[[str], None]


class Died(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """A server on this machine that speaks S3, at http://HOST:PORT."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line a request
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """A bucket of the test's own, as boto3 sees it; this process finds the server and its credentials."""
    for name, value in (
        ("AWS_ENDPOINT_URL", s3_server),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "word"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    name = f"bucket-{abs(hash(request.node.nodeid))}"
    found = boto3.resource("s3").Bucket(name)
    found.create()
    return found


@pytest.fixture(params=["file", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where runs are kept."""
    if request.param == "file":
        return f"file://{tmp_path}/store/runs"
    return f"s3://{request.getfixturevalue('bucket').name}/runs"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this process one of a machine of that name; at first of "one"."""

    def move(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{name}"))

    move("one")
    return move


def a_checkpoint(number: int) -> Checkpoint:
    return Checkpoint(Cursor(number), backbone={"weight": torch.full((100,), float(number))})


def write(run: Path, *names: str) -> None:
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"{name}, written")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(report: Report) -> dict[str, torch.Tensor]:
    return torch.load(report.folder / "encoder.pt", weights_only=True)


def assert_same(one: Report, other: Report) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    for row, their_row in zip(one.history, other.history, strict=True):
        assert {**row, "images_per_second": 0} == {**their_row, "images_per_second": 0}
    assert one.metrics == other.metrics


class DyingStore(ObjectStore):
    """Dies before its n-th transfer."""

    def __init__(self, address: str, *, transfers: int) -> None:
        super().__init__(address)
        self._left = transfers

    def _copy(self, *arguments: str, **filesystems: Any) -> None:  # type: ignore[override]
        if self._left == 0:
            raise Died
        self._left -= 1
        super()._copy(*arguments, **filesystems)


def test_another_machine_gets_what_was_brought_and_nothing_else(address: str, machine: Machine) -> None:
    one = ObjectStore(address)
    run = one.folder / "demo-1"
    write(run, "config.yaml", "stage-1/tensors.pt", "stage-1/checkpoint.json", "a folder/with ä name.txt")
    kept = files(run)
    write(run, ".lock", "mlflow.json", "cache/train/images.npy", "ray/snapshot.json", "evaluations/.features/a.npy")
    write(run, "stage-2.partial/tensors.pt")
    one.push(run)
    machine("two")
    two = ObjectStore(address)
    assert two.names() == ["demo-1"]
    two.pull(two.folder / "demo-1")
    assert files(two.folder / "demo-1") == kept


def test_the_record_on_a_server_goes_along(address: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of an SQLite file, which other machines don't have, does not."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    one = ObjectStore(address)
    write(one.folder / "demo-1", "mlflow.json")
    one.push(one.folder / "demo-1")
    machine("two")
    two = ObjectStore(address)
    two.pull(two.folder / "demo-1")
    assert (two.folder / "demo-1" / "mlflow.json").read_text() == "mlflow.json, written"


def test_only_what_has_changed_is_brought(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(address)
    run = store.folder / "demo-1"
    write(run, "config.yaml", "history.jsonl", "stage-1/tensors.pt")
    store.push(run)
    brought: list[str] = []
    copy = ObjectStore._copy

    def note(source: str, target: str, **filesystems: Any) -> None:
        brought.append(Path(source).name)
        copy(source, target, **filesystems)

    monkeypatch.setattr(ObjectStore, "_copy", staticmethod(note))
    (run / "history.jsonl").write_text("another row")
    store.push(run)
    store.pull(run)
    ObjectStore(address).pull(run)
    assert brought == ["history.jsonl"]


def test_the_store_counts_where_a_machine_has_something_else(address: str, machine: Machine) -> None:
    """As after a kill between a checkpoint and its transfer, when another machine has gone on."""
    one = ObjectStore(address)
    run = one.folder / "demo-1"
    save_checkpoint(a_checkpoint(1), run / "checkpoints" / "000001")
    one.push(run)
    save_checkpoint(a_checkpoint(2), run / "checkpoints" / "000002")
    machine("two")
    two = ObjectStore(address)
    theirs = two.folder / "demo-1"
    two.pull(theirs)
    save_checkpoint(a_checkpoint(3), theirs / "checkpoints" / "000002")
    save_checkpoint(a_checkpoint(4), theirs / "checkpoints" / "000003")
    two.push(theirs)
    one.pull(run)
    assert files(run) == files(theirs)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000001", "000002", "000003"]


def test_resume_checkpoints_that_are_dropped_here_are_dropped_there(address: str) -> None:
    store = ObjectStore(address)
    run = store.folder / "demo-1"
    runtime = local_runtime(
        SmallRun(Path("unused")).config(), run, keep=RunFolder(run, store).keep
    )  # which keeps the last two
    for number in range(4):
        runtime.report({}, lambda folder, number=number: save_checkpoint(a_checkpoint(number), folder))  # type: ignore[misc]
    assert store.names(run / "checkpoints") == ["000003", "000004"]


@pytest.mark.parametrize("transfers", range(6))
def test_of_a_checkpoint_that_was_brought_by_half_there_is_nothing(
    address: str, machine: Machine, transfers: int
) -> None:
    """Two folders of two files: after every number of files another machine finds whole checkpoints alone."""
    one = DyingStore(address, transfers=transfers)
    run = one.folder / "demo-1"
    save_checkpoint(a_checkpoint(7), run / "stage-1")
    save_checkpoint(a_checkpoint(8), run / "checkpoints" / "000001")
    write(run, "report.json")
    try:
        one.push(run)
    except Died:
        assert transfers < 5
    machine("two")
    two = ObjectStore(address)
    two.pull(two.folder / "demo-1")
    found = {path.parent for path in (two.folder / "demo-1").rglob("*.pt")}
    assert {load_checkpoint(folder).cursor.stage for folder in found} == {
        *[7][: transfers // 2],
        *[8][: transfers // 4],
    }
    assert (two.folder / "demo-1" / "report.json").exists() == (transfers >= 5)


@pytest.mark.parametrize("transfers", range(3))
def test_a_checkpoint_that_was_replaced_by_half_is_none(address: str, machine: Machine, transfers: int) -> None:
    """Never the new one's tensors with the old one's cursor."""
    one = DyingStore(address, transfers=2)
    run = one.folder / "demo-1"
    save_checkpoint(a_checkpoint(1), run / "stage-1")
    one.push(run)
    save_checkpoint(a_checkpoint(2), run / "stage-1")
    one._left = transfers
    try:
        one.push(run)
    except Died:
        assert transfers < 2
    machine("two")
    two = ObjectStore(address)
    two.pull(two.folder / "demo-1")
    assert (two.folder / "demo-1" / "stage-1").exists() == (transfers == 2)
    if transfers == 2:
        assert load_checkpoint(two.folder / "demo-1" / "stage-1").backbone["weight"][0] == 2


def test_a_name_that_leads_out_of_the_working_copy_is_refused(bucket: Any, tmp_path: Path) -> None:
    store = ObjectStore(f"s3://{bucket.name}/runs")
    bucket.put_object(Key="runs/demo-1/../../../evil", Body=b"x")
    with pytest.raises(ConfigError, match=r"'demo-1/\.\./\.\./\.\./evil' in s3://.* is no name"):
        store.pull(store.folder / "demo-1")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("name", ["../x", "/etc", "a/../../x", "", "a//b", "."])
def test_a_run_is_not_looked_for_outside_of_the_store(name: str, tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}/runs")
    with pytest.raises(ConfigError, match="is no name of a run"):
        store.path_of(name)
    with pytest.raises(ConfigError, match="is outside of"):
        store.pull(store.folder / ".." / "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/runs/demo-1", ("s3://bucket/runs", "demo-1")),
        ("s3://bucket/demo-1/", ("s3://bucket", "demo-1")),
        ("s3://bucket/runs/demo-1/stage-2?region=x", ("s3://bucket/runs?region=x", "demo-1/stage-2")),
        ("file:///runs/demo-1/encoder.pt", ("file:///runs", "demo-1/encoder.pt")),
    ],
)
def test_the_address_of_a_run_is_its_stores_and_its_id(text: str, expected: tuple[str, str]) -> None:
    assert split_run_address(text.removesuffix("/")) == expected
    assert locate(text.removesuffix("/"), storage_path=Path("runs")) == expected[::-1]
    with pytest.raises(ConfigError, match="is not in s3://other/runs"):
        locate(text, storage_path="s3://other/runs")


def test_the_working_copy_of_a_live_run_is_left_alone(address: str, small_run: SmallRun) -> None:
    """An evaluation beside a training on one machine must not put the store's older files in place of newer ones."""
    run = open_run(small_run.config(f"storage_path={address}"))
    with run.locked():
        write(run.path, "stage-1/tensors.pt")
        ObjectStore(address).pull(run.path, unless_locked=True)
        assert (run.path / "stage-1" / "tensors.pt").exists()
    ObjectStore(address).pull(run.path, unless_locked=True)
    assert not (run.path / "stage-1").exists()


@pytest.mark.parametrize("reports", [2, 3], ids=["inside stage 2", "after stage 2"])
def test_a_killed_run_goes_on_on_another_machine_bit_for_bit(
    address: str, small_run: SmallRun, machine: Machine, reports: int
) -> None:
    whole = run_experiment(small_run.config("name=whole"))
    config = small_run.config(f"storage_path={address}")
    run = open_run(config)
    left = [reports]

    def keep_or_die() -> None:
        run.keep()
        left[0] -= 1
        if left[0] == 0:
            raise Died

    with run.locked(), pytest.raises(Died):
        run_experiment(config, local_runtime(config, run.path, keep=keep_or_die))
    machine("two")
    shown: list[object] = []
    report = pretrain(config, show=shown.append)
    assert any("going on from" in str(line) and "stage 2" in str(line) or "stage 3" in str(line) for line in shown)
    assert report.folder.name == run.run_id
    assert report.folder != run.path
    assert_same(report, whole)
    machine("three")
    done = finished_run(config)
    assert done is not None
    assert_same(Report(done.path, report.name, report.history, report.metrics, report.notes), whole)
    assert {"config.yaml", "history.jsonl", "stage-1", "stage-2", "stage-3"} <= {
        path.name for path in done.path.iterdir()
    }
    assert open_run(config).run_id == f"{run.run_id}-2"


def test_evaluations_and_reports_find_a_run_by_its_address_and_by_its_id(
    address: str, small_run: SmallRun, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = run_experiment(small_run.config(f"storage_path={address}", "evaluations=[]")).folder.name
    machine("two")
    main(["evaluate", f"{address}/{run_id}", "--protocol", "knn"])
    main(["evaluate", f"{run_id}/stage-2", "--protocol", "knn", f"storage_path={address}"])
    machine("three")
    main(["report", "demo-psl", "--storage", address])
    page = Path(capsys.readouterr().out.partition("page")[2].split()[0])
    assert "knn" in page.read_text()
    names = {path.name.partition("-")[0] for path in (page.parent / "evaluations").glob("*.json")}
    assert names == {"knn", "stage"}
    machine("four")
    four = ObjectStore(address)
    four.pull(four.folder / run_id)
    assert (four.folder / run_id / "report.html").read_text() == page.read_text()
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", f"{run_id}0", "--protocol", "knn", f"storage_path={address}"])
    assert f"unknown. Did you mean '{run_id}'?" in capsys.readouterr().err


def test_mistakes_are_one_message_before_anything_starts(
    bucket: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for address, message in (
        (f"s3://no-{bucket.name}/runs", "NO_SUCH_BUCKET during CreateMultipartUpload"),
        (f"file://{tmp_path}/file", "can't be written and read"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["pretrain", "demo-psl", *SMALL, f"storage_path={address}"])
        error = capsys.readouterr().err
        assert error.startswith(f"error: storage_path: {address} can't be written and read (")
        assert message in error
        assert len(error.splitlines()) == 1
    assert not list(tmp_path.glob("cache-*/rayssl/storage/*/demo-psl*"))
    with pytest.raises(SystemExit, match="2"):
        main(["search", str(ROOT / "search_spaces/smoke.yaml"), f"storage_path=s3://{bucket.name}/runs"])
    assert "storage_path: a search needs a folder that all nodes see" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "--storage", f"s3://no-{bucket.name}/runs"])
    assert "FAIL  storage" in capsys.readouterr().out


def test_a_job_may_keep_its_run_in_an_object_store(capsys: pytest.CaptureFixture[str]) -> None:
    """What is refused here is the cluster, which isn't there, and no more the storage."""
    submit = [
        "submit",
        "--address",
        "http://127.0.0.1:1",
        "--",
        "pretrain",
        "demo-psl",
        "storage_path=s3://bucket/runs",
    ]
    with pytest.raises(SystemExit, match="2"):
        main(submit)
    assert "http://127.0.0.1:1" in capsys.readouterr().err


def test_each_machine_decodes_pictures_for_itself(address: str, small_run: SmallRun, tmp_path: Path) -> None:
    """A worker that leads its node writes them, whatever its rank, into the node's own working copy."""
    open_data(small_run.config(f"storage_path={address}"), tmp_path / "node", rank=1, leads_node=True)
    assert (tmp_path / "node" / "cache" / "train" / "cache.json").is_file()


def test_a_store_that_goes_away_is_told_of_with_the_way_out(tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}/store")
    write(store.folder / "demo-1", "config.yaml")
    (tmp_path / "store").write_text("a file in its place")
    with pytest.raises(CheckpointError, match="can't be written or read .* the same command goes on"):
        store.push(store.folder / "demo-1")


def test_the_doctor_tries_an_object_store(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--storage", address])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[1] == "storage")
    assert line.startswith(f"ok    storage         {address}: writes and reads ")
    assert ObjectStore(address).names() == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_run_on_ray_goes_on_from_the_store_on_another_machine(
    bucket: Any, small_run: SmallRun, machine: Machine, tmp_path: Path
) -> None:
    """Two workers, the driver SIGKILLed in stage 2: the result is that of a plain folder, bit for bit."""
    command = [sys.executable, "-m", "rayssl", "pretrain", "demo-psl", *SMALL, "method.stages.1.epochs=4"]
    command += ["cluster.workers=2"]
    in_store = [*command, f"storage_path=s3://{bucket.name}/runs"]

    def finish(command: list[str]) -> tuple[str, Path]:
        output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        return output, Path(next(line.split()[-1] for line in output.splitlines() if line.startswith("checkpoint")))

    _, plain = finish([*command, f"storage_path={small_run.storage}"])
    with subprocess.Popen(in_store, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("stage 2/3"):
                first.kill()
                break
        first.stdout.read()
    assert first.returncode == -signal.SIGKILL
    time.sleep(5)  # until its workers are gone too
    machine("two")
    shown, encoder = finish(in_store)
    assert encoder.is_relative_to(tmp_path / "cache-two")
    assert "going on from" in shown
    assert "stage 1/3" not in shown
    ours, theirs = (torch.load(path, weights_only=True) for path in (encoder, plain))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    there = {path.name for path in encoder.parent.iterdir()}
    assert {"stage-1", "stage-2", "stage-3", "history.jsonl", "report.md", "report.json"} <= there
    command = [sys.executable, "-m", "rayssl", "evaluate", f"s3://{bucket.name}/runs/{encoder.parent.name}"]
    machine("three")
    output = subprocess.run([*command, "--protocol", "knn"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    results = Path(output.stdout.split()[-1])
    assert results.is_relative_to(tmp_path / "cache-three")
    assert "knn" in results.read_text()
    store = ObjectStore(f"s3://{bucket.name}/runs")
    assert store.names(results.parent) == []  # nothing is left of what Ray kept there
