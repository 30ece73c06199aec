"""torchvision's ResNets, ViTs, Swins and VGGs as blocks.

A model is built by torchvision itself, on the meta device, and taken apart: wrappers keep the names
of its tensors, so weights travel in both directions under `strict=True`. Because blocks get their
memory one by one, torchvision's initialisation is repeated here as rules per layer.
"""

import inspect
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.swin_transformer import ShiftedWindowAttention, SwinTransformer
from torchvision.models.vgg import VGG
from torchvision.models.vision_transformer import EncoderBlock, MLPBlock, VisionTransformer

from pipeline_local.models.backbone import Backbone, Block, reset_parameters


class Steps(nn.Module):
    """Submodules under their own names, run in order."""

    def __init__(self, **steps: nn.Module) -> None:
        super().__init__()
        for name, step in steps.items():
            self.add_module(name, step)

    def forward(self, x: Tensor) -> Tensor:
        """Through every step."""
        for step in self.children():
            x = step(x)
        return x


def names() -> list[str]:
    """The models that can be built and cut; `vit` takes VisionTransformer's own arguments."""
    every = torchvision.models.list_models(module=torchvision.models)
    starts = ("resnet", "resnext", "wide_resnet", "vit_", "vgg")
    swins = ("swin_t", "swin_s", "swin_b")
    return ["vit", *(name for name in every if name.startswith(starts) or name in swins)]


def arguments(name: str) -> dict[str, inspect.Parameter]:
    """The arguments that `build` takes for this model."""
    family: type[nn.Module] = ResNet
    if name.startswith("vi"):
        family = VisionTransformer
    elif name.startswith("swin"):
        family = SwinTransformer
    elif name.startswith("vgg"):
        family = VGG
    fixed = {"self", "block", "layers", "features", "init_weights", "norm_layer"}
    fixed |= {"num_classes", "downsample_layer", "conv_stem_configs"}
    if family is SwinTransformer or name.startswith("vit_"):  # the name says these
        fixed |= {"patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim"}
        fixed |= {"embed_dim", "depths", "window_size", "stochastic_depth_prob"}
    found = inspect.signature(family.__init__).parameters
    allowed = {key: value for key, value in found.items() if key not in fixed}
    if family is VisionTransformer:
        extra = inspect.Parameter("split_attention", inspect.Parameter.KEYWORD_ONLY, default=False)
        allowed["split_attention"] = extra
    return allowed


def build(name: str, args: Mapping[str, Any], num_classes: int, image_size: int) -> Backbone:
    """torchvision's model of this name, on the meta device, taken apart.

    Args:
        name: one of `names()`.
        args: of torchvision's builder; for a ViT also `split_attention`, which makes attention
            and MLP blocks of their own.
        num_classes: outputs of the classifier.
        image_size: side in pixels; a ViT must know it.

    Raises:
        ValueError, TypeError, AssertionError, RuntimeError: torchvision refuses the arguments.
    """
    own = {key: value for key, value in args.items() if key != "split_attention"}
    if name.startswith("vi"):
        own.setdefault("image_size", image_size)
    with torch.device("meta"):
        if name == "vit":
            model: nn.Module = VisionTransformer(num_classes=num_classes, **own)
        else:
            model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **own)
    if isinstance(model, ResNet):
        return _cut_resnet(model, bool(args.get("zero_init_residual", False)))
    if isinstance(model, VisionTransformer):
        return _cut_vit(model, bool(args.get("split_attention", False)))
    if isinstance(model, SwinTransformer):
        return _cut_swin(model)
    assert isinstance(model, VGG)
    return _cut_vgg(model)


# ---- ResNet ---------------------------------------------------------------------------------


def _cut_resnet(model: ResNet, zero_init_residual: bool) -> Backbone:
    stem = Steps(conv1=model.conv1, bn1=model.bn1, relu=model.relu, maxpool=model.maxpool)
    blocks = [Block("stem", stem)]
    for group in ("layer1", "layer2", "layer3", "layer4"):
        for i, block in enumerate(getattr(model, group)):
            blocks.append(Block(f"{group}.{i}", block, f"{group}.{i}."))
    head = Steps(avgpool=model.avgpool, flatten=nn.Flatten(), fc=model.fc)
    rule = _initialize_with_zero_residual if zero_init_residual else _initialize_convolutions
    return Backbone(tuple(blocks), Block("classifier", head), rule, "NCHW")


def _initialize_convolutions(module: nn.Module) -> None:
    """He initialisation of convolutions; torch's own for norms and linear layers."""
    reset_parameters(module)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _initialize_with_zero_residual(module: nn.Module) -> None:
    """Residual branches start as zero (Goyal et al., 2017)."""
    _initialize_convolutions(module)
    for layer in module.modules():
        if isinstance(layer, Bottleneck):
            nn.init.zeros_(layer.bn3.weight)
        elif isinstance(layer, BasicBlock):
            nn.init.zeros_(layer.bn2.weight)


# ---- Vision transformer ---------------------------------------------------------------------


