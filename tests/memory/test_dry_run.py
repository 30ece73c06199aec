"""What a dry run on fake tensors says is what a real step takes, byte for byte (or nearly)."""

from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline_local.blueprint.device import Device
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.engines.sharded import shards
from pipeline_local.errors import UserError
from pipeline_local.memory import dry_run
from pipeline_local.memory.dry_run import stage_bytes
from pipeline_local.memory.fake_mode import fake_mode
from pipeline_local.memory.live_bytes import LiveBytes
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.stage import Stage
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement
from pipeline_local.record.trace import Trace

CPU = torch.device("cpu")
MODELS = {
    "cnn": {"name": "resnet20", "width": 8},
    "vit": {
        "name": "vit",
        "patch_size": 8,
        "num_layers": 4,
        "num_heads": 2,
        "hidden_dim": 32,
        "mlp_dim": 64,
    },
    "mlp": {"name": "mlp", "hidden": 64},
}


SMALL_BATCH = {
    "model": {"name": "resnet20"},
    "data": {"name": "digits", "batch_size": 4},
    "head": {"name": "linear"},
}
"""Weights take more than activations: what an update allocates is the peak."""


def draw(model="cnn", **sections):
    tree = {
        "model": MODELS[model] if isinstance(model, str) else model,
        "data": {"name": "synthetic", "image_size": 32, "batch_size": 16},
        "modules": {"count": 4},
        "train": {"steps": 100},
        **sections,
    }
    config = configfile.parse(tree)
    return draw_blueprint(config, describe(config.data))


class Real:
    """An upstream that has one message ready, as a receiver has."""

    def __init__(self, messages):
        self.messages = cycle(messages)
        self.ahead = self.fresh()

    def fresh(self):
        specs = next(self.messages)
        return tuple(torch.zeros(spec.shape, dtype=spec.dtype) for spec in specs)

    def recv(self):
        message, self.ahead = self.ahead, self.fresh()
        return message

    def reply(self, gradient):
        pass


def measured_peak(blueprint, numbers):
    """Of the second step of a real stage (the first one makes the optimizers' state)."""
    modules = [blueprint.module(number, CPU) for number in numbers]
    step = dry_run.heaviest(blueprint)
    contract = blueprint.contract(numbers[0] - 1)
    messages = [(contract.activations, contract.labels), (contract.activations,)]

    def train():
        Stage(modules, Real(messages), Nowhere(), Trace()).train(step)

    train()
    live_bytes = LiveBytes()
    for module in modules:
        state = [v for held in module.optimizer.state.values() for v in held.values()]
        live_bytes.hold([*module.parameters(), *module.buffers(), *state])
    with live_bytes:
        train()
    return live_bytes.peak


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_peak_of_a_reconciling_stage(model, recompute):
    blueprint = draw(
        model,
        modules={"count": 4, "recompute": recompute},
        reconcile={"weight": 0.1},
        optimizer={"name": "adamw"},
    )
    held = stage_bytes(blueprint, range(2, 4), 2)
    assert held.peak == pytest.approx(measured_peak(blueprint, range(2, 4)), rel=0.02)
    assert held.act.startswith("learn")


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"reconcile": {"weight": 0.1, "estimator": "exact"}},
        {"reconcile": {"weight": 0.1, "fraction": 0.5}},
        {"reconcile": {"weight": 0.1, "estimator": "shift", "every": 1}},
        {"train": {"steps": 100, "microbatches": 4}, "data": {"name": "digits", "batch_size": 16}},
        {"head": {"name": "auglocal", "fraction": 0.5}},
        {"precision": "bfloat16"},
        {"channels_last": True, "reconcile": {"weight": 0.1}},
        {"channels_last": True, **SMALL_BATCH},
        {"channels_last": True, **SMALL_BATCH, "optimizer": {"name": "adamw"}},
        {"parallel": {"wire_dtype": "float16"}},
    ],
)
def test_peak_under_other_settings(sections):
    blueprint = draw(**sections)
    held = stage_bytes(blueprint, range(1, 4), 2)
    assert held.peak == pytest.approx(measured_peak(blueprint, range(1, 4)), rel=0.02)
    assert not held.act.startswith("evaluate"), "it runs in microbatches too"


