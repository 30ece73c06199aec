"""Commands that help to write a configuration, and commands."""

import argparse
from collections.abc import Sequence

from pipeline_local.commands.shared import Commands
from pipeline_local.configfile import keys
from pipeline_local.console.screen import Screen, say
from pipeline_local.user_input import new_file


def _init(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.configfile import starter

    new_file.write("init", options.file, starter.text(options.model, str(options.file)))
    say(f"{options.file}: pipeline-local train {options.file} --dry-run shows what it would train")
    return 0


def _explain(options: argparse.Namespace, _: Sequence[str]) -> int:
    if options.key in keys.sections():
        _show_section(options.key)
        return 0
    key = keys.find(options.key)
    say(f"{key.name}: {key.meaning}")
    say(f"  values   {key.values.replace('`', '')}")
    say(f"  default  {key.default}")
    say(f"  page     {key.link}")
    return 0


def _show_section(name: str) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("key", "default", "meaning"):
        table.add_column(column, no_wrap=column == "key")
    for key in keys.of_section(name):
        table.add_row(key.name, key.default, key.meaning)
    say(keys.about(name) + "\n")
    Screen().print(table)
    say(f"\npage  {keys.PAGE}#{name}")


def _completion(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.configfile import completion

    say(completion.script(options.shell))
    return 0


COMMANDS: Commands = {"init": _init, "explain": _explain, "completion": _completion}
