"""Channels between real processes: order, contract, back-pressure, large messages, p = 2."""

import time

import pytest
import torch
import torch.distributed as dist

from pipeline_local.blueprint.contract import Contract, Spec
from pipeline_local.blueprint.run_plan import RunPlan
from pipeline_local.config import ParallelConfig
from pipeline_local.configfile import configfile
from pipeline_local.pipeline.edge import InProcessQueue
from pipeline_local.pipeline.transport import Receiver, Sender
from pipeline_local.ranks.join import joined
from tests.chain import open_chain

CPU = torch.device("cpu")
SMALL = (Spec((2, 3), torch.float32), Spec((2,), torch.int64))
LARGE = (Spec((20_000_000,), torch.float32), Spec((2,), torch.int64))  # 80 MB


def contract(micro=4):
    return Contract(
        activations=Spec((micro, 3), torch.float16),
        gradients=Spec((micro, 3), torch.bfloat16),
        labels=Spec((micro,), torch.int64),
        test_activations=Spec((8, 3), torch.float32),
        test_labels=Spec((8,), torch.int64),
        test_ensemble=Spec((8, 5), torch.float32),
    )


def run_plan(**sections):
    tree = {"model": {"name": "resnet20"}, "data": {"name": "digits", "batch_size": 8}}
    return RunPlan(configfile.parse({**tree, **sections}), num_train=80, num_test=20)


def test_traffic_follows_the_run_plan():
    plan = run_plan(
        train={"steps": 2, "microbatches": 2, "log_every": 2, "evaluate_every": 1},
        checkpoint={"every_steps": 1},
    )
    c = contract()
    data, test = (c.activations, c.labels), (c.test_activations, c.test_labels, c.test_ensemble)
    signal = (c.gradients,)
    plain, compared = [data, data], [data, signal, data, signal]
    tests = [test] * (3 * 2)  # three batches in two parts each
    parts, messages = zip(*c.traffic(plan, 0), strict=True)
    assert list(messages) == [*plain, *tests, *compared, *tests]
    assert list(parts) == [0, 1, *[0, 1] * 3, 0, 0, 1, 1, *[0, 1] * 3]
    assert [message for _, message in c.traffic(plan, 1)] == [*compared, *tests]


def test_local_is_a_queue():
    channel = InProcessQueue()
    channel.send(torch.zeros(1), torch.ones(1))
    channel.send(torch.full((1,), 2.0))
    assert [t.item() for t in channel.recv()] == [0, 1]
    assert [t.item() for t in channel.recv()] == [2]


def open_ends(rank_info):
    """The point-to-point ends of the kind that this machine uses."""
    return open_chain(rank_info, rank_info.p2p_kind(ParallelConfig()))


def fill(spec, number, rank_info):
    return torch.full(spec.shape, number, dtype=spec.dtype, device=rank_info.device)


def relay(rank_info, messages, pauses):
    """Every rank passes on what it gets; the first one makes it up. Gives what was received."""
    with joined(rank_info):
        up, down = open_ends(rank_info)
        receiver = Receiver(up, iter(messages), rank_info.device) if up else None
        sender = Sender(down, iter(messages), rank_info.device) if down else None
        seen = []
        for number, specs in enumerate(messages):
            if receiver:
                message = receiver.recv()
                assert [(t.shape, t.dtype) for t in message] == [(s.shape, s.dtype) for s in specs]
                assert all((t == t.flatten()[0]).all() for t in message)
                seen.append(message[0].flatten()[0].item())
            else:
                message = tuple(fill(spec, number, rank_info) for spec in specs)
            time.sleep(pauses[rank_info.rank])
            if sender:
                sender.send(*message)
        if sender:
            sender.finish()
        if rank_info.world_size > 1:
            dist.barrier()
    return seen


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_messages_arrive_whole_and_in_order(run_ranks, world_size):
    messages = [SMALL, SMALL[:1], SMALL] * 10
    results = run_ranks(relay, world_size, messages, [0] * 4)
    assert results[0] == []
    assert all(seen == list(range(30)) for seen in results[1:])


@pytest.mark.parametrize("world_size", [2, 3])
def test_messages_over_64_mb(run_ranks, world_size):
    messages = [LARGE, SMALL, LARGE, LARGE[:1], LARGE]
    results = run_ranks(relay, world_size, messages, [0] * 4)
    assert all(seen == [0, 1, 2, 3, 4] for seen in results[1:])


@pytest.mark.parametrize("pauses", [[0, 0.02, 0], [0.02, 0, 0], [0, 0, 0.02]])
def test_uneven_stages(run_ranks, pauses):
    results = run_ranks(relay, 3, [SMALL] * 12, pauses)
    assert results[2] == list(range(12))


def first_blocks(rank_info, depth):
    with joined(rank_info) as store:
        up, down = open_ends(rank_info)
        if down:
            sender = Sender(down, iter([LARGE] * (depth + 1)), rank_info.device, depth)
            for number in range(depth):
                sender.send(*(fill(spec, number, rank_info) for spec in LARGE))
            store.set("ahead", "1")
            sender.send(*(fill(spec, depth, rank_info) for spec in LARGE))
            released = store.check(["receiving"])
            sender.finish()
            dist.barrier()
            return released, sender.waited
        store.wait(["ahead"])
        time.sleep(0.2)
        store.set("receiving", "1")
        receiver = Receiver(up, iter([LARGE] * (depth + 1)), rank_info.device)
        numbers = [receiver.recv()[0][0].item() for _ in range(depth + 1)]
        dist.barrier()
        return numbers


@pytest.mark.parametrize("depth", [1, 2])
def test_back_pressure(run_ranks, depth):
    """With nobody receiving, `depth` sends return; the next one must wait, so it is never made
    here before the receiver is told to start."""
    (released, waited), numbers = run_ranks(first_blocks, 2, depth)
    assert released, "the send beyond the depth returned although nobody had received"
    assert waited > 0
    assert numbers == list(range(depth + 1))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 2)]
)
def test_a_message_off_the_contract_is_refused_before_it_is_sent(wrong):
    class Untouched:
        def isend(self, tensor):
            raise AssertionError("sent")

    sender = Sender(Untouched(), iter([SMALL]), CPU)
    with pytest.raises(ValueError, match=r"expects torch.float32 \[2, 3\], got"):
        sender.send(wrong, torch.zeros(2, dtype=torch.int64))


def test_a_receiver_posts_one_message_ahead_and_no_more():
    posted = []

    class Recording:
        def irecv(self, shape, dtype):
            posted.append(shape)

            class Done:
                def wait(self):
                    return torch.zeros(shape, dtype=dtype)

            return Done()

    receiver = Receiver(Recording(), iter([SMALL, SMALL[:1], SMALL]), CPU)
    assert len(posted) == 2
    receiver.recv()
    assert len(posted) == 3
    receiver.recv()
    receiver.recv()
    assert len(posted) == 5
