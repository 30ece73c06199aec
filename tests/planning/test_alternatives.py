"""What methods would need, as far as it is known exactly."""

from functools import lru_cache

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.memory.dry_run import stage_bytes
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement
from pipeline_local.planning.alternatives import alternatives, stage_peaks

ALONE = ("BP, 1 device", "BP checkpointed, 1 device")


def placed(devices, batch_size=32, **sections):
    config = configfile.parse(
        {
            "model": {"name": "mlp", "hidden": 32, "depth": 3},
            "data": {"name": "digits", "batch_size": batch_size},
            "modules": {"count": 3},
            "train": {"steps": 40},
            **sections,
        }
    )
    blueprint = draw_blueprint(config, describe(config.data))
    return Placement.of(blueprint, devices)


@lru_cache
def of_plain(devices, batch_size=32):
    return of(devices, batch_size)


def of(devices, batch_size=32, **sections):
    placement = placed(devices, batch_size, **sections)
    peaks = stage_peaks(placement, placement.blueprint)
    return {p.name: p for p in alternatives(placement, peaks, 7.0)}


def test_every_method_has_the_same_microbatches():
    found = of_plain(2)
    names = [f"{name}, m={m}" for m in (1, 2, 8) for name in ("local, p=2", *ALONE, "1F1B, p=2")]
    assert {*names} <= {*found}
    assert {*found} - {*names} == {f"DDP, p=2, m={m}" for m in (1, 2, 8)}
    assert next(iter(found)) == "local, p=2, m=1", "as configured"


def test_alternatives():
    found = of_plain(2)
    assert found["1F1B, p=2, m=2"].bubble == pytest.approx(1 / 3)
    assert found["1F1B, p=2, m=8"].bubble == pytest.approx(1 / 9)
    assert found["1F1B, p=2, m=2"].peak < found["BP, 1 device, m=2"].peak
    num_parameters = 64 * 32 + 32 + 2 * (32 * 32 + 32) + 32 * 10 + 10
    assert found["DDP, p=2, m=1"].traffic == 4 * num_parameters
    alone = [f"{name}, m={m}" for m in (1, 4) for name in ("local, p=1", *ALONE)]
    assert [*of(1)] == alone
    assert all(other.seconds is None for other in found.values()), "there is no profile"


def test_a_row_says_what_a_plan_with_its_microbatches_says():
    found = of_plain(2)
    for m in (2, 8):
        blueprint = placed(2, train={"steps": 40, "microbatches": m}).blueprint
        peaks = [stage_bytes(blueprint, part, 2).peak for part in placed(2).stages]
        assert found[f"local, p=2, m={m}"].peak == max(peaks)


def test_replicas_share_the_work():
    """Each of two chains has half of the microbatches, and of each cost but the update."""
    sections = {"train": {"steps": 40, "microbatches": 4}, "head": {"name": "linear"}}
    one, two = (of(2, parallel={"replicas": count}, **sections) for count in (1, 2))
    assert [name for name in two if name.endswith("m=4")] == [
        "local, 2xp=2, m=4",
        "BP, 1 device, m=4",
        "BP checkpointed, 1 device, m=4",
        "1F1B, 2xp=2, m=4",
        "DDP, 4 devices, m=4",
    ]
    for method in ("local", "1F1B"):
        ratio = two[f"{method}, 2xp=2, m=4"].cost / one[f"{method}, p=2, m=4"].cost
        assert ratio == pytest.approx(1 / 2), "operations do not count updates"
    pipe, alone = two["1F1B, 2xp=2, m=4"], one["1F1B, p=2, m=4"]
    assert (pipe.bubble, alone.bubble) == (1 / 3, 1 / 5)
    batch_of_hidden = 4 * 32 * 32
    assert alone.traffic == batch_of_hidden, "each stage has one neighbour"
    second = 4 * (2 * (32 * 32 + 32) + 32 * 10 + 10)  # bytes of gradients, more than the first's
    assert pipe.traffic == batch_of_hidden / 2 + second
    unequal = of(2, parallel={"replicas": [1, 2]}, **sections)
    assert not any(name.startswith("1F1B") for name in unequal), "its pipelines are whole"
    assert "DDP, 3 devices, m=4" not in unequal, "32 samples have no three equal parts"
    assert "local, 3 devices, m=4" in unequal


