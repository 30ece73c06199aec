"""Weights under the model's usual names: in from a state dict file, out to one."""

import pickle
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline_local.errors import UserError, few
from pipeline_local.models.backbone import Backbone, Block

_WRAPPERS = ("state_dict", "model")  # what training scripts call the state dict in a checkpoint


def load(path: Path) -> dict[str, Tensor]:
    """Read a state dict: .safetensors, or what `torch.save` wrote (weights only, never code).

    Raises:
        UserError: missing, unreadable, or no flat dict of tensors.
    """
    if not path.is_file():
        raise UserError(f"model.weights: {path} does not exist; name a state dict file")
    state = _read(path)
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(map(_is_entry, state.items())):
        raise UserError(f"model.weights: {path} holds no state dict; save model.state_dict() alone")
    return dict(state)


def _is_entry(item: tuple[object, object]) -> bool:
    name, value = item
    return isinstance(name, str) and isinstance(value, Tensor)


def _read(path: Path) -> Any:  # noqa: ANN401 (whatever is in the file)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _read_pickle(path)
    except pickle.UnpicklingError:
        raise UserError(
            f"model.weights: {path} is not a plain state dict, and code in it is never run;"
            f" save model.state_dict() alone"
        ) from None
    except Exception as error:  # a broken file makes torch raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"model.weights: {path} cannot be read ({reason}); is it whole?") from None


def _read_pickle(path: Path) -> Any:  # noqa: ANN401 (whatever is in the file)
    """Mapped into memory, so that a rank reads its own blocks only; old files cannot be mapped."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        return torch.load(path, map_location="cpu", weights_only=True)


def check(backbone: Backbone, state: Mapping[str, Tensor]) -> list[str]:
    """Compare a state dict with the backbone.

    Returns:
        Names of the classifier that keep fresh weights: absent, or of another number of classes.

    Raises:
        UserError: anything else is missing, unexpected or of another shape.
    """
    body, classifier = _shapes(backbone.blocks), _shapes([backbone.classifier])
    fresh = _fresh(classifier, state)
    wanted = body | classifier
    groups = {
        "missing": [name for name in body if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in state and name not in fresh and state[name].shape != shape
        ],
    }
    found = [f"{what}: {few(names)}" for what, names in groups.items() if names]
    if found:
        raise UserError(
            f"model.weights does not fit the model; {'; '.join(found)};"
            f" set model.name and model.* as in the model that was saved"
        )
    return fresh


def load_block(
    module: nn.Module, block: Block, state: Mapping[str, Tensor], fresh: Collection[str]
) -> None:
    """Copy a block's part of a checked state dict into its module, but for the names in `fresh`."""
    own = module.state_dict()
    part = {n: own[n] if block.prefix + n in fresh else state[block.prefix + n] for n in own}
    module.load_state_dict(part, strict=True)


def model_state(parts: Iterable[tuple[Block, nn.Module]]) -> dict[str, Tensor]:
    """The whole model's state dict from its blocks, each with the module that holds its weights.

    In the order of the blocks, on the CPU.
    """
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


def _fresh(classifier: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> list[str]:
    """Absent, or different in nothing but the number of classes: the last layer's first axis."""
    num_classes = [shape[0] for shape in classifier.values() if shape][-1:]

    def only_classes_differ(got: torch.Size, want: torch.Size) -> bool:
        return len(got) == len(want) and got[1:] == want[1:] and [*want[:1]] == num_classes

    return [
        name
        for name, want in classifier.items()
        if name not in state
        or (state[name].shape != want and only_classes_differ(state[name].shape, want))
    ]
