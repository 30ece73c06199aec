"""The command line: what every command takes. Torch is not needed for it, nor waited for.

Help and mistakes of usage are there at once; what a command does is in `commands/`.
"""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

from pipeline_local import __version__
from pipeline_local.commandline import bench, doctor, finished, planning, training, writing
from pipeline_local.config import Config
from pipeline_local.console.screen import complain

DESCRIPTION = "Pipelined training without a global backward pass."
CALL = "call"
"""The command by which a program's function is started on new ranks."""
HOSTS = "hosts"
"""The command by which launch/multinode.sh starts the ranks of one of several hosts."""


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse as argparse does, but allow `key=value` behind an option, and old spellings.

    Args:
        arguments: behind the program's name.

    Returns:
        The options, of which `run` names the command; and the arguments in today's spelling, which
        start the same command again on other ranks.
    """
    arguments = _with_baselines(_without_local_rank(arguments))
    known = parser()
    options, rest = known.parse_known_args(arguments)
    stray = [text for text in rest if text.startswith("-") or "=" not in text]
    if stray or (rest and not hasattr(options, "overrides")):
        keys = [key for text in stray for key in _keys(text)]
        hint = f"; keys have no dashes: {' '.join(keys)}" if keys else ""
        known.error(f"unrecognized arguments: {' '.join(stray or rest)}{hint}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options, arguments


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(prog="pipeline-local", description=DESCRIPTION)
    whole.add_argument("--version", action="version", version=__version__)
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for group in (writing, training, planning, finished, bench, doctor):
        group.add_all(commands)
    call = commands.add_parser(CALL)  # without help: not for people
    call.add_argument("file", type=Path)
    call.set_defaults(run="call")
    hosts = commands.add_parser(HOSTS)
    for number in ("count", "number", "ranks", "port", "restarts"):
        hosts.add_argument(number)  # read where the script's names for them are known
    hosts.add_argument("head")
    hosts.add_argument("arguments", nargs=argparse.REMAINDER)
    hosts.set_defaults(run="hosts")
    return whole


def _keys(text: str) -> list[str]:
    """The keys that may be meant by an option that there is not, such as `--epochs=3`."""
    name, sign, value = text.lstrip("-").partition("=")
    if not text.startswith("--") or (sign and "." in name):
        return [text.lstrip("-")] if sign else []
    sections = {key: kind for key, kind in get_type_hints(Config).items() if is_dataclass(kind)}
    found = (
        f"{section}.{field.name}"
        for section, kind in sections.items()
        for field in fields(kind)
        if field.name == name.replace("-", "_")
    )
    return [f"{key}={value or 'VALUE'}" for key in found]


def _with_baselines(arguments: Sequence[str]) -> list[str]:
    """`bench CONFIG` is short for `bench baselines CONFIG`, which was `bench peers CONFIG`."""
    command, *rest = arguments or ("",)
    if command != "bench" or not rest:
        return list(arguments)
    if Path(rest[0]).suffix:
        rest = ["baselines", *rest]
    renamed = [re.sub(r"^--peers(?==|$)", "--baselines", text) for text in rest]
    renamed[0] = "baselines" if rest[0] == "peers" else rest[0]
    if renamed != rest and os.environ.get("RANK", "0") == "0":
        complain("`bench peers CONFIG --peers` is now `bench baselines CONFIG --baselines`")
    return [command, *renamed]


def _without_local_rank(arguments: Sequence[str]) -> list[str]:
    """deepspeed appends `--local_rank=N`; LOCAL_RANK in the environment says the same."""
    return [text for text in arguments if not text.startswith("--local_rank=")]
