"""The interface that ranks would talk over, and names of interfaces that are not here."""

import pytest

from pipeline_local.doctor import network
from pipeline_local.ranks import interfaces

ADDRESSES = {"lo": "127.0.0.1", "eth0": "10.0.0.5"}
LAUNCHED = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """With lo and eth0; its name leads to lo."""
    monkeypatch.setattr(interfaces.socket, "if_nameindex", lambda: list(enumerate(ADDRESSES)))
    monkeypatch.setattr(interfaces, "_ipv4", ADDRESSES.get)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", *LAUNCHED):
        monkeypatch.delenv(variable, raising=False)
    named(monkeypatch, "127.0.0.1")
    return monkeypatch


def named(monkeypatch, address):
    """Gives the host's name an address."""
    answer = [(None, None, 0, "", (address, 0))]
    monkeypatch.setattr(interfaces.socket, "getaddrinfo", lambda *_, **__: answer)


def test_an_interface_that_is_not_here(host, lines):
    host.setenv("GLOO_SOCKET_IFNAME", "ib7")
    ((status, text),) = lines(network.interfaces)
    assert status == "FAIL"
    assert "'ib7' is no interface" in text
    assert text.endswith("unset it or name one of them")


def test_one_host_may_use_the_loopback(lines):
    ((status, text),) = lines(network.interfaces)
    assert (status, "gloo takes lo, enough for one host" in text) == ("PASS", True)


def test_several_hosts_may_not(host, lines):
    """Which of the others to take is not clear."""
    others = {**ADDRESSES, "eth1": "10.9.0.5"}
    host.setattr(interfaces.socket, "if_nameindex", lambda: list(enumerate(others)))
    host.setattr(interfaces, "_ipv4", others.get)
    for name, value in LAUNCHED.items():
        host.setenv(name, value)
    ((status, text),) = lines(network.interfaces)
    assert (status, "set GLOO_SOCKET_IFNAME, such as eth0" in text) == ("WARN", True)


@pytest.mark.parametrize("by", ["name", "variable", "choice"])
def test_an_interface_that_others_reach(host, lines, by):
    """The last is the only one but the loopback."""
    for name, value in LAUNCHED.items():
        host.setenv(name, value)
    if by == "name":
        named(host, "10.0.0.5")
    if by == "variable":
        host.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert lines(network.interfaces) == [("PASS", "lo, eth0; gloo takes eth0; ")]
