"""What `data.name` may name, and what is wrong with a name and its options."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from pipeline_local.config import DataConfig
from pipeline_local.user_input.registry import Registry

DATA: Registry[Callable[..., Any]] = Registry("data.name", "data set", ["root", "split"])
"""What `data.name` may name: an entry of this package, or simply a function that opens a split.

A parameter with the name of a key, such as `image_size`, gets the value of `data.image_size`; all
others are options of the data set.
"""


def problems(data: DataConfig) -> list[str]:
    """What is wrong with the name of the data set and its options, before anything is opened."""
    if lines := DATA.problems(data.name, data.args, own_keys(data)):
        return lines
    return [*missing_root(data)]


def missing_root(data: DataConfig) -> Iterator[str]:
    """Yields what is wrong where a data set lacks the folder that it reads."""
    if data.root is None and getattr(DATA.find(data.name), "needs_root", False):
        yield f"data.root is needed for data.name={data.name}; name the folder"


def own_keys(data: DataConfig) -> dict[str, Any]:
    """Of the section, as an entry may want to know them: `image_size` above all."""
    return {f.name: getattr(data, f.name) for f in fields(data) if f.name not in ("name", "args")}
