"""torchvision's Vision Transformer: patches and encoder layers (or halves of them) are blocks."""

from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock, MLPBlock, VisionTransformer

from pipeline_local.config import Positive
from pipeline_local.errors import UserError
from pipeline_local.layout import ImageShape
from pipeline_local.models.backbone import Backbone, Block, reset_parameters
from pipeline_local.models.torchvision_models import (
    Probability,
    Steps,
    check_channels,
    whole,
)


class Positions(nn.Module):
    """Tokens [B, T, C] -> the same plus their learned position, and dropout."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.pos_embedding = encoder.get_parameter("pos_embedding")
        self.dropout = encoder.get_submodule("dropout")

    def forward(self, x: Tensor) -> Tensor:
        """As the Encoder does it before its first layer."""
        y: Tensor = self.dropout(x + self.pos_embedding)
        return y


class Patches(nn.Module):
    """Images [B, 3, H, W] -> tokens [B, 1 + patches, C]: projection, class token, position."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.class_token = model.get_parameter("class_token")
        self.conv_proj = model.get_submodule("conv_proj")
        self.encoder = Positions(model.get_submodule("encoder"))

    def forward(self, x: Tensor) -> Tensor:
        """As the VisionTransformer does it, up to the first layer."""
        tokens = self.conv_proj(x).flatten(2).permute(0, 2, 1)
        # not len(x), which would fix the batch of an exported program
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], dim=1)
        y: Tensor = self.encoder(tokens)
        return y


class Attention(nn.Module):
    """The first half of an encoder layer: tokens [B, T, C] -> tokens."""

    def __init__(self, layer: EncoderBlock) -> None:
        super().__init__()
        self.ln_1 = layer.ln_1
        self.self_attention = layer.self_attention
        self.dropout = layer.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Self-attention with its residual."""
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False)
        z: Tensor = self.dropout(y) + x
        return z


class Mlp(nn.Module):
    """The second half of an encoder layer: tokens [B, T, C] -> tokens."""

    def __init__(self, layer: EncoderBlock) -> None:
        super().__init__()
        self.ln_2 = layer.ln_2
        self.mlp = layer.mlp

    def forward(self, x: Tensor) -> Tensor:
        """MLP with its residual."""
        z: Tensor = x + self.mlp(self.ln_2(x))
        return z


class Classifier(nn.Module):
    """Tokens [B, T, C] -> logits [B, classes]: norm, class token, heads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder = Steps(ln=model.get_submodule("encoder.ln"))
        self.heads = model.get_submodule("heads")

    def forward(self, x: Tensor) -> Tensor:
        """As the VisionTransformer does it after its last layer."""
        logits: Tensor = self.heads(self.encoder(x)[:, 0])
        return logits


def build(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    dropout: Probability = 0.0,
    attention_dropout: Probability = 0.0,
    representation_size: Positive | None = None,
    image_size: int | None = None,
    split_attention: bool = False,
) -> Backbone:
    """torchvision's ViT of this name; the further arguments are torchvision's own.

    Args:
        image_size: the data's own; saying another is an error.
        split_attention: make a block of each half of an encoder layer, so that a module can be a
            single residual branch.

    Raises:
        UserError: the images are not square, or not of `image_size`.
    """
    model = whole(
        name,
        num_classes,
        image_shape,
        image_size=_side(name, image_shape, image_size),
        dropout=dropout,
        attention_dropout=attention_dropout,
        representation_size=representation_size,
    )
    return _cut(model, split_attention)


def build_any(
    num_classes: int,
    image_shape: ImageShape,
    patch_size: Positive,
    num_layers: Positive,
    num_heads: Positive,
    hidden_dim: Positive,
    mlp_dim: Positive,
    dropout: Probability = 0.0,
    attention_dropout: Probability = 0.0,
    representation_size: Positive | None = None,
    image_size: int | None = None,
    split_attention: bool = False,
) -> Backbone:
    """A ViT of any size; the arguments are those of `build` and torchvision's own.

    Raises:
        UserError: the images are not square, or not of `image_size`.
    """
    check_channels("vit", image_shape)
    model = VisionTransformer(
        image_size=_side("vit", image_shape, image_size),
        patch_size=patch_size,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        mlp_dim=mlp_dim,
        dropout=dropout,
        attention_dropout=attention_dropout,
        num_classes=num_classes,
        representation_size=representation_size,
    )
    return _cut(model, split_attention)


def _side(name: str, image_shape: ImageShape, image_size: int | None) -> int:
    _, height, width = image_shape
    if height != width:
        raise UserError(
            f"model.name: {name} takes square images, got {height}x{width}; crop or resize them"
        )
    if image_size not in (None, height):
        raise UserError(
            f"model.image_size: should be the data's own size {height}, got {image_size};"
            f" leave it out"
        )
    return height


def _cut(model: Any, split_attention: bool) -> Backbone:  # noqa: ANN401 (torchvision is untyped)
    blocks = [Block("patches", Patches(model))]
    for name, layer in model.encoder.layers.named_children():
        prefix = f"encoder.layers.{name}."
        if split_attention:
            blocks.append(Block(f"{name}.attention", Attention(layer), prefix))
            blocks.append(Block(f"{name}.mlp", Mlp(layer), prefix))
        else:
            blocks.append(Block(name, layer, prefix))
    return Backbone(tuple(blocks), Block("classifier", Classifier(model)), initialize, "NTC")


def initialize(module: nn.Module) -> None:
    """torchvision's rule for ViTs; attention and norms initialise themselves."""
    reset_parameters(module)
    for layer in module.modules():
        if isinstance(layer, MLPBlock):
            _initialize_mlp(layer)
        elif isinstance(layer, Patches):
            _initialize_patches(layer)
        elif isinstance(layer, Positions):
            nn.init.normal_(layer.pos_embedding, std=0.02)
        elif isinstance(layer, Classifier):
            _initialize_heads(layer.heads)


def _initialize_mlp(mlp: nn.Module) -> None:
    for layer in mlp.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)


def _initialize_patches(patches: Patches) -> None:
    nn.init.zeros_(patches.class_token)
    weight = patches.conv_proj.get_parameter("weight")
    nn.init.trunc_normal_(weight, std=sqrt(1 / prod(weight.shape[1:])))
    nn.init.zeros_(patches.conv_proj.get_parameter("bias"))


def _initialize_heads(heads: nn.Module) -> None:
    """The last layer starts at zero; the one before it, where there is one, does not."""
    for name, layer in heads.named_children():
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            if name == "pre_logits":
                nn.init.trunc_normal_(layer.weight, std=sqrt(1 / layer.in_features))
