"""Sharded states of optimizers: the bits of one optimizer, each state once, on any replicas."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline_local.config import OptimizerConfig
from pipeline_local.configfile import configfile
from pipeline_local.engines import optimizer
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.replicas import Replicas
from pipeline_local.engines.sharded import ShardedOptimizer, shards
from pipeline_local.engines.torch import TorchEngine
from pipeline_local.ranks.join import joined
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train

OPTIMIZERS = {
    "sgd": OptimizerConfig(name="sgd", lr=0.1, clip=1.0),
    "plain sgd": OptimizerConfig(name="sgd", lr=0.1, momentum=0.0),
    "adamw": OptimizerConfig(name="adamw", lr=0.01),
    "groups": OptimizerConfig(name="adamw", lr=0.01, decay="matrices"),
    "muon": OptimizerConfig(name="muon", lr=0.01, decay="matrices"),
    "state from the start": OptimizerConfig(name="python:torch.optim:Adagrad", lr=0.1),
}


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(13, 9), nn.Linear(9, 5)
    )


def engine_of(net, config, replicas, zero):
    guard = Guard(net, 1, "skip")
    params = list(net.parameters())
    return TorchEngine(
        params, lambda p: optimizer.build(config, p), guard, replicas, config.clip, zero
    )


def step(engine, params, number, rank, spoilt=None):
    """One step with gradients that are a function of the step and the replica."""
    draw = torch.Generator().manual_seed(10 * number + rank)
    given = [torch.randn(p.shape, generator=draw) for p in params]
    if (number, rank) == spoilt:
        given[0][0] = torch.nan
    loss = torch.ones(())
    engine.begin()
    engine.add(given, 2)
    engine.reduce([loss], [])
    engine.step(0.1 / (number + 1), loss, number)


def after(engine, params, numbers, rank, spoilt=None):
    for number in numbers:
        step(engine, params, number, rank, spoilt)
    return [p.detach().clone() for p in params], engine.tensors()


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def held(engine):
    """The elements of all states here that are as large as a parameter."""
    return sum(
        value.numel()
        for state in engine.optimizer.state.values()
        for value in state.values()
        if value.dim()
    )


def test_the_largest_tensors_are_dealt_first():
    sizes = [1, 8, 3, 4, 5]
    dealt = shards([torch.empty(size) for size in sizes], 2)
    assert [[t.numel() for t in shard] for shard in dealt] == [[8, 3], [5, 4, 1]]


# -- on two ranks -------------------------------------------------------------------------------


def sharded_beside_whole(rank_info, name):
    """Both engines on the same gradients, also those that are refused; and what each keeps."""
    with joined(rank_info):
        replicas = Replicas(dist.new_group([0, 1]))
        config, rank = OPTIMIZERS[name], rank_info.rank
        nets = [network() for _ in range(2)]
        params = [list(net.parameters()) for net in nets]
        engines = [engine_of(net, config, replicas, zero) for zero, net in enumerate(nets)]
        assert [isinstance(e.optimizer, ShardedOptimizer) for e in engines] == [False, True]
        for numbers, spoilt in [(range(1), (0, 1)), (range(1, 4), (2, 0)), (range(4, 6), None)]:
            plain, sharded = (
                after(engine, own, numbers, rank, spoilt)
                for engine, own in zip(engines, params, strict=True)
            )
            assert same(plain[0], sharded[0])
            if rank == 0:
                assert plain[1].keys() == sharded[1].keys()
                assert all(torch.equal(plain[1][key], sharded[1][key]) for key in plain[1])
        skipped = [int(engine._guard.skipped) for engine in engines]
        return skipped, held(engines[0]), held(engines[1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_bits_are_those_of_one_optimizer(run_ranks, name):
    results = run_ranks(sharded_beside_whole, 2, name)
    wholes, parts = [r[1] for r in results], [r[2] for r in results]
    assert [r[0] for r in results] == [[2, 2], [2, 2]], "alike on all replicas"
    assert sum(parts) == wholes[0] == wholes[1], "each state is kept once"
    assert max(parts) < 0.7 * wholes[0] or not wholes[0], "Muon's are not of one size"


class Counting(torch.optim.Optimizer):
    """It keeps a count in its groups, as schedule-free optimizers do."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "count": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] / group["count"])


