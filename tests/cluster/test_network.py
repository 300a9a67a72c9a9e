"""The network that workers talk through: found by the node's address."""

import os

import pytest
import ray

from rayssl.cluster import network


def test_an_interface_is_found_by_its_address() -> None:
    loopback = network.interface_of("127.0.0.1")
    assert loopback is not None and loopback.startswith("lo")
    assert network.interface_of("203.0.113.7") is None  # of a network that is nobody's (RFC 5737)


@pytest.mark.parametrize(("given", "chosen"), [(None, network.interface_of("127.0.0.1")), ("eth7", "eth7")])
def test_gloo_takes_the_nodes_network_unless_another_is_named(
    given: str | None, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(os, "environ", {} if given is None else {"GLOO_SOCKET_IFNAME": given})
    network._choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == chosen
