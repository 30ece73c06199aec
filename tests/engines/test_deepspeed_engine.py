"""The DeepSpeed engine: the weights of the torch engine."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline_local.config import OptimizerConfig
from pipeline_local.configfile import configfile
from pipeline_local.engines import deepspeed_library, optimizer
from pipeline_local.engines.deepspeed import DeepSpeedEngine
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.replicas import Replicas
from pipeline_local.engines.settings import EngineSettings
from pipeline_local.engines.torch import TorchEngine
from pipeline_local.errors import UserError
from pipeline_local.ranks.join import joined
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
OPTIMIZERS = {
    "sgd": OptimizerConfig(name="sgd", lr=0.1),
    "clipped": OptimizerConfig(name="sgd", lr=0.1, clip=0.5),
    "adamw": OptimizerConfig(name="adamw", lr=0.01),
    "groups": OptimizerConfig(name="adamw", lr=0.01, decay="matrices"),
}
SECTIONS = {
    "1": {},
    "2": {"zero_optimization": {"stage": 2}},
    "1 offloaded": {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
    "2 offloaded": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
}
MICROBATCHES = 4


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Once here, and not in every forked rank."""
    deepspeed_library.imported(CPU)


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(13, 7), nn.LayerNorm(7), nn.Linear(7, 5))


def engine_of(net, config, replicas, section):
    """The torch engine where there is no section."""
    guard, params = Guard(net, 1, "skip"), list(net.parameters())

    def make(params):
        return optimizer.build(config, params)

    if section is None:
        return TorchEngine(params, make, guard, replicas, config.clip)
    settings = EngineSettings(deepspeed=section)
    return DeepSpeedEngine(params, make, guard, replicas, config.clip, settings)


def step(engine, params, number, spoilt=None):
    """One step; the gradients are a function of the step and the microbatch."""
    engine.begin()
    loss = torch.zeros(())
    for microbatch in engine.replicas.own(MICROBATCHES):
        draw = torch.Generator().manual_seed(10 * number + microbatch)
        given = [torch.randn(p.shape, generator=draw) for p in params]
        if spoilt == (number, microbatch):
            given[1][0] = torch.nan
        if spoilt == (number, "loss") and microbatch == 0:
            loss += torch.inf
        engine.add(given, MICROBATCHES)
    if engine.replicas.size > 1:
        engine.reduce([loss], [])
    return engine.step(0.1 / (number + 1), loss, number)


def steps(engine, params, numbers, spoilt=None):
    measured = [step(engine, params, number, spoilt) for number in numbers]
    return [p.detach().clone() for p in params], measured


def close(left, right):
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(left, right, strict=True))


# -- equal to the torch engine ------------------------------------------------------------------


def beside_torch(rank_info, pairs, size):
    """For each optimizer and section: weights after some steps, state, and what was refused."""
    with joined(rank_info, grouped=True):
        replicas = Replicas(dist.new_group(list(range(size))) if size > 1 else None)
        for name, section in pairs:
            config, nets = OPTIMIZERS[name], [network(), network()]
            params = [list(net.parameters()) for net in nets]
            engines = [
                engine_of(nets[0], config, replicas, None),
                engine_of(nets[1], config, replicas, SECTIONS[section]),
            ]
            for numbers, spoilt in [(range(2), (1, 3)), (range(2, 4), (2, "loss")), ([4, 5], None)]:
                (plain, measured), (got, also) = (
                    steps(engine, own, numbers, spoilt)
                    for engine, own in zip(engines, params, strict=True)
                )
                assert close(plain, got), (name, section, numbers)
            assert measured[-1].keys() == also[-1].keys()
            assert all(torch.allclose(measured[-1][key], also[-1][key]) for key in measured[-1])
            assert [int(engine._guard.skipped) for engine in engines] == [2, 2]
            state = [engine.tensors() for engine in engines]
            if rank_info.rank == 0:
                assert state[0].keys() == state[1].keys()
                assert close(state[0].values(), state[1].values()), (name, section)
            else:
                assert not state[1]


@pytest.mark.parametrize("section", SECTIONS)
def test_weights_are_those_of_the_torch_engine(run_ranks, section):
    """To rounding: sums over replicas and of squares have another order."""
    pairs = [(name, section) for name in OPTIMIZERS]
    run_ranks(beside_torch, 2, pairs, 2)


def test_one_replica_has_a_group_of_its_own(run_ranks):
    run_ranks(beside_torch, 1, [("clipped", "2"), ("adamw", "2 offloaded")], 1)


