"""What every key of the configuration means, by the docstrings of `config.py`: for the pages of
docs/, for `explain`, `init` and completion, and for messages."""

import ast
import difflib
import inspect
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline_local.config import Config
from pipeline_local.configfile import configfile
from pipeline_local.errors import UserError, few
from pipeline_local.models.registry import MODELS

PAGE = "docs/configuration.md"
_WORDS = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_UNBOUNDED = 2**32
"""A limit above this only keeps numbers representable; nobody needs to read it."""
_FURTHER = "args"
"""The field of a section that holds its further keys."""


@dataclass(frozen=True)
class Key:
    """A key of the configuration.

    Attributes:
        name: dotted; `SECTION.KEY` stands for the further keys of a section.
        meaning: on one line.
        values: what it may be, in words, names in backticks.
        default: as in YAML; "required", or "" for further keys.
        choices: the values, where they are few.
    """

    name: str
    meaning: str
    values: str
    default: str
    choices: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """The section that it stands in; "" for none."""
        return self.name.rpartition(".")[0]

    @property
    def link(self) -> str:
        """Where the documentation has it."""
        return f"{PAGE}#{self.section or 'keys-without-a-section'}"


@cache
def sections() -> dict[str, type]:
    """The dataclass of each section, in the order of a file."""
    hints = get_type_hints(Config)
    return {name: kind for name, kind in hints.items() if isinstance(kind, type) and _is(kind)}


def _is(kind: type) -> bool:
    return is_dataclass(kind)


def about(section: str) -> str:
    """What a section says of itself, on one line."""
    return " ".join(inspect.cleandoc(sections()[section].__doc__ or "").split())


@cache
def of_section(section: str) -> tuple[Key, ...]:
    """The keys of a section, further ones last; those without a section for ""."""
    kind = sections()[section] if section else Config
    rows = [field for field in fields(kind) if section or field.name not in sections()]
    meanings, hints = _docstrings(kind), get_type_hints(kind, include_extras=True)
    prefix = f"{section}." if section else ""
    return tuple(
        _key(prefix, field, hints[field.name], meanings[field.name])
        for field in sorted(rows, key=lambda field: field.name == _FURTHER)
    )


def every() -> dict[str, Key]:
    """All keys by their names, without the further ones."""
    rows = [key for section in (*sections(), "") for key in of_section(section)]
    return {key.name: key for key in rows if not key.name.endswith(".KEY")}


def _key(prefix: str, field: "Field[Any]", hint: Any, meaning: str) -> Key:  # noqa: ANN401
    meaning = meaning.replace("SECTION.", prefix)
    if field.name == _FURTHER:
        return Key(f"{prefix}KEY", meaning, "any", "")
    name = prefix + field.name
    names = _names(name)
    own = [f"`{word}`" for word in [*names, "python:package.module:name"] if names]
    values = ", ".join(own) or in_words(hint)
    default = "required" if field.default is MISSING else _as_yaml(field.default)
    return Key(name, meaning, values, default, (*names, *_choices(hint)))


def _names(key: str) -> list[str]:
    """The entries of the registry behind a key; none where there is none."""
    registries = configfile.REGISTRIES.values()
    return [name for registry in registries if registry.key == key for name in registry.names()]


def _choices(hint: Any) -> Iterator[str]:  # noqa: ANN401
    """The words of a type; a number or a path has none."""
    if hint is bool:
        yield from ("true", "false")
    if get_origin(hint) is Literal:
        yield from map(str, get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _choices(part)


def _docstrings(kind: type) -> dict[str, str]:
    """The string that stands under each field, also of the classes above, on one line."""
    found: dict[str, str] = {}
    for part in reversed([part for part in kind.__mro__ if is_dataclass(part)]):
        (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(part))).body
        assert isinstance(tree, ast.ClassDef)
        for statement, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
                assert isinstance(statement.target, ast.Name)
                found[statement.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def _as_yaml(value: object) -> str:
    shown = {None: "null", True: "true", False: "false"}
    return shown[value] if value is None or isinstance(value, bool) else str(value)


def in_words(hint: Any) -> str:  # noqa: ANN401
    """A type in words, such as "integer >= 1 or null"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([in_words(args[0]), " and ".join(_limits(args[1:]))]).strip()
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in args)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(part) for part in args)
    if origin is tuple:
        return f"list of {in_words(args[0])}"
    return "null" if hint is type(None) else _WORDS.get(hint) or "any"


def _limits(annotations: tuple[Any, ...]) -> Iterator[str]:
    """Such as ">= 1": from pydantic's Field."""
    for annotation in annotations:
        for bound in getattr(annotation, "metadata", []):
            for name, sign in _SIGNS.items():
                if (limit := getattr(bound, name, None)) is not None and limit < _UNBOUNDED:
                    yield f"{sign} {limit}"


def find(name: str) -> Key:
    """The key of a name; also an option of an entry, such as `data.sequence_length`.

    Raises:
        UserError: there is none; one line with the nearest names.
    """
    if (known := every().get(name) or _option(name)) is not None:
        return known
    candidates = [*sections(), *every()]
    last = name.rpartition(".")[2]
    near = [key for key in candidates if key.rpartition(".")[2] == last]
    near += difflib.get_close_matches(name, candidates, n=3, cutoff=0.6)
    near += [key for key in candidates if last in key and len(last) > 2]
    hint = f"did you mean {' or '.join(list(dict.fromkeys(near))[:3])}?" if near else f"see {PAGE}"
    raise UserError(f"unknown key {name!r}; {hint}")


def _option(name: str) -> Key | None:
    """The option of entries of a section, with the type and default that the first one gives it."""
    section, _, option = name.rpartition(".")
    registry = {"model": MODELS, **configfile.REGISTRIES}.get(section)
    if registry is None:
        return None
    takes: dict[str, Parameter] = {}
    for entry in registry.names():
        parameter = registry.parameters(entry).get(option)
        if parameter is not None and parameter.kind is not Parameter.VAR_KEYWORD:
            takes[entry] = parameter
    if not takes:
        return None
    first = next(iter(takes.values()))
    default = "required" if first.default is Parameter.empty else _as_yaml(first.default)
    meaning = f"Option of {registry.key}: {few([*takes])}."
    return Key(name, meaning, in_words(first.annotation), default, (*_choices(first.annotation),))
