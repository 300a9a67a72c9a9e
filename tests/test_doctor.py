"""`rayssl doctor`: each line is ok or says what to do. Services are real or tiny; what can't be had here is a stub."""

import json
import resource
import sqlite3
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import ViewType
from PIL import Image

from rayssl.cli import main
from rayssl.doctor import machine, places, services
from tests.test_tracking import free_port, server

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and SQLAlchemy's own


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster, server or token of whoever runs the tests."""
    for name in (
        "RAY_ADDRESS",
        "MLFLOW_TRACKING_URI",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "CUDA_VISIBLE_DEVICES",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@contextmanager
def dashboard(*, token: str | None) -> Iterator[str]:
    """Answers /api/version as Ray's dashboard does: 401 without a token, 403 with a wrong one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers["Authorization"]
            code = 200 if token is None or given == f"Bearer {token}" else 401 if given is None else 403
            self.send_response(code if self.path == "/api/version" else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"version": "4", "ray_version": "2.60.0"}).encode() if code == 200 else b"no")

        def log_message(self, *_: object) -> None:
            pass

    found = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.server_port}"
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


def test_all_is_ok_on_this_machine_and_nothing_is_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: 0)
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        soft, _ = resource.getrlimit(kind)
        assert soft == resource.RLIM_INFINITY or soft >= 4096, "this machine's own limits are too low"
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--storage", str(tmp_path / "deep" / "runs")])
    lines = capsys.readouterr().out.splitlines()
    assert [line[6:22].strip() for line in lines] == [
        "python",
        "libraries",
        "gpus",
        "ray",
        "mlflow",
        "storage",
        "data",
        "shared memory",
        "open files",
        "processes",
        "locked memory",
    ]
    assert all(line.startswith("ok    ") for line in lines)
    assert end.value.code == 0
    assert "rayssl doctor --data DIR" in lines[6]
    assert list(tmp_path.iterdir()) == []


def test_anything_that_is_not_ok_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--storage", str(tmp_path / "file")])
    assert end.value.code == 2
    output = capsys.readouterr().out
    assert "FAIL  storage" in output
    assert "FAIL  mlflow" in output


def test_a_library_that_is_missing_is_named_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if name == "mlflow":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(machine, "version", version)
    monkeypatch.setitem(sys.modules, "rayssl.tracking", None)  # stands for what fails to import
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "--storage", str(tmp_path)])
    lines = {line[6:22].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert "missing: mlflow. Install them" in lines["libraries"]
    assert "can't be looked at" in lines["mlflow"]
    assert "locked memory" in lines


def test_a_machine_without_gpus_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: 0)
    assert machine.gpus().ok


@pytest.mark.parametrize(
    ("cuda", "visible", "message"),
    [
        (None, None, "is built for CPUs alone. Install its build for CUDA"),
        ("12.8", None, "built for CUDA 12.8, can't use them (The NVIDIA driver is too old). nvidia-smi names"),
        ("12.8", "", "CUDA_VISIBLE_DEVICES= hides them from torch"),
    ],
)
def test_gpus_that_torch_cannot_use_are_not_ok(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, visible: str | None, message: str
) -> None:
    def is_available() -> bool:
        warnings.warn("The NVIDIA driver is too old.\nMore.", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: 2)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    finding = machine.gpus()
    assert not finding.ok
    assert finding.text.startswith("2 NVIDIA GPUs, but ")
    assert message in finding.text


def test_a_gpu_that_torch_has_no_code_for_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*_: object, device: str) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nMore.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
    monkeypatch.setattr(torch, "ones", ones)
    finding = machine.gpus()
    assert not finding.ok
    assert "A GPU (number 0) can't compute (CUDA error: no kernel image is available)" in finding.text


def test_gpus_are_counted_by_their_devices_or_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(machine, "_DEVICES", tmp_path / "dev")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert machine.nvidia_gpus() == 0
    command = tmp_path / "bin" / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'GPU 0: one'; echo '  MIG 1g'; echo 'GPU 1: two'\n")
    command.chmod(0o755)
    assert machine.nvidia_gpus() == 2
    command.write_text("#!/bin/sh\nexit 9\n")
    assert machine.nvidia_gpus() is None
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert machine.nvidia_gpus() == 3


