"""Costs of blocks and heads, and of the modules they could make."""

from dataclasses import replace

import pytest

from pipeline_local.blueprint.blueprint import head_key
from pipeline_local.config import DistillConfig
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.placement import costs
from pipeline_local.placement.costs import Cost, Costs
from pipeline_local.placement.draw import draw as draw_blueprint


def draw(**sections):
    tree = {
        "model": {"name": "mlp", "hidden": 32, "depth": 5},
        "data": {"name": "digits", "batch_size": 10},
        "modules": {"count": 2},
        "train": {"steps": 3},
        **sections,
    }
    config = configfile.parse(tree)
    return draw_blueprint(config, describe(config.data))


def test_flops_of_a_perceptron():
    """A matrix product of [B, m] with [m, n] takes 2 B m n, and its backward twice that."""
    counted = costs.by_flops(draw(head={"name": "linear"}))
    assert counted.unit == "FLOPs"
    assert [b.forward for b in counted.blocks] == [2 * 10 * 64 * 32, *[2 * 10 * 32 * 32] * 4]
    assert all(b.backward == 2 * b.forward for b in counted.blocks)
    assert counted.classifier.forward == 2 * 10 * 32 * 10
    assert [*counted.heads] == [(1, 0), (2, 0), (3, 0), (4, 0)]


def test_recomputation_is_part_of_the_backward():
    counted = costs.by_flops(draw(modules={"count": 2, "recompute": True}))
    assert all(b.backward == 3 * b.forward for b in counted.blocks)


def test_operations_of_training_are_those_of_the_model_alone():
    """Six per weight and sample, whatever is computed again, reconciled or distilled."""
    extra = {"reconcile": {"weight": 0.1}, "distill": {"weight": 0.3}}
    modules = {"count": 2, "recompute": True}
    blueprint = draw(head={"name": "linear"}, modules=modules, **extra)
    assert blueprint.modules == (range(2), range(2, 5))
    first, last = 64 * 32 + 32 * 32 + 32 * 10, 32 * 32 * 3 + 32 * 10
    assert costs.training_flops(blueprint, range(1)) == 6 * first
    assert costs.training_flops(blueprint, range(2)) == 6 * (first + last)


def test_operations_of_training_are_those_of_all_that_learns():
    """Terms are no part of a head, nor is a copy trained; a part of the batch is that part."""

    def trained(name, **sections):
        return costs.training_flops(
            draw(head={"name": name, **sections.pop("head", {})}, **sections), range(1)
        )

    term = {"information": {"name": "contrast"}}
    added = trained("linear", **term) - trained("linear")
    assert added > 0
    assert trained("ema", **term) == trained("ema") + added
    assert trained("ema") == trained("linear") + 4 * 32 * 32
    assert trained("linear", head={"fraction": 0.5}) == trained("linear") - 3 * 32 * 10


@pytest.mark.parametrize(
    ("estimator", "plain", "recomputed"),
    [("exact", 6, 8), ("finite_difference", 3, 4), ("shift", 2, 3)],
)
def test_what_estimators_add_in_forward_passes(estimator, plain, recomputed):
    for recompute, passes in ((False, plain), (True, recomputed)):
        modules = {"count": 2, "recompute": recompute}
        counted = costs.by_flops(draw(modules=modules, reconcile={"estimator": estimator}))
        assert all(b.second == passes * b.forward for b in counted.blocks)
        assert counted.classifier.second == plain * counted.classifier.forward


def test_a_copied_block_costs_no_gradients_of_its_weights():
    """In the head a [32, 32] copy passes the gradient on, and a [32, 10] classifier learns."""
    counted = costs.by_flops(draw(head={"name": "ema"}))
    copied, classifier = 2 * 10 * 32 * 32, 2 * 10 * 32 * 10
    for head in counted.heads.values():
        assert head.forward == copied + classifier
        assert head.backward == copied + 2 * classifier


@pytest.mark.parametrize(
    ("head", "taper"),
    [("linear", True), ("auglocal", True), ("auglocal", False), ("ema", True)],
)
def test_heads_are_those_that_the_modules_get(head, taper):
    for count in (2, 3, 5):
        blueprint = draw(modules={"count": count}, head={"name": head, "depth": 3, "taper": taper})
        counted = costs.by_flops(blueprint)
        for index, blocks in enumerate(blueprint.modules[:-1]):
            key = head_key(blueprint.config, blocks.stop, 5, index, count)
            made = blueprint.fake_module(index, "meta").head
            planned = blueprint.auxiliary_head(*key)
            assert str(planned) == str(made)
            assert key in counted.heads


def made(reconcile, blocks=(1, 1, 1, 1), head=10.0):
    config = draw(reconcile=reconcile, head={"name": "linear"}).config
    return Costs(
        config,
        "seconds",
        tuple(Cost(b, 2 * b, 3 * b, b / 10) for b in blocks),
        {(end, 0): Cost(head, head, 2 * head, head / 10) for end in range(1, len(blocks))},
        Cost(0.5, 0.5, 0.5),
    )


def test_a_module_in_three_acts():
    first = made({"weight": 0.0}).module(0, 2, range(2))
    assert (first.forward, first.signal, first.added) == (2, 20, 0)
    assert first.learn == pytest.approx(2 * 2.1 + 1)
    assert first.total == first.forward + first.signal + first.learn


def test_heads_on_a_part_of_the_batch_cost_that_part():
    """But for the update, and for the network's own classifier."""
    whole, part = made({"weight": 0.0}), made({"weight": 0.0})
    part = replace(part, config=replace(part.config, head=replace(part.config.head, fraction=0.25)))
    first, thin = (costs.module(0, 2, range(2)) for costs in (whole, part))
    assert (thin.signal, thin.learn) == (first.signal / 4, first.learn)
    assert part.module(1, 2, range(2, 4)) == whole.module(1, 2, range(2, 4))


def test_distillation_is_a_second_pass_of_the_head():
    """Of all heads but the last, which is nobody's pupil."""
    plain, distilled = made({"weight": 0.0}), made({"weight": 0.0})
    distilled = replace(
        distilled, config=replace(distilled.config, distill=DistillConfig(weight=1.0, every=4))
    )
    first, last = (costs.module(0, 2, range(2)) for costs in (plain, distilled))
    assert last.distilled == 20 / 4
    assert last.total == first.total + last.distilled
    term = {range(2): Cost(5.0, 5.0, 5.0)}
    assert replace(distilled, information=term).module(0, 2, range(2)).distilled == 20 / 4
    assert distilled.module(1, 2, range(2, 4)) == plain.module(1, 2, range(2, 4))


@pytest.mark.parametrize(
    ("estimator", "share"), [("exact", 0.25), ("finite_difference", 0.5), ("shift", 1)]
)
def test_what_a_part_of_the_batch_saves(estimator, share):
    """A finite difference takes the plain gradient on that part anew; a shift moves it only."""
    whole, part = (
        made({"weight": 0.1, "estimator": estimator, "fraction": fraction}).module(
            1, 2, range(2, 4)
        )
        for fraction in (1.0, 0.25)
    )
    assert part.added == share * whole.added


@pytest.mark.parametrize(
    ("direction", "first", "last"),
    [("downstream", 0, 6 + 0.5), ("upstream", 40, 0), ("both", 40, 6.5)],
)
def test_reconciliation_is_spread_over_the_steps(direction, first, last):
    costs = made({"weight": 0.1, "direction": direction, "every": 4})
    assert costs.module(0, 2, range(2)).added == first / 4
    assert costs.module(1, 2, range(2, 4)).added == last / 4
