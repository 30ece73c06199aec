"""Local learning in the harness: turns and placement change no weight."""

from pipeline_local.bench.baseline import Workload
from pipeline_local.bench.local import IsolatedStage, LocalPipeline
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.ranks.join import joined
from pipeline_local.ranks.rank import RankInfo

TREE = {
    "model": {"name": "mlp", "hidden": 16, "depth": 3},
    "data": {"name": "digits", "batch_size": 16},
    "modules": {"count": 3},
    "head": {"name": "ema", "refresh": 3},
    "reconcile": {"weight": 0.1, "direction": "both", "distance": "relative", "every": 2},
    "train": {"steps": 1, "microbatches": 2},
    "parallel": {"threads": 1},
}


def workload(rank_info, **more):
    config = configfile.parse({**TREE, **more})
    return Workload(draw_blueprint(config, describe(config.data)), rank_info, "gloo")


def trained(rank_info, kind, turns):
    """Weights after turns of so many steps, and the seconds that were waited."""
    with joined(rank_info):
        own = workload(rank_info)
        baseline = kind(own, own.config.reconcile)
        baseline.setup()
        for steps in turns:
            baseline.begin(steps)
            for _ in range(steps):
                baseline.step()
            baseline.end()
        weights = {name: tensor.numpy().copy() for name, tensor in baseline.weights().items()}
        return weights, baseline.seconds()["waited"]


def test_turns_and_stages_do_not_change_a_bit(run_ranks):
    ((expected, waited),) = run_ranks(trained, 1, LocalPipeline, (14,))
    assert waited == 0.0
    for ranks, turns in ((2, (1, 2, 11)), (3, (5, 9)), (3, (14,))):
        parts = run_ranks(trained, ranks, LocalPipeline, turns)
        found = {name: tensor for part, _ in parts for name, tensor in part.items()}
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in found)
        assert parts[-1][1] > 0


def test_isolated_stages_do_the_same_work_and_learn_nothing(run_ranks):
    first = run_ranks(trained, 3, IsolatedStage, (3,))
    later = run_ranks(trained, 3, IsolatedStage, (3, 9))
    for (a, waited), (b, _) in zip(first, later, strict=True):
        assert waited == 0.0
        assert all((a[name] == b[name]).all() for name in a)


def test_overhead_is_counted_on_the_meta_device():
    """Two auxiliary heads of 16 x 10, beside 64 x 16, twice 16 x 16 and a classifier of 16 x 10."""
    own = workload(RankInfo(), head={"name": "linear"})
    baseline = LocalPipeline(own, own.config.reconcile)
    baseline.setup()
    auxiliary, network = baseline.flops()
    assert auxiliary == 2 * 2 * 16 * 10
    assert network == 2 * (64 * 16 + 2 * 16 * 16 + 16 * 10)


def first_weight(rank_info, exchange):
    """One weight of a replica after three steps."""
    with joined(rank_info):
        replicated = {"threads": 1, "stages": 1, "replicas": 2}
        own = workload(rank_info, parallel=replicated, head={"name": "linear"})
        baseline = LocalPipeline(own, own.config.reconcile, exchange)
        baseline.setup()
        baseline.begin(3)
        for _ in range(3):
            baseline.step()
        baseline.end()
        return next(iter(baseline.weights().values())).flatten()[0].item()


def test_replicas_that_send_bytes_alone_learn_apart(run_ranks):
    """As without any exchange; with gradients all replicas are alike."""
    one, other = run_ranks(first_weight, 2, "gradients")
    assert one == other
    alone, other = run_ranks(first_weight, 2, "nothing")
    assert alone != other
    assert run_ranks(first_weight, 2, "bytes") == [alone, other]
