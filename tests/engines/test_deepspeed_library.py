"""DeepSpeed as a library: what is refused before a run, and what is known of DeepSpeed itself."""

import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline_local.engines import deepspeed_library
from pipeline_local.engines.deepspeed import _Carrier, _DataParallel
from pipeline_local.errors import UserError
from pipeline_local.ranks.join import joined

pytestmark = pytest.mark.long

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Once here, and not in every forked rank."""
    deepspeed_library.imported(CPU)


def checks(rank_info):
    deepspeed_library.check({"zero_optimization": {"stage": 2, "overlap_comm": True}}, CPU)
    for section, line in [
        (
            {"zero_optimization": {"offload_optimiser": {}}},
            r"unknown key 'deepspeed\.zero_optimization\.offload_optimiser'; did you mean"
            r" 'offload_optimizer'\?$",
        ),
        (
            {"zero_optimization": {"stage": 1, "reduce_bucket_size": -1}},
            r"deepspeed\.zero_optimization\.reduce_bucket_size: should be .* got -1",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            r"unknown key 'deepspeed\.zero_optimization\.offload_optimizer\.devise'; leave it out",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "moon"}}},
            r"deepspeed\.zero_optimization\.offload_optimizer\.device: should be .* got 'moon'",
        ),
        ({"bf16": {"on": True}}, r"unknown key 'deepspeed\.bf16\.on'; leave it out"),
    ]:
        with pytest.raises(UserError, match=f"^{line}") as refused:
            deepspeed_library.check(section, CPU)
        assert "\n" not in str(refused.value)


def test_unknown_keys_are_refused_before_anything_starts(run_ranks):
    run_ranks(checks, 1)


# -- facts of DeepSpeed that this engine is built on --------------------------------------------


def initialize(net, group, **config):
    deepspeed = deepspeed_library.imported(CPU)
    zero = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 1000}} | config
    own = deepspeed_library.configuration({}, None, 1000) | zero
    with deepspeed_library.calm(), deepspeed_library.asked_for(CPU):
        engine, *_ = deepspeed.initialize(
            model=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
            mpu=_DataParallel(group),
            dist_init_required=False,
            config=own,
        )
    return engine


def carrier(*values):
    return _Carrier([nn.Parameter(torch.tensor(value)) for value in values])


def moved(engine, net, gradient):
    """By what a step moves the parameter; None: the step fails."""
    (parameter,) = net.parameters()
    before = parameter.detach().clone()
    engine.backward(engine([torch.tensor(gradient)]))
    engine.step()
    return (before - parameter.detach()).tolist()


def facts(rank_info):
    with joined(rank_info), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both, own = dist.new_group([0, 1]), [dist.new_group([rank]) for rank in (0, 1)]
        alone, rank = own[rank_info.rank], rank_info.rank
        mine = [1.0 + rank, 2.0]
        found = {}

        # unequal groups in one process
        for stage in (0, 1, 2):
            zero = {"zero_optimization": {"stage": stage}}
            if stage:
                zero["zero_optimization"]["reduce_bucket_size"] = 1000
            nets = [carrier([0.0, 0.0]) for _ in range(2)]
            engines = [initialize(nets[0], both, **zero), initialize(nets[1], alone, **zero)]
            found[f"first of two groups at {stage}"] = moved(engines[0], nets[0], mine)
            found[f"last of two groups at {stage}"] = moved(engines[1], nets[1], mine)

        # gradients put there by hand
        for stage in (1, 2):
            net = carrier([0.0, 0.0])
            zero = {"zero_optimization": {"stage": stage, "reduce_bucket_size": 1000}}
            engine = initialize(net, alone, **zero)
            (parameter,) = net.parameters()
            parameter.grad = torch.tensor(mine)
            try:
                engine.step()
                found[f"by hand at {stage}"] = (-parameter.detach()).tolist()
            except Exception as error:
                found[f"by hand at {stage}"] = type(error).__name__

        # what is clipped where nothing is said
        net = carrier([0.0, 0.0])
        config = deepspeed_library.configuration({}, None, 1000)
        del config["gradient_clipping"]
        with deepspeed_library.calm(), deepspeed_library.asked_for(CPU):
            engine, *_ = deepspeed_library.imported(CPU).initialize(
                model=net,
                optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
                mpu=_DataParallel(alone),
                dist_init_required=False,
                config=config,
            )
        found["clip"] = engine.gradient_clipping()

        # ZeRO 3
        net = carrier([0.0, 0.0])
        try:
            engine = initialize(
                net, alone, zero_optimization={"stage": 3}, gradient_allreduce_op="mean"
            )
            found["3"] = moved(engine, net, mine)
        except Exception as error:
            found["3"] = f"{type(error).__name__}: {error}"
        return found


def test_facts_of_deepspeed(run_ranks):
    """If one of these changes, so may what this engine refuses or says itself."""
    found = run_ranks(facts, 2)
    for own, facts_ in zip(([1.0, 2.0], [2.0, 2.0]), found, strict=True):
        assert facts_["first of two groups at 0"] == own, "the last engine's ranks, silently"
        for stage in (1, 2):
            assert facts_[f"first of two groups at {stage}"] == [3.0, 4.0]
            assert facts_[f"last of two groups at {stage}"] == own
            assert facts_[f"by hand at {stage}"] in ("IndexError", "KeyError"), "never a step"
        assert facts_["clip"] == 1.0
        assert facts_["3"].startswith("RuntimeError: The size of tensor a (0) must match"), "shapes"


def through_the_output(rank_info):
    """The gradient that torch gives by itself, or what is raised, by ZeRO's stage."""
    found = {}
    with joined(rank_info, grouped=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for stage in (0, 1):
            net = carrier([0.0, 0.0])
            engine = initialize(net, dist.group.WORLD, zero_optimization={"stage": stage})
            loss = engine([torch.tensor([1.0, 2.0])])
            try:
                (gradient,) = torch.autograd.grad(loss, net.parameters())
                found[stage] = gradient.tolist()
            except RuntimeError as error:
                found[stage] = str(error)
    return found


def test_at_stage_0_only_engine_backward_goes_through_an_engine(run_ranks):
    """So gradients are handed over by a scalar that has them, at every stage."""
    (found,) = run_ranks(through_the_output, 1)
    assert found[0].startswith("Direct calls to tensor.backward() are not supported"), found[0]
    assert "ZeRO stage 0" in found[0]
    assert found[1] == [1.0, 2.0], "it raises for its stage alone"


def operators_asked_for(rank_info, ours):
    """What DeepSpeed loads, which compiles it, while a process makes two engines."""
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    loaded = []

    def load(builder, verbose=True):
        loaded.append(builder.NAME)
        return SimpleNamespace(initialize=lambda *_: None, vector_kernel_level=lambda: 0)

    ShareMemCommBuilder.load = load  # here and below: of this forked rank alone
    if not ours:
        del deepspeed.ops.__compatible_ops__  # it looks again
        deepspeed_library.imported = lambda _: deepspeed
    with joined(rank_info), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            initialize(carrier([0.0, 0.0]), dist.group.WORLD)
    return loaded


@pytest.mark.parametrize("ours", [False, True])
def test_no_operator_is_compiled_while_ranks_start(run_ranks, ours):
    """As DeepSpeed does by itself, once a process."""
    expected = [] if ours else ["deepspeed_shm_comm"]
    assert run_ranks(operators_asked_for, 2, ours) == [expected] * 2
