"""Which of a node's networks workers talk through."""

import os
import socket
from typing import Any

from ray.train.torch import TorchConfig

_INTERFACE = "GLOO_SOCKET_IFNAME"


class NodeNetworkConfig(TorchConfig):
    """Lets gloo use the network by which the nodes of the cluster know each other.

    By itself it takes the address of the host's name. That is loopback on many machines (Debian and Ubuntu write
    127.0.1.1 into /etc/hosts), so that workers of two nodes never meet; and on others it is one of the network where
    all workers are on this machine. NCCL leaves loopback out by itself, and may know of faster networks.
    """

    @property
    def backend_cls(self) -> Any:
        """What sets up the workers' process group."""
        return _NodeNetworkBackend


class _NodeNetworkBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray has no other name for it
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_choose_interface)
        super().on_start(worker_group, backend_config)


def _choose_interface() -> None:
    """Name the interface for gloo, unless somebody has; on each worker, since nodes may name theirs differently."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(_INTERFACE, name)


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has an address; None if none has."""
    import psutil  # comes with Ray

    for name, given in psutil.net_if_addrs().items():
        if any(each.family in (socket.AF_INET, socket.AF_INET6) and each.address == address for each in given):
            return str(name)
    return None
