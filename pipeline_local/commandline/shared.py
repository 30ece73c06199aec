"""What the parsers of all commands share."""

import argparse
from pathlib import Path
from typing import TypeAlias

from pipeline_local.user_input.values import expanded

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, about: str, *examples: str
) -> argparse.ArgumentParser:
    """Add a command whose help ends with examples."""
    command = commands.add_parser(
        name, help=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = (f"  {command.prog} {example}" for example in examples)
    command.epilog = "\n".join(["examples:", *shown])
    return command


def add_configuration(command: argparse.ArgumentParser, example: str) -> None:
    """Add a configuration file and what overrides it."""
    command.add_argument("config", type=path, help="YAML file")
    add_overrides(command, example)


def add_overrides(command: argparse.ArgumentParser, example: str) -> None:
    """Add what overrides a configuration."""
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=example)


def add_run_folder(command: argparse.ArgumentParser, which: str = "") -> None:
    """Add the folder of a run; `which` says what kind of run it must be."""
    command.add_argument("run_folder", type=path, help=f"run.dir of a run{which}")


def path(text: str) -> Path:
    """Expand `~` and variables as in the configuration; the shell leaves `--json=~/x` alone."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"should be {error}, got {text!r}") from None
