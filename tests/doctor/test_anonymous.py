"""Names of hosts, users and homes, and addresses, are no business of an issue's readers."""

import pytest

from pipeline_local.doctor import anonymous as module
from pipeline_local.doctor.anonymous import anonymous


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    monkeypatch.setattr(module.socket, "gethostname", lambda: "node17.lab.example")
    monkeypatch.setattr(module.getpass, "getuser", lambda: "ada")
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("MASTER_ADDR", "boss.lab.example")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ada/runs and /home/ada", "~/runs and ~"),
        ("/home/adam", "/home/adam"),
        ("/data/ada/runs", "/data/USER/runs"),
        ("data.root of ada's", "data.root of USER's"),
        ("node17.lab.example, node17: late", "HOST, HOST: late"),
        ("connect to boss.lab.example:29500", "connect to HOST:29500"),
        ("[10.1.2.3]:4242, 127.0.0.1", "[ADDRESS]:4242, 127.0.0.1"),
        ("torch 2.14.1, driver 580.95.05", "torch 2.14.1, driver 580.95.05"),
    ],
)
def test_what_is_shown(text, shown):
    assert anonymous(text) == shown


def test_a_user_without_a_name(monkeypatch):
    def nobody():
        raise KeyError("uid not found")

    monkeypatch.setattr(module.getpass, "getuser", nobody)
    assert anonymous("of ada") == "of ada"


def test_common_names_are_kept(monkeypatch):
    monkeypatch.setattr(module.getpass, "getuser", lambda: "root")
    monkeypatch.setattr(module.socket, "gethostname", lambda: "localhost")
    monkeypatch.setenv("MASTER_ADDR", "")
    assert anonymous("localhost: data.root=x") == "localhost: data.root=x"
