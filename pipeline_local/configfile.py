"""One YAML file and `key=value` pairs become a `Config`; every problem is reported at once."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline_local.config import Config, ModelConfig
from pipeline_local.errors import ConfigError


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides, and check everything.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    tree = _read_yaml(path)
    problems = [problem for text in overrides if (problem := _override(tree, text))]
    if problems:
        raise ConfigError(problems)
    return parse(tree)


def parse(tree: Mapping[str, Any]) -> Config:
    """Build a Config from nested mappings.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    tree = _gather_model_args(tree)
    try:
        config = TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        raise ConfigError(list(_explain(error))) from None
    if problems := list(_contradictions(config)):
        raise ConfigError(problems)
    return config


def dump(config: Config) -> str:
    """The YAML text that loads back to an equal Config."""
    tree = asdict(config)
    tree["model"].update(tree["model"].pop("args"))
    return yaml.safe_dump(_plain(tree), sort_keys=False)


def keys() -> list[str]:
    """All dotted keys, in file order."""
    return list(_keys(Config, ""))


def _keys(cls: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(cls)
    for f in fields(cls):
        kind = hints[f.name]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from _keys(kind, f"{f.name}.")
        elif prefix + f.name != "model.args":
            yield prefix + f.name


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"config file {path} does not exist; name a YAML file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"config file {path} cannot be read: {error}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError([f"config file {path} is not valid YAML: {reason}"]) from None
    if not isinstance(tree, dict):
        got = type(tree).__name__
        raise ConfigError([f"config file {path} must hold `key: value` sections, got {got}"])
    return tree


def _override(tree: dict[str, Any], text: str) -> str | None:
    """Write one `a.b=value` into the tree; the problem as text if that is impossible."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        return f"override {text!r} is not of the form key=value (such as train.epochs=10)"
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        return f"override {text!r}: the value is not valid YAML; quote it"
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            return f"override {text!r}: {section!r} is a value, not a section"
    node[leaf] = parsed
    return None


def _gather_model_args(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Move the free `model.KEY` entries under `model.args`; drop sections left empty."""
    tree = {key: value for key, value in tree.items() if value is not None}
    model = tree.get("model")
    if isinstance(model, dict):
        own = {f.name for f in fields(ModelConfig)} - {"args"}
        named = {key: value for key, value in model.items() if key in own}
        tree["model"] = named | {"args": {k: v for k, v in model.items() if k not in own}}
    return tree


def _explain(error: ValidationError) -> Iterator[str]:
    """One sentence per problem: what, what was got, what to do."""
    seen: set[str] = set()
    for item in error.errors(include_url=False):
        key = _dotted(item["loc"])
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            yield f"unknown key {key!r}{did_you_mean(key, keys())}"
        elif item["type"] in ("missing", "missing_argument"):
            yield f"missing key {key!r}; add it to the file or pass {key}=VALUE"
        elif key not in seen:
            want = item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            yield f"{key}: should be {want}, got {_shorten(item['input'])}"
        seen.add(key)


def _dotted(location: Sequence[str | int]) -> str:
    """The key a user wrote, without the names pydantic adds for the members of a union."""
    known = set(keys()) | {key.split(".")[0] for key in keys()}
    parts = [str(part) for part in location]
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in known:
            return ".".join(parts[:end])
    return ".".join(parts)


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
    if parallel.stages is not None and parallel.stages > config.modules.count:
        yield (
            f"parallel.stages must not exceed modules.count (a stage holds at least one module),"
            f" got {parallel.stages} stages for {config.modules.count} modules"
        )
    cuts = config.modules.cuts
    if not isinstance(cuts, str) and len(cuts) != config.modules.count - 1:
        yield (
            f"modules.cuts must name the first block of modules 2..{config.modules.count}:"
            f" expected {config.modules.count - 1} entries, got {len(cuts)}"
        )
    if data.name in ("cifar10", "cifar100", "imagefolder") and data.root is None:
        yield f"data.root is needed for data.name={data.name}; name the folder"


def did_you_mean(word: str, candidates: Sequence[str]) -> str:
    """`; did you mean 'x'?` for a near miss, else an empty string."""
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _shorten(value: object, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _plain(value: Any) -> Any:  # noqa: ANN401 (any YAML value)
    """The value with paths as strings and tuples as lists, as YAML writes them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
