"""How a cluster is joined or started: who can reach it, how long is waited for it, and what is said if it won't do."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray

from rayssl.cluster import environment
from rayssl.config import ClusterConfig
from rayssl.errors import ClusterError

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

LISTENERS = """
import json, os
from pathlib import Path
from rayssl.cluster.environment import ray_cluster
from rayssl.config import ClusterConfig

def family():
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass
    found, new = {os.getpid()}, {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new}
        found |= new
    return found

def addresses():
    sockets = set()
    for pid in family():
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(descriptor))
            except OSError:
                pass
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                yield fields[1].partition(":")[0]

with ray_cluster(ClusterConfig(workers=1), nested=True):
    import ray
    ray.get(ray.remote(lambda: None).remote())  # a worker process, too
    print("listening", json.dumps(sorted(set(addresses()))))
"""
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
"""127.0.0.1, the same as IPv6 writes it, and ::1, as /proc/net/tcp does."""


def test_a_cluster_that_a_run_starts_for_itself_listens_on_loopback_alone() -> None:
    """With the dashboard; read from the kernel's tables, for this process and all that it has started."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], capture_output=True, text=True, env=environment, check=True
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("listening")]
    found = json.loads(line.removeprefix("listening"))
    assert found and set(found) <= set(LOOPBACK), found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, float]]]:
    """What an autoscaler is asked for."""
    calls: list[list[dict[str, float]]] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda *, bundles: calls.append(bundles))
    return calls


def test_a_running_cluster_that_is_too_small_is_waited_for(
    asked: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node may have been lost a moment ago."""
    sizes = [{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 4.0}, {"CPU": 4.0}]
    monkeypatch.setattr(ray, "cluster_resources", lambda: sizes.pop(0))
    monkeypatch.setattr(environment.time, "sleep", lambda _: None)
    environment._check_size(ClusterConfig(workers=(2, 8), cpus_per_worker=2), patience=60.0)
    assert len(sizes) == 1
    assert asked == [[{"CPU": 2}, {"CPU": 2}], []]
    environment._check_size(ClusterConfig(workers=4), patience=60.0)
    assert len(asked) == 2  # there is room


AUTOSCALED = """
import subprocess, sys
from rayssl.cluster.environment import ray_cluster
from rayssl.config import ClusterConfig
with ray_cluster(ClusterConfig(workers=2, address=sys.argv[1], wait_s=120)):
    import ray
    print("CPUs", ray.cluster_resources()["CPU"])
"""


AUTOSCALER: dict[str, Any] = {
    "cluster_name": "processes-of-this-machine",
    "max_workers": 4,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 100_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 4,
        },
    },
    "head_node_type": "ray.head.default",
    "auth": {},
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 1.0,
    **{
        name: []
        for name in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    },
    **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")},
    **{name: [] for name in ("rsync_exclude", "rsync_filter")},
    "docker": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
}


@pytest.mark.slow
def test_an_autoscaler_is_asked_for_nodes(tmp_path: Path) -> None:
    """A head without CPUs, as on Kubernetes, and Ray's own autoscaler, whose nodes are processes of this machine."""
    import psutil  # comes with Ray

    config = tmp_path / "autoscaler.json"
    config.write_text(json.dumps(AUTOSCALER))
    port = 6379  # where the nodes that this autoscaler starts look for their head
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            pytest.skip(f"something else listens on {port}")
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the path of a socket must be short
    head = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0", f"--port={port}"]
    head += [f"--autoscaling-config={config}", f"--temp-dir={temporary}", "--include-dashboard=false"]
    variables = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "disabled",
    }
    with (tmp_path / "head.log").open("w") as log:
        cluster = subprocess.Popen(head, start_new_session=True, env=variables, stdout=log, stderr=log)
    try:
        for _ in range(60):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(1)
        command = [sys.executable, "-c", AUTOSCALED, f"127.0.0.1:{port}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200, env=variables)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout.split()[-1]) >= 2
    finally:
        family = psutil.Process(cluster.pid).children(recursive=True)  # nodes are in sessions of their own
        cluster.kill()
        cluster.wait()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def test_a_cluster_that_stays_too_small_is_refused_with_what_is_missing(
    asked: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    config = ClusterConfig(workers=2, gpus_per_worker=1)
    with pytest.raises(ClusterError, match="2 workers with 1 GPUs each need 2, the cluster has 1. Lower"):
        environment._check_size(config, patience=0.0)
    clock = iter([0.0, 61.0])
    monkeypatch.setattr(environment.time, "monotonic", lambda: next(clock))
    with pytest.raises(ClusterError, match="the cluster has 1, also after 60 s \\(cluster.wait_s\\). Lower"):
        environment._check_size(config, patience=60.0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError(
                "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1\n"
                "This process on node was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
            ),
            "started with: Ray: 2.50.0 Python: 3.12.1 This process on node was started with: Ray: 2.60.0 "
            "Python: 3.11.7 Install the cluster's versions here",
        ),
        (ConnectionRefusedError(), "no Ray cluster can be reached at 'head:6379' (ConnectionRefusedError)"),
    ],
)
def test_a_cluster_that_cannot_be_joined_gets_one_line(error: Exception, message: str) -> None:
    told = str(environment._unreachable("head:6379", error))
    assert message in told and len(told.splitlines()) == 1


def test_a_refused_token_is_a_mistake_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ray.exceptions.AuthenticationError("no token")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(environment, "knock", lambda _: None)
    refused = pytest.raises(ClusterError, match="Ray at head:6379 refuses the token, or wants one. Set RAY_AUTH_MODE")
    with refused, environment.ray_cluster(ClusterConfig(workers=1, address="head:6379")):
        pass
