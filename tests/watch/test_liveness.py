"""Lifelines: a message, a farewell, an end without one; strangers are nobody."""

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
    lines = LivenessLinks.host(2)
    yield lines
    lines.close()


def news(lines, count):
    """The next `count` pieces."""
    found, until = [], time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < until, found
        found += lines.news(0.05)
    return found


def join(host, rank):
    lines = LivenessLinks.join("localhost", host.address, rank)
    host.news(0.2)  # takes the newcomer in
    host.news(0.2)
    return lines


def test_messages_reach_the_other_end(host):
    one, two = join(host, 1), join(host, 2)
    one.tell({"a": 1})
    two.tell({"b": 2})
    assert sorted(news(host, 2), key=lambda n: n.rank) == [
        LivenessEvent(1, {"a": 1}),
        LivenessEvent(2, {"b": 2}),
    ]
    host.tell({"c": 3})
    assert news(one, 1) == news(two, 1) == [LivenessEvent(0, {"c": 3})]
    one.close()
    two.close()


def test_a_farewell_is_no_death(host):
    one = join(host, 1)
    one.close()
    assert news(host, 1) == [LivenessEvent(1, {"left": True})]
    assert host.news(0.2) == []
    host.tell({"to": "nobody"})


def test_the_host_leaves_too(host):
    one = join(host, 1)
    host.tell({"left": True})
    assert news(one, 1) == [LivenessEvent(0, {"left": True})]
    one.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_process_is_told_from_a_stopped_one(host, number):
    code = (
        "import sys, time; from pipeline_local.watch.liveness import Lifelines;"
        "lines = Lifelines.join('localhost', dict(port=int(sys.argv[1]), token=sys.argv[2]), 7);"
        "lines.tell(dict(here=1)); time.sleep(60)"
    )
    address = host.address
    arguments = [sys.executable, "-c", code, str(address["port"]), address["token"]]
    with subprocess.Popen(arguments) as process:
        try:
            assert news(host, 1) == [LivenessEvent(7, {"here": 1})]
            os.kill(process.pid, number)
            expected = [LivenessEvent(7, None)] if number == signal.SIGKILL else []
            assert host.news(2) == expected
        finally:
            process.kill()


@pytest.mark.parametrize(
    "greeting", [b"", b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 1, "token": "?"}\n']
)
def test_strangers_are_nobody(host, greeting):
    with socket.create_connection(("localhost", host.address["port"])) as stranger:
        stranger.sendall(greeting)
        assert host.news(0.2) == host.news(0.2) == []
        host.tell({"secret": 1})
        stranger.settimeout(0.2)
        try:
            assert stranger.recv(100) == b""
        except TimeoutError:
            pass  # nothing came
        except ConnectionResetError:
            pass
    assert host.news(0.2) == host.news(0.2) == []


def test_without_a_way_through_there_is_no_lifeline():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    lines = LivenessLinks.join("localhost", {"port": port, "token": ""}, 1)
    lines.tell({"a": 1})
    assert lines.news(0.01) == []
    lines.close()


def test_a_wait_for_news_can_be_ended(host):
    begin = time.monotonic()
    host.wake()
    assert host.news(60) == []
    assert time.monotonic() - begin < 30
