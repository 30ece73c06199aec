"""Theory says what the orders of work of torch and of DeepSpeed come to."""

import math
from functools import partial
from itertools import chain
from types import SimpleNamespace

import pytest

from pipeline_local.bench.bubbles import IDLE, bubble
from pipeline_local.bench.pipelines import SCHEDULES, SHAPES, owners
from pipeline_local.placement.costs import Link
from pipeline_local.simulation.simulator import Channel, Recv, Send, Update, Work, simulate

WORK = {"F": 1.0, "I": 1.0, "W": 1.0, "B": 2.0}
"""Forward; gradients of inputs, of weights, of both."""
STEPS = 6


class Lines:
    """Channels without delay, by the stage that sends."""

    def __init__(self, stages):
        at_once = Link(0.0, math.inf)
        self.down = {stage: Channel(at_once) for stage in range(stages - 1)}
        self.up = {stage: Channel(at_once) for stage in range(1, stages)}

    def received(self, stage, what):
        if what == "F" and stage - 1 in self.down:
            yield Recv(self.down[stage - 1])
        if what in "IB" and stage + 1 in self.up:
            yield Recv(self.up[stage + 1])

    def sent(self, stage, what):
        if what == "F" and stage in self.down:
            yield Send(self.down[stage], 1)
        if what in "IB" and stage in self.up:
            yield Send(self.up[stage], 1)


def of_torch(name, ranks, microbatches):
    """What each rank does. Acts that torch overlaps wait together, and are sent together."""
    of_rank = {"group_size": ranks, "group_rank": 0, "num_stages": 2 * ranks, "submod": None}
    stages = [SimpleNamespace(stage_index=index, **of_rank) for index in range(2)]
    schedule = SCHEDULES[name](stages, microbatches, loss_fn=max)
    for rank in range(ranks):
        acts = [act.sub_actions or [act] for act in schedule.pipeline_order[rank] if act]
        yield [[(act.stage_index, act.computation_type.value) for act in group] for group in acts]


def of_torch_as_acts(groups, lines):
    for group in groups:
        for one in group:
            yield from lines.received(*one)
        yield from (Work(WORK[what]) for _, what in group)
        for one in group:
            yield from lines.sent(*one)
    yield Update(0.0)


def of_deepspeed(rank_info, cases):
    """What each rank does, by ranks and microbatches; nothing where DeepSpeed has no DualPipeV."""
    try:
        from deepspeed.runtime.pipe.schedule import DualPipeVSchedule
    except ImportError:
        return {}

    def order(ranks, microbatches, rank):
        acts = chain(*DualPipeVSchedule(microbatches, ranks, rank).steps())
        return [(type(act).__name__, getattr(act, "phase", None)) for act in acts]

    return {(p, m): [order(p, m, rank) for rank in range(p)] for p, m in cases}


def of_deepspeed_as_acts(order, rank, ranks, lines):
    """Messages are handed over, and waited for, where DeepSpeed commits them."""
    numbers, queue = (rank, 2 * ranks - 1 - rank), []
    for name, phase in order:
        match name:
            case "SendActivation":
                queue += lines.sent(numbers[phase], "F")
            case "SendGrad":
                queue += lines.sent(numbers[phase], "B")
            case "RecvActivation":
                queue += lines.received(numbers[phase], "F")
            case "RecvGrad":
                queue += lines.received(numbers[phase], "B")
            case "CommitP2P":
                yield from sorted(queue, key=lambda one: isinstance(one, Recv))
                queue = []
            case "ForwardPass":
                yield Work(WORK["F"])
            case "BackwardPass":
                yield Work(WORK["B"])
    yield Update(0.0)


def again(steps):
    for _ in range(STEPS):
        yield from steps()


def idle(programs, microbatches):
    """The idle fraction in the second half of some steps, which follow one another."""
    workers = simulate([again(program) for program in programs])
    busy = {worker.busy / STEPS for worker in workers}
    assert busy == {6 * microbatches}
    ends = [max(worker.steps[n] for worker in workers) for n in (STEPS // 2 - 1, STEPS - 1)]
    return 1 - busy.pop() / ((ends[1] - ends[0]) / (STEPS - STEPS // 2))


EQUAL = [(2, 2), (2, 3), (2, 8), (4, 4), (4, 6), (4, 16)]
DUAL = [(2, 4), (2, 5), (3, 6), (4, 8), (4, 32), (8, 16)]
CASES = [
    *((name, p, m) for name in ("interleaved", "zerobubble") for p, m in EQUAL if m % p == 0),
    *(("zbv", p, m) for p, m in EQUAL),
    *(("dualpipev", p, m) for p, m in DUAL),
]


@pytest.mark.parametrize(("name", "ranks", "microbatches"), CASES)
def test_theory_is_what_the_order_of_torch_comes_to(name, ranks, microbatches):
    lines = Lines(2 * ranks)
    orders = of_torch(name, ranks, microbatches)
    programs = [partial(of_torch_as_acts, order, lines) for order in orders]
    assert idle(programs, microbatches) == pytest.approx(bubble(name, ranks, microbatches))


def test_theory_is_what_the_order_of_deepspeed_comes_to(run_ranks):
    (found,) = run_ranks(of_deepspeed, 1, DUAL)
    if not found:
        pytest.skip("this DeepSpeed has no DualPipeV")
    for (ranks, microbatches), orders in found.items():
        lines = Lines(2 * ranks)
        programs = [
            partial(of_deepspeed_as_acts, order, rank, ranks, lines)
            for rank, order in enumerate(orders)
        ]
        expected = bubble("deepspeed-dualpipev", ranks, microbatches)
        assert idle(programs, microbatches) == pytest.approx(expected)


def test_every_pipeline_has_a_theory():
    assert {*SCHEDULES, *SHAPES} <= {*IDLE}
    assert bubble("1f1b", 4, 8) == bubble("gpipe", 4, 8) == bubble("deepspeed", 4, 8) == 3 / 11
    assert bubble("ddp", 4, 8) is None
    assert bubble("zbv", 2, 2) == 2 / 14
    assert bubble("zbv", 2, 3) == 0


def test_the_second_stages_of_a_v_go_backwards():
    assert owners("1f1b", 3) == [0, 1, 2]
    assert owners("interleaved", 3) == [0, 1, 2, 0, 1, 2]
    assert owners("zbv", 3) == owners("deepspeed-dualpipev", 3) == [0, 1, 2, 2, 1, 0]
