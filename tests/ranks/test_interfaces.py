"""Interfaces that the environment names, and the host has not."""

import os

import pytest

from pipeline_local.config import ParallelConfig
from pipeline_local.errors import UserError
from pipeline_local.ranks import interfaces
from pipeline_local.ranks.interfaces import check_interfaces
from pipeline_local.ranks.rank import RankInfo


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """With lo, eth0, ib0, and eth1, whose cable is not plugged in."""
    names = ["lo", "eth0", "ib0", "eth1"]
    monkeypatch.setattr(interfaces.socket, "if_nameindex", lambda: list(enumerate(names)))
    monkeypatch.setattr(interfaces, "_has_address", lambda name: name != "eth1")
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


@pytest.mark.parametrize("value", ["", "lo", "eth0,ib0", "eth0,"])
def test_what_gloo_finds(host, value):
    host.setenv("GLOO_SOCKET_IFNAME", value)
    check_interfaces(nccl=True)


@pytest.mark.parametrize(
    ("value", "missing"),
    [("nope0", "nope0"), ("eth", "eth"), ("lo,eth7", "eth7"), ("eth1", "eth1"), ("^lo", "^lo")],
)
def test_what_gloo_does_not_find(host, value, missing):
    host.setenv("GLOO_SOCKET_IFNAME", value)
    says = rf"GLOO_SOCKET_IFNAME={value}: '{missing}' is no .*has lo, eth0, ib0; unset it"
    with pytest.raises(UserError, match=says.replace("^", r"\^")):
        check_interfaces()
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME"):
        RankInfo(world_size=2, local_world_size=2).p2p_kind(ParallelConfig())
    RankInfo().p2p_kind(ParallelConfig())  # one rank talks to nobody


@pytest.mark.parametrize("value", ["eth", "=eth0", "^docker", "^=lo", "nope,ib", "^lo,eth"])
def test_what_nccl_finds(host, value):
    """Prefixes, whole names (=), all others (^)."""
    host.setenv("NCCL_SOCKET_IFNAME", value)
    check_interfaces(nccl=True)


@pytest.mark.parametrize("value", ["nope0", "=eth", "^lo,eth,ib", "^=lo,eth0,ib0"])
def test_what_nccl_does_not_find(host, value):
    host.setenv("NCCL_SOCKET_IFNAME", value)
    with pytest.raises(UserError, match=r"NCCL_SOCKET_IFNAME=.* has lo, eth0, ib0"):
        check_interfaces(nccl=True)
    check_interfaces()  # where nccl is not used, its variable does not matter


@pytest.mark.parametrize(
    ("named", "addresses", "taken"),
    [
        ("ib0", ["10.0.0.5"], "ib0"),
        ("", ["10.0.0.5"], "eth0"),
        ("", ["192.168.9.9", "10.0.0.5"], "eth0"),
        ("", ["127.0.1.1"], "lo"),
        ("", [], "lo"),
    ],
)
def test_what_gloo_takes(host, named, addresses, taken):
    """By the address of the host's own name; Debian's is 127.0.1.1."""
    host.setenv("GLOO_SOCKET_IFNAME", named)
    answer = [(None, None, 0, "", (address, 0)) for address in addresses]
    host.setattr(interfaces.socket, "getaddrinfo", lambda *_, **__: answer)
    host.setattr(interfaces, "_ipv4", {"lo": "127.0.0.1", "eth0": "10.0.0.5"}.get)
    assert interfaces.gloo_interface() == taken


WAYS = {"10.0.0.1": ["10.0.0.5"], "10.7.0.1": ["10.7.0.5"], "127.0.0.1": ["127.0.0.1"]}
"""The own address that others see, by theirs."""


@pytest.mark.parametrize(
    ("named", "first", "addresses", "taken"),
    [
        ("ib0", "10.0.0.1", ["10.0.0.5"], "ib0"),
        ("", "10.7.0.1", ["10.0.0.5"], "ib0"),
        ("", "10.7.0.1", [], "ib0"),
        ("", "nowhere", ["10.0.0.5"], "eth0"),
        ("", "127.0.0.1", ["10.0.0.5"], "eth0"),
        ("", "127.0.0.1", ["127.0.0.1"], "lo"),  # two other ones
        ("", "nowhere", ["fd00::5"], "lo"),  # gloo finds it
    ],
)
def test_what_gloo_takes_on_several_hosts(host, named, first, addresses, taken):
    """What leads to the first host, whatever the own name leads to."""
    host.setattr(interfaces, "_own_address_towards", lambda first: WAYS.get(first, []))
    host.setattr(interfaces, "_addresses_of_own_name", lambda: addresses)
    own = {"lo": "127.0.0.1", "eth0": "10.0.0.5", "ib0": "10.7.0.5"}
    host.setattr(interfaces, "_ipv4", own.get)
    host.setenv("GLOO_SOCKET_IFNAME", named)
    assert interfaces.gloo_interface(first) == taken
    with interfaces.towards(first):
        assert os.environ["GLOO_SOCKET_IFNAME"] == (named if taken == "lo" else taken)
    assert os.environ.get("GLOO_SOCKET_IFNAME", "") == named


def test_the_first_host_of_several_whose_name_leads_to_itself(host):
    """Debian's does; there is one other interface with an address."""
    host.setattr(interfaces, "_own_address_towards", lambda _: ["127.0.0.1"])
    host.setattr(interfaces, "_addresses_of_own_name", lambda: ["127.0.1.1"])
    host.setattr(interfaces, "_ipv4", {"lo": "127.0.0.1", "eth0": "10.0.0.5"}.get)
    assert interfaces.gloo_interface("host-a") == "eth0"


def test_on_one_host_gloo_takes_what_it_likes(host):
    with interfaces.towards(""):
        assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_the_way_to_this_host():
    assert interfaces._own_address_towards("127.0.0.1") == ["127.0.0.1"]
    assert interfaces._own_address_towards("no such host") == []


def test_a_host_whose_name_is_unknown(host):
    def unknown(*_, **__):
        raise OSError("Name or service not known")

    host.setattr(interfaces.socket, "getaddrinfo", unknown)
    assert interfaces.gloo_interface() == "lo"


def test_this_hosts_own(host):
    host.undo()
    names = [name for _, name in interfaces.socket.if_nameindex()]
    assert any(interfaces._has_address(name) for name in names)
    assert interfaces.gloo_interface() in interfaces.interfaces_here()
    assert not interfaces._has_address("nope0")
