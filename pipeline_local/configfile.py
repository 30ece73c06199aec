"""One YAML file and `key=value` pairs become a `Config`; every problem is reported at once."""

import difflib
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from pipeline_local import yamltext
from pipeline_local.config import Config
from pipeline_local.errors import ConfigError

_KeyPath = tuple[Any, ...]
"""A key as it stands in the file: (section, key) or (key,). Anything hashable can be a YAML key."""

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "null",
}
_LIMITS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
"""pydantic's errors about a value of the right type."""


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides, and check everything.

    Args:
        path: a file of sections that hold `key: value` lines.
        overrides: dotted keys with YAML values, such as `train.epochs=10`; the last one wins.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    tree = _read(path)
    problems = [problem for text in overrides if (problem := _override(tree, text))]
    if problems:
        raise ConfigError(problems)
    return parse(tree)


def parse(tree: Mapping[str, Any]) -> Config:
    """Build a Config from nested mappings.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    leaves = dict(_leaves(tree))
    problems = {path: line for path, value in leaves.items() if (line := _check(path, value))}
    try:
        config = _adapter().validate_python(_nest(leaves))
    except ValidationError as error:
        problems = dict(_explain(error, leaves)) | problems
        raise ConfigError(list(problems.values())) from None
    if lines := list(problems.values()) or list(_contradictions(config)):
        raise ConfigError(lines)
    return config


def dump(config: Config) -> str:
    """The YAML text that loads back to an equal Config."""
    tree = asdict(config)
    for name in _open_sections():
        tree[name].update(tree[name].pop("args"))
    return yamltext.write(tree)


def keys() -> list[str]:
    """All dotted keys, in file order."""
    return [".".join(path) for path in _schema()]


def _read(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([f"config file {path} does not exist; name a YAML file"]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"config file {path} cannot be read: {error}; name another"]) from None
    try:
        tree = yamltext.parse(text)
    except ValueError as error:
        raise ConfigError([f"config file {path} is not valid YAML: {error}"]) from None
    if not isinstance(tree, dict):
        got = _shorten(tree)
        raise ConfigError([f"config file {path} must hold sections of `key: value`, got {got}"])
    return tree


def _override(tree: dict[Any, Any], text: str) -> str | None:
    """Write one `a.b=value` into the tree; the problem as text if that is impossible."""
    key, equals, value = text.partition("=")
    *sections, leaf = key.split(".")
    if not equals or not all([*sections, leaf]):
        return f"override {text!r} is not of the form key=value (such as train.epochs=10)"
    try:
        parsed = yamltext.parse(value)
    except ValueError as error:
        return f"override {text!r}: the value is not valid YAML ({error}); quote it"
    for section in sections:
        if tree.get(section) is None:  # absent or empty
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            return f"override {text!r}: {section!r} holds a value, not keys; change the file"
    tree[leaf] = parsed
    return None


@functools.cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


@functools.cache
def _schema() -> dict[_KeyPath, Any]:
    """The type of every key, in file order."""
    schema: dict[_KeyPath, Any] = {}
    for name, kind in get_type_hints(Config).items():
        if is_dataclass(kind):
            hints = get_type_hints(kind)
            schema |= {(name, f.name): hints[f.name] for f in fields(kind) if f.name != "args"}
        else:
            schema[name,] = kind
    return schema


@functools.cache
def _open_sections() -> list[str]:
    """Those with options of what they name, written as further keys beside the known ones."""
    kinds = get_type_hints(Config).items()
    return [n for n, kind in kinds if is_dataclass(kind) and "args" in get_type_hints(kind)]


def _sections() -> list[str]:
    return list(dict.fromkeys(path[0] for path in _schema() if len(path) == 2))


def _leaves(tree: Mapping[Any, Any]) -> Iterator[tuple[_KeyPath, Any]]:
    """Every key, known or not, with its value. An empty section has none."""
    for name, value in tree.items():
        if name not in _sections():
            yield (name,), value
        elif isinstance(value, Mapping):
            yield from (((name, key), leaf) for key, leaf in value.items())
        elif value is not None:
            yield (name,), value


def _nest(leaves: Mapping[_KeyPath, Any]) -> dict[str, Any]:
    """What pydantic checks: the known keys in their sections, all others under their `args`."""
    tree: dict[str, Any] = {name: {} for name in _sections()}
    for name in _open_sections():
        tree[name]["args"] = {}
    for path, value in leaves.items():
        if path in _schema():
            (tree if len(path) == 1 else tree[path[0]])[path[-1]] = value
        elif _is_option(path):
            tree[path[0]]["args"][path[1]] = value
    return tree


def _is_option(path: _KeyPath) -> bool:
    return len(path) == 2 and path[0] in _open_sections() and isinstance(path[1], str)


def _check(path: _KeyPath, value: object) -> str | None:
    """What is wrong with a key, or with a value that pydantic would quietly convert."""
    key = ".".join(map(str, path))
    if path in _schema():
        hint = _schema()[path]
        return _should_be(key, _wanted(hint), value) if _is_converted(hint, value) else None
    if _is_option(path):
        return None
    if key in _sections():
        return _should_be(key, "a section of `key: value` lines", value)
    return f"unknown key {_shorten(key)}{_suggest(path)}"


def _should_be(key: str, wanted: str, value: object) -> str:
    return f"{key}: should be {wanted}, got {_shorten(value)}"


def _is_converted(hint: Any, value: object) -> bool:  # noqa: ANN401 (any type hint)
    """Whether pydantic would make another type of the value, such as 1 of true or of "1"."""
    kinds = (hint, *get_args(hint))
    if isinstance(value, (bool, bytes)):
        return type(value) not in kinds
    if isinstance(value, list):
        return any(isinstance(item, bool) for item in value)
    return bool in kinds or (isinstance(value, str) and int in kinds)


def _wanted(hint: Any) -> str:  # noqa: ANN401 (any type hint)
    """A type in a user's words."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_wanted, get_args(hint)))
    if get_origin(hint) is Literal:
        *first, last = map(repr, get_args(hint))
        return f"{', '.join(first)} or {last}" if first else last
    return "a list" if get_origin(hint) is tuple else _WORDS[hint]


