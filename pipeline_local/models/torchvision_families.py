"""torchvision's other image classifiers: each a chain of units under a classifier.

Every builder takes torchvision's own further arguments; None keeps the default of the name.

MNASNet is not among them: torchvision's refuses any state dict that does not carry its version,
which no weights file does, so what is trained here could not be loaded there.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import convnext as tv_convnext
from torchvision.models import densenet as tv_densenet
from torchvision.models import efficientnet as tv_efficientnet
from torchvision.models import maxvit as tv_maxvit
from torchvision.models import mobilenetv2, mobilenetv3, shufflenetv2
from torchvision.models import regnet as tv_regnet
from torchvision.models import squeezenet as tv_squeezenet

from pipeline_local.config import Positive
from pipeline_local.errors import counted
from pipeline_local.layout import ImageShape
from pipeline_local.models.backbone import Backbone, reset_parameters
from pipeline_local.models.torchvision_models import (
    Probability,
    Steps,
    cut,
    initialize_fan_out,
    initializer,
    kaiming_fan_out,
    whole,
)

Factor = Annotated[float, Field(gt=0)]
POOLED = ("avgpool", "flatten", "classifier")


def alexnet(
    name: str, num_classes: int, image_shape: ImageShape, dropout: Probability = 0.5
) -> Backbone:
    """AlexNet: every convolution is a block, the linear layers are the classifier."""
    model = whole(name, num_classes, image_shape, dropout=dropout)
    return cut(model, (nn.Conv2d,), POOLED, reset_parameters)


def convnext(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    stochastic_depth_prob: Probability | None = None,
    layer_scale: float = 1e-6,
) -> Backbone:
    """ConvNeXt: the stem, every CNBlock and every downsampling are blocks."""
    args = {"stochastic_depth_prob": stochastic_depth_prob, "layer_scale": layer_scale}
    model = whole(name, num_classes, image_shape, **args)
    rule = partial(_initialize_convnext, layer_scale)
    return cut(model, (tv_convnext.CNBlock,), ("avgpool", "classifier"), rule)


def _initialize_convnext(layer_scale: float, module: nn.Module) -> None:
    _truncated(module)
    for layer in module.modules():
        if isinstance(layer, tv_convnext.CNBlock):
            nn.init.constant_(layer.layer_scale, layer_scale)


class DenseLayer(Steps):
    """[B, C, H, W] -> [B, C + growth, H, W]: the input, and behind it what the layer adds.

    A dense block concatenates the outputs of all its layers. One layer after the other, that is
    a chain of single tensors, and equal to the bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The input and the new features."""
        return torch.cat([x, super().forward(x)], 1)


def densenet(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    drop_rate: Probability = 0.0,
    bn_size: Positive = 4,
) -> Backbone:
    """DenseNet: the stem, every dense layer and every transition are blocks.

    torchvision's `memory_efficient` is `modules.recompute` here.
    """
    model = whole(name, num_classes, image_shape, drop_rate=drop_rate, bn_size=bn_size)
    for dense_block in model.features:
        if isinstance(dense_block, tv_densenet._DenseBlock):
            for key, layer in dense_block.items():
                steps = dict(layer.named_children()) | {"dropout": nn.Dropout(drop_rate)}
                dense_block[key] = DenseLayer(**steps)
    head = ("features.norm5", "relu", *POOLED)
    return replace(cut(model, (DenseLayer,), head, _initialize_densenet), adopt=_adopt_densenet)


_PUBLISHED = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
"""Names in the files that torchvision offers, which it maps itself when it loads them."""


def _adopt_densenet(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    found = {name: _PUBLISHED.sub(r"\1\2", name) for name in state}
    count = sum(old != new for old, new in found.items())
    note = f"{counted(count, 'name')} like norm.1 and conv.2 become norm1 and conv2"
    return {found[name]: value for name, value in state.items()}, [note] if count else []


_kaiming_convolutions = initializer({nn.Conv2d: nn.init.kaiming_normal_})


def _initialize_densenet(module: nn.Module) -> None:
    _kaiming_convolutions(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)


def efficientnet(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    dropout: Probability | None = None,
    stochastic_depth_prob: Probability = 0.2,
) -> Backbone:
    """EfficientNet of both versions: the stem, every MBConv and the last convolution are blocks."""
    args = {"dropout": dropout, "stochastic_depth_prob": stochastic_depth_prob}
    model = whole(name, num_classes, image_shape, **args)
    units = (tv_efficientnet.MBConv, tv_efficientnet.FusedMBConv)
    return cut(model, units, POOLED, initializer({nn.Conv2d: kaiming_fan_out, nn.Linear: _uniform}))


def _uniform(weight: Tensor) -> None:
    bound = 1 / math.sqrt(len(weight))
    nn.init.uniform_(weight, -bound, bound)


def inception(
    name: str, num_classes: int, image_shape: ImageShape, dropout: Probability | None = None
) -> Backbone:
    """GoogLeNet and Inception v3, without auxiliary classifiers: every convolution of the stem and
    every Inception module are blocks."""
    args = {"aux_logits": False, "init_weights": False, "dropout": dropout}
    model = whole(name, num_classes, image_shape, **args)
    order = ("flatten", "dropout") if name == "googlenet" else ("dropout", "flatten")
    rule = partial(_initialize_inception, 0.01 if name == "googlenet" else 0.1)
    return replace(cut(model, (), ("avgpool", *order, "fc"), rule), adopt=_adopt_inception)


_AUXILIARY = {"aux1", "aux2", "AuxLogits"}


def _adopt_inception(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    kept = {name: value for name, value in state.items() if not _AUXILIARY & {*name.split(".")}}
    count = len(state) - len(kept)
    note = f"{counted(count, 'tensor')} of auxiliary classifiers are left out"
    return kept, [note] if count else []


def _initialize_inception(std: float, module: nn.Module) -> None:
    """Some layers of Inception v3 carry their own standard deviation."""
    reset_parameters(module)
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            own = float(getattr(layer, "stddev", std))
            nn.init.trunc_normal_(layer.weight, std=own, a=-2, b=2)


def maxvit(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    mlp_dropout: Probability = 0.0,
    attention_dropout: Probability = 0.0,
) -> Backbone:
    """MaxViT: the stem and every layer (MBConv, window and grid attention) are blocks."""
    args = {"mlp_dropout": mlp_dropout, "attention_dropout": attention_dropout}
    model = whole(name, num_classes, image_shape, input_size=image_shape[1:], **args)
    return cut(model, (tv_maxvit.MaxVitLayer,), ("classifier",), _initialize_maxvit)


def _initialize_maxvit(module: nn.Module) -> None:
    _plain(module)
    for layer in module.modules():
        if isinstance(layer, tv_maxvit.RelativePositionalMultiHeadAttention):
            nn.init.trunc_normal_(layer.relative_position_bias_table, std=0.02)
            index = tv_maxvit._get_relative_position_index(layer.size, layer.size)
            layer.relative_position_index.copy_(index)


def mobilenet_v2(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    dropout: Probability = 0.2,
    width_mult: Factor = 1.0,
) -> Backbone:
    """MobileNet v2: the stem, every inverted residual and the last convolution are blocks."""
    model = whole(name, num_classes, image_shape, dropout=dropout, width_mult=width_mult)
    return cut(model, (mobilenetv2.InvertedResidual,), POOLED, initialize_fan_out)


def mobilenet_v3(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    dropout: Probability = 0.2,
    width_mult: Factor = 1.0,
    reduced_tail: bool = False,
    dilated: bool = False,
) -> Backbone:
    """MobileNet v3: the stem, every inverted residual and the last convolution are blocks."""
    args = {"width_mult": width_mult, "reduced_tail": reduced_tail, "dilated": dilated}
    model = whole(name, num_classes, image_shape, dropout=dropout, **args)
    return cut(model, (mobilenetv3.InvertedResidual,), POOLED, initialize_fan_out)


def regnet(name: str, num_classes: int, image_shape: ImageShape) -> Backbone:
    """RegNet X and Y: the stem and every residual block are blocks."""
    with _SizesOnTheCpu():
        model = whole(name, num_classes, image_shape)
    head = ("avgpool", "flatten", "fc")
    return cut(model, (tv_regnet.ResBottleneckBlock,), head, _initialize_regnet)


class _SizesOnTheCpu(TorchFunctionMode):
    """torchvision computes a RegNet's widths with small tensors, which the meta device has not."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever torch gives)
        counts = func is torch.arange or (func is torch.tensor and isinstance(args[0], list))
        return func(*args, **(kwargs or {}) | ({"device": "cpu"} if counts else {}))


