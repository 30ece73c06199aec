"""The resolved configuration, with the origin of each value."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline_local.configfile import configfile
from pipeline_local.user_input import yaml_text

_WIDEST = 60
"""Comments stand behind lines of up to so many characters; longer ones have theirs farther on."""


def annotated(path: Path, overrides: Sequence[str]) -> str:
    """Return the text of a configuration file with every key, which loads as this one does.

    A comment behind each value says where it comes from: the file, the command line, or the
    defaults.

    Args:
        path: the file.
        overrides: `key=value` of the command line.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    tree = configfile.read(path)  # once, as it may be a pipe
    origins = dict.fromkeys(_keys(tree), "file")
    config = configfile.resolved(tree, overrides)
    for text in overrides:
        key, _, value = text.partition("=")
        if isinstance(parsed := yaml_text.parse(value), dict):  # it takes the place of a section
            origins = {name: of for name, of in origins.items() if not name.startswith(f"{key}.")}
            origins |= dict.fromkeys((f"{key}.{name}" for name in parsed), "command line")
        origins[".".join(key.split(".")[:2])] = "command line"
    lines = configfile.dump(config).splitlines()
    width = max(len(line) for line in lines if len(line) <= _WIDEST)
    section, shown = "", []
    for line in lines:
        name = line.strip().partition(":")[0]
        if line.startswith(("  - ", "    ")):  # of a list or mapping: its first line said it
            shown.append(line)
        elif line.endswith(":") and not line.startswith(" "):
            section = name
            shown.append(line)
        else:
            key = f"{section}.{name}" if line.startswith(" ") else name
            shown.append(f"{line:<{width}}  # {origins.get(key, 'default')}")
    return "\n".join(shown) + "\n"


def _keys(tree: dict[str, Any]) -> Iterator[str]:
    for section, value in tree.items():
        if isinstance(value, dict):
            yield from (f"{section}.{key}" for key in value)
        else:
            yield section