def counted(rank_info):
    with joined(rank_info):
        replicas = Replicas(dist.new_group([0, 1]))
        config = OptimizerConfig(name="python:tests.engines.test_zero:Counting", lr=0.1)
        nets = network(), network()
        found = [
            after(engine_of(net, config, replicas, zero), list(net.parameters()), range(4), 0)[0]
            for zero, net in enumerate(nets)
        ]
        return same(*found)


def test_what_an_optimizer_keeps_in_its_groups_stays(run_ranks):
    assert run_ranks(counted, 2) == [True, True]


def resumed(rank_info, name, before, after_):
    """Half of the steps with one way to keep the state, and half with another."""
    with joined(rank_info):
        replicas = Replicas(dist.new_group([0, 1]))
        config, rank = OPTIMIZERS[name], rank_info.rank
        whole, first, second = network(), network(), network()
        expected, _ = after(
            engine_of(whole, config, replicas, 0), list(whole.parameters()), range(6), rank
        )
        params = list(first.parameters())
        _, state = after(engine_of(first, config, replicas, before), params, range(3), rank)
        shared = [state]
        dist.broadcast_object_list(shared, src=0)  # as from a file
        second.load_state_dict(first.state_dict())
        engine = engine_of(second, config, replicas, after_)
        engine.load(shared[0])
        got, _ = after(engine, list(second.parameters()), range(3, 6), rank)
        return same(expected, got), held(engine)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize(("before", "after_"), [(1, 1), (0, 1), (1, 0)])
def test_a_state_is_read_by_any_engine(run_ranks, name, before, after_):
    (one, held_by_one), (other, held_by_other) = run_ranks(resumed, 2, name, before, after_)
    assert one
    assert other
    if after_ == 0:
        assert held_by_one == held_by_other


def more_replicas_than_parameters(rank_info):
    with joined(rank_info):
        replicas = Replicas(dist.new_group([0, 1]))
        nets = [nn.Linear(3, 2, bias=False) for _ in range(2)]
        nets[1].load_state_dict(nets[0].state_dict())
        replicas.take(list(nets[0].parameters()) + list(nets[1].parameters()), 0)
        plain, sharded = (
            after(
                engine_of(net, OPTIMIZERS["adamw"], replicas, zero),
                list(net.parameters()),
                range(3),
                rank_info.rank,
            )
            for zero, net in enumerate(nets)
        )
        return same(plain[0], sharded[0])


def test_a_replica_may_have_no_shard(run_ranks):
    assert run_ranks(more_replicas_than_parameters, 2) == [True, True]


def test_one_replica_keeps_the_plain_optimizer():
    engine = engine_of(network(), OPTIMIZERS["adamw"], Replicas(), 1)
    assert type(engine.optimizer) is torch.optim.AdamW


# -- whole runs ---------------------------------------------------------------------------------


def run(rank_info, folder, **changes):
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 32},
        "modules": {"count": 2},
        "reconcile": {"weight": 0.1, "every": 1},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"steps": 6, "microbatches": 2, "evaluate_every": 50},
        "checkpoint": {"every_steps": 3, "keep": 9},
        "parallel": {"threads": 1},
        "run": {"dir": str(folder), "resume": folder.exists()},
    }
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value
    train(configfile.parse(tree), rank_info)
    return folder


def files(folder: Path, number: int) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob(f"checkpoints/step-*{number}/*.s*"))]


@pytest.mark.long
def test_checkpoints_are_the_same_files_and_resume_on_any_replicas(run_ranks, tmp_path):
    mesh = {"threads": 1, "stages": 1, "replicas": 2}
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    run_ranks(partial(run, parallel=mesh), 2, plain)
    run_ranks(partial(run, parallel=mesh | {"zero": 1}), 2, sharded)
    for number in (3, 6):
        assert files(plain, number) == files(sharded, number) != []
    for path in sharded.glob("checkpoints/step-*6/module-001.*"):
        path.unlink()  # as if it had been cut off
    alone = mesh | {"replicas": 1, "zero": 1}
    run(RankInfo(), sharded, parallel=alone)
    assert json.loads((sharded / "summary.json").read_text())["resumed_after"] == 3
