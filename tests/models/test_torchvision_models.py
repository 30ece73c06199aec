"""Blocks run in order are torchvision's own model, to the bit, for every family."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.ops import StochasticDepth

from pipeline_local.errors import UserError
from pipeline_local.models import registry, weights
from pipeline_local.models.backbone import materialize
from pipeline_local.models.torchvision_families import _SizesOnTheCpu
from pipeline_local.models.torchvision_models import Steps

CPU = torch.device("cpu")
TINY = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 96}
VIT = TINY | {"dropout": 0.1, "attention_dropout": 0.1}
CASES = {
    "resnet18": ("resnet18", {}),
    "resnet50-zero": ("resnet50", {"zero_init_residual": True}),
    "resnext50": ("resnext50_32x4d", {"replace_stride_with_dilation": [False, False, True]}),
    "vit": ("vit", VIT),
    "vit-representation": ("vit", TINY | {"representation_size": 48}),
    "vit-split": ("vit", VIT | {"split_attention": True}),
    "swin_t": ("swin_t", {"dropout": 0.1, "mlp_ratio": 2.0}),
    "swin_v2_t": ("swin_v2_t", {"attention_dropout": 0.1}),
    "vgg11_bn": ("vgg11_bn", {"dropout": 0.3}),
    "alexnet": ("alexnet", {"dropout": 0.3}),
    "convnext": ("convnext_tiny", {"layer_scale": 0.5, "stochastic_depth_prob": 0.3}),
    "densenet": ("densenet121", {"drop_rate": 0.1}),
    "efficientnet": ("efficientnet_b0", {"dropout": 0.3}),
    "googlenet": ("googlenet", {"dropout": 0.3}),
    "inception_v3": ("inception_v3", {}),
    "maxvit": ("maxvit_t", {"mlp_dropout": 0.1}),
    "mobilenet_v2": ("mobilenet_v2", {"width_mult": 0.5}),
    "mobilenet_v3": ("mobilenet_v3_small", {"reduced_tail": True, "dilated": True}),
    "regnet": ("regnet_y_400mf", {}),
    "shufflenet": ("shufflenet_v2_x0_5", {}),
    "squeezenet": ("squeezenet1_1", {"dropout": 0.3}),
}
SIDES = {"alexnet": 64, "inception_v3": 75, "maxvit_t": 224}


def torchvisions_own(name, args):
    args = {key: value for key, value in args.items() if key != "split_attention"}
    torch.manual_seed(0)
    if name == "vit":
        return VisionTransformer(image_size=32, num_classes=7, **args)
    if name.startswith("vit"):
        args["image_size"] = 32
    if name in ("googlenet", "inception_v3"):
        args |= {"aux_logits": False, "init_weights": True}
    return torchvision.models.get_model(name, num_classes=7, **args)


class Case:
    """A model of torchvision's and the backbone that should be the same."""

    def __init__(self, name, args):
        self.model = torchvisions_own(name, args)
        side = SIDES.get(name, 32)
        self.backbone = registry.build(name, args, 7, (3, side, side))[0]
        self.batch = torch.randn(2 if side == 224 else 4, 3, side, side)
        self.blocks = (*self.backbone.blocks, self.backbone.classifier)

    def fresh(self, block, seed=1):
        rule = self.backbone.initialize
        return materialize(block.module, rule, seed, CPU, torch.float32)

    def loaded(self):
        """The blocks with the model's weights, none of them constant."""
        own = self.model.state_dict()
        with torch.no_grad():
            for p in self.model.parameters():
                if (p == p.flatten()[0]).all():
                    p.add_(torch.randn_like(p), alpha=0.05)
        parts = [(block, block.module.to_empty(device="cpu")) for block in self.blocks]
        for block, module in parts:
            weights.load_block(module, block, own, [])
        return parts


