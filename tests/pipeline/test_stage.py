"""The stage: order of its acts, overlap with its neighbours, evaluation through the chain.

Overlap is proved on recorded events, not on wall-clock times. The stages really run, in processes
of their own, with acts of known duration (they sleep, so cores do not matter). What they recorded
(which act, which message, in which order on each rank) is then replayed with the nominal durations.
"""

import time
from collections import deque
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from pipeline_local.blueprint.contract import Spec
from pipeline_local.config import ReconcileConfig
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.stage import Stage
from pipeline_local.pipeline.transport import Receiver, Sender
from pipeline_local.ranks.join import joined
from pipeline_local.record.trace import Trace
from tests.chain import open_chain

DEPTH = 2
BATCH = (Spec((4, 3), torch.float32), Spec((4,), torch.int64))


class Sleep(torch.autograd.Function):
    """The identity; takes a while forward and backward."""

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.seconds = seconds

    def forward(self, x):
        return Sleep.apply(self.linear(x), self.seconds)


class Data:
    """As the real source: batches, and empty signals."""

    waited = 0.0

    def __init__(self, compare=True):
        self.compare = compare
        self.number = 0

    def recv(self):
        self.number += 1
        if self.compare and self.number % 2 == 0:
            return ()
        return torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)


def make_module(index, seconds=0.0):
    torch.manual_seed(index)
    rules = Rules(reconcile=ReconcileConfig(weight=0.1, every=1))
    body = Slow(seconds) if seconds else nn.Linear(3, 3)
    return LocalModule(index, body, nn.Linear(3, 5), lambda p: torch.optim.SGD(p, lr=0.1), rules)


def steps(count):
    return [Step(n, 0.1, compare=True, reconcile=False, log=True) for n in range(count)]


class Held:
    """Keeps messages back."""

    def __init__(self):
        self.messages = []

    def send(self, *tensors):
        self.messages.append(tensors)


class LateStage(Stage):
    """Sends nothing before it has learned: what a stage must not be."""

    def _learn(self, link, step, microbatch):
        held, count = Held(), len(self.trace.spans)
        super()._learn(replace(link, downstream=held), step, microbatch)
        done = [span for span in list(self.trace.spans)[count:] if span.act != "send"]
        while len(self.trace.spans) > count:
            self.trace.spans.pop()
        self.trace.spans.extend(done)
        for message in held.messages:
            with self.trace.span("send", link.module.index, step.number):
                link.downstream.send(*message)


def run_stage(rank_info, stage_class, seconds, count):
    """One rank of a chain of sleeping stages; gives its spans."""
    with joined(rank_info):
        up, down = open_chain(rank_info, "gloo")
        traffic = [BATCH, BATCH[:1]] * count
        upstream = Receiver(up, iter(traffic), rank_info.device) if up else Data()
        downstream = Sender(down, iter(traffic), rank_info.device, DEPTH) if down else Nowhere()
        trace = Trace()
        module = make_module(rank_info.rank, seconds[rank_info.rank])
        stage = stage_class([module], upstream, downstream, trace)
        for step in steps(count):
            stage.train(step)
        downstream.finish() if down else downstream.finish(count)
        dist.barrier()
    return list(trace.spans)


def replay(spans, seconds):
    """When each rank would be in each act of each step, if every act took its nominal time.

    Ranks do what they recorded, in that order; a receive waits for the matching send, a send for
    room in the channel. Gives {act: [(begin, end) of each step]} for each rank.
    """
    todo = [deque(rank) for rank in spans]
    clock = [0.0] * len(spans)
    sent = [[] for _ in spans]
    taken = [[] for _ in spans]
    times = [{"forward": [], "learn": []} for _ in spans]
    while any(todo):
        moved = False
        for rank, queue in enumerate(todo):
            while queue and _possible(queue[0].act, rank, sent, taken, len(spans)):
                span, moved = queue.popleft(), True
                if span.act in times[rank]:
                    times[rank][span.act].append((clock[rank], clock[rank] + seconds[rank]))
                    clock[rank] += seconds[rank]
                elif span.act == "recv" and rank > 0:
                    clock[rank] = max(clock[rank], sent[rank - 1][len(taken[rank])])
                    taken[rank].append(clock[rank])
                elif span.act == "send" and rank + 1 < len(spans):
                    if len(sent[rank]) >= DEPTH:
                        clock[rank] = max(clock[rank], taken[rank + 1][len(sent[rank]) - DEPTH])
                    sent[rank].append(clock[rank])
        assert moved, "the recorded order deadlocks"
    return times


