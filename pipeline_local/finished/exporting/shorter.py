"""An exit of a language model as a shorter model of the same architecture."""

from collections.abc import Sequence

from torch import Tensor

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.errors import UserError
from pipeline_local.learning.heads.readout import ReadoutHead
from pipeline_local.learning.information import parts
from pipeline_local.learning.module import LocalModule
from pipeline_local.models.backbone import Language
from pipeline_local.models.weights import model_state


def shorter(
    blueprint: Blueprint, modules: Sequence[LocalModule]
) -> tuple[Language, dict[str, Tensor]]:
    """Return what is known of the model that ends at the head of the last module, and its weights.

    Private blocks of the head become its last layers. The temperature goes into the unembedding.

    Args:
        blueprint: of the whole run, of a language model.
        modules: the first ones, up to the exit.

    Raises:
        UserError: the head is no readout, or there is no layer before it.
    """
    number, head = len(modules), parts(modules[-1].head)[0]
    backbone = blueprint.backbone
    if not isinstance(head, ReadoutHead):
        raise UserError(
            f"--output: a folder needs head.name=readout, got {blueprint.config.head.name} at"
            f" module {number}; name a .safetensors file"
        )
    blocks = [block for module in modules for block in module.body.children()] + [*head.blocks]
    count = len(blocks) - 1  # the first one is the embedding
    if count == 0:
        raise UserError(
            f"--exit: module {number} has no layer, only the embedding; name a later module, or a"
            f" .safetensors file"
        )
    body = zip(backbone.blocks[: len(blocks)], blocks, strict=True)
    state = model_state([*body, (backbone.classifier, head.classifier)])
    named = head.classifier.named_parameters()
    own = next(name for name, parameter in named if parameter is head.weight)
    matrix = backbone.classifier.prefix + own
    state[matrix] = state[matrix] * head.temperature.detach().cpu()
    assert backbone.language, "the caller has asked"
    return backbone.language.first(count), state
