"""Everything that crosses between modules is rounded, and nothing else; on wires it is narrow."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline_local.config import ReconcileConfig
from pipeline_local.configfile import configfile
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import Step
from pipeline_local.learning.wire_format import WireFormat
from pipeline_local.pipeline.boundary import RoundedDownstream, RoundedUpstream
from pipeline_local.pipeline.edge import InProcessQueue, Nowhere
from pipeline_local.pipeline.stage import Stage
from pipeline_local.ranks.p2p import GlooP2P
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.trace import Trace
from pipeline_local.training.train import train

THIRD = torch.full((2, 3), 1 / 3)
NEAR = {None: 1 / 3, torch.bfloat16: 0.333984375, torch.float16: 0.333251953125}


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels", [torch.tensor([1, 0]), THIRD])
def test_messages_are_rounded_and_labels_are_not(narrow, labels):
    queue, wire_format = InProcessQueue(), WireFormat(narrow=narrow)
    above, below = RoundedUpstream(queue, wire_format), RoundedDownstream(queue, wire_format)
    below.send(THIRD, labels)
    below.send(THIRD)
    assert [message[0].dtype for message in queue._queue] == [narrow, torch.bfloat16]
    x, same = above.recv()
    assert same is labels
    (signal,) = above.recv()
    above.send_lagged(THIRD)
    (feedback,) = below.recv_lagged()
    assert torch.equal(x, torch.full((2, 3), NEAR[narrow]))
    for gradient in (signal, feedback):
        assert torch.equal(gradient, torch.full((2, 3), NEAR[torch.bfloat16]))
    assert RoundedDownstream(Nowhere(), wire_format).recv_lagged() == ()


class Data:
    """Upstream of the first module: numbers that no narrow wire could carry."""

    def recv(self):
        return THIRD, torch.tensor([1, 0])


class Seen(nn.Identity):
    """A body that remembers what it was given."""

    def forward(self, x):
        self.x = x.detach()
        return super().forward(x)


def two_modules(narrow):
    rules = Rules(
        reconcile=ReconcileConfig(weight=1.0, direction="upstream"),
        wire_format=WireFormat(narrow=narrow),
    )
    return [
        LocalModule(k, Seen(), nn.Linear(3, 2), lambda p: torch.optim.SGD(p, lr=0.1), rules)
        for k in range(2)
    ]


@pytest.mark.parametrize("narrow", NEAR)
def test_a_queue_rounds_as_a_wire_does(narrow):
    """In training and in evaluation."""
    modules = two_modules(narrow)
    stage = Stage(modules, Data(), Nowhere(), Trace())
    stage.train(Step(0, lr=0.1))
    trained = [module.body.x for module in modules]
    stage.evaluate([2], 0)
    evaluated = [module.body.x for module in modules]
    for first, second in (trained, evaluated):
        assert torch.equal(first, THIRD), "data crosses no boundary"
        assert torch.equal(second, torch.full((2, 3), NEAR[narrow]))
    assert evaluated[1] is not trained[1]


def test_feedback_of_a_resumed_run_is_rounded_again():
    modules = two_modules(torch.float16)
    modules[1].lagged.pending.push(0, 0, THIRD)
    stage = Stage(modules, Data(), Nowhere(), Trace())
    (feedback,) = stage._chain[0].downstream.recv_lagged()
    assert torch.equal(feedback, torch.full((2, 3), NEAR[torch.bfloat16]))


# -- two processes: what really leaves them ----------------------------------------------------


def parse(narrow, folder="."):
    tree = {
        "model": {"name": "mlp", "hidden": 12, "depth": 4},
        "data": {"name": "synthetic", "image_size": 8, "batch_size": 8, "limit": 16},
        "modules": {"count": 4},
        "head": {"name": "linear"},
        "reconcile": {"weight": 0.1, "every": 2, "direction": "both"},
        "train": {"steps": 12, "microbatches": 2, "log_every": 4, "evaluate_every": 5},
        "parallel": {"threads": 1, "stages": 2, "wire_dtype": narrow},
        "run": {"dir": str(folder)},
    }
    return configfile.parse(tree)


def bytes_sent(rank_info, config):
    """By dtype, while training; the wires' own hello aside."""
    sent = {}

    def isend(self, tensor):
        if sum(tensor.shape) > 1:
            sent[tensor.dtype] = sent.get(tensor.dtype, 0) + tensor.nbytes
        return send(self, tensor)

    send, GlooP2P.isend = GlooP2P.isend, isend
    train(config, rank_info)
    return sent


def test_half_of_the_bytes_cross(tmp_path, run_ranks):
    def run(narrow):
        return run_ranks(bytes_sent, 2, parse(narrow, tmp_path / str(narrow)))

    wide, bfloat16, float16 = (run(narrow) for narrow in (None, "bfloat16", "float16"))
    assert set(wide[0]) == {torch.float32, torch.int64}
    labels = wide[0][torch.int64]
    for down, up in (bfloat16, float16):
        votes = down.pop(torch.float32)
        assert votes == 3 * 16 * 10 * 4, "evaluations, images, classes: nothing else stays wide"
        assert down.pop(torch.int64) == labels
        assert sum(down.values()) == (wide[0][torch.float32] - votes) / 2
        assert up == {torch.bfloat16: wide[1][torch.float32] / 2}, "the gradients' own dtype"
    assert set(bfloat16[0]) == {torch.bfloat16}
    assert float16[0][torch.float16] > float16[0][torch.bfloat16], "activations, signals"


def test_another_wire_is_another_run(tmp_path):
    """In every module, the first included: its head learns from feedback."""
    found = []
    for narrow in (None, "bfloat16", "float16"):
        config = parse(narrow, tmp_path / str(narrow))
        train(replace(config, parallel=replace(config.parallel, stages=1)), RankInfo())
        found.append([p.read_bytes() for p in sorted((tmp_path / str(narrow)).rglob("module-*"))])
    assert all(len({run[k] for run in found}) == 3 for k in range(4))