def taken_over(rank_info, name, first, second):
    """A state goes from one engine to another; None: the torch engine."""
    with joined(rank_info):
        replicas = Replicas(dist.new_group([0, 1]))
        config, whole, before, after = OPTIMIZERS[name], network(), network(), network()
        params = [list(net.parameters()) for net in (whole, before, after)]
        expected, _ = steps(engine_of(whole, config, replicas, None), params[0], range(6))
        engine = engine_of(before, config, replicas, first)
        steps(engine, params[1], range(3))
        shared = [engine.tensors()]
        dist.broadcast_object_list(shared, src=0)  # as from a file
        after.load_state_dict(before.state_dict())
        engine = engine_of(after, config, replicas, second)
        engine.load(shared[0])
        if rank_info.rank == 0:  # nothing is lost before the first step
            assert engine.tensors().keys() == shared[0].keys()
        got, _ = steps(engine, params[2], range(3, 6))
        assert close(expected, got)


@pytest.mark.parametrize("name", ["sgd", "groups"])
def test_a_state_is_read_by_either_engine(run_ranks, name):
    for first, second in [(None, SECTIONS["2"]), (SECTIONS["1"], None)]:
        run_ranks(taken_over, 2, name, first, second)


def in_bfloat16(rank_info):
    """Exact weights move by less than what the parameters of the module can tell apart."""
    with joined(rank_info):
        replicas = Replicas(dist.new_group([0, 1]))
        net, config = network(), OptimizerConfig(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
        params, before = list(net.parameters()), [p.detach().clone() for p in net.parameters()]
        engine = engine_of(net, config, replicas, {"bf16": {"enabled": True}})
        for number in range(4):
            engine.begin()
            for _ in engine.replicas.own(2):
                engine.add([torch.full_like(p, 2.0**-12) for p in params], 2)
            engine.reduce([torch.zeros(())], [])
            engine.step(1.0, torch.zeros(()), number)
        assert {p.dtype for p in params} == {torch.bfloat16}
        exact = engine.weights()
        for p, old in zip(params, before, strict=True):
            assert torch.allclose(exact[p], old - 4 * 2.0**-12, rtol=0, atol=1e-7)
            assert torch.equal(p, exact[p].to(torch.bfloat16))


def test_bfloat16_keeps_exact_weights(run_ranks):
    run_ranks(in_bfloat16, 2)


# -- refused ------------------------------------------------------------------------------------


def refusals(rank_info):
    with joined(rank_info, grouped=True):
        net = network()
        params = list(net.parameters())
        engine = engine_of(net, OPTIMIZERS["sgd"], Replicas(), {})
        engine.begin()
        engine.add([None, *[torch.ones_like(p) for p in params[1:]]], 1)
        with pytest.raises(UserError, match=r"does not depend on 1 of 6; freeze them"):
            engine.step(0.1, torch.zeros(()), 0)
        own = OptimizerConfig(name="python:torch.optim:Rprop", lr=0.1)
        with pytest.raises(UserError, match=r"Rprop may not update each element by itself; .*true"):
            engine_of(network(), own, Replicas(), {}).begin()
        engine_of(network(), own, Replicas(), {"zero_allow_untested_optimizer": True}).begin()
        nonsense = {"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": "much"}}}
        with pytest.raises(
            UserError, match=r"^deepspeed: .*; change the section deepspeed, or use"
        ):
            engine_of(network(), OPTIMIZERS["sgd"], Replicas(), nonsense).begin()
        scalar = network()
        scalar.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
        with pytest.raises(UserError, match=r"without axes; give it the shape \[1\], or"):
            engine_of(scalar, OPTIMIZERS["sgd"], Replicas(), {}).begin()
        state = engine.tensors()
        differing = {f"{i}.step": torch.tensor(float(i)) for i in range(6)}
        engine = engine_of(network(), OPTIMIZERS["adamw"], Replicas(), {})
        engine.load(state | differing)
        with pytest.raises(UserError, match=r"one step for all .* differ \(0\.0 and 1\.0\); use"):
            engine.begin()


def test_what_it_cannot_do_is_refused_in_one_line(run_ranks):
    run_ranks(refusals, 1)


# -- whole runs ---------------------------------------------------------------------------------


def run(rank_info, folder, **changes):
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 32},
        "modules": {"count": 2},
        "reconcile": {"weight": 0.1, "every": 1},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "train": {"steps": 4, "microbatches": 2, "evaluate_every": 50},
        "checkpoint": {"every_steps": 2, "keep": 9},
        "parallel": {"threads": 1, "stages": 1, "replicas": 2},
        "run": {"dir": str(folder), "resume": folder.exists()},
    }
    for key, value in changes.items():
        added = isinstance(value, dict) and key != "model"
        tree[key] = tree.get(key, {}) | value if added else value
    train(configfile.parse(tree), rank_info)