VARIANTS = {"resnet50-zero", "vit-representation", "vit-split", "swin_t", "densenet", "maxvit"}
VARIANTS |= {"resnext50", "inception_v3"}
"""Of families that others stand for, and the slowest."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.long] if name in VARIANTS else []) for name in CASES
    ],
)
def case(request):
    return Case(*CASES[request.param])


# The order matters: `loaded` gives the meta blocks memory, so what looks at them comes first.


def test_blocks_are_built_without_memory(case):
    for block in case.blocks:
        assert all(t.is_meta for t in block.module.state_dict().values())


def test_fresh_weights_follow_torchvisions_distributions(case):
    wanted = case.model.state_dict()
    for block in case.blocks:
        for name, got in case.fresh(block).state_dict().items():
            name = block.prefix + name
            assert_alike(name, sample(got), sample(wanted.pop(name)))
    assert not wanted


def sample(tensor, most=200_000):
    """Enough of a tensor to tell its distribution."""
    return tensor.flatten()[:: max(1, tensor.numel() // most)]


def assert_alike(name, got, want):
    if not want.is_floating_point() or want.min() == want.max():
        assert torch.equal(got, want), name
        return
    # torch 2.11's truncated normals have single values at the far ends: those tell nothing
    tail = want.abs().float().quantile(0.999)
    got, want = (values.clamp(-2 * tail, 2 * tail) for values in (got, want))
    n, deviation = want.numel(), want.std().item()
    assert abs(got.mean() - want.mean()) < 6 * deviation / n**0.5, name
    assert got.std().item() == pytest.approx(deviation, rel=5 / n**0.5), name
    if n > 1000:  # tells a uniform distribution from a normal one
        tail = [values.abs().float().quantile(0.999).item() for values in (got, want)]
        assert tail[0] == pytest.approx(tail[1], rel=0.4), name


def test_initialisation_fills_every_tensor(case):
    for block in case.blocks:
        module = copy.deepcopy(block.module).to_empty(device="cpu")
        with torch.no_grad():
            for p in (*module.parameters(), *module.buffers()):
                p.fill_(float("nan") if p.is_floating_point() else -1)
            case.backbone.initialize(module)
        for name, p in module.state_dict().items():
            assert not (p.isnan() if p.is_floating_point() else p < 0).any(), (block.name, name)


def test_same_outputs_statistics_and_names(case):
    parts, x = case.loaded(), case.batch
    for training in (True, False):
        outputs = []
        case.model.train(training)
        chain = nn.Sequential(*(module for _, module in parts)).train(training)
        for network in (case.model, chain):
            torch.manual_seed(3)
            with torch.no_grad():
                outputs.append(network(x))
        assert torch.equal(*outputs)
    state, wanted = weights.model_state(parts), case.model.state_dict()
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert case.model.load_state_dict(state, strict=True)


def test_gradients_flow_and_inputs_stay(case):
    torch.manual_seed(0)
    x = case.batch
    for block, module in case.loaded():
        for layer in module.modules():
            if isinstance(layer, StochasticDepth):
                layer.p = 0.0  # a branch that is left out gets no gradient
        x = x.detach().requires_grad_()
        before = x.detach().clone()
        y = module.train()(x)
        y.square().sum().backward()
        assert torch.equal(x, before), block.name
        assert x.grad.any(), block.name
        for name, p in module.named_parameters():
            assert p.grad is not None, (block.name, name)
            assert p.grad.any(), (block.name, name)
        x = y


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet152", 51),
        ("wide_resnet101_2", 34),
        ("resnext101_64x4d", 34),
        ("vit_b_32", 13),
        ("vit_l_16", 25),
        ("swin_b", 28),
        ("vgg19", 16),
        ("swin_v2_b", 28),
        ("convnext_large", 40),
        ("densenet201", 102),
        ("efficientnet_v2_s", 42),
        ("mobilenet_v3_large", 17),
        ("regnet_x_16gf", 23),
        ("regnet_y_128gf", 28),
        ("shufflenet_v2_x2_0", 18),
        ("squeezenet1_0", 9),
    ],
)
def test_large_models_on_paper_have_torchvisions_names_and_shapes(name, count):
    backbone = registry.build(name, {}, 7, (3, 224, 224))[0]
    parts = [(b, b.module) for b in (*backbone.blocks, backbone.classifier)]
    got = {b.prefix + n: t for b, m in parts for n, t in m.state_dict().items()}
    with torch.device("meta"), _SizesOnTheCpu():
        wanted = torchvision.models.get_model(name, num_classes=7).state_dict()
    assert len(backbone.blocks) == count
    assert [(n, t.shape) for n, t in got.items()] == [(n, t.shape) for n, t in wanted.items()]
    assert all(t.is_meta for t in got.values())


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t", "vgg11", "vit"])
def test_images_of_one_channel_are_refused(name):
    with pytest.raises(UserError, match=f"{name} takes images of 3 channels, got data with 1"):
        registry.build(name, TINY if name == "vit" else {}, 10, (1, 32, 32))


def test_steps_run_in_order():
    add, double = partial(torch.add, other=1), partial(torch.mul, other=2)

    class Apply(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    assert Steps(b=Apply(add), a=Apply(double))(torch.tensor(3)) == 8
