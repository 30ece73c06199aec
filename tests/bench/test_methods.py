"""Every baseline trains the same network: after some steps it has the weights of plain backprop."""

import warnings
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from packaging.version import Version

from pipeline_local.bench.baseline import UnavailableError, Workload
from pipeline_local.bench.deepspeeds import DeepSpeed
from pipeline_local.bench.local import LocalPipeline
from pipeline_local.bench.methods import PIPELINED, REPLICATED, WHOLE
from pipeline_local.bench.pipelines import SCHEDULES, SHAPES, TO_ITSELF
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.engines.deepspeed_library import imported
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.ranks.join import joined
from pipeline_local.ranks.rank import RankInfo

TREE = {
    "model": {"name": "mlp", "hidden": 16, "depth": 8, "activation": "gelu"},
    "data": {"name": "digits", "batch_size": 16},
    "modules": {"count": 4},
    "head": {"name": "linear"},
    "train": {"steps": 1, "label_smoothing": 0.1},
    "optimizer": {"lr": 0.5},
    "precision": "float64",
    "parallel": {"threads": 1},
}
BASELINES = {
    **WHOLE,
    **REPLICATED,
    **PIPELINED,
    "local": lambda load, _: LocalPipeline(load, replace(load.config.reconcile, weight=0.0)),
}
STEPS = 3


def workload(rank_info, **more):
    config = configfile.parse({**TREE, **more})
    return Workload(draw_blueprint(config, describe(config.data)), rank_info, "gloo")


def numbers(baseline):
    """Its weights, as they pass between processes."""
    return {name: tensor.numpy().copy() for name, tensor in baseline.weights().items()}


def trained(rank_info, name, microbatches, more):
    """This rank's weights after some steps; before them, too."""
    with joined(rank_info), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DeepSpeed's
        baseline = BASELINES[name](workload(rank_info, **more), microbatches)
        baseline.setup()
        if isinstance(baseline, DeepSpeed):
            assert baseline._engine.gradient_clipping() == 0, "no other baseline clips"
        before = numbers(baseline)
        baseline.begin(STEPS)
        for _ in range(STEPS):
            baseline.step()
        baseline.end()
        return before, numbers(baseline)


def trained_without_compiling(rank_info, *args):
    """DeepSpeed compiles an operation for the sums of replicas on one host, of which there are none
    here; a minute on two cores."""
    imported(torch.device("cpu"))
    return trained(rank_info, *args)


def merged(parts):
    return {name: tensor for part in parts for name, tensor in part.items()}


def backprop(**more):
    before, after = trained(RankInfo(), "bp", 1, more)
    assert len(after) == 18  # weights and biases of eight layers and of the classifier
    assert all((before[name] != after[name]).any() for name in after)
    return after


def needs(name):
    """Skip what this version of torch cannot do on CPUs; the baseline says it, too."""
    if name in SCHEDULES and SHAPES.get(name) == "V" and TO_ITSELF:
        pytest.skip("this torch sends messages to itself by gloo")


@pytest.mark.parametrize(
    ("name", "ranks", "microbatches"),
    [
        ("checkpoint", 1, 1),
        ("accumulate", 1, 4),
        ("ddp", 2, 1),
        ("gpipe", 2, 8),
        ("1f1b", 2, 8),
        ("interleaved", 4, 4),
        ("zerobubble", 2, 8),
        ("zbv", 2, 8),
        ("dualpipev", 2, 4),
        *(
            pytest.param(*other, marks=pytest.mark.long)
            for other in [
                ("gpipe", 2, 2),
                ("1f1b", 2, 2),
                ("interleaved", 2, 2),
                ("interleaved", 2, 8),
                ("zerobubble", 2, 2),
                ("zerobubble", 4, 4),
                ("zbv", 2, 2),
                ("zbv", 4, 8),
                ("dualpipev", 2, 16),
                ("dualpipev", 4, 8),
            ]
        ),
    ],
)
def test_same_weights_as_backprop(run_ranks, name, ranks, microbatches):
    needs(name)
    expected = backprop()
    parts = [after for _, after in run_ranks(trained, ranks, name, microbatches, {})]
    for part in parts if name in REPLICATED else [merged(parts)]:
        assert part.keys() == expected.keys()
        for tensor in part:
            np.testing.assert_allclose(part[tensor], expected[tensor], rtol=1e-10, atol=1e-12)


CONVOLUTIONS = {"name": "resnet20", "width": 4}
ATTENTION = {"name": "vit", "patch_size": 4, "num_layers": 4, "num_heads": 2}
ATTENTION |= {"hidden_dim": 8, "mlp_dim": 8}


