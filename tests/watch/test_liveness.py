"""Liveness links: a message, a goodbye, an end without one; other programs are ignored."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from pipeline_local.watch.liveness import LivenessEvent, LivenessLinks


@pytest.fixture
def host():
    links = LivenessLinks.host(2)
    yield links
    links.close()


def events(links, count):
    """The next `count` events."""
    found, until = [], time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < until, found
        found += links.events(0.05)
    return found


def join(host, rank):
    links = LivenessLinks.join("localhost", host.address, rank)
    host.events(0.2)  # accepts the connection
    host.events(0.2)
    return links


def test_messages_reach_the_other_end(host):
    one, two = join(host, 1), join(host, 2)
    one.broadcast({"a": 1})
    two.broadcast({"b": 2})
    assert sorted(events(host, 2), key=lambda n: n.rank) == [
        LivenessEvent(1, {"a": 1}),
        LivenessEvent(2, {"b": 2}),
    ]
    host.broadcast({"c": 3})
    assert events(one, 1) == events(two, 1) == [LivenessEvent(0, {"c": 3})]
    one.close()
    two.close()


def test_a_farewell_is_no_death(host):
    one = join(host, 1)
    one.close()
    assert events(host, 1) == [LivenessEvent(1, {"left": True})]
    assert host.events(0.2) == []
    host.broadcast({"to": "nobody"})


def test_the_host_leaves_too(host):
    one = join(host, 1)
    host.broadcast({"left": True})
    assert events(one, 1) == [LivenessEvent(0, {"left": True})]
    one.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_process_is_told_from_a_stopped_one(host, number):
    code = (
        "import sys, time; from pipeline_local.watch.liveness import LivenessLinks;"
        "address = dict(port=int(sys.argv[1]), token=sys.argv[2]);"
        "links = LivenessLinks.join('localhost', address, 7);"
        "links.broadcast(dict(here=1)); time.sleep(60)"
    )
    address = host.address
    arguments = [sys.executable, "-c", code, str(address["port"]), address["token"]]
    with subprocess.Popen(arguments) as process:
        try:
            assert events(host, 1) == [LivenessEvent(7, {"here": 1})]
            os.kill(process.pid, number)
            expected = [LivenessEvent(7, None)] if number == signal.SIGKILL else []
            assert host.events(2) == expected
        finally:
            process.kill()


@pytest.mark.parametrize(
    "greeting", [b"", b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 1, "token": "?"}\n']
)
def test_strangers_are_nobody(host, greeting):
    with socket.create_connection(("localhost", host.address["port"])) as stranger:
        stranger.sendall(greeting)
        assert host.events(0.2) == host.events(0.2) == []
        host.broadcast({"secret": 1})
        stranger.settimeout(0.2)
        try:
            assert stranger.recv(100) == b""
        except TimeoutError:
            pass  # nothing came
        except ConnectionResetError:
            pass
    assert host.events(0.2) == host.events(0.2) == []


def test_without_a_way_through_there_is_no_link():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    links = LivenessLinks.join("localhost", {"port": port, "token": ""}, 1)
    links.broadcast({"a": 1})
    assert links.events(0.01) == []
    links.close()


def test_a_wait_for_news_can_be_ended(host):
    begin = time.monotonic()
    host.wake()
    assert host.events(60) == []
    assert time.monotonic() - begin < 30
