"""Programs of methods: step times and bubbles that theory gives."""

from dataclasses import replace

import pytest

from pipeline_local.placement.costs import Link
from pipeline_local.simulation.programs import METHODS, SimulatedRun, local
from pipeline_local.simulation.simulator import simulate
from pipeline_local.simulation.work import ModuleWork, StageWork

FAST = Link(0.0, 1e30)
STAGE = StageWork(
    modules=(ModuleWork(1.0, 0.0, 2.0, gradients=16.0),),
    messages=8.0,
    forward=1.0,
    backward=2.0,
    update=0.0,
    activations=8.0,
    gradients=16.0,
)


def run(stages=4, microbatches=4, steps=20, link=FAST, **more):
    return SimulatedRun((STAGE,) * stages, microbatches, steps, (link,), **more)


def step_seconds(method, what):
    workers = simulate(METHODS[method](what))
    ends = [max(worker.steps[n] for worker in workers) for n in (9, 19)]
    return (ends[1] - ends[0]) / 10


@pytest.mark.parametrize("method", ["1f1b", "gpipe"])
@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("microbatches", [8, 16])
def test_pipelines_with_a_global_backward_pass_have_their_bubble(method, stages, microbatches):
    seconds = step_seconds(method, run(stages, microbatches))
    assert seconds == pytest.approx(3.0 * (microbatches + stages - 1))


@pytest.mark.parametrize("stages", [1, 2, 8])
def test_local_learning_has_none(stages):
    assert step_seconds("local", run(stages)) == pytest.approx(3.0 * 4)


def test_reconciliation_adds_to_the_steps_that_compare():
    stage = StageWork((ModuleWork(1.0, 0.0, 2.0, added=4.0),), 8.0, 1.0, 2.0, 0.0, 8.0, 16.0)
    what = SimulatedRun((stage,) * 3, 2, 21, (FAST,), every=5)
    workers = simulate(METHODS["local"](what))
    assert workers[-1].steps[20] - workers[-1].steps[10] == pytest.approx(10 * 6 + 2 * 2 * 4)


