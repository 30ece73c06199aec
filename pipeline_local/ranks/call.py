"""A function called on several ranks of this host, from a program or a notebook.

The ranks are new processes, as the launcher starts them; they do not import the program again. So
it needs no guard around its main part, and what it has defined there, entries of registries
included, is at hand on every rank.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline_local.commandline.parser import CALL
from pipeline_local.errors import (
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    NeighbourLostError,
    RefusedElsewhereError,
    StalledError,
    StoppedError,
    UserError,
    type_and_line,
)
from pipeline_local.process.by_value import pack, unpack
from pipeline_local.ranks.launcher import reporting_failure, start_ranks
from pipeline_local.user_input import registry
from pipeline_local.user_input.user_code import reason

_INTERRUPTED = 130


def on_ranks(count: int, function: Callable[[], object]) -> None:
    """Call a function on `count` new ranks, and wait until all have ended.

    Args:
        count: ranks, on this host.
        function: with all that it needs in it (`functools.partial`, a closure). It is sent as
            cloudpickle does; what it returns stays on its rank.

    Raises:
        UserError: it cannot be sent, or a rank has refused it.
        StoppedError: a signal has asked to stop.
        RuntimeError: a rank has failed; says why, where the rank could.
    """
    packed = _packed(function)
    with _temporary_folder() as folder:
        file = Path(folder) / "call"
        file.write_bytes(packed)
        code = start_ranks(count, [CALL, str(file)])
        reasons = [path.read_text() for path in sorted(Path(folder).glob("reason-*"))]
    if code == EXIT_USER_ERROR and reasons:
        raise UserError(reasons[0])
    if code == EXIT_STOPPED and reasons:
        raise StoppedError(*json.loads(reasons[0]))
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        why = reasons[0] if reasons else "its lines above say why"
        raise RuntimeError(f"a rank has ended with exit code {code}: {why}")


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="pipeline_local-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"no ranks can be started ({error}); name a folder in TMPDIR") from error


def run_here(file: Path) -> None:
    """Call the function of a file that `on_ranks` has written, on this rank."""
    try:
        path, packed = unpack(file.read_bytes())
        sys.path[:] = path  # first: the function may need it
        function, entries = unpack(packed)
        registry.add_again(entries)
        with reporting_failure():
            function()
    except (RefusedElsewhereError, NeighbourLostError, StalledError):
        raise  # another rank knows the cause
    except Exception as error:
        reason = file.with_name(f"reason-{int(os.environ['RANK']):05d}")
        reason.write_text(_reason(error))
        raise


def _packed(function: Callable[[], object]) -> bytes:
    try:
        return pack((sys.path, pack((function, registry.added()))))
    except Exception as error:  # any object of the program
        raise UserError(
            f"the ranks are processes of their own, and what they need cannot be sent to them"
            f" ({type_and_line(error)}); start the program with torchrun instead"
        ) from error


def _reason(error: Exception) -> str:
    """What the process that waits is to know."""
    if isinstance(error, StoppedError):
        return json.dumps([error.step, error.how])
    return str(error) if isinstance(error, UserError) else reason(error)