def test_speed_by_operations():
    """Heads and reconciliation cost local learning; idle time costs 1F1B."""
    plain = of(2, head={"name": "linear"})
    reconciled = of(2, head={"name": "linear"}, reconcile={"weight": 0.1, "every": 1})
    heavy = of(2, head={"name": "auglocal", "depth": 2, "taper": False})
    assert plain["local, p=2, m=8"].speed == pytest.approx(1, rel=0.01), "but for the fill"
    ddp = [found["DDP, p=2, m=1"].speed for found in (plain, reconciled, heavy)]
    assert 1 < ddp[0] < min(ddp[1:]), "every operation counts"
    pipe, own = (plain[name] for name in ("1F1B, p=2, m=2", "local, p=2, m=1"))
    assert pipe.speed == pytest.approx(own.cost / (pipe.cost * 3 / 2), rel=1e-2)
    assert plain["1F1B, p=2, m=2"].speed < plain["1F1B, p=2, m=8"].speed
    alone = plain["BP, 1 device, m=1"]
    assert alone.speed == pytest.approx(plain["DDP, p=2, m=1"].speed / 2)


def test_memory_rivals_on_one_device():
    """Accumulation costs nothing but small microbatches, checkpointing a forward pass of blocks."""
    model = {"name": "mlp", "hidden": 32, "depth": 6, "activation": "gelu"}  # keeps its input, too
    deep = {"model": model, "head": {"name": "linear"}}
    found, again = (
        of(1, 1024, modules={"count": 3, "recompute": on}, **deep) for on in (False, True)
    )
    plain, checkpointed = (found[f"{name}, m=1"] for name in ALONE)
    accumulating = found["BP, 1 device, m=4"]
    assert accumulating.peak < 0.4 * plain.peak
    assert checkpointed.peak < 0.8 * plain.peak
    assert found["BP checkpointed, 1 device, m=4"].peak < accumulating.peak
    assert accumulating.speed == plain.speed
    assert checkpointed.cost - plain.cost == 1024 * 2 * (64 * 32 + 5 * 32 * 32), "no classifier"
    for name in (f"{name}, m=1" for name in ALONE):  # whatever is configured for local learning
        assert again[name].peak == found[name].peak
        assert again[name].cost == pytest.approx(found[name].cost)


def test_a_pipeline_is_cut_by_its_own_costs():
    """Not by those of local learning's modules, which heads make uneven."""
    uneven = of(2, modules={"cuts": [2]})
    pipe = uneven["1F1B, p=2, m=2"]
    assert pipe.cost == of_plain(2)["1F1B, p=2, m=2"].cost
    assert pipe.cost < 0.7 * uneven["BP, 1 device, m=1"].cost


def test_room_is_compared():
    found = of(2, parallel={"memory": 50 * 2**10 / 2**30})
    assert {one.fits for one in found.values()} == {True, False}
    for one in found.values():
        if one.method != "1F1B":
            assert one.fits == (one.peak <= 50 * 2**10), one.name
    assert {one.fits for one in of_plain(2).values()} == {None}


def test_a_batch_has_only_so_many_parts():
    names = {*of(2, batch_size=4)}
    assert {"1F1B, p=2, m=4", "DDP, p=2, m=2"} <= names
    assert "DDP, p=2, m=4" not in names, "its devices have two samples each"
    assert not any("DDP" in name for name in of(3, batch_size=2))


def test_parts_of_one_sample_are_left_out_where_a_batch_norm_takes_none():
    """As the mlp head's, with one value per channel; heads without one go down to one sample."""
    assert "local, p=2, m=8" in of(2, 8, head={"name": "linear"})
    found = of(2, 8, head={"name": "mlp"})
    assert "local, p=2, m=2" in found
    assert not [name for name in found if name.endswith("m=8")]