@pytest.mark.parametrize(
    ("model", "splitting"),
    [
        (CONVOLUTIONS, "zerobubble"),
        (ATTENTION, "zerobubble"),
        (CONVOLUTIONS, "zbv"),
        (ATTENTION, "dualpipev"),
    ],
    ids=lambda one: one if isinstance(one, str) else one["name"],
)
def test_gradients_of_inputs_before_those_of_weights_change_nothing(run_ranks, model, splitting):
    """Batch norms see microbatches, so the baseline to compare with is a pipeline, too."""
    needs(splitting)
    data = {"name": "synthetic", "image_size": 16, "batch_size": 16}
    more = {"model": model, "data": data, "modules": {"count": 2}}
    expected, found = (
        merged([after for _, after in run_ranks(trained, 2, name, 4, more)])
        for name in ("gpipe", splitting)
    )
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["ddp", "1f1b", "interleaved", "zerobubble", "zbv"])
def test_channels_last_change_nothing(run_ranks, name):
    """Libraries send memory as it lies, and take it for contiguous."""
    needs(name)
    data = {"name": "synthetic", "image_size": 16, "batch_size": 16}
    more = {"model": CONVOLUTIONS, "data": data, "modules": {"count": 2}}
    expected, found = (
        merged([after for _, after in run_ranks(trained, 2, name, 2, more | {"channels_last": on})])
        for on in (False, True)
    )
    assert found.keys() == expected.keys()
    for tensor in found:
        np.testing.assert_allclose(found[tensor], expected[tensor], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "microbatches"),
    [("deepspeed", 2), ("deepspeed", 4), ("deepspeed-dualpipev", 4), ("deepspeed-dualpipev", 8)],
)
def test_same_weights_with_deepspeed(run_ranks, name, microbatches):
    if name == "deepspeed-dualpipev" and Version(version("deepspeed")) < Version("0.19.8"):
        pytest.skip("it has no DualPipeV")
    single = {"precision": "float32"}
    expected = backprop(**single)
    (_, first), (_, last) = run_ranks(trained_without_compiling, 2, name, microbatches, single)
    assert {**first, **last}.keys() == expected.keys()
    for name, tensor in {**first, **last}.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_the_loop_learns_as_local_learning_does():
    steps = {"optimizer": {"name": "sgd", "lr": 0.05}}
    _, by_hand = trained(RankInfo(), "loop", 1, steps)
    _, local = trained(RankInfo(), "local", 1, steps)
    assert by_hand.keys() == local.keys()
    for name, tensor in local.items():
        np.testing.assert_allclose(by_hand[name], tensor, rtol=1e-5, atol=1e-6)
    assert any(
        (tensor != trained(RankInfo(), "bp", 1, steps)[1][name]).any()
        for name, tensor in local.items()
    )


@pytest.mark.parametrize(
    "more",
    [
        {"head": {"name": "linear", "fraction": 0.5}},
        {"head": {"name": "linear"}, "distill": {"weight": 0.3}},
        {"head": {"name": "linear"}, "information": {"name": "contrast", "weight": 0.5}},
    ],
)
def test_the_loop_refuses_what_it_leaves_out(more):
    with pytest.raises(UnavailableError, match="its heads learn from their own loss alone"):
        BASELINES["loop"](workload(RankInfo(), **more), 1).setup()


@pytest.mark.parametrize("name", ["bp", "accumulate", "loop"])
def test_only_the_first_rank_works_for_one_process(run_ranks, name):
    _, (before, after) = run_ranks(trained, 2, name, 2, {})
    assert before == after == {}


def test_one_microbatch_accumulates_nothing():
    with pytest.raises(UnavailableError, match="with one microbatch it is bp"):
        BASELINES["accumulate"](workload(RankInfo()), 1).setup()


@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zbv", "dualpipev"])
def test_pipelines_know_how_long_they_compute(run_ranks, name):
    needs(name)

    def busy(rank_info):
        with joined(rank_info):
            baseline = BASELINES[name](workload(rank_info), 4)
            baseline.setup()
            baseline.step()
            return baseline.seconds()["busy"]

    assert all(seconds > 0 for seconds in run_ranks(busy, 2))


@pytest.mark.parametrize("name", [*REPLICATED, *PIPELINED])
def test_one_rank_is_too_few(name):
    with pytest.raises(UnavailableError, match="at least 2 ranks"):
        BASELINES[name](workload(RankInfo()), 1).setup()


def test_what_deepspeed_cannot_do_is_said(run_ranks):
    def refused(rank_info):
        reasons = []
        maps = {"model": {"name": "resnet20", "width": 4}, "channels_last": True}
        for more in ({}, {"precision": "float32", **maps}):
            with pytest.raises(UnavailableError) as caught:
                BASELINES["deepspeed"](workload(rank_info, **more), 2).setup()
            reasons.append(str(caught.value))
        return reasons

    float64, channels_last = run_ranks(refused, 2)[0]
    assert float64 == "DeepSpeed reduces no gradients in float64"
    assert channels_last.endswith("takes no channels_last weights: channels_last=false")
