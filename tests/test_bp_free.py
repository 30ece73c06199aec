"""BP-free learning: one layer per module under a head of at most one layer.

Its gradients have closed forms, written out here without autograd.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline_local.config import OptimizerConfig, ReconcileConfig
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.data.info import DataInfo
from pipeline_local.engines import optimizer
from pipeline_local.errors import UserError
from pipeline_local.finished import finished
from pipeline_local.learning.heads.etf import EPSILON, SCALE, SimplexETF
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import Step
from pipeline_local.learning.wire_format import WireFormat
from pipeline_local.placement.describe import explain, is_bp_free
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train

SIZE, INPUTS, WIDTH, CLASSES = 6, 7, 9, 5
CPU = torch.device("cpu")


# -- closed forms ------------------------------------------------------------------------------


def module(head, weight=0.0, estimator="exact"):
    torch.manual_seed(3)
    body = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU()).double()
    own = {"weight": weight, "estimator": estimator, "distance": "squared"}
    settings = ReconcileConfig(**own, every=1, step=1e-6)
    rules = Rules(reconcile=settings, wire_format=WireFormat(torch.float64))
    config = OptimizerConfig(lr=0.1)
    return LocalModule(1, body, head.double(), lambda p: optimizer.build(config, p), rules)


def linear_head():
    torch.manual_seed(4)
    return nn.Linear(WIDTH, CLASSES)


def etf_head():
    torch.manual_seed(4)
    head = SimplexETF(WIDTH, CLASSES)
    head.reset_parameters()
    return head


def batch():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, INPUTS, generator=g, dtype=torch.float64)
    return x, torch.randint(CLASSES, (SIZE,), generator=g)


class Body:
    """y = relu(z), z = x W^T + b, and what follows from the signal s = dl/dy."""

    def __init__(self, module, x):
        self.x = x
        self.w, b = (p.detach() for p in module.body.parameters())
        self.mask = (x @ self.w.T + b > 0).double()
        self.y = (x @ self.w.T + b) * self.mask

    def input_gradient(self, s):
        return (s * self.mask) @ self.w

    def gradients(self, s):
        """Of W and b: outer products of what comes in and what is wrong behind."""
        t = s * self.mask
        return [t.T @ self.x, t.sum(0)]


def linear(head, y, labels):
    """Signal and head gradients under logits y V^T + c."""
    v, c = (p.detach() for p in head.parameters())
    delta = ((y @ v.T + c).softmax(1) - F.one_hot(labels, CLASSES)) / SIZE
    return delta @ v, [delta.T @ y, delta.sum(0)]


def etf(head, y, labels):
    """Signal under logits SCALE u E^T with u = y / n: what is along u has no effect."""
    e = head.vertices
    n = (y.square().sum(1, keepdim=True) + WIDTH * EPSILON).sqrt()
    u = y / n
    delta = ((SCALE * u @ e.T).softmax(1) - F.one_hot(labels, CLASSES)) / SIZE
    du = SCALE * delta @ e
    return (du - u * (u * du).sum(1, keepdim=True)) / n, []


HEADS = {"linear": (linear_head, linear), "etf": (etf_head, etf)}


@pytest.mark.parametrize("name", HEADS)
def test_local_gradients_are_their_closed_forms(name):
    make_head, closed_form = HEADS[name]
    k, (x, labels) = module(make_head()), batch()
    body = Body(k, x)
    s, head_gradients = closed_form(k.head, body.y, labels)
    step = Step(0, lr=0.1, compare=True, log=True)
    torch.testing.assert_close(k(x, labels, step), body.y)
    torch.testing.assert_close(k.signal(), s)
    k.receive(body.input_gradient(s))
    k.learn()
    assert k.metrics["input_norm"] > 0.1
    assert k.metrics["discord"] < 1e-25, "the input gradient is not its closed form"
    expected = body.gradients(s) + head_gradients
    assert len(k.gradients) == len(k.trainable) == len(expected)
    for got, want in zip(k.gradients, expected, strict=True):
        torch.testing.assert_close(got, want)


def discord_gradients(k, x, labels, upstream):
    """dD/d(W, b, V, c), with v = dD/dg held in the hand:

    <v, g> = <V (m * W v), delta> depends on W directly, on V directly, and through the softmax.
    """
    body = Body(k, x)
    w, mask, y = body.w, body.mask, body.y
    head, c = (p.detach() for p in k.head.parameters())
    p = (y @ head.T + c).softmax(1)
    delta = (p - F.one_hot(labels, CLASSES)) / SIZE
    s = delta @ head
    v = 2 * SIZE * (body.input_gradient(s) - upstream)
    a = (v @ w.T) * mask
    q = a @ head.T
    r = (p * q - p * (p * q).sum(1, keepdim=True)) / SIZE  # through the softmax
    through_w, through_b = body.gradients(r @ head)
    direct = (s * mask).T @ v
    return [through_w + direct, through_b, delta.T @ a + r.T @ y, r.sum(0)]


@pytest.mark.parametrize("estimator", ["exact", "finite_difference", "shift"])
def test_the_discords_gradient_is_its_closed_form(estimator):
    weight = 1e-7 if estimator == "shift" else 0.7  # correct to first order in it
    x, labels = batch()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double() / SIZE
    gradients = []
    for reconcile in (False, True):
        k = module(linear_head(), weight, estimator)
        k(x, labels, Step(0, lr=0.1, reconcile=reconcile, compare=True))
        k.signal()
        k.receive(upstream)
        k.learn()
        gradients.append(k.gradients)
    wanted = discord_gradients(k, x, labels, upstream)
    for plain, both, want in zip(*gradients, wanted, strict=True):
        torch.testing.assert_close((both - plain) / weight, want, rtol=1e-4, atol=1e-5)


# -- configurations ----------------------------------------------------------------------------

FAMILIES = {
    "mlp": {"name": "mlp", "hidden": 16},
    "vgg": {"name": "vgg", "width": 4},
    "vit": {
        "name": "vit",
        "patch_size": 8,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "mlp_dim": 32,
        "dropout": 0.1,
        "split_attention": True,
    },
}


def parse(model, **sections):
    tree = {
        "model": model,
        "modules": {"cuts": "blocks"},
        "head": {"name": "etf"},
        "reconcile": {"weight": 0.1, "every": 1},
        "data": {"name": "synthetic", "image_size": 32, "batch_size": 8, "limit": 16},
        "train": {"steps": 4, "log_every": 1},
        "parallel": {"threads": 1},
        **sections,
    }
    return configfile.parse(tree)


def draw(model, **sections):
    config = parse(model, **sections)
    return draw_blueprint(config, describe(config.data))


def matrices(module):
    """Weights that mix their inputs."""
    mixing = (nn.Linear, nn.Conv2d)
    names = [name for name, layer in module.named_modules() if isinstance(layer, mixing)]
    names += [n for n, layer in module.named_modules() if isinstance(layer, nn.MultiheadAttention)]
    return len(names)


@pytest.mark.parametrize("head", ["linear", "etf"])
@pytest.mark.parametrize(("family", "count"), [("mlp", 4), ("vgg", 8)])
def test_every_body_is_one_layer_and_every_head_at_most_one(family, count, head):
    blueprint = draw(FAMILIES[family], head={"name": head})
    modules = [blueprint.module(k, CPU) for k in range(len(blueprint.modules))]
    assert len(modules) == count
    assert [matrices(module.body) for module in modules] == [1] * count
    own = int(head == "linear")
    assert [matrices(module.head) for module in modules] == [own] * (count - 1) + [1]
    assert is_bp_free(blueprint)
    assert f"{count} modules (BP-free);" in explain(blueprint)


def test_a_vits_modules_are_residual_branches():
    """Two matrices each (docs/mathematics.md), which is not called BP-free."""
    blueprint = draw(FAMILIES["vit"])
    modules = [blueprint.module(k, CPU) for k in range(5)]
    kinds = [type(module.body[0]).__name__ for module in modules]
    assert kinds == ["Patches", "Attention", "Mlp", "Attention", "Mlp"]
    assert [matrices(module.body) for module in modules] == [1, 2, 2, 2, 2]
    assert "(BP-free)" not in explain(blueprint)


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"name": "resnet20", "width": 4}},
        {"model": {"name": "vgg11_bn"}},  # its classifier has three layers
        {"model": FAMILIES["mlp"], "head": {"name": "mlp"}},
        {"model": FAMILIES["mlp"], "modules": {"count": 3}},
        {"model": {"name": "mlp", "depth": 1}},
    ],
)
def test_what_is_not_bp_free_is_not_called_so(sections):
    assert not is_bp_free(draw(**sections))


@pytest.mark.parametrize("estimator", ["exact", "finite_difference", "shift"])
@pytest.mark.parametrize("family", FAMILIES)
def test_trains_without_head_parameters(tmp_path, family, estimator):
    """Reconciled, clipped, logged, saved; and a resumed run ends with the same bytes."""
    sections = {
        "reconcile": {"weight": 0.1, "every": 1, "estimator": estimator, "fraction": 0.5},
        "optimizer": {"lr": 0.01, "clip": 1.0},
        "checkpoint": {"every_steps": 2},
    }
    whole = train(
        parse(FAMILIES[family], run={"dir": str(tmp_path / "run")}, **sections), RankInfo()
    )
    evaluated = finished.evaluate(tmp_path / "run", lambda *_: None)
    assert evaluated["loss"] == whole["loss"]

    last = tmp_path / "run" / "checkpoints" / "step-00000004"
    before = {path.name: path.read_bytes() for path in last.iterdir()}
    last.rename(tmp_path / "set aside")
    resumed = {"dir": str(tmp_path / "run"), "resume": True}
    train(parse(FAMILIES[family], run=resumed, **sections), RankInfo())
    assert {path.name: path.read_bytes() for path in last.iterdir()} == before


def train_stage(rank_info, config):
    train(config, rank_info)


@pytest.mark.parametrize("family", FAMILIES)
def test_placement_changes_nothing(tmp_path, run_ranks, family):
    """Fixed vertices are the same wherever they are drawn."""
    saved = []
    for stages in (1, 3):
        folder = tmp_path / str(stages)
        run_ranks(train_stage, stages, parse(FAMILIES[family], run={"dir": str(folder)}))
        saved.append({p.name: p.read_bytes() for p in folder.glob("checkpoints/*/*.safetensors")})
    assert saved[0] == saved[1]
    assert len(saved[0]) >= 4


def test_vertices_are_a_function_of_the_seed_and_the_module():
    def vertices(index, seed=0):
        blueprint = draw(FAMILIES["mlp"], train={"steps": 1, "seed": seed})
        return blueprint.module(index, CPU).head.layers[-1].vertices

    assert torch.equal(vertices(0), vertices(0))
    assert not torch.equal(vertices(0), vertices(1))
    assert not torch.equal(vertices(0), vertices(0, seed=1))


def flat_first(num_classes, image_shape):
    """A model whose first block has nothing to learn."""
    width = image_shape[0] * image_shape[1] * image_shape[2]
    return [nn.Flatten(), nn.Linear(width, 8), nn.Linear(8, num_classes)]


def test_a_module_without_anything_to_learn_is_refused():
    model = {"name": f"python:{__name__}:flat_first"}
    with pytest.raises(UserError, match=r"module 1 \(block0\) and its head have no trainable"):
        draw(model)
    assert is_bp_free(draw(model, head={"name": "linear"}))


def test_one_class_has_no_simplex():
    config = parse(FAMILIES["mlp"])
    info = DataInfo(16, 16, 1, (3, 32, 32), (0.5,) * 3, (0.2,) * 3, ("all",))
    with pytest.raises(UserError, match=r"task\.name: classification has a single class"):
        draw_blueprint(config, info)
