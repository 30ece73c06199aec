"""How the values of a configuration are checked: strictly, and told in a user's words."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema

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
}
"""pydantic's types of errors; its own words stand for all others, such as limits."""


class Strict:
    """Marks a type, as in `Annotated[Config, Strict()]`, so that pydantic converts no scalar in it.

    1 is not true, "1" is not 1, and true is neither. What YAML cannot tell apart passes: a list is
    a tuple, text is a path, 1e3 is a whole number, and '1e-3' is a number.
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
    convert = _FROM_YAML.get(kind)
    return core_schema.no_info_before_validator_function(convert, node) if convert else node


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: object) -> object:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


_FROM_YAML: dict[object, Any] = {"int": _whole, "float": _number}


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
    if len(errors) == 1:  # exactly where it is
        (error,) = errors
        key, value = ".".join([key, *map(str, error["loc"])]), error["input"]
    wanted = " or ".join(dict.fromkeys(map(_wanted if len(errors) == 1 else _in_whole, errors)))
    return f"{key}: should be {wanted}, got {shorten(value)}"


def _in_whole(error: ErrorDetails) -> str:
    """Of an error in a list, that it should be another one."""
    return "a list" if any(isinstance(part, int) for part in error["loc"]) else _wanted(error)


def _wanted(error: ErrorDetails) -> str:
    message = error["msg"].splitlines()[0].removeprefix("Input should be ")
    return _WORDS.get(error["type"], message)


def shorten(value: object, length: int = 60) -> str:
    """The value as Python writes it, of no more than `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
