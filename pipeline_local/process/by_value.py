"""Objects sent to another process of the same program, which does not import the program's main
file again: what that file defines goes along by value, all else by reference.

So a script needs no guard around its main part, and notebooks and programs from stdin, which have
no file to import, work as well.
"""

import io
import sys
from collections import ChainMap
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cloudpickle


def pack(content: object) -> bytes:
    """The bytes of an object, for `unpack` in a process of any kind.

    Raises:
        Exception: it holds what cannot be sent, such as an open file or a lock.
    """
    packed: bytes = cloudpickle.dumps(content)
    return packed


def pack_for_child(content: object) -> bytes:
    """The same while a child process is started by `multiprocessing`: tensors stay in shared memory
    instead of being copied."""
    file = io.BytesIO()
    pickler = cloudpickle.Pickler(file)
    shared = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    pickler.dispatch_table = ChainMap(shared, pickler.dispatch_table)
    pickler.dump(content)
    return file.getvalue()


def unpack(packed: bytes) -> Any:  # noqa: ANN401 (whatever was packed)
    """The object; what is packed is code, so only for what the same program has packed."""
    return cloudpickle.loads(packed)


@contextmanager
def main_not_imported() -> Iterator[None]:
    """Child processes that `multiprocessing` starts meanwhile do not import the main file."""
    main = vars(sys.modules["__main__"])
    kept = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update({"__spec__": None} | kept)
