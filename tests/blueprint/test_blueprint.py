"""The blueprint: everything that follows from the configuration, before anything is spent."""

import pytest
import torch
from torch import nn

from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.learning.step import Step
from pipeline_local.models import weights
from pipeline_local.placement.draw import draw as draw_blueprint

CPU = torch.device("cpu")


def draw(**sections):
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 16},
        "modules": {"count": 4},
        "train": {"steps": 3},
        **sections,
    }
    config = configfile.parse(tree)
    return draw_blueprint(config, describe(config.data))


def test_drawing_allocates_nothing():
    blueprint = draw()
    tensors = [p for b in blueprint.backbone.blocks for p in b.module.parameters()]
    assert all(p.is_meta for p in tensors)
    assert [len(r) for r in blueprint.modules] == [2, 3, 2, 3]


def test_modules_together_are_the_backbone():
    blueprint = draw()
    modules = [blueprint.module(k, CPU) for k in range(4)]
    state = weights.model_state(part for m in modules for part in blueprint.parts(m))
    blocks = [*blueprint.backbone.blocks, blueprint.backbone.classifier]
    assert list(state) == [b.prefix + n for b in blocks for n in b.module.state_dict()]


def test_a_block_is_the_same_in_any_module():
    """Its weights depend on (seed, block), not on K."""
    coarse, fine = draw(modules={"count": 2}), draw(modules={"count": 10})
    first = coarse.module(0, CPU).body[3].conv1.weight
    assert torch.equal(first, fine.module(3, CPU).body[0].conv1.weight)
    other = draw(train={"steps": 3, "seed": 1})
    assert not torch.equal(
        other.module(0, CPU).body[0].conv1.weight, coarse.module(0, CPU).body[0].conv1.weight
    )


def test_auglocal_copies_are_initialised_as_the_backbone():
    """Kaiming with fan-out, not torch's default."""
    blueprint = draw(model={"name": "resnet20", "width": 32}, head={"name": "auglocal", "depth": 1})
    head = blueprint.module(2, CPU).head
    weight = head.layers.copy0.conv2.weight
    assert weight.std().item() == pytest.approx((2 / (weight.shape[0] * 9)) ** 0.5, rel=0.05)


def test_heads_of_modules_differ():
    blueprint = draw(head={"name": "linear"}, modules={"count": 10})
    first, second = (blueprint.module(k, CPU).head.layers[-1].weight for k in (1, 2))
    assert first.shape == second.shape
    assert not torch.equal(first, second)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_contract_is_what_modules_really_give(precision, channels_last):
    blueprint = draw(
        precision=precision,
        channels_last=channels_last,
        train={"steps": 3, "microbatches": 2},
        data={"name": "digits", "batch_size": 16},
    )
    contract = blueprint.contract(1)
    x = torch.randn(8, *blueprint.input_shapes[blueprint.modules[1].start])
    module = blueprint.module(1, CPU)
    wire_format = blueprint.wire_format
    y = module(x.to(wire_format.inside), torch.zeros(8, dtype=torch.int64), Step(0, 0.1))
    contract.activations.check(wire_format.round_activations(y))
    contract.gradients.check(wire_format.round_gradient(module.signal()))
    assert y.is_contiguous(memory_format=torch.channels_last) == channels_last
    contract.labels.check(torch.zeros(8, dtype=torch.int64))


def test_soft_targets_cross_as_floats():
    contract = draw(data={"name": "digits", "batch_size": 16, "mixup": 0.2}).contract(0)
    assert contract.labels.shape == (16, 10)
    assert contract.labels.dtype == torch.float32
    assert contract.test_labels.shape == (16,)
    assert contract.test_ensemble.shape == (16, 10)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"modules": {"count": 11}}, "11 modules for 10 blocks"),
        ({"model": {"name": "resnet2"}}, "did you mean"),
        ({"modules": {"count": 2, "cuts": ["nope"]}}, "'nope', which is no block"),
        ({"model": {"name": "mlp"}, "channels_last": True}, "mlp with NC; leave it out"),
    ],
)
def test_what_does_not_fit_is_refused(sections, message):
    with pytest.raises(UserError, match=message):
        draw(**sections)


def test_a_module_holds_what_the_blueprint_says():
    assert isinstance(draw().module(3, CPU).body, nn.Sequential)


FAMILIES = {
    "resnet18": {},
    "swin_t": {},
    "vit": {"patch_size": 16, "num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64},
    "mlp": {"hidden": 32},
}


@pytest.mark.parametrize("head", ["linear", "mlp", "conv", "auglocal"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_head_trains_on_every_family(name, head):
    """One reconciled step of three modules; what crosses the boundaries keeps the contract."""
    blueprint = draw(
        model={"name": name, **FAMILIES[name]},
        modules={"count": 3},
        head={"name": head},
        reconcile={"weight": 0.1},
        data={"name": "synthetic", "image_size": 64, "batch_size": 4, "limit": 8},
    )
    x, labels = torch.randn(4, *blueprint.info.sample_shape), torch.arange(4)
    signal = ()
    for index in range(3):
        module = blueprint.module(index, CPU)
        step = Step(0, 0.01, reconcile=index > 0, compare=index > 0, log=True)
        activations = module(x, labels, step)
        next_signal = module.signal()
        module.receive(*signal)
        module.learn()
        if index < 2:
            blueprint.contract(index).activations.check(activations)
            blueprint.contract(index).activations.check(next_signal)
        module.update(step)
        assert all(torch.isfinite(p).all() for p in module.parameters())
        assert ("discord" in module.metrics) == (index > 0)
        x, signal = activations, (next_signal,)
