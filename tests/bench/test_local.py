"""The pipeline as a peer: turns and placement change nothing, and a lone stage learns nothing."""

from pipeline_local import configfile
from pipeline_local.bench.local import Alone, Local
from pipeline_local.bench.peer import Setting
from pipeline_local.data.images.datasets import describe
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.ranks.rank import RankInfo, joined

TREE = {
    "model": {"name": "mlp", "hidden": 16, "depth": 3},
    "data": {"name": "digits", "batch_size": 16},
    "modules": {"count": 3},
    "head": {"name": "linear"},
    "reconcile": {"weight": 0.1, "direction": "both", "distance": "relative", "every": 2},
    "train": {"steps": 1, "microbatches": 2},
    "parallel": {"threads": 1},
}


def setting(rank_info, **more):
    config = configfile.parse({**TREE, **more})
    return Setting(draw_blueprint(config, describe(config.data)), rank_info, "gloo")


def trained(rank_info, kind, turns):
    """Weights after turns of so many steps, and the seconds that were waited."""
    with joined(rank_info):
        own = setting(rank_info)
        peer = kind(own, own.config.reconcile)
        peer.setup()
        for steps in turns:
            peer.begin(steps)
            for _ in range(steps):
                peer.step()
            peer.end()
        weights = {name: tensor.numpy().copy() for name, tensor in peer.weights().items()}
        return weights, peer.seconds()["waited"]


def test_turns_and_stages_do_not_change_a_bit(run_ranks):
    ((expected, waited),) = run_ranks(trained, 1, Local, (14,))
    assert waited == 0.0
    for ranks, turns in ((2, (1, 2, 11)), (3, (5, 9)), (3, (14,))):
        parts = run_ranks(trained, ranks, Local, turns)
        found = {name: tensor for part, _ in parts for name, tensor in part.items()}
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in found)
        assert parts[-1][1] > 0


def test_stages_alone_do_the_same_work_and_learn_nothing(run_ranks):
    first = run_ranks(trained, 3, Alone, (3,))
    later = run_ranks(trained, 3, Alone, (3, 9))
    for (a, waited), (b, _) in zip(first, later, strict=True):
        assert waited == 0.0
        assert all((a[name] == b[name]).all() for name in a)


def test_overhead_is_counted_on_paper():
    """Two auxiliary heads of 16 x 10, beside 64 x 16, twice 16 x 16 and a classifier of 16 x 10."""
    own = setting(RankInfo())
    peer = Local(own, own.config.reconcile)
    peer.setup()
    auxiliary, network = peer.flops()
    assert auxiliary == 2 * 2 * 16 * 10
    assert network == 2 * (64 * 16 + 2 * 16 * 16 + 16 * 10)
