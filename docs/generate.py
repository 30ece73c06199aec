"""Write the reference pages from the code: `python docs/generate.py`.

`configuration.md` comes from the dataclasses of `pipeline_local/config.py` and the docstrings under
their fields, `commands.md` from the parser of `pipeline_local/commandline/`. Both pages are
committed; `tests/test_docs.py` fails when one of them is not what this script writes.
"""

import argparse
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline_local.commandline.parser import parser
from pipeline_local.configfile import keys

DOCS = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py: change the code, then run it again. -->\n"
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
    sections = [_section(name) for name in keys.sections()]
    rest = "## Keys without a section\n\n" + _table(keys.of_section(""))
    return "\n".join([NOTE + CONFIGURATION, *sections, rest])


def _section(name: str) -> str:
    """A heading, what the section says of itself, and a table of its keys."""
    return f"## {name}\n\n{keys.about(name)}\n\n{_table(keys.of_section(name))}"


def _table(rows: Sequence[keys.Key]) -> str:
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for key in rows:
        default = key.default if key.default in ("", "required") else f"`{key.default}`"
        cells = (f"`{key.name}`", default, key.values, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


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
