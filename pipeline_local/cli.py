"""The command line: errors as single lines, and exit codes."""

import argparse
import gc
import re
import sys
import time
from collections.abc import Sequence

import torch

from pipeline_local.commandline.parser import parse
from pipeline_local.commands.table import COMMANDS
from pipeline_local.configfile import configfile, keys
from pipeline_local.console import startup
from pipeline_local.console.screen import complain
from pipeline_local.errors import (
    EXIT_NEIGHBOUR_LOST,
    EXIT_STALLED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    ConfigError,
    NeighbourLostError,
    RefusedElsewhereError,
    StalledError,
    StoppedError,
    UserError,
    first_line,
    note_place,
    place_of,
)
from pipeline_local.learning.compiler import check_cache_folder, compiler_failure
from pipeline_local.ranks.rank import RankInfo


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a user's mistake gets one line on stderr and 2.

    Args:
        arguments: the command-line arguments; None for those of this process.
    """
    return run(*parse(sys.argv[1:] if arguments is None else arguments))


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs a command that is parsed already, and returns its exit code.

    Args:
        options: of the command.
        arguments: the same command's arguments as text, for ranks that are started.
    """
    try:
        check_cache_folder()
        gc.freeze()  # torch's modules last as long as the process: collections need not visit them
        return COMMANDS[options.run](options, arguments)
    except UserError as error:
        _explain(error, options.run)
        return EXIT_USER_ERROR
    except RefusedElsewhereError:
        return EXIT_USER_ERROR
    except NeighbourLostError as error:
        _explain(error, options.run)
        return EXIT_NEIGHBOUR_LOST
    except StalledError as error:
        _explain(error, options.run)
        return EXIT_STALLED
    except StoppedError:
        return EXIT_STOPPED
    except (MemoryError, RuntimeError) as error:
        if (reason := _memory_shortage(error) or compiler_failure(error)) is None:
            raise
        note_place(reason, place_of(error))
        _explain(reason, options.run)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 130


def _memory_shortage(error: Exception) -> UserError | None:
    """Torch reports a full GPU by a type of its own, and full CPU memory only by its message."""
    full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if not full and "can't allocate memory" not in str(error):
        return None
    reason = first_line(error)
    return UserError(
        f"out of memory ({reason}); lower data.batch_size or the model's size, raise"
        f" train.microbatches or parallel.stages, or set modules.recompute=true"
    )


def _explain(error: Exception, command: str) -> None:
    """Prints a line per problem; of a host's ranks only the first reports the configuration's.

    Before the ranks have met, all of them make the same mistake. A launcher ends all of them with
    the first that leaves, so the others leave it to the first one to speak, and to be that.
    """
    startup.over()  # the error is the last line
    try:
        rank_info = RankInfo.from_environment()
    except UserError:
        rank_info = RankInfo()
    place = place_of(error)
    if isinstance(error, UserError) and not place and rank_info.local_rank > 0:
        time.sleep(FIRST_SPEAKS)
        if isinstance(error, ConfigError):
            return
    place = place or f"[rank {rank_info.rank}]"
    prefix = f"{place} " if rank_info.rank > 0 else ""
    for line in str(error).splitlines():
        page = page_of(line, command) if isinstance(error, UserError) else RELIABILITY
        complain(f"{prefix}error: {line} ({page})")


FIRST_SPEAKS = 10.0
"""Seconds in which the first rank of a host is to report what all of them have seen."""

RELIABILITY = "docs/reliability.md#no-silent-hang"
"""What explains a lost neighbour and a stall."""


def page_of(line: str, command: str) -> str:
    """Returns where more is said: of the first key that a line names, else of the command.

    Args:
        line: of an error.
        command: the name of what was running, as in `commands.table.COMMANDS`.
    """
    known = set(configfile.keys())
    for word in re.findall(r"[a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*", line):
        if word in known and ("." in word or line.startswith(f"{word}:")):
            return f"pipeline-local explain {word}; {keys.find(word).link}"
    heading = command.replace("_", "-")
    return PAGES.get(command, f"docs/commands.md#{heading}")


PAGES = {"call": "docs/how-to/python.md", "hosts": "docs/how-to/many-gpus.md"}
"""Pages of commands that programs and scripts call, not people."""