def tensors(folder, number):
    from pipeline_local.record import sealed

    paths = sorted(folder.glob(f"checkpoints/step-*{number}/*.safetensors"))
    return {f"{p.name} {name}": t for p in paths for name, t in sealed.read(p).items()}


def test_a_run_goes_on_with_the_other_engine_and_other_ranks(run_ranks, tmp_path):
    run_ranks(partial(run), 2, plain := tmp_path / "torch")
    ours = {"engine": "deepspeed", "deepspeed": {"zero_optimization": {"stage": 2}}}
    run_ranks(partial(run, **ours), 2, mixed := tmp_path / "deepspeed")
    expected = tensors(plain, 4)

    def check(folder):
        """Batch norms count and average what each replica has seen."""
        got = tensors(folder, 4)
        assert got.keys() == expected.keys()
        assert got
        for name, value in got.items():
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                assert torch.allclose(value, expected[name], rtol=1e-3, atol=1e-5), name

    check(mixed)
    for path in mixed.glob("checkpoints/step-*4/module-001.*"):
        path.unlink()  # as if it had been cut off
    run(RankInfo(), mixed, parallel={"replicas": 1})
    check(mixed)
    for path in plain.glob("checkpoints/step-*4/module-001.*"):
        path.unlink()
    run_ranks(partial(run, **ours, parallel={"replicas": 1, "stages": 2}), 2, plain)
    check(plain)


LLAMA = {
    "name": "causal_lm",
    "architecture": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
READOUT = {
    "model": LLAMA,
    "data": {"name": "python:tests.token_task:tokens", "batch_size": 8},
    "task": {"name": "next_token"},
    "head": {"name": "readout", "depth": 0, "refresh": 1},
    "optimizer": {"name": "adamw", "lr": 0.01, "decay": "matrices", "weight_decay": 0.1},
    "parallel": {"threads": 1, "stages": 1, "replicas": 1},
}


def test_readouts_learn_as_with_the_torch_engine(tmp_path):
    """Their temperature is a number: DeepSpeed takes no parameter without axes."""
    run(RankInfo(), plain := tmp_path / "torch", **READOUT)
    run(RankInfo(), ours := tmp_path / "deepspeed", **READOUT, engine="deepspeed")
    expected, got = tensors(plain, 4), tensors(ours, 4)
    assert got.keys() == expected.keys()
    temperature = got["module-001.safetensors head.temperature"]
    assert temperature.item() != 1
    for name, value in got.items():
        assert torch.allclose(value, expected[name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize(
    ("name", "dtype", "most"), [("bf16", "bfloat16", 256), ("fp16", "float16", 2048)]
)
def test_narrow_embeddings_on_a_cpu_are_refused_before_anything_starts(
    name, dtype, most, tmp_path, monkeypatch
):
    """A row that is used 4096 times has a gradient of `most`, of ones."""
    narrow = torch.zeros(1, 1, dtype=getattr(torch, dtype), requires_grad=True)
    rows = nn.functional.embedding(torch.zeros(4096, dtype=torch.int64), narrow)
    (gradient,) = torch.autograd.grad(rows, narrow, torch.ones_like(rows))
    assert gradient.item() == most, "if it is no longer, there is nothing to refuse"

    monkeypatch.setattr(deepspeed_library, "_refuse_float16", lambda device: None)
    own = {"engine": "deepspeed", "precision": dtype, "deepspeed": {name: {"enabled": True}}}
    gpt2 = {"name": "causal_lm", "architecture": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2}
    tied = {**LLAMA, "tie_word_embeddings": True}
    for model, count in [(LLAMA, 2), (gpt2, 2), (tied, 1)]:
        options = {**READOUT, "model": model, "modules": {"count": count}}
        line = rf"^deepspeed\.{name}\.enabled: a CPU .* embedding's .*; use precision=bfloat16"
        with pytest.raises(UserError, match=line):
            run(RankInfo(), tmp_path / "run", **options, **own)
    assert not (tmp_path / "run").exists()
    if name == "bf16":  # float16 is not of every CPU
        run(RankInfo(), tmp_path / "copies", **{**READOUT, "model": tied}, **own)
        run(RankInfo(), tmp_path / "alone", **READOUT, **{**own, "deepspeed": {}})