@pytest.mark.parametrize("channels_last", [True, False])
def test_weights_lie_as_those_of_a_real_module(channels_last):
    """Or else their gradients are copied before the update, in a dry run alone."""
    blueprint = draw(
        model={"name": "resnet18"}, head={"name": "linear"}, channels_last=channels_last
    )
    for index in range(3):
        real = dict(blueprint.module(index, CPU).named_parameters())
        with fake_mode():
            fake = dict(blueprint.fake_module(index, CPU).named_parameters())
        assert {n: p.stride() for n, p in fake.items()} == {n: p.stride() for n, p in real.items()}
    turned = [p for p in real.values() if p.dim() == 4 and not p.is_contiguous()]
    assert bool(turned) == channels_last


def test_recomputation_saves_activations():
    plain, again = draw(), draw(modules={"count": 4, "recompute": True})
    kept = [stage_bytes(b, range(1, 2), 4).modules[0].activations for b in (plain, again)]
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_share_the_state_of_an_optimizer(replicas):
    """`parallel.zero=1`: AdamW's moments are in shards, of which the largest counts."""
    sections = {"optimizer": {"name": "adamw"}, "modules": {"count": 4}}
    alone = stage_bytes(draw(**sections), range(1, 3), 2, replicas=replicas)
    blueprint = draw(**sections, parallel={"zero": 1})
    assert stage_bytes(blueprint, range(1, 3), 2) == stage_bytes(draw(**sections), range(1, 3), 2)
    shared = stage_bytes(blueprint, range(1, 3), 2, replicas=replicas)
    saved = 0
    for one, whole in zip(shared.modules, alone.modules, strict=True):
        assert (one.parameters, one.gradients) == (whole.parameters, whole.gradients)
        module = blueprint.module(1 + shared.modules.index(one), CPU)
        largest = max(sum(p.numel() for p in s) for s in shards(module.trainable, replicas))
        steps = one.optimizer - 2 * 4 * largest
        assert 0 < steps <= 4 * len(module.trainable), "the moments in float32, and counts"
        saved += whole.optimizer - one.optimizer
    assert saved > 0.4 * sum(whole.optimizer for whole in alone.modules)
    assert alone.peak - shared.peak == saved


def test_what_a_module_holds():
    blueprint = draw("mlp", optimizer={"name": "adamw"})
    module = blueprint.module(1, CPU)
    held = stage_bytes(blueprint, range(1, 2), 4).modules[0]
    size = sum(p.numel() * 4 for p in module.parameters())
    assert held.parameters == held.gradients == size
    assert 2 * size <= held.optimizer <= 2 * size + 4 * len(module.trainable)


@pytest.mark.parametrize(
    ("name", "states"), [("RMSprop", 2), ("Adagrad", 1), ("NAdam", 2), ("RAdam", 2)]
)
def test_an_optimizer_may_ask_for_values(name, states):
    """How many steps it has done, and whether it may do another one: not fused, it does."""
    blueprint = draw("mlp", optimizer={"name": f"python:torch.optim:{name}", "lr": 0.01})
    held = stage_bytes(blueprint, range(1, 2), 4).modules[0]
    assert held.optimizer == pytest.approx(states * held.parameters, rel=0.01)


def test_a_network_may_not_ask_for_values():
    blueprint = draw("mlp", head={"name": "linear"})
    for block in blueprint.backbone.blocks:
        block.module.register_forward_hook(lambda _, x, y: y if y.sum().item() > 0 else -y)
    with pytest.raises(UserError, match=r"without data, failed \(DataDependentOutputException"):
        stage_bytes(blueprint, range(1, 2), 4)


def test_feedback_waits_in_queues():
    every = {"weight": 0.1, "direction": "both", "every": 1}
    blueprint = draw("mlp", reconcile=every)
    held = stage_bytes(blueprint, range(1, 2), 4)
    x = 16 * 64 * 4
    assert held.lagged == 5 * (x + 16 * 8 + x)  # five steps: activations, labels, gradients
    assert held.peak > stage_bytes(draw("mlp"), range(1, 2), 4).peak + held.lagged / 2
    seldom = draw("mlp", reconcile={**every, "every": 8})
    assert stage_bytes(seldom, range(1, 2), 4).lagged == held.lagged / 5


@pytest.mark.parametrize("microbatches", [1, 4])
def test_copies_of_parameters(microbatches):
    """The head holds one without a gradient, the module downstream one that is on its way."""
    train, head = {"steps": 1, "microbatches": microbatches}, {"name": "ema", "refresh": 5}
    plain = stage_bytes(draw("mlp", head={"name": "linear"}, train=train), range(1, 3), 2)
    held = stage_bytes(draw("mlp", head=head, train=train), range(1, 3), 2)
    copy, scale = 4 * (64 * 64 + 64), 2 * 64 * 4
    for module, linear in zip(held.modules, plain.modules, strict=True):
        assert module.parameters - linear.parameters == copy + scale
        assert module.gradients - linear.gradients == scale
        assert module.optimizer - linear.optimizer == scale
    assert held.lagged == 2 * copy
    assert held.boundary == plain.boundary + copy, "received ahead"
    often = draw("mlp", head={**head, "refresh": 1}, train=train)
    assert stage_bytes(often, range(1, 3), 2).lagged == 5 * held.lagged


