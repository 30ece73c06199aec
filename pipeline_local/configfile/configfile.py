"""One YAML file and `key=value` pairs become a `Config`; every problem is reported at once."""

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from pipeline_local.config import Config
from pipeline_local.configfile.contradictions import LENGTHS, contradictions
from pipeline_local.data.datasets import DATA
from pipeline_local.engines.optimizer import OPTIMIZERS
from pipeline_local.engines.settings import DERIVED
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.given import given, task  # noqa: F401 (their entries are names, too)
from pipeline_local.learning.estimators import ESTIMATORS
from pipeline_local.learning.heads import HEADS
from pipeline_local.learning.information import INFORMATION
from pipeline_local.learning.tasks import TASKS
from pipeline_local.models.registry import MODELS
from pipeline_local.ranks.p2p import P2PS
from pipeline_local.user_input import yaml_text
from pipeline_local.user_input.registry import Registry
from pipeline_local.user_input.values import Strict, by_key, expanded, shorten, should_be, written

_KeyPath = tuple[Any, ...]
"""A key as it stands in the file: (section, key) or (key,). Anything hashable can be a YAML key."""
_Leaves = Mapping[_KeyPath, Any]

REGISTRIES: dict[str, Registry[Any]] = {
    "data": DATA,
    "task": TASKS,
    "head": HEADS,
    "information": INFORMATION,
    "reconcile": ESTIMATORS,
    "optimizer": OPTIMIZERS,
    "parallel": P2PS,
}
"""Who checks, in a section, the name of an entry and the further keys, its options. The further
keys of `model` are checked where it is built."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides, and check everything.

    Args:
        path: a file of sections that hold `key: value` lines; in text `~` and $NAME are expanded.
        overrides: dotted keys with YAML values, such as `train.epochs=10`; the last one wins. A
            length of training replaces the file's: `train.steps` its `train.epochs`, for instance.

    Raises:
        ConfigError: with every problem found, one line each.

    Example:
        >>> config = load_config("configs/digits.yaml", ["train.epochs=3", "modules.count=2"])
        >>> config.train.epochs, config.modules.count
        (3, 2)
    """
    return resolved(read(path), overrides)


def resolved(tree: dict[Any, Any], overrides: Sequence[str]) -> Config:
    """Applies `key=value` overrides to what a file holds, which is changed, and checks everything.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    if isinstance(overrides, str):  # which has characters, and no overrides
        raise ConfigError([f"overrides: should be a list of texts, got {shorten(overrides)}"])
    problems = [problem for text in overrides if (problem := _override(tree, text))]
    if problems:
        raise ConfigError(problems)
    _replace_length(tree, overrides)
    return parse(tree)


def parse(tree: Mapping[str, Any]) -> Config:
    """Build a Config from nested mappings.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    leaves = dict(_leaves(tree))
    problems = [line for path, value in leaves.items() if (line := _mistake(path, value))]
    problems += [line for section in REGISTRIES for line in _entry_problems(section, leaves)]
    try:
        config = _adapter().validate_python(_nest(leaves))
    except ValidationError as error:
        raise ConfigError(list(dict.fromkeys([*problems, *_explain(error, leaves)]))) from None
    if config.parallel.stages is not None:
        config = config.on_stages(config.parallel.stages)
    if lines := problems or list(contradictions(config)):
        raise ConfigError(lines)
    return config


def checked(config: Config) -> Config:
    """The same, if it is one: a program may have made or replaced any part of it.

    Raises:
        UserError: with every problem found, one line each.
    """
    if not isinstance(config, Config):
        got = shorten(config)
        raise UserError(f"config: should be a Config, as load_config(path) gives, got {got}")
    return parse(_tree(config))


def dump(config: Config) -> str:
    """The YAML text that loads back to an equal Config."""
    return yaml_text.write(_texts(_tree(config)))


