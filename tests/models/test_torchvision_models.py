"""torchvision's models taken apart: the same numbers, the same names, the same initialisation."""

import pytest
import torch
import torchvision

from pipeline_local import seeds
from pipeline_local.models import registry, weights
from pipeline_local.models.backbone import materialize, shapes

CPU = torch.device("cpu")
SMALL_VIT = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}

# name: (model.* keys, image size)
MODELS = {
    "resnet18": ({}, 64),
    "resnet50": ({"zero_init_residual": True}, 64),
    "vit": (SMALL_VIT, 32),
    "vit ": ({**SMALL_VIT, "dropout": 0.2, "representation_size": 8}, 32),
    "vit  ": ({**SMALL_VIT, "dropout": 0.2, "split_attention": True}, 32),
    "swin_t": ({"dropout": 0.1}, 64),
    "vgg11_bn": ({"dropout": 0.3}, 32),
}


def original(name, args, size):
    """torchvision's own model, with weights of its own."""
    args = {key: value for key, value in args.items() if key != "split_attention"}
    torch.manual_seed(0)
    if name.strip() == "vit":
        return torchvision.models.VisionTransformer(image_size=size, num_classes=7, **args)
    return torchvision.models.get_model(name, weights=None, num_classes=7, **args)


def assembled(backbone):
    """All blocks and the classifier, materialised."""
    return [
        (
            block,
            materialize(
                block.module,
                backbone.initialize,
                seeds.derive(3, block.name),
                CPU,
                torch.float32,
            ),
        )
        for block in [*backbone.blocks, backbone.classifier]
    ]


@pytest.fixture(params=MODELS)
def case(request):
    args, size = MODELS[request.param]
    name = request.param.strip()
    return name, args, size, registry.build(name, args, 7, (3, size, size))


def run(parts, x):
    for _, module in parts:
        x = module(x)
    return x


@pytest.mark.parametrize("training", [False, True])
def test_blocks_in_order_are_the_model(case, training):
    """Bit for bit; in training mode too, with the same draws."""
    name, args, size, backbone = case
    model = original(name, args, size).train(training)
    parts = assembled(backbone)
    for block, module in parts:
        weights.load_block(module, block, model.state_dict(), fresh=[])
        module.train(training)
    x = torch.randn(2, 3, size, size)
    torch.manual_seed(5)
    expected = model(x)
    torch.manual_seed(5)
    assert torch.equal(run(parts, x.clone()), expected)


def test_exported_weights_load_strictly(case):
    name, args, size, backbone = case
    parts = assembled(backbone)
    state = weights.model_state(parts)
    model = original(name, args, size)
    model.load_state_dict(state, strict=True)
    x = torch.randn(1, 3, size, size)
    for _, module in parts:
        module.eval()
    assert torch.equal(model.eval()(x), run(parts, x))


def test_initialisation_is_torchvisions(case):
    """Mean and deviation of every tensor, against torchvision's own fresh model."""
    name, args, size, backbone = case
    ours = weights.model_state(assembled(backbone))
    theirs = original(name, args, size).state_dict()
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        value, expected = ours[key].float(), expected.float()
        if expected.numel() == 1 or expected.std() == 0:
            assert torch.equal(value, expected), key
            continue
        std = expected.std().item()
        noise = std / expected.numel() ** 0.5
        assert value.mean().item() == pytest.approx(expected.mean().item(), abs=8 * noise), key
        slack = max(0.05, 6 / expected.numel() ** 0.5)
        assert value.std().item() == pytest.approx(std, rel=slack), key


def test_initialisation_fills_everything(case):
    """Memory full of NaN before, none after."""
    *_, backbone = case
    for block in [*backbone.blocks, backbone.classifier]:
        module = block.module.to_empty(device="cpu")
        with torch.no_grad():
            tensors = list(module.state_dict(keep_vars=True).values())
            for tensor in tensors:
                tensor.fill_(float("nan") if tensor.is_floating_point() else -12345)
            backbone.initialize(module)
            for key, tensor in module.state_dict().items():
                assert torch.isfinite(tensor).all(), (block.name, key)
                assert (tensor != -12345).all(), (block.name, key)


def test_gradients_reach_every_block_and_its_input(case):
    """And nothing writes into a block's input, which may be on its way to another stage."""
    _, _, size, backbone = case
    x = torch.randn(2, 3, size, size)
    for block, module in assembled(backbone):
        x = x.detach().requires_grad_()
        before = x.detach().clone()
        module.train()
        y = module(x)
        y.square().sum().backward()
        assert torch.equal(x.detach(), before), block.name
        if block.name != "classifier":  # a fresh ViT classifier is zero
            assert x.grad.abs().sum() > 0, block.name
        assert all(p.grad is not None for p in module.parameters()), block.name
        x = y


def test_shapes(case):
    _, _, size, backbone = case
    expected = []
    x = torch.randn(2, 3, size, size)
    for _, module in assembled(backbone)[:-1]:
        x = module(x)
        expected.append(x.shape)
    assert shapes(backbone, (2, 3, size, size)) == expected
    axes = {"NCHW": 4, "NHWC": 4, "NTC": 3, "NC": 2}
    assert all(len(shape) == axes[backbone.layout] for shape in expected)


def test_split_attention_doubles_the_blocks():
    whole = registry.build("vit", SMALL_VIT, 7, (3, 32, 32))
    halves = registry.build("vit", {**SMALL_VIT, "split_attention": True}, 7, (3, 32, 32))
    assert [b.name for b in whole.blocks] == ["patches", "encoder_layer_0", "encoder_layer_1"]
    assert [b.name for b in halves.blocks][1:3] == [
        "encoder_layer_0.attention",
        "encoder_layer_0.mlp",
    ]


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("resnet34", 224, 17),
        ("resnet101", 224, 34),
        ("resnet152", 224, 51),
        ("vit_b_16", 224, 13),
        ("vit_b_32", 224, 13),
        ("vit_l_16", 224, 25),
        ("swin_s", 224, 28),
        ("swin_b", 224, 28),
        ("vgg16", 224, 13),
        ("vgg19_bn", 224, 16),
    ],
)
def test_large_models_cost_nothing_on_paper(name, size, count):
    backbone = registry.build(name, {}, 1000, (3, size, size))
    assert len(backbone.blocks) == count
    assert len({block.name for block in backbone.blocks}) == count
    assert all(p.is_meta for block in backbone.blocks for p in block.module.parameters())
    assert len(shapes(backbone, (1, 3, size, size))) == count
