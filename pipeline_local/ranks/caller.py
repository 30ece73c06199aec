"""The program that calls: a run takes its process as it finds it, and leaves it so.

A run has settings of torch and generators of its own, listens to signals and starts loader
processes. Programs and notebooks go on afterwards, also after an error.
"""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from pipeline_local.data.loaders import drop_empty_caches, server_ended
from pipeline_local.learning.compiler import graph_limit_kept
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.seeds import generators_kept

P = ParamSpec("P")
T = TypeVar("T")

Setting = tuple[Callable[[], Any], Callable[[Any], object]]
"""What reads a setting of this process, and what writes it."""


@contextmanager
def as_found(device: torch.device) -> Iterator[None]:
    """Torch as a run needs it for the time of the context; then all is as it was.

    Inside, tensors are float32 and on the CPU unless said otherwise, gradients are recorded, and
    there is no autocast. How exact the caller wants it (deterministic algorithms, anomaly
    detection, warnings as errors) stays.

    Args:
        device: that the run computes on; the generators of all devices of its kind are put back
            with those of the CPU.
    """
    with (
        _PROCESS.kept(device),
        _put_back([_NUM_THREADS]),
        graph_limit_kept(),
        _usual_torch(device),
    ):
        yield


def undisturbed(function: Callable[P, T]) -> Callable[P, T]:
    """Call it always as `as_found` says, for the device of this process."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        with as_found(RankInfo().device):
            return function(*args, **kwargs)

    return called


class _Process:
    """What all threads share: the first run that comes notes it, the last that goes puts it back.

    So runs in several threads leave the process as the first one has found it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._found = ExitStack()

    @contextmanager
    def kept(self, device: torch.device) -> Iterator[None]:
        """Count one run in and out."""
        with self._lock:
            if self._runs == 0:
                self._note(device)
            self._runs += 1
        try:
            yield
        finally:
            with self._lock:
                self._runs -= 1
                if self._runs == 0:
                    self._found.close()

    def _note(self, device: torch.device) -> None:
        enter = self._found.enter_context
        enter(_put_back([_START_METHOD, _ENVIRONMENT, *_signals()]))
        self._found.callback(drop_empty_caches)
        enter(server_ended())
        enter(warnings.catch_warnings())
        enter(generators_kept())
        if device.type != "cpu":
            # of all GPUs: a run may be on any of them, and torch.manual_seed seeds each
            count = torch.get_device_module(device).device_count()
            enter(torch.random.fork_rng(range(count), device_type=device.type))
        enter(_put_back([_DTYPE, *_precisions()]))


@contextmanager
def _usual_torch(device: torch.device) -> Iterator[None]:
    torch.set_default_dtype(torch.float32)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in {"cpu", device.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _put_back(settings: list[Setting]) -> Iterator[None]:
    """Write each setting again at the end, where it has changed."""
    found = []
    for read, write in settings:
        with suppress(RuntimeError):  # two ways of torch to say it disagree: there is no value
            found.append((read, write, read()))
    try:
        yield
    finally:
        for read, write, value in found:
            with suppress(RuntimeError):
                if read() == value:
                    continue
            write(value)


def _attribute(owner: Any, name: str) -> Setting:  # noqa: ANN401 (modules and torch's proxies)
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _signals() -> list[Setting]:
    def setting(number: int) -> Setting:
        return lambda: signal.getsignal(number), lambda handler: _handle(number, handler)

    return [setting(number) for number in signal.valid_signals()]


def _handle(number: int, handler: Any) -> None:  # noqa: ANN401 (as the signal module has it)
    if threading.current_thread() is not threading.main_thread():
        return  # where none could be set, either
    if handler is not None:  # one that was not set from Python cannot be set again
        signal.signal(number, handler)
    if number == signal.SIGCHLD:  # torch sets its own only once
        torch.utils.data._utils.signal_handling._SIGCHLD_handler_set = False


def _environment(values: dict[str, str]) -> None:
    for name in os.environ.keys() - values.keys():
        del os.environ[name]
    os.environ.update(values)


def _precisions() -> list[Setting]:
    """How exact float32 is, in torch's old way and in its new one."""
    backends = torch.backends
    owners = [backends.cuda.matmul, *_with_parts(backends.cudnn), *_with_parts(backends.mkldnn)]
    return [
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        _attribute(backends.cudnn, "allow_tf32"),
        *(_attribute(owner, "fp32_precision") for owner in owners),
    ]


def _with_parts(backend: Any) -> list[Any]:  # noqa: ANN401 (torch's proxies)
    return [
        backend,
        *(getattr(backend, n) for n in ("matmul", "conv", "rnn") if hasattr(backend, n)),
    ]


_NUM_THREADS: Setting = torch.get_num_threads, torch.set_num_threads
"""The threads of the calling thread: OpenMP counts them for each."""
_DTYPE: Setting = torch.get_default_dtype, torch.set_default_dtype
_ENVIRONMENT: Setting = (lambda: dict(os.environ), _environment)
_START_METHOD: Setting = (
    lambda: multiprocessing.get_start_method(allow_none=True),
    lambda method: multiprocessing.set_start_method(method, force=True),
)
_PROCESS = _Process()
