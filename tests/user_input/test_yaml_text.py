"""The dialect: what is read, what is refused, and that what is written is read back."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_local.user_input import yaml_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2.E+2", -200.0),
        ("1e", "1e"),
        ("'1e-3'", "1e-3"),
        (str(2**63 - 1), 2**63 - 1),
        ("{a: &x 3, b: *x}", {"a": 3, "b": 3}),
        ("", None),
        ("[010, -08, 0x1F, 0o17, +3]", [10, -8, 31, 15, 3]),
        ("[1., .5, -1.5E-3, .inf, -.INF]", [1.0, 0.5, -0.0015, float("inf"), -float("inf")]),
        ("[true, False, TRUE, null, ~]", [True, False, True, None, None]),
        # text in YAML 1.2, and something else in 1.1
        (
            "[1:30, 1:30.5, 1_000, 0b11, 0o8, -0x1]",
            ["1:30", "1:30.5", "1_000", "0b11", "0o8", "-0x1"],
        ),
        ("[yes, No, ON, off, y, =]", ["yes", "No", "ON", "off", "y", "="]),
        ("[2024-01-01, 2024-01-01 10:00:00]", ["2024-01-01", "2024-01-01 10:00:00"]),
        ("[\uff11\uff10, \u0661e3, nan]", ["\uff11\uff10", "\u0661e3", "nan"]),
    ],
)
def test_reads(text: str, value: object) -> None:
    assert yaml_text.parse(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (str(2**63), "line 1: a whole number must be below 2^63"),
        ("9" * 5000, "a value cannot be read: ValueError"),
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' stands twice; keep one"),
        ("a: &x [1]\nb: *x", "line 1: an alias must stand for a single value"),
        ("!!int 1:30", "line 1: '1:30' is no int of YAML 1.2"),
        ("!!float 1_0", "line 1: '1_0' is no float of YAML 1.2"),
        ("!!timestamp 2024-01-01", "line 1: '2024-01-01' is no timestamp of YAML 1.2"),
        ("!!bool maybe", "a value cannot be read: KeyError"),
        ("[" * 5000, "a value cannot be read: RecursionError"),
        ("{[]: 1, {}: 2}", "line 1: found unhashable key"),
        ("\ufffe", "special characters"),
    ],
)
def test_refuses_with_a_reason_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        yaml_text.parse(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["010", "0o7", "08", "0x1", "1:30", "yes", "2024-01-01", "1e3", "="]
)
def test_text_that_looks_like_something_else_is_written_in_quotes(text: str) -> None:
    """For readers of both versions."""
    assert yaml_text.write([text]) == f"- '{text}'\n"
    assert yaml_text.parse(yaml_text.write({"a": text})) == {"a": text}


scalars = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text(max_size=8)
numbers_as_text = st.from_regex(r"\A[-+]?[0-9.]{1,4}[eE]?[-+]?[0-9]{0,3}\Z")
numbers = st.floats(allow_nan=False)
trees = st.recursive(
    scalars | numbers_as_text | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(trees)
def test_writes_what_it_reads(tree: object) -> None:
    assert yaml_text.parse(yaml_text.write(tree)) == tree


def test_paths_become_text_and_tuples_lists() -> None:
    assert yaml_text.parse(yaml_text.write({"a": Path("1e5"), "b": (1, 2)})) == {
        "a": "1e5",
        "b": [1, 2],
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${env:N}", 7),
        ("'${env:N}'", "7"),
        ("runs/${env:N}-${env:N}", "runs/7-7"),
        ("1${env:N}", 17),
        ('a: ["${env:N}", x]', {"a": ["7", "x"]}),
        ("a: ${env:ODD}", {"a": "b: c # d"}),
        ("$${env:N}", "$${env:N}"),
        ("${env:NO", "${env:NO"),
    ],
)
def test_variables_of_the_environment(monkeypatch, text: str, value: object) -> None:
    """What results is read as if it stood there, but is never more than one value."""
    monkeypatch.setenv("N", "7")
    monkeypatch.setenv("ODD", "b: c # d")
    assert yaml_text.parse(text) == value


def test_a_variable_that_is_not_set(monkeypatch) -> None:
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(yaml_text.UnsetError, match=r"^\$\{env:NO_SUCH\}: .*'NO_SUCH' is not set"):
        yaml_text.parse("a: x-${env:NO_SUCH}")