class Patches(nn.Module):
    """Images [B, 3, H, W] -> tokens [B, T, C]: projection, class token, position."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.conv_proj = model.conv_proj
        self.class_token = model.class_token
        self.encoder = nn.Module()
        self.encoder.register_parameter("pos_embedding", model.encoder.pos_embedding)
        self.encoder.add_module("dropout", model.encoder.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """As VisionTransformer and its Encoder do it, up to the first layer."""
        tokens = self.conv_proj(x).flatten(2).permute(0, 2, 1)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1)
        position = self.encoder.get_parameter("pos_embedding")
        return self.encoder.get_submodule("dropout")(tokens + position)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """The first half of an EncoderBlock: tokens [B, T, C] -> tokens."""

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        self.ln_1 = block.ln_1
        self.self_attention = block.self_attention
        self.dropout = block.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Self-attention with its residual."""
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False)
        return self.dropout(y) + x  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """The second half of an EncoderBlock: tokens [B, T, C] -> tokens."""

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        self.ln_2 = block.ln_2
        self.mlp = block.mlp

    def forward(self, x: Tensor) -> Tensor:
        """MLP with its residual."""
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class ClassToken(nn.Module):
    """Tokens [B, T, C] -> logits [B, classes]: norm, class token, heads."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.add_module("ln", model.encoder.ln)
        self.heads = model.heads

    def forward(self, x: Tensor) -> Tensor:
        """Only the class token matters, and the norm is per token."""
        return self.heads(self.encoder.get_submodule("ln")(x)[:, 0])  # type: ignore[no-any-return]


def _cut_vit(model: VisionTransformer, split_attention: bool) -> Backbone:
    blocks = [Block("patches", Patches(model))]
    for name, layer in model.encoder.layers.named_children():
        prefix = f"encoder.layers.{name}."
        if split_attention:
            blocks.append(Block(f"{name}.attention", Attention(layer), prefix))
            blocks.append(Block(f"{name}.mlp", Mlp(layer), prefix))
        else:
            blocks.append(Block(name, layer, prefix))
    head = Block("classifier", ClassToken(model))
    return Backbone(tuple(blocks), head, _initialize_vit, "NTC")


def _initialize_vit(module: nn.Module) -> None:
    reset_parameters(module)
    for layer in module.modules():
        if isinstance(layer, MLPBlock):
            _initialize_mlp(layer)
        elif isinstance(layer, Patches):
            _initialize_patches(layer)
        elif isinstance(layer, ClassToken):
            _initialize_class_token(layer)


def _initialize_mlp(mlp: MLPBlock) -> None:
    for layer in mlp.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)


def _initialize_patches(patches: Patches) -> None:
    nn.init.zeros_(patches.class_token)
    nn.init.normal_(patches.encoder.get_parameter("pos_embedding"), std=0.02)
    projection = patches.conv_proj
    if isinstance(projection, nn.Conv2d):
        fan_in = projection.in_channels * math.prod(projection.kernel_size)
        nn.init.trunc_normal_(projection.weight, std=math.sqrt(1 / fan_in))
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)


def _initialize_class_token(classifier: ClassToken) -> None:
    heads = dict(classifier.heads.named_children())
    nn.init.zeros_(heads["head"].weight)
    nn.init.zeros_(heads["head"].bias)
    if "pre_logits" in heads:
        std = math.sqrt(1 / heads["pre_logits"].in_features)
        nn.init.trunc_normal_(heads["pre_logits"].weight, std=std)
        nn.init.zeros_(heads["pre_logits"].bias)


# ---- Swin -----------------------------------------------------------------------------------


def _cut_swin(model: SwinTransformer) -> Backbone:
    """features alternates groups of transformer blocks with patch mergings."""
    blocks = []
    for i, part in enumerate(model.features):
        if i % 2:
            names = ((f"features.{i}.{k}", block) for k, block in enumerate(part))
            blocks += [Block(name, block, f"{name}.") for name, block in names]
        else:
            blocks.append(Block(f"features.{i}", part, f"features.{i}."))
    head = Steps(
        norm=model.norm,
        permute=model.permute,
        avgpool=model.avgpool,
        flatten=model.flatten,
        head=model.head,
    )
    return Backbone(tuple(blocks), Block("classifier", head), _initialize_swin, "NHWC")


def _initialize_swin(module: nn.Module) -> None:
    reset_parameters(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, ShiftedWindowAttention):
            nn.init.trunc_normal_(layer.relative_position_bias_table, std=0.02)
            layer.define_relative_position_index()


# ---- VGG ------------------------------------------------------------------------------------


def _cut_vgg(model: VGG) -> Backbone:
    """A block is a convolution with all that follows it up to the next one."""
    layers = list(model.features)
    starts = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    blocks = []
    for number, (start, end) in enumerate(pairwise([*starts, len(layers)])):
        part = Steps(**{str(i): layers[i] for i in range(start, end)})
        blocks.append(Block(f"conv{number + 1}", part, "features."))
    head = Steps(avgpool=model.avgpool, flatten=nn.Flatten(), classifier=model.classifier)
    return Backbone(tuple(blocks), Block("classifier", head), _initialize_vgg, "NCHW")


def _initialize_vgg(module: nn.Module) -> None:
    _initialize_convolutions(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.zeros_(layer.bias)
