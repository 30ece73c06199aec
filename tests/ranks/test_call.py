"""A function on ranks of its own: what it gets, how it ends, and what the caller hears."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline_local.errors import (
    NeighbourLostError,
    RefusedElsewhereError,
    StoppedError,
    UserError,
)
from pipeline_local.learning.heads import HEADS
from pipeline_local.ranks import call
from pipeline_local.ranks.call import on_ranks, run_here
from pipeline_local.ranks.join import joined
from pipeline_local.ranks.rank import RankInfo


def test_the_ranks_meet_and_end_with_an_interrupt(tmp_path):
    """They have what the function needs: a closure, tensors, and an entry of a registry that only
    this program has. As in a notebook, the cell is interrupted, and the kernel goes on."""
    weights = torch.arange(3.0)

    @HEADS.add("head of test_call")
    def own(site):
        return site

    def together():
        info = RankInfo.from_environment()
        with joined(info):
            value = weights * (info.rank + 1)
            torch.distributed.all_reduce(value)
        found = HEADS.find("head of test_call")(site=value.tolist())
        file = tmp_path / str(info.rank)
        file.with_suffix(".partial").write_text(f"{os.getpid()} {found}")
        file.with_suffix(".partial").rename(file)
        while True:
            time.sleep(0.1)

    def interrupt():
        while not all((tmp_path / name).exists() for name in "01"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            on_ranks(2, together)
    finally:
        del HEADS._entries["head of test_call"]
    told = [(tmp_path / name).read_text().split(maxsplit=1) for name in "01"]
    assert [found for _, found in told] == ["[0.0, 3.0, 6.0]"] * 2
    assert not any(Path(f"/proc/{number}").exists() for number, _ in told)
    assert "RANK" not in os.environ


def fail(kind, arguments):
    raise kind(*arguments)


@pytest.mark.parametrize(
    ("error", "arguments", "code", "kind", "message"),
    [
        (
            UserError,
            ("the third is wrong; take another",),
            2,
            UserError,
            "^the third is wrong; take",
        ),
        (
            ValueError,
            ("no room",),
            1,
            RuntimeError,
            "code 1: ValueError: no room, test_call.py line",
        ),
        (StoppedError, (7, "resume it"), 75, StoppedError, "after step 7, .*with: resume it"),
        (NeighbourLostError, (0, "gone"), 3, RuntimeError, "code 3: its lines above say why"),
        (RefusedElsewhereError, (), 2, RuntimeError, "code 2: its lines above say why"),
    ],
)
def test_the_caller_hears_why(monkeypatch, error, arguments, code, kind, message):
    """The rank is this process; tests/training/test_callbacks.py has one that fails on its own."""

    def rank_of_two(count, words):
        assert (count, words[0]) == (2, "call")
        with pytest.raises(error):
            run_here(Path(words[1]))
        return code

    monkeypatch.setattr(call, "start_ranks", rank_of_two)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(kind, match=message):
        on_ranks(2, partial(fail, error, arguments))


def test_what_cannot_be_sent_is_refused():
    lock = threading.Lock()
    with pytest.raises(UserError, match=r"be sent to them .*lock.*torchrun instead") as caught:
        on_ranks(2, lambda: lock)
    assert "\n" not in str(caught.value)
