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


def words(text: str) -> tuple[str, ...]:
    """Return the words of a list with commas, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of a list with commas, each once; () if a word is no number."""
    found = words(text)
    return tuple(map(int, found)) if all(word.isdecimal() for word in found) else ()


def path(text: str) -> Path:
    """Expand `~` and variables as in the configuration; the shell leaves `--json=~/x` alone."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"should be {error}, got {text!r}") from None
