"""What a plan says in words."""

from dataclasses import replace

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement
from pipeline_local.planning import plan
from pipeline_local.planning.alternatives import Alternative
from pipeline_local.planning.verdict import Lever, best_of_each, helps, lever, verdict

GIB = 2**30


def row(method, m, gib, speed, fits=True):
    size = int(gib * GIB)
    return Alternative(f"{method}, m={m}", method, m, size, fits, 0.0, 1.0, 0.0, None, speed)


LOCAL = row("local", 1, 6, 1.0), row("local", 4, 2, 1.0)


def said(*rows, unit="FLOPs"):
    return " ".join(verdict([*LOCAL, *rows], unit))


def test_a_faster_rival_that_fits():
    text = said(row("DDP", 1, 3, 1.8), row("1F1B", 4, 2, 1.3))
    assert text.startswith("Verdict: DDP fits and is faster here: 1.80 times as fast as local")
    assert "by operations" in text
    assert "3072 MiB (DDP, m=1) to 2048 (local, m=4)" in text
    assert "by measured times" in said(row("DDP", 1, 3, 1.8), unit="seconds")


def test_a_rival_that_does_not_fit_is_passed_over():
    text = said(row("DDP", 1, 99, 1.8, fits=False), row("1F1B", 4, 2, 0.8))
    assert text.startswith("Verdict: local is the fastest of what fits here: 1.25 times as fast as")
    assert "1F1B" in text
    assert "DDP" not in text
    alone = said(row("DDP", 1, 99, 1.8, fits=False))
    assert alone == "Verdict: no other method of this table fits, and local does."


def test_room_that_is_not_known():
    text = " ".join(
        verdict([replace(LOCAL[0], fits=None), row("DDP", 1, 3, 1.8, fits=None)], "FLOPs")
    )
    assert text.startswith("Verdict: DDP is faster here, wherever it fits (parallel.memory=GIB")


def test_local_fits_with_more_microbatches():
    own = replace(LOCAL[0], fits=False)
    first, second = verdict([own, LOCAL[1], row("BP", 1, 3, 0.5)], "FLOPs")
    assert first == "Verdict: local does not fit with m=1, but with local, m=4."
    assert "local is the fastest of what fits" in second
    (nothing,) = verdict([own, row("BP", 1, 99, 0.5, fits=False)], "FLOPs")
    assert nothing.endswith("nor does local: use more devices.")
    (other,) = verdict([own, row("BP", 1, 3, 0.5)], "FLOPs")
    assert other.startswith("Verdict: local does not fit, BP does")


def test_equal_speeds():
    assert said(row("DDP", 1, 3, 1.01)).startswith("Verdict: DDP fits and is as fast as local here")


def test_the_best_microbatches():
    rows = [*LOCAL, row("1F1B", 1, 1, 0.4), row("1F1B", 4, 2, 0.9), row("1F1B", 8, 3, 1.0, False)]
    assert [one.name for one in best_of_each(rows)] == ["local, m=4", "1F1B, m=4"]


def test_what_helps():
    best = Lever("train.microbatches=4", 2 * GIB, "a price")
    text = helps(LOCAL, best)
    assert text == (
        "What helps most: train.microbatches=4 takes local from 6144 MiB to 2048 (a price)."
    )
    assert "; not advised: a reason." in helps(LOCAL, replace(best, reservation="a reason"))
    assert "neither microbatches nor recomputation" in helps(LOCAL, None)


def placed(**sections):
    tree = {
        "model": {"name": "mlp", "hidden": 64, "depth": 2},
        "data": {"name": "digits", "batch_size": 128},
        "modules": {"count": 2},
        "head": {"name": "linear"},
        "train": {"steps": 40},
        "optimizer": {"momentum": 0.0},
        **sections,
    }
    config = configfile.parse(tree)
    return Placement.of(draw_blueprint(config, describe(config.data)), 2)


def drawn(**sections):
    config = placed(**sections).blueprint.config
    return plan.draw(config, describe(config.data), 2)


@pytest.fixture(scope="module")
def plain():
    return drawn()


def test_the_lever_is_what_a_plan_with_it_says(plain):
    best = plain.lever
    assert best.setting == "train.microbatches=2", "eight parts of 16 samples are too small"
    assert best.price == "", "without batch norms it changes nothing but rounding"
    assert best.reservation == "so little memory needs no saving"
    again = drawn(train={"steps": 40, "microbatches": 2})
    assert max(stage.memory.peak for stage in again.stages) == best.peak
    assert again.lever.setting == "train.microbatches=8"


def test_a_run_that_does_not_fit(plain):
    peaks = {one.microbatches: one.peak for one in plain.alternatives if one.method == "local"}
    between = (peaks[2] + peaks[8]) / 2 / GIB
    assert drawn(parallel={"memory": between}).lever.setting == "train.microbatches=8"


def test_where_no_microbatches_fit_recomputation_is_tried():
    rows = [replace(row, fits=False) for row in LOCAL]
    found = lever(placed(), rows)
    assert found.setting == "modules.recompute=true"
    assert found.peak < rows[1].peak
    assert found.reservation == ""
    assert lever(placed(modules={"count": 2, "recompute": True}), rows) is None


def test_batch_norms_are_mentioned():
    """They learn otherwise from smaller microbatches."""
    normed = placed(model={"name": "resnet20", "width": 4})
    rows = replace(LOCAL[0], peak=8 * GIB), LOCAL[1]
    assert "batch norms then see 32 samples" in lever(normed, rows).price
    assert lever(placed(), rows) == Lever("train.microbatches=4", 2 * GIB, "")