def overlap(times):
    """For each pair of neighbours, the part of the steps in which act 1 downstream begins before
    act 3 of the same step has ended upstream."""
    parts = []
    for upper, lower in pairwise(times):
        pairs = zip(lower["forward"], upper["learn"], strict=True)
        early = [forward[0] < learn[1] for forward, learn in pairs]
        parts.append(sum(early) / len(early))
    return parts


def _possible(act, rank, sent, taken, ranks):
    if act == "recv" and rank > 0:
        return len(sent[rank - 1]) > len(taken[rank])
    if act == "send" and rank + 1 < ranks:
        return len(sent[rank]) - len(taken[rank + 1]) < DEPTH
    return True


@pytest.mark.parametrize(
    "seconds",
    [[0.02, 0.02], [0.02, 0.02, 0.02], [0.01, 0.03, 0.02], [0.02, 0.02, 0.02, 0.02]],
    ids=str,
)
def test_stages_sustain_the_ideal_rate(run_ranks, seconds):
    """Filled, S stages are sum/max times as fast as one process that does it all: above 0.9."""
    times = replay(run_ranks(run_stage, len(seconds), Stage, seconds, 12), seconds)
    ends = [end for _, end in times[-1]["learn"]]
    filled = len(seconds)
    period = (ends[-1] - ends[filled]) / (len(ends) - 1 - filled)
    ideal = sum(seconds) / max(seconds)
    assert 2 * sum(seconds) / period > 0.9 * ideal


def test_act_1_of_the_neighbour_starts_before_act_3_ends(run_ranks):
    times = replay(run_ranks(run_stage, 3, Stage, [0.01] * 3, 8), [1.0] * 3)
    assert overlap(times) == [1.0, 1.0]


def test_the_overlap_test_can_fail(run_ranks):
    times = replay(run_ranks(run_stage, 2, LateStage, [0.01] * 2, 8), [1.0] * 2)
    assert overlap(times) == [0.0]


def test_order_of_the_acts():
    """Each act's result leaves before the next act begins, and signals are waited for last."""
    trace = Trace()
    stage = Stage([make_module(0)], Data(), Nowhere(), trace)
    stage.train(steps(1)[0])
    expected = ["recv", "forward", "send", "signal", "send", "recv", "learn", "update"]
    assert [span.act for span in trace.spans] == expected
    assert all(a.end <= b.begin for a, b in pairwise(trace.spans))


def test_the_second_pass_has_the_room_of_input_and_signal():
    """In a CNN each of them is as large as what a block keeps for its backward pass."""
    arrived, alive = [], []

    class Upstream:
        def recv(self):
            first = torch.randn(4, 3)
            arrived.append(StorageWeakRef(first.untyped_storage()))
            return (first,) if len(arrived) == 2 else (first, torch.zeros(4, dtype=torch.int64))

    class Body(nn.Linear):
        def forward(self, x):
            alive.append([not one.expired() for one in arrived])
            return super().forward(x)

    module = make_module(1)
    module.body = Body(3, 3)
    Stage([module], Upstream(), Nowhere(), Trace()).train(
        Step(0, 0.1, compare=True, reconcile=True, log=True)
    )
    assert alive == [[True], [False, False]]


def test_microbatches_make_one_update():
    trace = Trace()
    stage = Stage([make_module(0), make_module(1)], Data(compare=False), Nowhere(), trace)
    stage.train(Step(0, 0.1, microbatches=3))
    acts = [(span.act, span.module) for span in trace.spans]
    assert acts.count(("learn", 0)) == acts.count(("learn", 1)) == 3
    assert acts[-2:] == [("update", 0), ("update", 1)]
    assert [act for act, _ in acts].count("update") == 2


def test_evaluation_runs_through_the_chain_and_changes_nothing():
    modules = [make_module(k) for k in range(3)]
    before = [p.clone() for m in modules for p in m.parameters()]
    stage = Stage(modules, Data(compare=False), Nowhere(), Trace())
    scores = stage.evaluate([8] * 4, number=0)
    assert [len(row) for row in scores] == [4, 4, 4]
    assert all(int(score.count) == 4 for row in scores for score in row)
    after = [p for m in modules for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(m.training for m in modules)