def test_a_dashboard_says_what_is_wrong_with_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with dashboard(token="XYZZY") as address:
        finding = services.ray(address)
        assert not finding.ok
        assert "wants a token (401). Set RAY_AUTH_MODE=token" in finding.text
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        assert "wants a token (401), and there is none here" in services.ray(address).text
        monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
        finding = services.ray(address)
        assert not finding.ok
        assert "refuses the token (403), which is another than the cluster's" in finding.text
        assert "another " not in finding.text.replace("another than", "")
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        (tmp_path / "token").write_text("XYZZY\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        finding = services.ray(f"{address}/")
        assert finding.ok
        assert finding.text == f"{address} answers, Ray 2.60.0, and the token is right"
    with dashboard(token=None) as address:
        finding = services.ray(address)
        assert finding.ok
        assert "without asking for a token: whoever reaches it can run programs there" in finding.text


def test_what_is_no_dashboard_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "there is no token. Put it into" in services.ray("127.0.0.1:1").text
    finding = services.ray("http://127.0.0.1:1")
    assert not finding.ok
    assert "no dashboard of Ray answers" in finding.text
    with dashboard(token=None) as address:
        finding = services.ray(f"{address}/elsewhere")
        assert "answers with 404" in finding.text
    finding = services.ray("http://me:XYZZY@127.0.0.1:1")
    assert "http://***@127.0.0.1:1: must carry no password" in finding.text


def test_a_database_that_cannot_be_written_is_not_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert services.mlflow(tmp_path / "new").ok
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE runs (id)")
    before = file.read_bytes()
    assert services.mlflow(tmp_path).ok
    assert file.read_bytes() == before
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(services, "_TIMEOUT", 0.1)
        finding = services.mlflow(tmp_path)
        assert not finding.ok
        assert "can't be written (database is locked)" in finding.text
    file.write_text("no database at all, but a text that is long enough")
    assert "file is not a database" in services.mlflow(tmp_path).text


def test_an_mlflow_server_gets_a_run_and_a_file_and_keeps_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with server(tmp_path / "server", port):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        for _ in range(2):
            finding = services.mlflow(tmp_path)
            assert finding.ok, finding.text
            assert "files go to mlflow-artifacts:/" in finding.text
        client = MlflowClient(uri)
        experiments = client.search_experiments(view_type=ViewType.ALL)
        assert sorted(each.name for each in experiments) == ["Default", "rayssl-doctor"]
        assert client.search_runs([each.experiment_id for each in experiments]) == []
        deleted = client.search_runs([each.experiment_id for each in experiments], run_view_type=ViewType.DELETED_ONLY)
        assert [run.info.status for run in deleted] == ["FINISHED", "FINISHED"]
        assert [path for path in (tmp_path / "server" / "store").rglob("*") if path.is_file()] == []
        client.delete_experiment(client.get_experiment_by_name("rayssl-doctor").experiment_id)
        assert services.mlflow(tmp_path).ok  # though somebody has tidied up
        store = tmp_path / "server" / "store"
        for path in sorted(store.rglob("*"), reverse=True):
            path.rmdir()
        store.rmdir()
        store.write_text("a file in its place")
        finding = services.mlflow(tmp_path)
        assert not finding.ok
        assert f"MLflow at {uri}: can't be reached or written" in finding.text


def test_a_driver_that_is_missing_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql+pymysql://me:XYZZY@127.0.0.1:1/db")
    finding = services.mlflow(tmp_path)
    assert not finding.ok
    assert "pymysql" in finding.text
    assert "XYZZY" not in finding.text


def test_storage_that_cannot_be_written_is_not_ok_and_a_new_folder_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not places.storage(tmp_path / "file").ok
    assert not places.storage(tmp_path / "file" / "below").ok
    assert places.storage(tmp_path / "a" / "b").ok
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_pictures_are_tried(tmp_path: Path) -> None:
    assert not places.data(tmp_path / "nowhere").ok
    (tmp_path / "cats").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "cats" / "a.png")
    finding = places.data(tmp_path)
    assert finding.ok
    assert "1 pictures, 1 classes, median short side 30 px" in finding.text
    (tmp_path / "cats" / "a.png").write_text("none")
    assert not places.data(tmp_path).ok


@pytest.mark.parametrize(
    ("kind", "limits", "text"),
    [
        ("open_files", (1024, 1 << 20), "at most 1024; Ray wants 4096 or more: ulimit -n 65536"),
        ("open_files", (1024, -1), "at most 1024; Ray wants 4096 or more: ulimit -n 65536"),
        ("open_files", (1024, 8192), "at most 1024; Ray wants 4096 or more: ulimit -n 8192"),
        ("open_files", (1024, 2048), "and the hard limit is 2048; Ray wants 4096 or more: let root raise it"),
        ("open_files", (4096, 4096), None),
        ("open_files", (-1, -1), None),
        ("processes", (500, -1), "at most 500; Ray wants 4096 or more: ulimit -u 65536"),
        ("processes", (-1, -1), None),
        ("locked_memory", (65536, 65536), None),
    ],
)
def test_limits_that_are_too_low_are_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, limits: tuple[int, int], text: str | None
) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(machine, "_CGROUP_PROCESSES", tmp_path / "pids.max")
    monkeypatch.setattr(machine, "_DEVICES", tmp_path)
    finding = getattr(machine, kind)()
    assert finding.ok is (text is None)
    assert text is None or text in finding.text


def test_a_containers_own_limit_of_processes_and_infiniband_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (65536, 65536))
    monkeypatch.setattr(machine, "_CGROUP_PROCESSES", tmp_path / "pids.max")
    monkeypatch.setattr(machine, "_DEVICES", tmp_path)
    (tmp_path / "pids.max").write_text("max\n")
    assert machine.processes().ok
    (tmp_path / "pids.max").write_text("256\n")
    assert "the container may have 256" in machine.processes().text
    (tmp_path / "infiniband").mkdir()
    finding = machine.locked_memory()
    assert not finding.ok
    assert "ulimit -l unlimited" in finding.text


@pytest.mark.parametrize(
    ("total", "free", "text"),
    [
        (64 << 20, 64 << 20, "has 0.06 GiB; start the container with --shm-size=8g"),
        (8 << 30, 1 << 20, "has 0.00 of 8 GiB free; delete what dead processes left"),
        (8 << 30, 4 << 30, None),
    ],
)
def test_shared_memory_must_have_room(monkeypatch: pytest.MonkeyPatch, total: int, free: int, text: str | None) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(total=total, free=free))
    finding = machine.shared_memory()
    assert finding.ok is (text is None)
    assert text is None or text in finding.text


def test_without_shared_memory_something_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_SHARED", tmp_path / "shm")
    assert not machine.shared_memory().ok