def _initialize_regnet(module: nn.Module) -> None:
    """Biases of convolutions (in squeeze-and-excitation) are torch's own."""
    _convolution_weights(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)


_convolution_weights = initializer({nn.Conv2d: kaiming_fan_out}, zero_biases=False)


def shufflenet(name: str, num_classes: int, image_shape: ImageShape) -> Backbone:
    """ShuffleNet v2: the stem, every inverted residual and the last convolution are blocks."""
    model = whole(name, num_classes, image_shape)
    return cut(model, (shufflenetv2.InvertedResidual,), ("mean", "fc"), reset_parameters)


def squeezenet(
    name: str, num_classes: int, image_shape: ImageShape, dropout: Probability = 0.5
) -> Backbone:
    """SqueezeNet: the first convolution and every Fire are blocks; a convolution classifies."""
    model = whole(name, num_classes, image_shape, dropout=dropout)
    return cut(model, (tv_squeezenet.Fire,), ("classifier", "flatten"), _initialize_squeezenet)


def _initialize_squeezenet(module: nn.Module) -> None:
    _kaiming_uniform(module)
    if isinstance(module, Steps) and "classifier" in dict(module.named_children()):
        nn.init.normal_(module.get_parameter("classifier.1.weight"), std=0.01)


_kaiming_uniform = initializer({nn.Conv2d: nn.init.kaiming_uniform_})
_normal = partial(nn.init.normal_, std=0.02)
_plain = initializer({nn.Conv2d: _normal, nn.Linear: _normal})
_truncate = partial(nn.init.trunc_normal_, std=0.02)
_truncated = initializer({nn.Conv2d: _truncate, nn.Linear: _truncate})

BUILDERS: dict[tuple[str, ...], Callable[..., Backbone]] = {
    ("alexnet",): alexnet,
    ("convnext_",): convnext,
    ("densenet",): densenet,
    ("efficientnet_",): efficientnet,
    ("googlenet", "inception_v3"): inception,
    ("maxvit_",): maxvit,
    ("mobilenet_v2",): mobilenet_v2,
    ("mobilenet_v3_",): mobilenet_v3,
    ("regnet_",): regnet,
    ("shufflenet_",): shufflenet,
    ("squeezenet",): squeezenet,
}
"""How the models are built whose names start with one of these."""