def tree(config: Config) -> dict[str, Any]:
    """The sections as a file has them, every path absolute: it means the same in any folder."""
    sections = _tree(config)
    for name, section in sections.items():
        if isinstance(section, dict):
            section |= {key: _absolute(value) for key, value in section.items()}
            section |= dict(_typed_options(name, config))
    return sections


def _tree(config: Config) -> dict[str, Any]:
    sections = asdict(config)
    for name in _sections():
        sections[name] |= sections[name].pop("args", {})
    return sections


def _absolute(value: Any) -> Any:  # noqa: ANN401 (any value of a key)
    if isinstance(value, (tuple, list)):
        return type(value)(_absolute(item) for item in value)
    return written(value.absolute()) if isinstance(value, Path) else value


def _typed_options(section: str, config: Config) -> Iterator[tuple[str, str]]:
    """Options that their entry takes as paths: the file has them as text."""
    registry = {"model": MODELS, **REGISTRIES}.get(section)
    keys = vars(getattr(config, section))
    if registry is None or not keys["args"]:
        return
    name = keys[registry.key.partition(".")[2]]
    with suppress(UserError):  # of a model's options, which are checked where it is built
        options = registry.options(name, keys["args"], keys)
        yield from (
            (k, _absolute(options[k])) for k in keys["args"] if isinstance(options[k], Path)
        )


