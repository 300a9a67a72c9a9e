"""Ray's settings, in one place: what is set before ray is imported, and how a cluster is joined or started."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayssl.config import ClusterConfig
from rayssl.errors import ClusterError

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
def ray_cluster(config: ClusterConfig, *, nested: bool = False) -> Iterator[None]:
    """Join the cluster that the config or RAY_ADDRESS names, or start one on this machine; leave it at the end.

    Args:
        config: The cluster, and what has to fit into it.
        nested: Whether trials of Ray Tune will start workers of Ray Train. A cluster on this machine then has the
            dashboard, without which stopped trials never give back their workers.

    Raises:
        ClusterError: If the cluster can't be reached or is too small for the workers.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster of this process alone, on loopback
    import ray

    sigterm = signal.getsignal(signal.SIGTERM)
    if ray.is_initialized():  # the caller's own
        _check_size(config)
        yield
        return
    try:
        if address is None:
            cpus = max(config.least_workers * config.cpus_per_worker, os.cpu_count() or 1)
            # "local": else Ray joins whatever head it finds on this machine.
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=nested,
                logging_level="ERROR",
                log_to_driver=False,
            )
        else:
            _knock(address)
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterError(
            f"cluster.address: no Ray cluster can be reached at '{address}' ({reason}). "
            "Give HOST:PORT of a running head (`ray start --head`), or leave it out to start one on this machine."
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, sigterm)  # Ray puts one of its own in its place, which ends the process at once
    try:
        _check_size(config)
        yield
    finally:
        ray.shutdown()


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


def _knock(address: str) -> None:
    """Open a connection to HOST:PORT and close it: Ray itself tries for minutes before it says that nobody is there."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=_KNOCK_SECONDS).close()


def _check_size(config: ClusterConfig) -> None:
    """Refuse what would wait for ever: more CPUs or GPUs than all nodes have."""
    import ray

    has = ray.cluster_resources()
    for resource, each in (("CPU", float(config.cpus_per_worker)), ("GPU", config.gpus_per_worker)):
        wanted = config.least_workers * each
        if wanted > has.get(resource, 0):
            raise ClusterError(
                f"cluster.workers: {config.least_workers} workers with {each:g} {resource}s each need {wanted:g}, the "
                f"cluster has {has.get(resource, 0):g}. Lower cluster.workers or "
                f"cluster.{resource.lower()}s_per_worker, or add nodes."
            )
