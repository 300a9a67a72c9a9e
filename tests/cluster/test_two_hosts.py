"""Two hosts with addresses of their own, whose names mean loopback as on Debian, and the cable between them is cut."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parent.parent.parent
SETTINGS = ["backbone.width=16", "data.image_size=16", "data.limit=500", "evaluations=[]", "online.every=2"]
SETTINGS += ["online.knn=false", "training.checkpoint_every=1", *(f"method.stages.{i}.epochs=3" for i in range(3))]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))},
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
    # As in jobs/.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
}


class Hosts:
    """Two network namespaces on a bridge; the first one is the head of a Ray cluster of one CPU each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = [f"rayssl-{os.getpid()}-{number}" for number in (1, 2)]
        self._links = [f"rs{os.getpid()}-{number}" for number in (1, 2)]
        self._bridge = f"rs{os.getpid()}"

    def make(self) -> None:
        try:
            ip("link", "add", self._bridge, "type", "bridge")
        except subprocess.CalledProcessError as error:  # root in a container may have no right to
            pytest.skip(f"hosts can't be made: {error.stderr.strip()}")
        ip("link", "set", self._bridge, "up")
        for number, (name, link) in enumerate(zip(self._names, self._links, strict=True), start=1):
            etc = Path("/etc/netns", name)  # what `ip netns exec` shows there as /etc
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {os.uname().nodename}\n")
            (etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # which answers at once that it is none
            ip("netns", "add", name)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", link, "master", self._bridge, "up")
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")

    def start_ray(self) -> None:
        for number, where in enumerate(
            (["--head", "--port=6379", "--include-dashboard=false"], ["--address=10.77.0.1:6379"]), start=1
        ):
            self.run(
                number,
                [sys.executable, "-m", "ray.scripts.scripts", "start", *where, f"--node-ip-address=10.77.0.{number}"]
                + ["--num-cpus=1", f"--temp-dir={self._folder / f'ray{number}'}"],
            )

    def run(self, number: int, command: list[str]) -> None:
        done = subprocess.run(
            self._inside(number, command), env=ENVIRONMENT, check=False, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def pretrain(self, *settings: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "rayssl", "pretrain", "demo-psl", *SETTINGS, *settings]
        command += ["cluster.address=10.77.0.1:6379", f"storage_path={self._folder / 'runs'}"]
        return subprocess.Popen(
            self._inside(1, command), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def cut(self) -> None:
        ip("link", "set", self._links[1], "down")

    def mend(self) -> None:
        ip("link", "set", self._links[1], "up")

    def close(self) -> None:
        for name, link in zip(self._names, self._links, strict=True):
            with suppress(subprocess.CalledProcessError):
                for pid in ip("netns", "pids", name).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                ip("netns", "del", name)
            with suppress(subprocess.CalledProcessError):
                ip("link", "del", link)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", self._bridge)

    def _inside(self, number: int, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self._names[number - 1], *command]


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs Debian's iproute2 and the rights of root, to make hosts")
    folder = Path(f"/tmp/rs{os.getpid()}")  # the paths of Ray's sockets have to be short
    folder.mkdir()
    hosts = Hosts(folder)
    try:
        hosts.make()
        hosts.start_ray()
        yield hosts
    finally:
        hosts.close()
        shutil.rmtree(folder)


def read_until(process: "subprocess.Popen[str]", beginning: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(beginning):
            return line
    pytest.fail("".join(lines[-20:]))


def weights_at_its_end(process: "subprocess.Popen[str]") -> dict[str, torch.Tensor]:
    path = read_until(process, "checkpoint").split()[-1]
    process.communicate()
    assert process.returncode == 0
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return weights


def test_workers_of_two_hosts_meet_and_outlive_their_cable(hosts: Hosts, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rayssl", "pretrain", "demo-psl", *SETTINGS, "cluster.workers=2"]
    environment = {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    here = subprocess.Popen([*command, f"storage_path={tmp_path}"], env=environment, stdout=subprocess.PIPE, text=True)
    expected = weights_at_its_end(here)

    with hosts.pretrain("cluster.workers=2", "name=short") as process:
        read_until(process, "stage 2/3")
        hosts.cut()
        time.sleep(3)
        hosts.mend()
        found = weights_at_its_end(process)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    with hosts.pretrain("cluster.workers=[1,2]", "name=long", "cluster.max_failures=2") as process:
        read_until(process, "stage 2/3")
        cut_at = time.monotonic()
        hosts.cut()
        lost = read_until(process, "warning: worker")
        assert re.search(r"worker \d \(on 10\.77\.0\.2\) was lost", lost)
        noticed_after = time.monotonic() - cut_at
        assert weights_at_its_end(process).keys() == expected.keys()
    assert noticed_after < 40  # 15 s, and more on a busy machine; Ray's own settings take 65