def _texts(value: Any) -> Any:  # noqa: ANN401 (any value of a configuration)
    """The same, with paths as a user would write them."""
    if isinstance(value, dict):
        return {key: _texts(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_texts(item) for item in value]
    return written(value) if isinstance(value, Path) else value


def path(key: str, value: str | Path) -> Path:
    """What a program gives for a path: text is read as in a file.

    Raises:
        UserError: it is no path; the message names the key.
    """
    if not isinstance(value, str | Path):  # a program may give anything
        raise UserError(f"{key}: should be a path, got {shorten(value)}")
    try:
        return expanded(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UserError(f"{key}: should be {error}, got {shorten(value)}") from None


def keys() -> list[str]:
    """All dotted keys, in file order."""
    return [".".join(path) for path in _schema()]


def read(named: str | Path) -> dict[Any, Any]:
    """What a file holds: sections, whose names and keys are not checked yet.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    file = path("config", named)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([f"config file {file} does not exist; name a YAML file"]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"config file {file} cannot be read: {error}; name another"]) from None
    try:
        tree = yaml_text.parse(text)
    except yaml_text.UnsetError as error:
        raise ConfigError([f"config file {file}: {error}"]) from None
    except ValueError as error:
        raise ConfigError([f"config file {file} is not valid YAML: {error}"]) from None
    if not isinstance(tree, dict):
        got = shorten(tree)
        raise ConfigError([f"config file {file} must hold sections of `key: value`, got {got}"])
    return tree


def _override(tree: dict[Any, Any], text: str) -> str | None:
    """Write one `a.b=value` into the tree; the problem as text if that is impossible."""
    key, equals, value = text.partition("=")
    *sections, leaf = key.split(".")
    if not equals or not all([*sections, leaf]):
        return f"override {text!r} is not of the form key=value (such as train.epochs=10)"
    try:
        parsed = yaml_text.parse(value)
    except yaml_text.UnsetError as error:
        return f"override {text!r}: {error}"
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


def _replace_length(tree: dict[Any, Any], overrides: Sequence[str]) -> None:
    """Lets a length of training among the overrides replace the file's, if that is another one."""
    keys = [text.partition("=")[0] for text in overrides]
    lengths = [key for key in LENGTHS if f"train.{key}" in keys]
    if any(tree["train"][key] is not None for key in lengths):
        tree["train"] |= {key: None for key in LENGTHS if key not in lengths}


@functools.cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Annotated[Config, Strict()])


@functools.cache
def _schema() -> dict[_KeyPath, Any]:
    """Every key with its default, dataclasses.MISSING where there is none, in file order."""
    schema: dict[_KeyPath, Any] = {}
    for name, kind in get_type_hints(Config).items():
        if is_dataclass(kind):
            schema |= {(name, f.name): f.default for f in fields(kind) if f.name != "args"}
        else:
            schema[name,] = getattr(Config, name)
    return schema


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


def _nest(leaves: _Leaves) -> dict[str, Any]:
    """What pydantic checks: the known keys in their sections, options under `args`."""
    tree: dict[str, Any] = {name: {} for name in _sections()}
    for path, value in leaves.items():
        if path in _schema():
            (tree if len(path) == 1 else tree[path[0]])[path[-1]] = value
        elif _is_option(path):
            tree[path[0]].setdefault("args", {})[path[1]] = value
    return tree


def _is_option(path: _KeyPath) -> bool:
    """Whether it is none of the section's own keys, but one that an entry may take."""
    is_key = len(path) == 2 and path[0] in ("model", *REGISTRIES) and isinstance(path[1], str)
    return is_key and path not in _schema()


def _mistake(path: _KeyPath, value: object) -> str | None:
    """What is wrong with a key that nobody knows."""
    key = ".".join(map(str, path))
    if path in _schema() or _is_option(path):
        return None
    if path[0] == "deepspeed" and (other := DERIVED.get(str(path[-1]))):
        return f"{key}: a run derives it from {other}; set that"
    if key in _sections():
        form = "a section of `key: value` lines (in Python a dict)"
        return f"{key}: should be {form}, got {shorten(value)}"
    return f"unknown key {shorten(key)}{_suggest(path)}"


def _entry_problems(section: str, leaves: _Leaves) -> list[str]:
    """What is wrong with the entry that a section names, and with its options."""
    registry = REGISTRIES[section]
    here = {path: value for path, value in leaves.items() if path[0] == section}
    args = {path[1]: value for path, value in here.items() if _is_option(path)}
    own = {
        path[1]: here.get(path, value) for path, value in _schema().items() if path[0] == section
    }
    name = own.pop(registry.key.partition(".")[2])
    if name is None:  # to be derived, or nothing
        key = registry.key
        return [
            f"unknown key '{section}.{option}' without {key}{_suggest((section, option))}"
            for option in args
        ]
    if not isinstance(name, str):  # pydantic says so
        return []
    return registry.problems(name, args, own, lambda key, keys: _suggest((section, key), keys))


def _explain(error: ValidationError, leaves: _Leaves) -> Iterator[str]:
    """One line per key: what, what was got, what to do."""
    for path, items in by_key(error, lambda loc: 2 if loc[:2] in _schema() else 1).items():
        key = ".".join(map(str, path))
        if path not in leaves:
            yield f"missing key {key!r}; add it to the file or pass {key}=VALUE"
        else:
            yield should_be(key, items, leaves[path])


def _suggest(path: _KeyPath, options: Sequence[str] = ()) -> str:
    """The nearest key, wherever it stands; else what stands in this section, and its options."""
    section, name = path[:-1], str(path[-1])
    if not section and tuple(name.split(".")) in _schema():
        return f"; in a file, write {name.replace('.', ': {')}: ...}}"
    candidates = [*_schema(), *((name,) for name in _sections())]
    candidates += [known for key in options if (known := (*section, key)) not in _schema()]

    def nearness(known: _KeyPath) -> float:
        ratio = difflib.SequenceMatcher(None, name[:80], known[-1]).ratio()
        return ratio + (0.12 if known[:-1] == section else 0)  # train.step is train.steps

    best = max(map(nearness, candidates))
    if best >= 0.7:
        near = [repr(".".join(known)) for known in candidates if nearness(known) == best]
        return f"; did you mean {' or '.join(near)}?"
    siblings = [known[-1] for known in candidates if known[:-1] == section]
    return f"; the keys here are {', '.join(siblings)}"
