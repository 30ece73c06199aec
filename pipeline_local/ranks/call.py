"""A function called on several ranks of this host, from a program or a notebook.

The ranks are new processes, as the launcher starts them; they do not import the program again. So
it needs no guard around its main part, and what it has defined there is at hand on every rank.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cloudpickle

from pipeline_local.errors import EXIT_USER_ERROR, UserError
from pipeline_local.ranks.launcher import start_ranks

COMMAND = "call"
"""Of the command line, for the ranks alone."""


def on_ranks(count: int, function: Callable[[], object]) -> None:
    """Call a function on `count` new ranks, and wait until all have ended.

    Args:
        count: ranks, on this host.
        function: with all that it needs in it (`functools.partial`, a closure). It is sent as
            cloudpickle does; what it returns stays on its rank.

    Raises:
        UserError: it cannot be sent, or a rank has refused, and said why.
        RuntimeError: a rank has failed, and said why.
    """
    with tempfile.TemporaryDirectory(prefix="pipeline_local-") as folder:
        file = Path(folder) / "call"
        try:
            file.write_bytes(cloudpickle.dumps((sys.path, function)))
        except Exception as error:  # any object of the program
            raise UserError(
                f"fit: the ranks are processes of their own, and what they need cannot be sent to"
                f" them ({type(error).__name__}: {error}); start the program with torchrun instead"
            ) from error
        code = start_ranks(count, [COMMAND, str(file)])
    if code == EXIT_USER_ERROR:
        raise UserError("a rank has refused the run; its line above says why")
    if code:
        raise RuntimeError(f"a rank has ended with exit code {code}; its lines above say why")


def run_here(file: Path) -> None:
    """Call the function of a file that `on_ranks` has written, on this rank."""
    path, function = cloudpickle.loads(file.read_bytes())
    sys.path[:] = path
    function()