TEXT = {
    "model": {
        "name": "causal_lm",
        "architecture": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
    },
    "data": {
        "name": "synthetic_tokens",
        "vocabulary": 600,
        "sequence_length": 8,
        "batch_size": 8,
    },
    "task": {"name": "next_token"},
}
MATRIX = 4 * 600 * 16


@pytest.mark.parametrize("microbatches", [1, 4])
def test_readouts_hold_the_matrix_and_send_it_on(microbatches):
    """A module in between has one as its head's, without a gradient, and one on its way."""
    train, head = {"steps": 1, "microbatches": microbatches}, {"name": "readout", "depth": 0}
    private, shared = (
        stage_bytes(draw(**TEXT, head={**head, **options}, train=train), range(1, 3), 2)
        for options in ({"private": True}, {"refresh": 5})
    )
    for module, own in zip(shared.modules, private.modules, strict=True):
        assert module.parameters == own.parameters
        assert module.gradients == own.gradients - MATRIX
        assert module.optimizer == own.optimizer - MATRIX
    assert (private.lagged, shared.lagged) == (0, 2 * MATRIX)
    assert shared.boundary == private.boundary + MATRIX, "received ahead"
    often = draw(**TEXT, head={**head, "refresh": 1}, train=train)
    assert stage_bytes(often, range(1, 3), 2).lagged == 5 * shared.lagged


@pytest.mark.parametrize("microbatches", [1, 4])
def test_a_tied_table_passes_through_modules_that_have_no_copy(microbatches):
    """Each of them keeps one to pass on, however many microbatches there are."""
    tied = {**TEXT, "model": {**TEXT["model"], "tie_word_embeddings": True}}
    train, head = {"steps": 1, "microbatches": microbatches}, {"name": "linear"}
    held = stage_bytes(draw(**tied, head=head, train=train), range(1, 3), 2)
    assert held.lagged == 2 * (1 + 1) * MATRIX


