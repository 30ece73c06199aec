"""Messages between stages: both ends are found by what they have in common."""

from pipeline_local.learning.step import LAG
from pipeline_local.record.messages import ACTIVATIONS, LAGGED, SIGNAL, TEST_BATCH, between
from pipeline_local.record.trace import Span


def end(act, module, step, content, microbatch=0):
    return Span(act, module, step, microbatch, content, 0, 1)


def test_both_ends_of_each_content():
    downwards = [
        (end("send", 1, 7, content, part), end("recv", 2, 7, content, part))
        for content in (ACTIVATIONS, SIGNAL, TEST_BATCH)
        for part in range(2)
    ]
    upwards = end("send", 2, 7, LAGGED), end("recv", 1, 7 + LAG, LAGGED)
    first = [send for send, _ in downwards] + [upwards[1]]
    second = [recv for _, recv in downwards] + [upwards[0]]
    found = list(between([first, second]))
    assert sorted((m.send, m.recv) for m in found) == sorted([*downwards, upwards])
    assert {(m.sender, m.receiver) for m in found if m.send.content == LAGGED} == {(1, 0)}


def test_a_message_inside_of_a_stage_or_with_one_end_is_none():
    inside = [end("send", 0, 7, SIGNAL), end("recv", 1, 7, SIGNAL)]
    assert not list(between([inside, [end("recv", 3, 7, SIGNAL)]]))
    assert not list(between([[end("send", 0, 7, SIGNAL)], [end("recv", 1, 8, SIGNAL)]]))
