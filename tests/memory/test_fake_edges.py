"""The fake edges of a stage in a dry run."""

import torch

from pipeline_local.blueprint.contract import Contract, Spec
from pipeline_local.learning.step import Step
from pipeline_local.memory.fake_edges import FakeDownstream, FakeUpstream, fake_message, num_bytes

X = Spec((4, 3), torch.float32)
LABELS = Spec((4,), torch.int64)
CONTRACT = Contract(X, X, LABELS, X, LABELS, X)
COPY = Spec((2,), torch.float32)


def shapes(message):
    return [tuple(tensor.shape) for tensor in message]


def test_messages_come_as_the_contract_has_them():
    upstream = FakeUpstream((X, LABELS), (X,), Step(0, 0.1, microbatches=2, compare=True))
    messages = [shapes(upstream.recv()) for _ in range(5)]
    assert messages == [[(4, 3), (4,)], [(4, 3)]] * 2 + [[(4, 3), (4,)]]
    quiet = FakeUpstream((X, LABELS), (X,), Step(0, 0.1))
    assert [shapes(quiet.recv()) for _ in range(2)] == [[(4, 3), (4,)]] * 2
    assert upstream.num_bytes == 4 * 3 * 4 + 4 * 8


def test_the_newest_messages_are_unfinished():
    downstream = FakeDownstream(CONTRACT, [(X,), (X, COPY)])
    sent = [fake_message([X]) for _ in range(3)]
    for message in sent:
        downstream.send(*message)
    held = [message[0] for message in downstream._held]
    assert [id(x) for x in held] == [id(message[0]) for message in sent[1:]]
    assert shapes(downstream.recv_lagged()) == [(4, 3)]
    assert shapes(downstream.recv_lagged()) == [(4, 3), (2,)]
    assert downstream.num_bytes == num_bytes([X, COPY]) + 2 * num_bytes([X, LABELS])


def test_nobody_is_downstream():
    nobody = FakeDownstream(None)
    nobody.send(*fake_message([X]))
    assert not nobody._held
    assert nobody.recv_lagged() == ()
    assert nobody.num_bytes == 0