@pytest.mark.parametrize(
    ("every", "refresh", "microbatches"), [(1, 1, 4), (3, 2, 4), (8, 2, 1), (2, 3, 2), (8, 10, 4)]
)
def test_copies_beside_feedback(every, refresh, microbatches):
    """In one message, or in turns."""
    blueprint = draw(
        "mlp",
        head={"name": "ema", "refresh": refresh},
        reconcile={"weight": 0.1, "direction": "both", "every": every},
        train={"steps": 1, "microbatches": microbatches},
    )
    x, labels, copy = 16 * 64 * 4, 16 * 8, 4 * (64 * 64 + 64)
    held = stage_bytes(blueprint, range(1, 3), 2).lagged
    assert held == 2 * ((4 // every + 1) * (2 * x + labels) + (4 // refresh + 1) * copy)


@pytest.mark.parametrize(("every", "microbatches"), [(1, 1), (1, 4), (3, 4), (8, 1), (20, 2)])
def test_distillation_keeps_a_batch_for_every_hop(every, microbatches):
    """Activations and labels, and three kinds of outputs: under way, and those passed on."""
    train = {"steps": 1, "microbatches": microbatches}
    plain = stage_bytes(draw("mlp", train=train), range(4), 1)
    distill = {"weight": 0.5, "every": every}
    held = stage_bytes(draw("mlp", train=train, distill=distill), range(4), 1)
    batch, outputs = 16 * 64 * 4 + 16 * 8, 16 * 10 * 4
    batches = sum(delay // every + 1 for delay in (14, 9, 4))
    sent = 3 * (4 // every + 1) + 2
    assert held.lagged == batches * batch + sent * outputs
    assert held.peak > plain.peak + held.lagged / 2


def test_edges_hold_what_is_under_way():
    held = stage_bytes(draw("mlp"), range(1, 2), 4)
    message = 16 * 64 * 4 + 16 * 8
    assert held.boundary == 3 * message  # one received ahead, two unfinished
    assert stage_bytes(draw("mlp"), range(3, 4), 4).boundary == message


def test_a_narrow_wire_halves_the_edges_and_no_queue():
    sections = {"reconcile": {"weight": 0.1, "direction": "both", "every": 1}}
    narrow = draw("mlp", parallel={"wire_dtype": "bfloat16"}, **sections)
    wide, held = (stage_bytes(b, range(1, 2), 4) for b in (draw("mlp", **sections), narrow))
    labels = 16 * 8
    assert held.boundary - 3 * labels == (wide.boundary - 3 * labels) / 2
    assert held.lagged == wide.lagged, "kept as it was, before it was rounded"


ROOT = Path(__file__).parent.parent.parent
H200 = Device("cuda", workspaces=2 * 32 * 2**20)
"""cuBLAS takes 32 MiB for each thread that multiplies: that of forward and of backward passes."""

CUTS_THEN = {
    "resnet50": ["modules.cuts=[layer1.1,layer2.0,layer3.0]"],
    "vit-s": ["modules.cuts=uniform"],
}
BATCH = 73.5
"""MiB of 128 images, which a benchmark has in memory beside what it counts."""


@pytest.mark.parametrize(
    ("network", "precision", "batch", "held"),
    [
        ("resnet50", "float32", 64, [2412, 2353]),
        ("vit-s", "bfloat16", 128, [1.84 * 1024 + BATCH]),
        *(
            pytest.param(*row, marks=pytest.mark.long)
            for row in (
                ("resnet50", "float32", 64, [2409]),
                ("resnet50", "bfloat16", 128, [2.29 * 1024 + BATCH]),
                ("vit-s", "float32", 64, [1806]),
                ("vit-s", "float32", 64, [1304, 1662]),
                ("vit-s", "float32", 128, [3.09 * 1024 + BATCH]),
                ("vit-s", "bfloat16", 64, [1202]),
            )
        ),
    ],
)
def test_what_an_h200_held(network, precision, batch, held):
    """MiB by CUDA's allocator, at 224 pixels (docs/results/gpu.md). Needs no GPU."""
    settings = [f"precision={precision}", f"data.batch_size={batch}", *CUTS_THEN[network]]
    config = configfile.load(ROOT / "configs" / f"bench-{network}.yaml", settings)
    blueprint = draw_blueprint(config, describe(config.data), H200)
    stages = Placement.of(blueprint, len(held)).stages
    peaks = [stage_bytes(blueprint, part, len(held), H200).peak / 2**20 for part in stages]
    assert peaks == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_what_blocks_keep(model, recompute, precision):
    """In the first module, where a ViT in bfloat16 still adds to float32, and in another."""
    modules = {"count": 2, "cuts": [3], "recompute": recompute}
    blueprint = draw(model, modules=modules, precision=precision)
    blocks = [block.module for block in blueprint.backbone.blocks]
    for number, part in enumerate(blueprint.modules):
        (module,) = stage_bytes(blueprint, [number], 2).modules
        kept = dry_run.kept_bytes(blueprint, blocks[part.start : part.stop], part.start)
        as_it_crosses = recompute and precision == "bfloat16"  # narrower, and little else is kept
        rel = 0.25 if as_it_crosses else 0.05
        assert sum(kept) == pytest.approx(module.activations, rel=rel)


def test_libraries_keep_something_of_their_own():
    blueprint = draw("mlp")
    plain, more = (
        stage_bytes(blueprint, range(1), 1, d) for d in (Device(), Device(workspaces=999))
    )
    assert (plain.workspaces, more.workspaces) == (0, 999)
    assert more.peak == plain.peak + 999


def test_nothing_random_is_drawn():
    before = torch.get_rng_state()
    stage_bytes(draw("vit"), range(0, 1), 4)
    assert torch.equal(torch.get_rng_state(), before)


class Peeks(nn.Module):
    def forward(self, x):
        return x if x.is_meta or x.sum().item() > 0 else -x


def peeking(num_classes, image_shape):
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
    size = image_shape[0] * image_shape[1] * image_shape[2]
    head[1] = nn.Linear(size, num_classes)
    return [Peeks(), nn.Identity(), head]


def test_a_network_that_asks_for_values_is_told():
    config = configfile.parse(
        {
            "model": {"name": f"python:{__name__}:peeking"},
            "data": {"name": "digits", "batch_size": 16},
            "modules": {"count": 1},
            "train": {"steps": 3},
        }
    )
    blueprint = draw_blueprint(config, describe(config.data))
    with pytest.raises(UserError, match=r"a dry run of .*, without data, failed"):
        stage_bytes(blueprint, range(1), 1)
