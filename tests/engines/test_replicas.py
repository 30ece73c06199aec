import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline_local.engines import replicas as module
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.replicas import Replicas
from pipeline_local.engines.torch import TorchEngine
from pipeline_local.ranks.rank import joined


def test_one_replica_has_everything():
    alone = Replicas()
    tensor = torch.ones(2)
    alone.sum([tensor])()
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
        mean = torch.full((2,), 3.0 * rank)
        wait = replicas.sum(tensors, means=[mean])
        wait()
        assert mean.tolist() == [3.0, 3.0]
        copies = [torch.full((3,), float(rank))]
        replicas.take(copies, source=1)
        named = replicas.gather({f"of {rank}": torch.tensor([rank])})
        return (
            [t.float().numpy() for t in tensors],
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


def one_is_not_finite(rank_info):
    """What a replica holds after a step in which the last one's gradient was not finite."""
    with joined(rank_info):
        replicas = Replicas(dist.new_group(backend="gloo"))
        layer = nn.Linear(2, 1)
        nn.init.ones_(layer.weight)
        params = [layer.weight, layer.bias]
        guard = Guard(layer, 1, "skip")
        engine = TorchEngine(params, lambda p: torch.optim.SGD(p, lr=1.0), guard, None, replicas)
        for number in range(2):
            bad = number == 0 and rank_info.rank == 1
            gradient = torch.full((1, 2), float("nan") if bad else 0.25)
            guard.begin()
            engine.add([gradient, None], microbatches=2)
            loss = torch.tensor(1.0 + rank_info.rank)
            engine.reduce([loss], [])
            engine.step(1.0, loss, number)
        return layer.weight.tolist(), float(guard.skipped), float(loss)


def test_all_replicas_refuse_what_one_has_found(run_ranks):
    """The first step is left out by both; the second moves both by the sum of their shares."""
    assert run_ranks(one_is_not_finite, 2) == [([[0.75, 0.75]], 1.0, 3.0)] * 2