def _explain(
    error: ValidationError, leaves: Mapping[_KeyPath, Any]
) -> Iterator[tuple[_KeyPath, str]]:
    """One line per key: what, what was got, what to do."""
    for item in error.errors(include_url=False):
        path = next((p for p in (item["loc"][:2], item["loc"][:1]) if p in _schema()), item["loc"])
        key = ".".join(map(str, path))
        if item["type"] == "missing":
            yield path, f"missing key {key!r}; add it to the file or pass {key}=VALUE"
            continue
        wanted = item["msg"].removeprefix("Input should be ")
        if path in _schema() and item["type"] not in _LIMITS:
            wanted = _wanted(_schema()[path])
        yield path, _should_be(key, wanted, leaves.get(path, item["input"]))


def _suggest(path: _KeyPath) -> str:
    """The nearest key, wherever it stands; else what stands in this section."""
    section, name = path[:-1], str(path[-1])
    if not section and tuple(name.split(".")) in _schema():
        return f"; in a file, write {name.replace('.', ': {')}: ...}}"
    candidates = [*_schema(), *((name,) for name in _sections())]

    def nearness(known: _KeyPath) -> float:
        ratio = difflib.SequenceMatcher(None, name[:80], known[-1]).ratio()
        return ratio + (0.1 if known[:-1] == section else 0)

    best = max(map(nearness, candidates))
    if best >= 0.7:
        near = [repr(".".join(known)) for known in candidates if nearness(known) == best]
        return f"; did you mean {' or '.join(near)}?"
    siblings = [known[-1] for known in candidates if known[:-1] == section]
    return f"; the keys here are {', '.join(siblings)}"


def _contradictions(config: Config) -> Iterator[str]:
    """Values that are fine alone and impossible together."""
    train, data, parallel = config.train, config.data, config.parallel
    if (train.epochs is None) == (train.steps is None):
        got = "neither" if train.epochs is None else "both"
        yield f"give either train.epochs or train.steps, got {got}"
    if data.batch_size % train.microbatches:
        yield (
            f"data.batch_size must be a multiple of train.microbatches,"
            f" got {data.batch_size} and {train.microbatches}"
        )
    if parallel.replicas != 1:
        yield f"parallel.replicas: only 1 is possible so far, got {parallel.replicas}"
    count, cuts = config.modules.known_count, config.modules.cuts
    if parallel.stages is not None and count is not None and parallel.stages > count:
        yield (
            f"parallel.stages must not exceed modules.count (a stage holds at least one module),"
            f" got {parallel.stages} stages for {count} modules"
        )
    if not isinstance(cuts, str) and count is not None and len(cuts) != count - 1:
        yield (
            f"modules.cuts must name the first block of modules 2..{count}:"
            f" expected {count - 1} entries, got {len(cuts)}; or leave modules.count out"
        )
    if cuts in ("auto", "memory") and config.modules.count is None:
        yield f"modules.cuts={cuts} needs modules.count, got none; say how many modules to make"
    places = parallel.cuts
    if not isinstance(places, str) and parallel.stages not in (None, len(places) + 1):
        yield (
            f"parallel.cuts must name the first module of each stage but the first: expected"
            f" {(parallel.stages or 1) - 1} entries for {parallel.stages} stages, got {len(places)}"
        )
    reconcile = config.reconcile
    if config.compile and reconcile.weight and reconcile.estimator == "exact":
        yield (
            "reconcile.estimator=exact differentiates twice, which compile=true cannot;"
            " use reconcile.estimator=shift or compile=false"
        )
    if config.head.name == "etf" and reconcile.weight and reconcile.direction != "downstream":
        yield (
            f"reconcile.direction={reconcile.direction} trains heads, and head.name=etf has nothing"
            f" to train; use reconcile.direction=downstream or another head"
        )
    if parallel.wire_dtype == "float16" and config.precision == "bfloat16":
        yield (
            "parallel.wire_dtype=float16 sends nothing narrower than precision=bfloat16 does, with"
            " less range; leave it null, or use precision=float32"
        )


def _shorten(value: object, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