def test_distillation_adds_to_the_steps_that_distil():
    """A head's second pass; its messages have a line of their own."""
    module = ModuleWork(1.0, 0.0, 2.0, distilled=4.0)
    stage = StageWork((module,), 8.0, 1.0, 2.0, 0.0, 8.0, 16.0, outputs=1.0)
    workers = simulate(METHODS["local"](SimulatedRun((stage,) * 3, 2, 21, (FAST,), distill=5)))
    assert workers[-1].steps[20] - workers[-1].steps[10] == pytest.approx(10 * 6 + 2 * 2 * 4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("replicas", [(1,), (3,)])
@pytest.mark.parametrize(
    ("feedback", "refresh", "distill"),
    [(False, 0, 0), (True, 0, 0), (True, 3, 0), (False, 1, 0), (True, 3, 2)],
)
def test_every_method_ends(method, replicas, feedback, refresh, distill):
    slow = Link(0.5, 10.0)
    lagged = {"every": 2, "feedback": feedback, "refresh": refresh, "distill": distill}
    what = run(3, 6, 12, slow, **lagged, replicas=replicas, jitter=0.3)
    workers = simulate(METHODS[method](what))
    assert len(workers) == 3 * replicas[0]
    assert all(len(worker.steps) == 12 for worker in workers)


def test_copies_cost_nothing_while_the_line_has_room():
    """They have a line of their own upstream, and as long as the next ones are not due."""
    line = Link(0.0, 4.0)  # of activations it takes 2 seconds, and a microbatch takes 3

    def seconds(copies):
        stage = replace(STAGE, copies=copies)
        return step_seconds("local", SimulatedRun((stage,) * 3, 4, 20, (line,), refresh=2))

    assert seconds(80.0) == pytest.approx(12.0), "20 seconds of 24"
    assert seconds(160.0) == pytest.approx(20.0), "40 seconds of 24"


def test_latency_costs_a_pipeline_round_trips_and_local_learning_nothing():
    far = Link(0.5, 1e30)
    assert step_seconds("local", run(4, 4, link=far)) == pytest.approx(12.0)
    assert step_seconds("1f1b", run(4, 4, link=far)) > step_seconds("1f1b", run(4, 4)) + 3


def test_compressed_messages_take_less_of_a_narrow_line():
    """Of 8 bytes in values of 4: 2 in 8 bits, 0.08 in 1 %. Two stages wait for a line of 1 byte/s:
    in a step of one microbatch a message goes each way."""
    narrow = run(2, 1, link=Link(0.0, 1.0), value_bytes=4.0)
    for method, size in (("1f1b", 8.0), ("1f1b-8bit", 2.0), ("1f1b-1percent", 0.08)):
        assert step_seconds(method, narrow) == pytest.approx(2 * (3.0 + size)), method
    half = replace(narrow, value_bytes=2.0)
    assert step_seconds("1f1b-8bit", half) == pytest.approx(2 * (3.0 + 4.0)), "of bfloat16"


def test_compression_does_not_shorten_a_line():
    far = run(4, 4, link=Link(0.5, 1e30))
    assert step_seconds("1f1b-1percent", far) == step_seconds("1f1b", far)


def test_every_edge_has_a_line_of_its_own():
    """A narrow one costs those whose messages cross it, and only while it is the slowest part."""
    narrow = Link(0.0, STAGE.messages / 20)

    def seconds(*links):
        return step_seconds("local", replace(run(4, 1, steps=60), links=links))

    assert seconds(FAST, FAST, FAST) == seconds(FAST) == pytest.approx(3.0)
    assert seconds(FAST, narrow, FAST) == seconds(narrow) == pytest.approx(20.0)
    assert replace(run(), links=(FAST, narrow)).worst == narrow


def test_replicas_of_a_stage_sum_their_gradients():
    link = Link(0.0, 16.0)
    alone = step_seconds("local", run(1, 1, link=link))
    assert step_seconds("local", run(1, 2, link=link, replicas=(2,))) == alone + 1.0


@pytest.mark.parametrize("method", METHODS)
def test_replicas_share_the_microbatches(method):
    """Three pipelines of four microbatches each are one with four; unequal stages go at the pace of
    the one whose replicas have most to do."""
    free = replace(STAGE, gradients=0.0, modules=(ModuleWork(1.0, 0.0, 2.0),))
    shared = SimulatedRun((free,) * 2, 12, 20, (FAST,), replicas=(3,))
    assert step_seconds(method, shared) == step_seconds(
        method, replace(shared, microbatches=4, replicas=(1,))
    )


@pytest.mark.parametrize("lagged", [{}, {"every": 2, "feedback": True, "refresh": 3, "distill": 2}])
def test_unequal_replicas(lagged):
    """The slow stage in the middle has three times the work, and gets it done by three ranks."""
    slow = replace(STAGE, modules=(ModuleWork(3.0, 0.0, 6.0),))
    even = replace(STAGE, modules=(ModuleWork(1.0, 0.0, 2.0),))
    what = SimulatedRun((even, slow, even), 6, 20, (FAST,), replicas=(1, 3, 1), **lagged)
    assert len(local(what)) == 5
    assert step_seconds("local", what) == pytest.approx(6 * 3.0)
    assert step_seconds("local", replace(what, replicas=(1, 1, 1))) == pytest.approx(6 * 9.0)
    assert step_seconds("local", replace(what, replicas=(1, 2, 2))) == pytest.approx(6 * 9.0 / 2)


def test_ddp_overlaps_its_sums_with_the_backward_pass():
    big = StageWork((), 0.0, 1.0, 2.0, 0.0, 0.0, gradients=100 * 2**20)
    link = Link(0.0, 100 * 2**20)
    what = SimulatedRun((big,) * 2, 2, 20, (link,))
    # 2 forward, 4 backward; of 200 MiB the last bucket is left: 200 - 1 - 7 * 25 MiB
    assert step_seconds("ddp", what) == pytest.approx(2.0 + 4.0 + 0.24)
