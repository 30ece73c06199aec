"""How the values of a configuration are checked: strictly, and reported in a user's words."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from pipeline_local.user_input import yaml_text

_Location = tuple[int | str, ...]
_WORDS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "keys with values",
    "dataclass_type": "keys with values",
    "none_required": "null",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "missing": "there",
}
"""pydantic's types of errors; its own words stand for all others, such as limits."""


class Strict:
    """Marks a type, as in `Annotated[Config, Strict()]`, so that pydantic converts no scalar in it.

    1 is not true, "1" is not 1, and true is neither. What YAML cannot tell apart passes: a list is
    a tuple, 1e3 is a whole number, '1e-3' is a number, and text is a path, in which `~` and
    $VARIABLES are expanded.
    """

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return cast(CoreSchema, _strict(handler(source), handler, ()))


def _strict(node: Any, handler: GetCoreSchemaHandler, inside: tuple[str, ...]) -> Any:  # noqa: ANN401
    """The same part of a schema, with dataclasses in place, but for one inside itself."""
    if isinstance(node, list):
        return [_strict(part, handler, inside) for part in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "definition-ref" and node["schema_ref"] not in inside:
        inside = (*inside, node["schema_ref"])
        node = {**handler.resolve_ref_schema(cast(CoreSchema, node))}
        del node["ref"]
    kind = node.get("type")
    node = {key: _strict(part, handler, inside) for key, part in node.items()}
    if kind in ("bool", "int", "float", "str"):
        node["strict"] = True
    if node.get("custom_error_type") == "path_type":
        kind = "path"
    convert = _FROM_YAML.get(kind)
    return core_schema.no_info_before_validator_function(convert, node) if convert else node


def _whole(value: object) -> object:
    """A float that is one; a larger one than YAML's could not be read back."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**63
    return int(cast(float, value)) if is_whole else value


def _number(value: object) -> object:
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _path(value: object) -> object:
    try:
        return expanded(value) if isinstance(value, str) else value
    except ValueError as error:
        raise PydanticCustomError("path_text", "{what}", {"what": str(error)}) from None


_NUMBER = re.compile(yaml_text.NUMBER)
_FROM_YAML: dict[object, Any] = {
    "int": _whole,
    "literal": _whole,  # pydantic 2.7 takes 0.0 for no 0
    "float": _number,
    "path": _path,
}
_LONGEST_NAME = 255
"""Of a file, in bytes; Linux and its file systems take no more."""
_DOLLAR = re.compile(r"\$(?:(\$)|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\}|)")


def expanded(text: str) -> Path:
    """The path that a user means, with `~`, `~user`, $NAME and ${NAME} expanded as a shell does.

    `$$` is a dollar sign, and any other one is refused, as is a variable that is not set: no folder
    gets such a name by accident.

    Raises:
        ValueError: the message ends `should be ...`.
    """

    def value(found: re.Match[str]) -> str:
        name = found[2] or found[3]
        if found[1]:
            return "$"
        if not name:
            raise ValueError("a path with $NAME or ${NAME} ($$ is a dollar sign)")
        if not os.environ.get(name):
            raise ValueError(f"a path of variables that are set ({name} is not)")
        return os.environ[name]

    home, slash, rest = text.partition("/")
    if home.startswith("~"):
        home = os.path.expanduser(home)
        if home.startswith("~"):
            raise ValueError(f"a path (no user {home[1:]!r} has a home; ./{home} is a file's name)")
    else:
        home = _DOLLAR.sub(value, home)
    path = home + slash + _DOLLAR.sub(value, rest)
    if not path:
        raise ValueError("a path")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.split("/")):
        raise ValueError(f"a path whose names have at most {_LONGEST_NAME} bytes each")
    return Path(path)


def written(path: Path) -> str:
    """The text that `expanded` reads as this path."""
    text = str(path).replace("$", "$$")
    return f"./{text}" if text.startswith("~") else text


def by_key(
    error: ValidationError, length: Callable[[_Location], int]
) -> dict[_Location, list[ErrorDetails]]:
    """pydantic's errors, together by the key that they are about; locations are below that key.

    Args:
        error: what pydantic raised.
        length: of the key, the beginning of an error's location.
    """
    of: dict[_Location, list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        location = item["loc"]
        end = length(location)
        of.setdefault(location[:end], []).append({**item, "loc": location[end:]})
    return of


def should_be(key: str, errors: Sequence[ErrorDetails], value: object) -> str:
    """One line about a key: what it should be, and what was got.

    Args:
        key: as the user writes it.
        errors: all of pydantic's for this key; several where its type is a union. Their locations
            are below that of the key: empty for the value itself.
        value: what was got.
    """
    errors = _of_one_element(errors, value)
    first, whole = errors[0], key
    if isinstance(value, list | tuple) and (index := _element(first)) is not None:
        key, value = f"{key}.{index}", value[index]
    elif len(errors) == 1 and not _lacks(first):  # exactly where it is
        key, value = ".".join([key, *map(str, first["loc"])]), first["input"]
    wanted = " or ".join(dict.fromkeys(map(_wanted, errors)))
    kinds = {error["type"] for error in errors}
    quote = isinstance(value, (int, float)) and kinds & {"string_type", "path_type"}
    shell = f" (in a shell: {key}=\"'...'\")" if key == whole else ""
    hint = f"; in quotes it is text{shell}" if quote else ""
    return f"{key}: should be {wanted}, got {shorten(value)}{hint}"


def _of_one_element(errors: Sequence[ErrorDetails], value: object) -> Sequence[ErrorDetails]:
    """Those of the first wrong element, where the value is a list and has one; else those of the
    value itself. Of the elements that a list lacks, only the last one says how long it should be.
    """
    wrong = [index for error in errors if (index := _element(error)) is not None]
    if wrong and isinstance(value, list | tuple):
        return [error for error in errors if _element(error) == wrong[0]]
    lacking = [error for error in errors if _lacks(error)]
    return [error for error in errors if error not in lacking[:-1]]


def _element(error: ErrorDetails) -> int | None:
    """The place of a wrong element in a list; None where the list itself is wrong."""
    places = [part for part in error["loc"] if isinstance(part, int)]
    return places[0] if places and not _lacks(error) else None


def _lacks(error: ErrorDetails) -> bool:
    """Whether it is of an element that a list lacks, at its place there."""
    return error["type"] == "missing" and any(isinstance(part, int) for part in error["loc"][-1:])


def _wanted(error: ErrorDetails) -> str:
    if _lacks(error):
        return f"a list of {int(error['loc'][-1]) + 1}"
    limits = error.get("ctx", {})
    if error["type"] == "too_long" and limits["field_type"] == "Tuple":
        return f"a list of {limits['max_length']}"
    message = error["msg"].splitlines()[0].removeprefix("Input should be ")
    return _WORDS.get(error["type"], message)


def shorten(value: object, length: int = 60) -> str:
    """The value as Python writes it, of no more than `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
