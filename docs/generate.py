"""Write the reference pages from the code: `python docs/generate.py`.

`configuration.md` comes from the dataclasses of `pipeline_local/config.py` and the docstrings under
their fields, `commands.md` from the parser of `pipeline_local/commandline/`. Both pages are
committed; `tests/test_docs.py` fails when one of them is not what this script writes.
"""

import argparse
import ast
import inspect
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline_local import config, configfile
from pipeline_local.commandline.parser import parser

DOCS = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py: change the code, then run it again. -->\n"
_WORDS = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_UNBOUNDED = 2**32
"""A limit above this only keeps numbers representable; nobody needs to read it."""

CONFIGURATION = """# Configuration

A run is described by a YAML file of sections and by `key=value` pairs that override it, such as
`train.epochs=3`. Unknown keys, wrong types and contradictions are all reported at once, before
anything starts. Every run folder holds the resolved configuration as `config.yaml`.

In paths `~`, `$NAME` and `${NAME}` are expanded; `$$` is a dollar sign, and a variable that is not
set is refused. Values are those of YAML 1.2: `010` is ten, and `1:30`, `yes` and `2024-01-01` are
text. A number where text or a path is wanted, such as a run folder's name, stands in quotes.

`required` means that the key has no default. `null` means that the value is derived, or that the
feature is off; the text says which.
"""

COMMANDS = """# Commands

`pipeline-local COMMAND --help` prints the same. `python -m pipeline_local` is another name for
`pipeline-local`, for use under torchrun and other launchers. `key=value` pairs override keys of the
[configuration](configuration.md). The [exit codes](reliability.md#exit-codes) are the same for all
commands.
"""


def configuration() -> str:
    """The text of configuration.md."""
    hints = get_type_hints(config.Config)
    kinds = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    sections = [_section(name, kind) for name, kind in kinds.items() if isinstance(kind, type)]
    alone = [field for field in fields(config.Config) if not is_dataclass(hints[field.name])]
    rest = "## Keys without a section\n\n" + _table("", config.Config, alone)
    return "\n".join([NOTE + CONFIGURATION, *sections, rest])


def _section(name: str, kind: type) -> str:
    """A heading, what the class says of itself, and a table of its fields."""
    about = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    rows = sorted(fields(kind), key=lambda field: field.name == "args")  # further keys come last
    return f"## {name}\n\n{about}\n\n{_table(f'{name}.', kind, rows)}"


def _table(prefix: str, kind: type, rows: "list[Field[Any]]") -> str:
    meanings, hints = _docstrings(kind), get_type_hints(kind, include_extras=True)
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for field in rows:
        further = field.name == "args"
        key = prefix + ("KEY" if further else field.name)
        values = "any" if further else _names(key) or _values(hints[field.name])
        meaning = meanings[field.name].replace("SECTION.", prefix)
        cells = (f"`{key}`", _default(field), values, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _names(key: str) -> str:
    """The entries of the registry behind a key; nothing where there is none."""
    registries = getattr(configfile, "REGISTRIES", {}).values()
    names = [name for registry in registries if registry.key == key for name in registry.names()]
    return ", ".join(f"`{name}`" for name in [*names, "python:package.module:name"] if names)


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


def _default(field: "Field[Any]") -> str:
    if field.default_factory is not MISSING:
        return ""
    if field.default is MISSING:
        return "required"
    shown = {None: "null", True: "true", False: "false"}
    value = field.default
    return f"`{shown[value] if value is None or isinstance(value, bool) else value}`"


def _values(hint: Any) -> str:  # noqa: ANN401
    """A type in words, such as "integer >= 1 or null"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([_values(args[0]), " and ".join(_limits(args[1:]))]).strip()
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_values(part) for part in args)
    if origin is tuple:
        return f"list of {_values(args[0])}"
    return "null" if hint is type(None) else _WORDS[hint]


def _limits(annotations: tuple[Any, ...]) -> Iterator[str]:
    """Such as ">= 1": from pydantic's Field."""
    for annotation in annotations:
        for bound in getattr(annotation, "metadata", []):
            for name, sign in _SIGNS.items():
                if (limit := getattr(bound, name, None)) is not None and limit < _UNBOUNDED:
                    yield f"{sign} {limit}"


def commands() -> str:
    """The text of commands.md."""
    return "\n".join([NOTE + COMMANDS, *_subcommands(parser())])


def _subcommands(whole: argparse.ArgumentParser) -> Iterator[str]:
    """A chapter per command, those of a group of commands after it."""
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                command = action.choices[choice.dest]
                yield _chapter(command, choice.help or "")
                yield from _subcommands(command)


def _chapter(command: argparse.ArgumentParser, about: str) -> str:
    known = [a for a in command._actions if a.dest != "help" and a.help != argparse.SUPPRESS]
    groups = [a for a in known if isinstance(a, argparse._SubParsersAction)]
    rows = [_row(action) for action in known if action not in groups]
    usage = " ".join([command.prog, *map(_usage, known)])
    text = f"## {command.prog.removeprefix('pipeline-local ')}\n\n{_sentence(about)}\n\n"
    text += f"```\n{usage}\n```\n"
    if rows:
        text += "\n".join(["", "| argument | default | meaning |", "|---|---|---|", *rows, ""])
    if command.epilog:
        examples = command.epilog.partition("\n")[2]
        text += f"\n```bash\n{inspect.cleandoc(examples)}\n```\n"
    return text


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _usage(action: argparse.Action) -> str:
    shown = " ".join(filter(None, [*action.option_strings[:1], _value(action)]))
    if action.nargs == "*":
        return f"[{shown} ...]"
    if action.nargs == "+":
        return f"{shown} [{shown} ...]"
    return shown if action.required else f"[{shown}]"


def _value(action: argparse.Action) -> str:
    """What stands for the argument's value; nothing for a switch."""
    if action.nargs == 0:
        return ""
    positional = not action.option_strings
    return str(action.metavar or (action.dest if positional else action.dest.upper()))


def _row(action: argparse.Action) -> str:
    name = " ".join(filter(None, [*action.option_strings[:1], _value(action)]))
    default = action.default
    shown = ",".join(default) if isinstance(default, tuple) else default
    required = action.required and action.option_strings
    cell = "required" if required else "" if default in (None, [], False) else f"`{shown}`"
    overrides = "keys of the configuration" if action.nargs == "*" else ""
    return f"| `{name}` | {cell} | {action.help or overrides} |"


PAGES = {"configuration.md": configuration, "commands.md": commands}


if __name__ == "__main__":
    for name, write in PAGES.items():
        (DOCS / name).write_text(write(), encoding="utf-8")
