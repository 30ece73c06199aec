from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline_local.engines import replicas as module
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.replicas import Replicas
from pipeline_local.engines.torch import TorchEngine
from pipeline_local.ranks.join import joined


def test_one_replica_has_everything():
    alone = Replicas()
    tensor = torch.ones(2)
    assert alone.sum([tensor])() == [tensor]
    alone.take([tensor], 0)
    assert tensor.tolist() == [1, 1]
    assert alone.gather({"a": tensor}) == {"a": tensor}
    assert list(alone.own(3)) == [0, 1, 2]
    assert alone.has(2)


def together(rank_info, bucket_bytes):
    module.BUCKET_BYTES = bucket_bytes
    with joined(rank_info):
        replicas = Replicas(dist.new_group(backend="gloo"))
        rank = rank_info.rank
        tensors = [
            torch.full((2, 3), 1.0 + rank),
            torch.full((3, 2), 10.0 * rank).t(),
            torch.tensor(rank, dtype=torch.float64),
            torch.full((4,), 1.0, dtype=torch.bfloat16),
            torch.zeros(0),
        ]
        sums = replicas.sum(tensors)()
        assert [t.shape for t in sums] == [t.shape for t in tensors]
        copies = [torch.full((3,), float(rank))]
        replicas.take(copies, source=1)
        named = replicas.gather({f"of {rank}": torch.tensor([rank])})
        return (
            [t.float().numpy() for t in sums],
            copies[0].tolist(),
            sorted(named),
            list(replicas.own(6)),
        )


@pytest.mark.parametrize("bucket_bytes", [1, 30, 1 << 20])
def test_sums_are_those_of_all_tensors_whatever_the_buckets(bucket_bytes, run_ranks):
    """Of several dtypes and strides."""
    found = run_ranks(together, 3, bucket_bytes)
    for rank, (sums, copies, named, own) in enumerate(found):
        assert [set(t.flatten().tolist()) for t in sums] == [{6.0}, {30.0}, {3.0}, {3.0}, set()]
        assert copies == [1.0] * 3
        assert named == (["of 0", "of 1", "of 2"] if rank == 0 else [f"of {rank}"])
        assert own == [rank, rank + 3]


def mean_of_equal(rank_info):
    with joined(rank_info):
        replicas = Replicas(dist.new_group(backend="gloo"))
        table = torch.rand(1000, generator=torch.Generator().manual_seed(0))
        kept = table.clone()
        engine = TorchEngine(
            [nn.Parameter(torch.ones(1))],
            torch.optim.SGD,
            Guard(nn.Module(), 1, "fail"),
            replicas,
        )
        engine.add([torch.ones(1)], 1)
        engine.reduce([], [table])
        engine.step(0.1, torch.ones(()), 0)
        return torch.equal(table, kept)


def test_the_mean_of_equal_tables_is_the_table(run_ranks):
    """A third of a number, three times, is another number for one in seven."""
    assert run_ranks(mean_of_equal, 3) == [True] * 3


def one_is_not_finite(rank_info):
    """What a replica holds after a step in which the last one's gradient was not finite."""
    with joined(rank_info):
        replicas = Replicas(dist.new_group(backend="gloo"))
        layer = nn.Linear(2, 1)
        nn.init.ones_(layer.weight)
        params = [layer.weight, layer.bias]
        guard = Guard(layer, 1, "skip")
        engine = TorchEngine(params, lambda p: torch.optim.SGD(p, lr=1.0), guard, replicas)
        for number in range(2):
            bad = number == 0 and rank_info.rank == 1
            gradient = torch.full((1, 2), float("nan") if bad else 0.25)
            guard.begin()
            engine.add([gradient, None], microbatches=2)
            loss = torch.tensor(1.0 + rank_info.rank)
            engine.reduce([loss], [])
            engine.step(1.0, loss, number)
        return layer.weight.tolist(), float(guard.skipped), float(loss)


def one_has_not_used_a_parameter(rank_info, zero):
    """The weights of a replica after a step in which the second one has passed over a layer."""
    with joined(rank_info):
        replicas = Replicas(dist.new_group(backend="gloo"))
        used, passed_over, spare = (nn.Parameter(torch.ones(2)) for _ in range(3))
        params = [used, passed_over, spare]
        guard = Guard(nn.ParameterList(params), 1, "fail")
        decaying = partial(torch.optim.SGD, lr=1.0, weight_decay=0.5)
        engine = TorchEngine(params, decaying, guard, replicas, zero=zero)
        there = None if rank_info.rank == 1 else torch.full((2,), 0.25)
        guard.begin()
        engine.add([torch.full((2,), 0.25), there, None], microbatches=2)
        loss = torch.ones(())
        engine.reduce([loss], [])
        engine.step(1.0, loss, 0)
        return [p[0].item() for p in params]


@pytest.mark.parametrize("zero", [0, 1])
def test_a_gradient_that_one_replica_has_moves_all_of_them(zero, run_ranks):
    """As it would move one rank with both microbatches; nobody moves what nobody has used."""
    moved = [1 - 0.25 - 0.5, 1 - 0.125 - 0.5, 1.0]
    assert run_ranks(one_has_not_used_a_parameter, 2, zero) == [moved] * 2


def test_all_replicas_refuse_what_one_has_found(run_ranks):
    """The first step is left out by both; the second moves both by the sum of their shares."""
    assert run_ranks(one_is_not_finite, 2) == [([[0.75, 0.75]], 1.0, 3.0)] * 2
