"""Ray's settings, in one place: what is set before ray is imported, and how a cluster is joined or started."""

import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from rayssl.config import ClusterConfig
from rayssl.errors import ClusterError

_ONE_NODE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's name for whether nodes of other machines may join, on any system."""
_KNOCK_SECONDS = 10

_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a report costs one poll of the controller: 2 s by default
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # logs an error line on clusters without preemption
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints everything twice
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; says so in a warning otherwise
}


@contextmanager
def ray_cluster(config: ClusterConfig, *, nested: bool = False) -> Iterator[bool]:
    """Join the cluster that the config or RAY_ADDRESS names, or start one on this machine; leave it at the end.

    Args:
        config: The cluster, and what has to fit into it.
        nested: Whether trials of Ray Tune will start workers of Ray Train. A cluster on this machine then has the
            dashboard, without which stopped trials never give back their workers.

    Yields:
        Whether the cluster has a dashboard; of one that this process has joined before, that is taken for granted.

    Raises:
        ClusterError: If the cluster can't be reached or is too small for the workers.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address is None and "ray" not in sys.modules:
        _import_for_one_node()
    import ray
    from ray.exceptions import AuthenticationError

    sigterm = signal.getsignal(signal.SIGTERM)
    if ray.is_initialized():  # the caller's own
        _check_size(config, patience=0.0)
        yield True
        return
    try:
        if address is None:
            cpus = max(config.least_workers * config.cpus_per_worker, os.cpu_count() or 1)
            # "local": else Ray joins whatever head it finds on this machine.
            context = ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=nested,
                logging_level="ERROR",
                log_to_driver=False,
            )
        else:
            knock(address)
            context = ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except AuthenticationError:
        raise ClusterError(f"cluster.address: {no_token(str(address))}") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreachable(address, error) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, sigterm)  # Ray puts one of its own in its place, which ends the process at once
    try:
        _check_size(config, patience=0.0 if address is None else config.wait_s)
        yield bool(context.dashboard_url)
    finally:
        ray.shutdown()


def _import_for_one_node() -> None:
    """Import Ray so that a cluster which this process starts for itself is for this process alone.

    Ray would listen on all of the machine's addresses otherwise. It stays on loopback, and wants a token that nobody
    else on this machine knows; Ray's own way leaves one in the user's home folder. Nothing of this if Ray was imported
    before.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    os.environ.setdefault(_ONE_NODE, "0")
    import ray  # noqa: F401  reads the variable, which is not meant for processes that this one starts

    del os.environ[_ONE_NODE]


def enter_directory(directory: Path) -> None:
    """Make relative paths of a recipe mean on a worker what they mean where the command was typed.

    Ray Train starts its workers in a folder of its own. A node that lacks the directory is left there: it finds what
    absolute paths name.
    """
    with suppress(OSError):
        os.chdir(directory)


def cluster_size(address: str) -> tuple[int, float, float]:
    """Nodes, CPUs and GPUs of a running cluster.

    Raises:
        ClusterError: If it can't be reached.
    """
    with ray_cluster(ClusterConfig(workers=0, address=address)):
        import ray

        has = ray.cluster_resources()
        return sum(node["Alive"] for node in ray.nodes()), has.get("CPU", 0), has.get("GPU", 0)


def knock(address: str) -> None:
    """Open a connection to HOST:PORT and close it: Ray itself tries for minutes before it says that nobody is there.

    Raises:
        OSError: If nobody answers; of an address without a port nothing is known.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=_KNOCK_SECONDS).close()


def no_token(address: str) -> str:
    """What to tell somebody whom a cluster refuses."""
    return (
        f"Ray at {address} refuses the token, or wants one. Set RAY_AUTH_MODE=token and put the cluster's token into "
        "~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH."
    )


def _unreachable(address: str | None, error: Exception) -> ClusterError:
    """What to tell of a cluster that can't be joined, or started."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    if address is None:
        return ClusterError(f"Ray can't be started on this machine: {lines[0]}. `rayssl doctor` looks for the reason.")
    if "version mismatch" in lines[0].lower():
        versions = " ".join(line for line in lines if line)
        return ClusterError(
            f"cluster.address: {versions} Install the cluster's versions here (pip install 'ray==VERSION'), or submit "
            "the command as a job: rayssl submit --address http://HEAD:8265 -- ..."
        )
    return ClusterError(
        f"cluster.address: no Ray cluster can be reached at '{address}' ({lines[0]}). "
        "Give HOST:PORT of a running head (`ray start --head`), or leave it out to start one on this machine."
    )


def _check_size(config: ClusterConfig, *, patience: float) -> None:
    """Refuse what would wait for ever: more CPUs or GPUs than all nodes have, also after so many seconds.

    A node may just be replaced, or not have joined yet; where there is an autoscaler, it is asked for nodes.
    """
    import ray

    if _lacking(config, ray.cluster_resources()) is None:
        return
    deadline = time.monotonic() + patience
    with _asking_for_nodes(config) if patience else nullcontext():
        while (lack := _lacking(config, ray.cluster_resources())) is not None:
            if time.monotonic() >= deadline:
                waited = f", also after {patience:.0f} s (cluster.wait_s)" if patience else ""
                resource, each, wanted, has = lack
                raise ClusterError(
                    f"cluster.workers: {config.least_workers} workers with {each:g} {resource}s each need {wanted:g}, "
                    f"the cluster has {has:g}{waited}. Lower cluster.workers or "
                    f"cluster.{resource.lower()}s_per_worker, or add nodes."
                )
            time.sleep(1)


@contextmanager
def _asking_for_nodes(config: ClusterConfig) -> Iterator[None]:
    """Let Ray's autoscaler, if the cluster has one, bring room for the workers; later it may take idle nodes back."""
    from ray.autoscaler.sdk import request_resources

    worker = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    request_resources(bundles=[{name: each for name, each in worker.items() if each}] * config.least_workers)
    try:
        yield
    finally:
        request_resources(bundles=[])


def _lacking(config: ClusterConfig, has: dict[str, float]) -> tuple[str, float, float, float] | None:
    """The first resource of which there is too little: its name, how much a worker, all of them and all nodes have."""
    for resource, each in (("CPU", float(config.cpus_per_worker)), ("GPU", config.gpus_per_worker)):
        wanted = config.least_workers * each
        if wanted > has.get(resource, 0):
            return resource, each, wanted, has.get(resource, 0)
    return None
