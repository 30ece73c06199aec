"""Where the time went: the causes of waits, on spans of known times."""

import pytest

from pipeline_local.record.run_trace import RunTrace
from pipeline_local.record.stage_trace import StageTrace
from pipeline_local.record.trace import NO_MODULE, Span
from pipeline_local.record.waits import report

MS = 10**6


def span(act, module, begin, end, content="", step=103):
    return Span(act, module, step, 0, content, begin * MS, end * MS)


def lines(*stages, shown=5, **more):
    made = [StageTrace(n, len(stages), "h", "s", spans) for n, spans in enumerate(stages)]
    return report(RunTrace(tuple(made), **more), shown)


def send(begin, end, module=0):
    return span("send", module, begin, end, "activations")


def recv(begin, end, module=1):
    return span("recv", module, begin, end, "activations")


@pytest.mark.parametrize(
    ("meanwhile", "cause"),
    [
        (span("learn", 0, 0, 10), "stage 0 was in 'learn' of module 1"),
        (span("recv", 0, 0, 10, "activations"), "stage 0 was reading data"),
        (span("save", NO_MODULE, 0, 10), "stage 0 was saving a checkpoint"),
        (span("log", NO_MODULE, 0, 10), "stage 0 was writing metrics"),
        (span("learn", 0, 0, 3), "stage 0 was between its acts"),
    ],
)
def test_what_the_neighbour_did_meanwhile(meanwhile, cause):
    found = lines([meanwhile, send(10, 11)], [recv(0, 12), span("learn", 1, 12, 24)])
    assert found[0] == "step 104, 0.024 s:"
    assert found[2] == "  stage 1: 50 % waiting for messages, 50 % learn"
    wait = f"  stage 1 waited 12.0 ms in step 104 for stage 0's activations: {cause}"
    assert found[3:] == ["largest waits:", wait]


def test_a_slow_link():
    found = lines([span("learn", 0, 0, 3), send(3, 4)], [recv(0, 20)])
    assert found[-1].endswith(": the message was on its way")


def test_the_cause_may_be_further_upstream():
    found = lines(
        [span("forward", 0, 0, 8), send(8, 9)],
        [recv(0, 9), span("forward", 1, 9, 10), send(10, 11, 1)],
        [recv(0, 11, 2)],
    )
    assert found[-2].endswith(
        "stage 2 waited 11.0 ms in step 104 for stage 1's activations: stage 1 waited, too:"
        " stage 0 was in 'forward' of module 1"
    )


def test_a_send_without_room_is_a_wait_for_who_does_not_receive():
    learns = [span("learn", 1, 0, 20), recv(20, 21)]
    found = lines([send(5, 19)], learns)
    text = (
        "stage 0 took 14.0 ms in step 104 to send activations: stage 1 was in 'learn' of module 2"
    )
    assert f"  {text}" == found[-2]
    assert not [line for line in lines([send(5, 6)], [recv(0, 7)]) if "took" in line]


def test_waits_of_one_kind_are_one_line_and_few_are_shown():
    first, second = [], []
    for step in range(3):
        begin, long = 100 * step, 10 + step
        first += [
            span("learn", 0, begin, begin + long, step=step),
            span("send", 0, begin + long, begin + long + 1, "activations", step),
        ]
        second.append(span("recv", 1, begin, begin + long, "activations", step))
    found = lines(first, second)
    assert found[-1].startswith("  stage 1 waited 12.0 ms in step 3 for")
    assert "(33.0 ms with 2 other such waits): stage 0 was in 'learn'" in found[-1]
    assert lines(first, second, shown=0)[-1].startswith("  stage 1: ")


def test_a_rank_without_a_trace_and_a_run_without_waits():
    """Its stage is not known: with replicas, it may have another number."""
    found = lines([span("learn", 0, 0, 10)], missing=(1,))
    assert found == ["step 104, 0.010 s:", "  stage 0: 100 % learn", "  rank 1 has left no trace"]
