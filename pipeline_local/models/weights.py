"""Weights under the model's usual names: in from a state dict file, out to one."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline_local.errors import UserError
from pipeline_local.models.backbone import Backbone, Block


def load(path: Path) -> dict[str, Tensor]:
    """Read a state dict: .safetensors, or what `torch.save` wrote (weights only, never code).

    Raises:
        UserError: missing, unreadable, or no dict of tensors.
    """
    if not path.is_file():
        raise UserError(f"model.weights: {path} does not exist; name a state dict file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.weights: {path} cannot be read ({reason}); is it whole?") from None
    except Exception as error:  # UnpicklingError and whatever a foreign file provokes
        raise UserError(
            f"model.weights: {path} is not a plain state dict ({type(error).__name__});"
            f" save model.state_dict() alone"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"model.weights: {path} holds no state dict; save model.state_dict() alone")
    return state


def check(backbone: Backbone, state: Mapping[str, Tensor]) -> list[str]:
    """Compare a state dict with the backbone.

    Returns:
        Names of the classifier that keep fresh weights: absent, or of another number of classes.

    Raises:
        UserError: anything else is missing, unexpected or of another shape.
    """
    body = _shapes(backbone.blocks)
    classifier = _shapes([backbone.classifier])
    wanted = body | classifier
    fresh = [n for n, shape in classifier.items() if n not in state or state[n].shape != shape]
    groups = {
        "missing": [name for name in body if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [n for n, s in body.items() if n in state and state[n].shape != s],
    }
    found = [f"{what}: {_few(names)}" for what, names in groups.items() if names]
    if found:
        raise UserError(
            f"model.weights does not fit the model; {'; '.join(found)};"
            f" set model.* as in the model that was saved"
        )
    return fresh


def load_block(
    module: nn.Module, block: Block, state: Mapping[str, Tensor], fresh: Iterable[str]
) -> None:
    """Copy a block's part of a checked state dict into its module."""
    keep = set(fresh)
    own = module.state_dict()
    part = {n: own[n] if block.prefix + n in keep else state[block.prefix + n] for n in own}
    module.load_state_dict(part, strict=True)


def model_state(parts: Iterable[tuple[Block, nn.Module]]) -> dict[str, Tensor]:
    """The whole model's state dict from its blocks, each with the module that holds its weights."""
    return {
        block.prefix + name: value.detach().cpu()
        for block, module in parts
        for name, value in module.state_dict().items()
    }


def _shapes(blocks: Iterable[Block]) -> dict[str, torch.Size]:
    return {
        block.prefix + name: value.shape
        for block in blocks
        for name, value in block.module.state_dict().items()
    }


def _few(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
