"""Entries by name, from here or from a user's own file, and every mistake in one line."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from pipeline_local.errors import ConfigError, UserError
from pipeline_local.user_input.registry import Registry

OWN = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from nowhere import Site

def wide(site, *, width: int, names: tuple[str, ...] = ()):
    return site, width, names

def free(site, **options):
    return site, options

@dataclass
class Deep:
    site: object
    depth: int = 2

class Called:
    def __call__(self, site: object, rate: float = 0.5) -> object:
        return site, rate

called = Called()

def unread(site: Site): pass

def odd(site, width: 5 = 5): pass

@dataclass
class Node:
    size: int
    inner: Node | None = None

def tree(site, root: Node): return root

def nothing(): pass

number = 5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder that a user starts from; nothing of it is left in this process."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("x = 1\nraise KeyError('oh')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own", None)


Size = Annotated[int, Field(ge=1)]


@dataclass
class Conv:
    """A class is an entry, too."""

    site: object
    sizes: tuple[Size, ...] = (3,)
    folder: Path | None = None


def linear(
    site: object,
    *,
    width: Size = 8,
    rate: float = 1.0,
    bias: bool = True,
    act: Literal["relu", "gelu"] = "relu",
    note: str = "",
    cuts: Literal["uniform"] | tuple[str | int, ...] = "uniform",
) -> dict[str, Any]:
    return dict(locals())


@pytest.fixture
def heads() -> Registry[Callable[..., Any]]:
    registry: Registry[Callable[..., Any]] = Registry("head.name", "head", given=["site"])
    registry.add("linear", linear)
    registry.add("conv")(Conv)
    registry.add("narrow", partial(linear, width=1))
    return registry


def test_names_are_in_order(heads):
    assert heads.names() == ["linear", "conv", "narrow"]


def test_an_entry_is_built_from_its_options(heads):
    built = heads.find("linear")(site="here", **heads.options("linear", {"width": 3}))
    assert (built["site"], built["width"], built["act"]) == ("here", 3, "relu")
    assert heads.find("conv") is Conv
    assert heads.options("conv", {"sizes": [1, 2], "folder": "a"}) == {
        "sizes": (1, 2),
        "folder": Path("a"),
    }
    assert heads.options("narrow", {})["width"] == 1


def test_a_name_belongs_to_one_module(heads):
    again = heads.add("linear", partial(linear, width=1).func)  # as a notebook's cell run twice
    assert heads.find("linear") is again
    with pytest.raises(ValueError, match=r"head 'linear' exists already, in .*test_registry"):
        heads.add("linear", pytest.raises)
    with pytest.raises(ValueError, match=r"head 'narrow' exists already, in .*test_registry"):
        heads.add("narrow", partial(pytest.raises))


@pytest.mark.parametrize(
    ("args", "key", "value"),
    [
        ({"rate": 1}, "rate", 1.0),
        ({"rate": "1e-3"}, "rate", 0.001),  # as YAML writes it in quotes
        ({"width": 1e3}, "width", 1000),
        ({"cuts": ["a", 3]}, "cuts", ("a", 3)),
        ({"bias": False}, "bias", False),
    ],
)
def test_values_that_yaml_cannot_tell_apart(heads, args, key, value):
    got = heads.options("linear", args)[key]
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "args", "problem"),
    [
        ("linaer", {}, "head.name: got 'linaer'; did you mean 'linear'? choose one of linear,"),
        ("zzz", {}, "head.name: got 'zzz'; choose one of linear, conv, narrow, or python:pack"),
        ("linear", {"widht": 1}, "unknown key 'head.widht' for head.name=linear; did you mean 'he"),
        ("conv", {"zzz": 1}, "unknown key 'head.zzz' for head.name=conv; it takes sizes, folder"),
        (
            "conv",
            {"site": 1},
            "unknown key 'head.site' for head.name=conv; did you mean 'head.sizes'?",
        ),
        ("linear", {"width": "1"}, "head.width: should be a whole number, got '1'"),
        ("linear", {"width": True}, "head.width: should be a whole number, got True"),
        ("linear", {"width": 1.5}, "head.width: should be a whole number, got 1.5"),
        ("linear", {"width": 0}, "head.width: should be greater than or equal to 1, got 0"),
        ("linear", {"rate": True}, "head.rate: should be a number, got True"),
        ("linear", {"rate": float("nan")}, "head.rate: should be a finite number, got nan"),
        ("linear", {"bias": 1}, "head.bias: should be true or false, got 1"),
        ("linear", {"note": 5}, "head.note: should be text, got 5"),
        ("linear", {"act": "tanh"}, "head.act: should be 'relu' or 'gelu', got 'tanh'"),
        ("linear", {"cuts": [True]}, "head.cuts.0: should be text or a whole number, got True"),
        ("conv", {"sizes": [3, 0]}, "head.sizes.1: should be greater than or equal to 1, got 0"),
        ("conv", {"sizes": 3}, "head.sizes: should be a list, got 3"),
        ("conv", {"folder": 3}, "head.folder: should be a path, got 3"),
        ("python:own:wide", {}, "missing key 'head.width': head.name=python:own:wide needs it"),
        ("python:own:wide", {"width": "1"}, "head.width: should be a whole number, got '1'"),
        ("python:own:wide", {"width": 1, "x": 1}, "unknown key 'head.x' for head.name=python:own:"),
        ("python:own:Deep", {"depth": 1.5}, "head.depth: should be a whole number, got 1.5"),
        ("python:own:called", {"rate": "a"}, "head.rate: should be a number, got 'a'"),
        ("python:own:free", {"site": 1}, "unknown key 'head.site' for head.name=python:own:free"),
        ("python:own:unread", {}, "head.name: the parameters of python:own:unread cannot be read"),
        (
            "python:own:odd",
            {},
            "head.name: the parameters of python:own:odd cannot be read ('int",
        ),
        (
            "python:own:tree",
            {"root": {"size": True}},
            "head.root.size: should be a whole number, got True",
        ),
        ("python:own:nothing", {}, "head.name: python:own:nothing is called with site by name"),
        ("python:own:deep", {}, "head.name: module 'own' has no callable 'deep'; did you mean 'De"),
        ("python:own:number", {}, "head.name: module 'own' has no callable 'number'; name a"),
        (
            "python:__main__:mine",
            {},
            "head.name: module '__main__' has no callable 'mine', as ranks have a main program",
        ),
        ("python:own", {}, "head.name: got 'python:own'; write python:package.module:name"),
        ("python:.own:f", {}, "head.name: got 'python:.own:f'; write python:package.module:name"),
        ("python:a:b:c", {}, "head.name: got 'python:a:b:c'; write python:package.module:name"),
        ("python:no.such:f", {}, "head.name: module 'no.such' cannot be imported (No module"),
        ("python:own_broken:f", {}, "head.name: module 'own_broken' cannot be imported (KeyError:"),
    ],
)
def test_a_mistake_is_one_line(heads, name, args, problem):
    (line,) = heads.problems(name, args)
    assert line.startswith(problem)
    assert "\n" not in line
    with pytest.raises(UserError) as caught:
        heads.options(name, args)
    assert str(caught.value) == line


def test_all_mistakes_at_once(heads):
    with pytest.raises(ConfigError) as caught:
        heads.options("linear", {"width": 0, "rate": "fast", "bais": True})
    assert len(caught.value.problems) == 3


def test_what_is_right_has_no_problem(heads):
    assert heads.problems("linear", {"width": 3}) == []
    assert heads.problems("python:own:free", {"anything": object()}) == []


@pytest.mark.parametrize(
    ("name", "args", "built"),
    [
        ("wide", {"width": 3, "names": ["a"]}, ("here", 3, ("a",))),
        ("free", {"any": [1]}, ("here", {"any": [1]})),
        ("called", {"rate": 1}, ("here", 1.0)),
        ("called", {}, ("here", 0.5)),
    ],
)
def test_an_entry_of_the_users_own(heads, name, args, built):
    entry = heads.find(f"python:own:{name}")
    assert entry(site="here", **heads.options(f"python:own:{name}", args)) == built


def test_a_type_may_hold_itself(heads):
    root = heads.options("python:own:tree", {"root": {"size": 1, "inner": {"size": 2}}})["root"]
    assert (root.size, root.inner.size) == (1, 2)


def test_optional_keys_reach_the_entries_that_name_them(heads):
    optional = {"depth": 5, "width": 4}
    assert heads.options("python:own:Deep", {}, optional) == {"depth": 5}
    assert heads.options("linear", {}, optional)["width"] == 4
    assert heads.options("linear", {"width": 2}, optional)["width"] == 2
    assert heads.options("python:own:free", {}, optional) == {}
    assert heads.problems("conv", {}, optional) == []
    (line,) = heads.problems("linear", {}, {"width": 0})
    assert line == "head.width: should be greater than or equal to 1, got 0"
