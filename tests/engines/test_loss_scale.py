"""DeepSpeed's loss scales: float16 from a step to whole runs, and what is known of its rule."""

import json
import warnings
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline_local.config import OptimizerConfig
from pipeline_local.configfile import configfile
from pipeline_local.engines import deepspeed_library, optimizer
from pipeline_local.engines.deepspeed import DeepSpeedEngine, _Carrier, _DataParallel
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.replicas import Replicas
from pipeline_local.engines.settings import EngineSettings
from pipeline_local.engines.torch import TorchEngine
from pipeline_local.errors import UserError
from pipeline_local.ranks.join import joined
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record import sealed
from pipeline_local.training.train import train

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_fp16_supported(),
        reason="DeepSpeed refuses float16 on a CPU without instructions for it",
    ),
]

CPU = torch.device("cpu")
PLAIN = OptimizerConfig(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
STAGES = {
    "1": {},
    "2": {"stage": 2},
    "2 offloaded": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
}


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Once here, and not in every forked rank."""
    deepspeed_library.imported(CPU)


def engine_of(replicas=None, policy="fail", clip=None, zero=None, **fp16):
    """An engine of a matrix and a vector, with SGD of rate 1."""
    torch.manual_seed(3)
    net = nn.Linear(3, 2)
    params = list(net.parameters())
    section = {"fp16": {"enabled": True, **fp16}, "zero_optimization": zero or {}}
    settings = EngineSettings(deepspeed=section)
    return DeepSpeedEngine(
        params,
        lambda params: optimizer.build(PLAIN, params),
        Guard(net, 1, policy),
        replicas or Replicas(),
        clip,
        settings,
    )


def step(engine, number, gradient, loss=0.0):
    """One step of which this replica gives all of its share; by what the exact weights move."""
    engine.begin()
    before = [weight.clone() for weight in engine.weights().values()]
    scaled = (torch.full(p.shape, gradient * engine.scale) for p in engine._params)
    engine.add([g.half() for g in scaled], 1)
    total = torch.tensor(loss)
    if engine.replicas.size > 1:
        engine.reduce([total], [])
    metrics = engine.step(1.0, total, number)
    after = engine.weights().values()
    (moved,) = {(old - new).unique().tolist()[0] for old, new in zip(before, after, strict=True)}
    return moved, {name: value.item() for name, value in metrics.items()}


def one(gradient):
    return pytest.approx(gradient, rel=2e-3, abs=1e-7)


# -- one engine -----------------------------------------------------------------------------------


def rules(rank_info):
    with joined(rank_info, grouped=True):
        for zero in STAGES.values():
            engine = engine_of(
                zero=zero, initial_scale_power=16, hysteresis=1, loss_scale_window=2, clip=1e6
            )
            scales, found = [], []
            for number, gradient in enumerate([1e-3, 10.0, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]):
                moved, metrics = step(engine, number, gradient)
                norm = gradient * 8**0.5 if number != 1 else torch.inf
                assert metrics["gradient_norm"] == one(norm)
                scales.append(metrics["loss_scale"])
                found.append(moved)
                engine._guard.verify()  # a scale that falls is no failure
            assert scales == [2**16, 2**16, 2**15, 2**15, 2**15, 2**16, 2**16]
            assert found == [one(1e-3), 0.0, *[one(1e-3)] * 5], "also where the scale has grown"
            assert metrics["skipped_updates"] == 1

        engine = engine_of(loss_scale=4.0)
        assert step(engine, 0, 2.0**-10)[0] == one(2.0**-10)
        assert step(engine, 1, torch.inf)[0] == 0
        assert step(engine, 2, 2.0**-10)[1] == {"loss_scale": 4.0, "skipped_updates": 1.0}
        with pytest.raises(
            UserError, match=r"gradient is not finite at step 2; lower deepspeed\.fp16"
        ):
            engine._guard.verify()

        for spoilt in ({"gradient": torch.nan}, {"gradient": 0.0, "loss": torch.inf}):
            engine = engine_of(initial_scale_power=1, hysteresis=1, min_loss_scale=1)
            assert step(engine, 0, **spoilt)[1]["loss_scale"] == 2
            if "loss" not in spoilt:
                engine._guard.verify()
                assert step(engine, 1, **spoilt)[1]["loss_scale"] == 1, "the least one"
            with pytest.raises(
                UserError, match=r"module 1: .* is not finite at step \d; use bfloat16 "
            ):
                engine._guard.verify()


def test_a_module_follows_deepspeeds_rule(run_ranks):
    run_ranks(rules, 1)


def underflow(rank_info):
    """Half of the least float16: without a scale nothing would arrive."""
    with joined(rank_info, grouped=True):
        tiny = 2.0**-26
        assert not torch.tensor(tiny).half()
        for zero in STAGES.values():
            fixed, scaled = engine_of(zero=zero, loss_scale=1.0), engine_of(zero=zero)
            exact = [engine_of(loss_scale=2.0**16, zero=zero)]
            for engine in (fixed, scaled, *exact):
                engine.begin()
                for weight in engine._params:  # near zero, float32 holds such a step
                    weight.data.zero_()
                safe_zero(engine)
            assert step(fixed, 0, tiny)[0] == 0
            assert step(scaled, 0, tiny)[0] == pytest.approx(tiny, rel=1e-3)
            assert step(exact[0], 0, tiny)[0] == pytest.approx(tiny, rel=1e-3)


def safe_zero(engine):
    from deepspeed.utils import safe_set_full_fp32_param

    for parameter in engine._params:
        safe_set_full_fp32_param(parameter, torch.zeros(parameter.shape))


def test_what_underflows_without_a_scale_arrives(run_ranks):
    run_ranks(underflow, 1)


def together(rank_info):
    """One module overflows at one replica; the other module goes on."""
    with joined(rank_info):
        replicas = Replicas(dist.new_group([0, 1]))
        for zero in STAGES.values():
            both = [engine_of(replicas, zero=zero, hysteresis=1) for _ in range(2)]
            for number in range(4):
                spoilt = number == 1 and rank_info.rank == 1
                gradients = [10.0 if spoilt else 1e-4, 1e-4]
                (moved, metrics), (other, also) = (
                    step(engine, number, gradient)
                    for engine, gradient in zip(both, gradients, strict=True)
                )
                assert moved == (0.0 if number == 1 else one(2e-4))
                assert other == one(2e-4)
                assert metrics["loss_scale"] == (2**16 if number < 2 else 2**15)
                assert also == {"loss_scale": 2**16, "skipped_updates": 0}
            assert metrics["skipped_updates"] == 1
            for engine in both:
                engine._guard.verify()


def test_all_replicas_of_a_module_skip_together_and_no_other_module(run_ranks):
    run_ranks(together, 2)


def resumed(rank_info):
    """The rule goes on as if there had been no pause, hysteresis and window included."""
    with joined(rank_info):
        replicas = Replicas(dist.new_group([0, 1]))
        fp16 = {"initial_scale_power": 10, "hysteresis": 2, "loss_scale_window": 3}
        gradients = [1e-3, torch.inf, 1e-3, 1e-3, torch.inf, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]
        for pause in range(1, len(gradients)):
            whole, before, after = (engine_of(replicas, **fp16) for _ in range(3))
            expected = [step(whole, n, g) for n, g in enumerate(gradients)]
            for number, gradient in enumerate(gradients[:pause]):
                step(before, number, gradient)
            shared = [before.tensors()]
            assert bool(shared[0]) == (rank_info.rank == 0)
            dist.broadcast_object_list(shared, src=0)  # as from a file
            after.load(shared[0])
            got = [step(after, n, g) for n, g in list(enumerate(gradients))[pause:]]
            scales = [[m["loss_scale"] for _, m in rows] for rows in (expected, got)]
            assert scales[0] == [1024] * 5 + [512] * 4 + [1024]
            assert scales[1] == scales[0][pause:], pause
        if rank_info.rank == 0:  # as who evaluates loads it
            assert "loss_scale" in shared[0]
            network = nn.Linear(3, 2)
            params, guard = list(network.parameters()), Guard(network, 1, "fail")
            TorchEngine(params, partial(optimizer.build, PLAIN), guard).load(shared[0])
        fixed = engine_of(replicas, loss_scale=8.0)
        fixed.load(shared[0])
        assert step(fixed, 0, 1e-3)[1]["loss_scale"] == 8.0


def test_a_scale_goes_on_after_a_pause(run_ranks):
    run_ranks(resumed, 2)


def refusals(rank_info):
    with joined(rank_info, grouped=True):
        fp16 = {"enabled": True}
        deepspeed_library.check({"fp16": fp16 | {"initial_scale_power": 8}}, CPU)
        for keys, line in [
            ({"loss_scale": -1}, r"deepspeed\.fp16\.loss_scale: .*got -1"),
            ({"loss_scale_window": 0}, r"deepspeed\.fp16\b.*loss_scale_window must be > 0"),
            ({"min_loss_scale": "much"}, r"deepspeed\.fp16\.min_loss_scale: .*got 'much'"),
            ({"hysterisis": 1}, r"unknown key 'deepspeed\.fp16\.hysterisis'; did you mean"),
        ]:
            with pytest.raises(UserError, match=f"^{line}") as refused:
                deepspeed_library.check({"fp16": fp16 | keys}, CPU)
            assert "\n" not in str(refused.value)
        from deepspeed.accelerator import get_accelerator

        type(get_accelerator()).is_fp16_supported = lambda self: None  # as on an older CPU
        line = r"^deepspeed\.fp16\.enabled: DeepSpeed [\d.]+ takes no float16 on this cpu, .*; use"
        with pytest.raises(UserError, match=line):
            deepspeed_library.check({"fp16": fp16}, CPU)
        deepspeed_library.check({"bf16": fp16}, CPU)


def test_bad_settings_are_one_line_each(run_ranks):
    run_ranks(refusals, 1)


# -- facts of DeepSpeed that this engine is built on ----------------------------------------------


def grown(rank_info):
    """By what a step moves in which the scale grows, with and without a scale of our own."""
    deepspeed = deepspeed_library.imported(CPU)
    found = []
    with joined(rank_info, grouped=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for overridden in (False, True):
            net = _Carrier([nn.Parameter(torch.zeros(2))])
            section = {"fp16": {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 1}}
            with deepspeed_library.calm(), deepspeed_library.asked_for(CPU):
                engine, *_ = deepspeed.initialize(
                    model=net,
                    optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
                    mpu=_DataParallel(dist.new_group([0])),
                    dist_init_required=False,
                    config=deepspeed_library.configuration(section, None, 1000),
                )
            rule, moved = engine.optimizer.loss_scaler, []
            for _ in range(3):
                scale = rule.cur_scale
                if overridden:
                    engine.optimizer.override_loss_scale(scale)
                before = net.params[0].detach().clone()
                engine.backward(engine([torch.full((2,), scale).half()], scale))
                engine.step()
                moved.append((before - net.params[0].detach()).tolist()[0])
            found.append(moved)
    return found


def test_deepspeed_divides_by_the_next_steps_scale(run_ranks):
    """If it does no longer, `LossScale.proceed` is for nothing."""
    ((by_itself, overridden),) = run_ranks(grown, 1)
    assert overridden == [1.0, 1.0, 1.0]
    assert 0.5 in by_itself


# -- whole runs -----------------------------------------------------------------------------------


def run(rank_info, folder, **changes):
    tree = {
        "model": {"name": "mlp", "hidden": 32, "depth": 3},
        "data": {"name": "digits", "batch_size": 32},
        "modules": {"count": 2},
        "head": {"name": "linear"},
        "reconcile": {"weight": 0.1, "every": 1, "direction": "both"},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "train": {"steps": 12, "microbatches": 2, "evaluate_every": 50, "log_every": 1},
        "checkpoint": {"every_steps": 6, "keep": 9},
        "parallel": {"threads": 1, "stages": 1, "replicas": 1},
        "run": {"dir": str(folder), "resume": folder.exists()},
    }
    for key, value in changes.items():
        added = isinstance(value, dict) and key != "model"
        tree[key] = tree.get(key, {}) | value if added else value
    train(configfile.parse(tree), rank_info)


def float16(**fp16):
    return {
        "engine": "deepspeed",
        "precision": "float16",
        "deepspeed": {"fp16": {"enabled": True, **fp16}},
    }


def tensors(folder, number):
    paths = sorted(folder.glob(f"checkpoints/step-*{number}/*.safetensors"))
    return {f"{p.name} {name}": t for p in paths for name, t in sealed.read(p).items()}


def rows(folder):
    lines = (folder / "metrics" / "stage-0.jsonl").read_text().splitlines()
    return [row["modules"]["1"] for row in map(json.loads, lines) if row["event"] == "train"]


def test_weights_are_near_those_of_float32(run_ranks, tmp_path):
    """As near as float16 allows: 11 bits, against 8 of bfloat16."""
    run(RankInfo(), tmp_path / "float32")
    run_ranks(partial(run, **float16(loss_scale=1.0)), 1, tmp_path / "fixed")
    run_ranks(partial(run, **float16(initial_scale_power=12)), 1, tmp_path / "dynamic")
    low = {"engine": "deepspeed", "precision": "bfloat16", "deepspeed": {"bf16": {"enabled": True}}}
    run_ranks(partial(run, **low), 1, tmp_path / "bfloat16")
    settings = float16(initial_scale_power=12) | {"parallel": {"stages": 2}}
    run_ranks(partial(run, **settings), 2, tmp_path / "stages")
    on_one, on_two = (tensors(tmp_path / name, 12) for name in ("dynamic", "stages"))
    assert all(torch.equal(on_one[name], on_two[name]) for name in on_one | on_two)

    first, last = tensors(tmp_path / "float32", 6), tensors(tmp_path / "float32", 12)
    weights = [name for name in last if name.endswith("weight") and "optimizer" not in name]
    assert len(weights) >= 5

    def farthest(name):
        got = tensors(tmp_path / name, 12)
        return max(
            ((got[w] - last[w]).norm() / (last[w] - first[w]).norm()).item() for w in weights
        )

    distances = {name: farthest(name) for name in ("fixed", "dynamic", "bfloat16")}
    assert distances["fixed"] < 0.02, distances
    assert distances["dynamic"] < 0.02, distances
    assert distances["bfloat16"] > 2 * distances["dynamic"], distances


def test_batch_norms_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(UserError, match=r"^deepspeed\.fp16\.enabled: a batch norm has .*; use"):
        run(RankInfo(), tmp_path / "run", **float16(), model={"name": "resnet20", "width": 4})


def test_an_overflow_passes_and_the_run_is_resumed_with_the_same_bits(run_ranks, tmp_path):
    """The first scale is far too large; signals that it spoils stop nobody."""
    settings = float16(initial_scale_power=22, hysteresis=1, loss_scale_window=2)
    settings["parallel"] = {"replicas": 2}
    run_ranks(partial(run, **settings), 2, whole := tmp_path / "whole")
    expected = tensors(whole, 12)
    assert sum(name.endswith("optimizer.loss_scale") for name in expected) == 2
    scales = [row["loss_scale"] for row in rows(whole)]
    assert scales[0] == 2**22
    assert min(scales) < 2**20
    assert any(after > before for before, after in pairwise(scales))
    assert 2 < rows(whole)[-1]["skipped_updates"] < 10
    for path in whole.glob("checkpoints/step-*12/module-001.*"):
        path.unlink()  # as if it had been cut off
    run_ranks(partial(run, **settings), 2, whole)
    got = tensors(whole, 12)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)
