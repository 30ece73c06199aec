"""A run is called from programs: it works in any state of theirs, and puts back what it changes."""

import multiprocessing
import os
import random
import signal
import threading
import warnings
from contextlib import contextmanager, nullcontext, suppress

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data._utils import signal_handling

from pipeline_local.configfile import configfile
from pipeline_local.learning.compiler import compile_part
from pipeline_local.ranks.caller import as_found, undisturbed
from pipeline_local.training.train import train

CPU = torch.device("cpu")


def state():
    """What other parts of a program depend on."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "modes": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
        ),
        "generators": (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
        ),
        "precision": precision(),
        "signals": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "start method": multiprocessing.get_start_method(allow_none=True),
    }


def precision():
    try:
        own = torch.get_float32_matmul_precision()
    except RuntimeError:
        own = "said in two ways"
    return own, torch.backends.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


def disturb():
    """All that a run, a library or a callback may do."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("highest")
    warnings.simplefilter("ignore")
    os.environ["SET_WITHIN_A_RUN"] = "1"
    os.environ.pop("HOME", None)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal_handling._SIGCHLD_handler_set = True
    multiprocessing.set_start_method("spawn", force=True)


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def lowered_precision():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


WORLDS = {
    "usual": nullcontext,
    "float64": default_dtype,
    "default device": default_device,
    "device context": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "precision": lowered_precision,
    "deterministic": deterministic,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "strict warnings": lambda: warnings.catch_warnings(),
    "strict numpy": lambda: np.errstate(all="raise"),
}


@pytest.mark.parametrize("name", WORLDS)
def test_all_is_as_before_also_after_an_error(name, idle_threads):
    with WORLDS[name]():
        before = state()
        with suppress(ValueError), as_found(CPU):
            assert torch.is_grad_enabled()
            assert torch.ones(1, requires_grad=True).sum().requires_grad
            assert (torch.ones(2) @ torch.ones(2)).dtype == torch.float32
            assert torch.empty(1).device == CPU
            disturb()
            raise ValueError("within")
        assert state() == before
        assert not signal_handling._SIGCHLD_handler_set, "torch sets its handler again when needed"


def test_a_precision_said_in_torchs_new_way_stays(idle_threads):
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    before = precision()
    try:
        with as_found(CPU):
            disturb()
            assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"
        assert precision() == before
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


def test_torchs_limit_of_graphs_is_as_before_and_higher_within():
    """Also where what an earlier run has compiled is used again, as a predictor does."""
    from torch._dynamo import config

    with config.patch(recompile_limit=3):
        with suppress(ValueError), as_found(CPU):
            compile_part(nn.Linear(2, 2))
            assert config.recompile_limit > 8
            raise ValueError("within")
        assert config.recompile_limit == 3
        with as_found(CPU), as_found(CPU):
            assert config.recompile_limit > 8
        assert config.recompile_limit == 3


def test_threads_that_overlap_leave_what_the_first_has_found(idle_threads):
    """The first ends while the second is at work."""
    inside, leave = threading.Event(), threading.Event()

    def second():
        with as_found(CPU):
            inside.set()
            leave.wait(60)
            assert torch.get_default_dtype() == torch.float32

    with default_dtype():
        before = state()
        thread = threading.Thread(target=second)
        with as_found(CPU):
            disturb()
            thread.start()
            assert inside.wait(60)
        leave.set()
        thread.join()
        assert state() | {"signals": 0} == before | {"signals": 0}
    with as_found(CPU):  # the next in the main thread
        pass
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def test_a_function_is_undisturbed_and_disturbs_nothing():
    @undisturbed
    def draw(scale, *, shift):
        torch.manual_seed(0)
        return scale * torch.rand(1) + shift

    before = torch.get_rng_state()
    with default_dtype():
        assert draw(2, shift=1).dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


DATA = {"name": "digits", "batch_size": 32, "limit": 64}


def result(folder, **sections):
    tree = {
        "model": {"name": "mlp", "hidden": 8, "depth": 2},
        "data": DATA,
        "head": {"name": "linear"},
        "modules": {"count": 2},
        "train": {"steps": 2},
        "parallel": {"threads": 1},
        "run": {"dir": str(folder)},
    }
    return train(configfile.parse({**tree, **sections}))["loss"]


def test_a_run_is_the_same_in_every_world(tmp_path):
    usual = result(tmp_path / "run")
    for name, world in WORLDS.items():
        with world():
            before = state()
            assert result(tmp_path / name) == usual, name
            assert state() == before, name


def test_a_run_in_a_thread_with_a_loader_process(tmp_path):
    usual, found = result(tmp_path / "run"), []
    before, server = state(), multiprocessing.forkserver._forkserver
    running = server._forkserver_pid

    def run():
        found.append(result(tmp_path / "thread", data={**DATA, "workers": 1}))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [usual]
    assert state() == before
    assert server._forkserver_pid == running


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs a GPU")
def test_generators_on_a_gpu_are_put_back_whichever_it_is():
    """A run may be on another one than the first, and torch.manual_seed seeds all."""
    kind = torch.get_device_module(torch.accelerator.current_accelerator())

    def states():
        return [kind.get_rng_state(index).tolist() for index in range(kind.device_count())]

    found = states()
    undisturbed(lambda: torch.manual_seed(3))()
    assert states() == found
