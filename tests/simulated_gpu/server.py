"""Python commands as processes that have torch already: they are forked, and begin at once.

`python -m tests.simulated_gpu.server` reads requests from stdin, a line of JSON each: `arguments`
of python (-c or -m), `environment`, `folder` (the current one), `output` (gets stdout, and with
".err" behind it stderr). It answers each with the exit code.
"""

import atexit
import json
import os
import runpy
import sys
import traceback
from functools import partial
from pathlib import Path

import torch._dynamo  # noqa: F401 (slow to import, as the others)

import pipeline_local.bench.table
import pipeline_local.training.train  # noqa: F401
from pipeline_local.ranks import launcher
from tests import forked


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(**request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(arguments: list[str], environment: dict[str, str], folder: str, output: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, output), (2, f"{output}.err")):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    launcher.start_ranks = partial(forked.start_ranks, folder=Path(output).with_name("ranks"))
    code = 1
    try:
        code = _run(*arguments)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(kind: str, what: str, *arguments: str) -> int:
    sys.argv = ["-c", *arguments]
    try:
        if kind == "-c":
            exec(what, {"__name__": "__main__"})
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    serve()
