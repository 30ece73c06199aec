"""Paths as people type them."""

from pathlib import Path

import pytest

from pipeline_local.user_input.values import expanded, written


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/home/ada", "JOB": "17", "MONEY": "a$b", "EMPTY": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NONE", raising=False)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/ada"),
        ("~/x/~", "/home/ada/x/~"),
        ("~root/x", f"{Path('~root').expanduser()}/x"),
        ("$HOME/x", "/home/ada/x"),
        ("runs/$JOB", "runs/17"),
        ("runs/${JOB}x$JOB.y", "runs/17x17.y"),
        ("~/$JOB", "/home/ada/17"),
        ("a$$b$$$JOB", "a$b$17"),
        ("$MONEY", "a$b"),  # what a variable holds is not read again
        ("x~", "x~"),
        ("./~/x", "~/x"),
        ("a b/ü", "a b/ü"),
    ],
)
def test_what_a_shell_would_make_of_it(text: str, path: str) -> None:
    assert expanded(text) == Path(path)
    assert expanded(written(expanded(text))) == Path(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("$NONE/x", r"NONE is not\)"),
        ("runs/${NONE}", r"NONE is not\)"),
        ("$JOBS", r"JOBS is not\)"),
        ("$EMPTY/x", r"EMPTY is not\)"),
        ("~nobody-of-this-name/x", r"no user 'nobody-of-this-name' .*; \./~nobody-of-this-name is"),
        ("a$", r"\$\$ is a dollar sign"),
        ("$1", r"\$\$ is a dollar sign"),
        ("${JOB:-x}", r"\$\$ is a dollar sign"),
        ("${JOB", r"\$\$ is a dollar sign"),
        ("", "^a path$"),
        (f"x/{128 * 'ü'}/y", "at most 255 bytes"),
    ],
)
def test_what_would_be_made_literally_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        expanded(text)
