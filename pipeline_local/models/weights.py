"""Weights under the model's usual names: in from a state dict file, out to one."""

import json
import pickle
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline_local.errors import UserError, few, first_line
from pipeline_local.models.backbone import Backbone, Block
from pipeline_local.user_input.values import shorten

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "network", "net")
"""What training scripts call the state dict in a checkpoint."""
_INNER = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What wrappers of modules put into the names of tensors: DataParallel, torch.compile and so on."""
_BESIDE = {"n_averaged"}
"""What wrappers of modules keep beside the model: `swa_utils.AveragedModel` counts."""
_COUNTER = "num_batches_tracked"
_INDEX = "model.safetensors.index.json"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load(path: Path) -> dict[str, Tensor]:
    """Read a state dict: .safetensors, or what `torch.save` wrote (weights only, never code).

    Args:
        path: the file, or a folder with `model.safetensors` or its parts and their index, or that
            index.

    Raises:
        UserError: missing, unreadable, or no flat dict of tensors.
    """
    if path.name == _INDEX and path.is_file():
        path = path.parent
    if path.is_dir():
        return {name: value for part in _parts(path) for name, value in load(part).items()}
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise UserError(f"model.weights: {path} {what}; name a state dict file")
    state = _read(path)
    while isinstance(state, dict):
        inner = [state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, dict):
        raise UserError(f"model.weights: {path} holds no state dict; save model.state_dict() alone")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"model.weights: {path} holds no state dict: {shorten(name)} in it is"
                f" {type(value).__name__}; save model.state_dict() alone"
            )
    return dict(state)


def _parts(folder: Path) -> list[Path]:
    """The files of a folder that hold a state dict as Hugging Face writes it.

    Raises:
        UserError: there are none, or one that the index names is missing.
    """
    whole, index = folder / "model.safetensors", folder / _INDEX
    if whole.is_file():
        return [whole]
    try:
        names = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        parts = [folder / name for name in sorted(names)]
    except FileNotFoundError:
        raise UserError(
            f"model.weights: {folder} has no model.safetensors, nor an index of its parts; name a"
            f" state dict file, or a folder of safetensors"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model.weights: {index} cannot be read ({error}); is it whole?") from None
    if odd := [part.name for part in parts if part.parent != folder or not part.is_file()]:
        raise UserError(f"model.weights: {folder} lacks {few(odd)}, which its index names; add it")
    return parts


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
        reason = first_line(error)
        raise UserError(f"model.weights: {path} cannot be read ({reason}); is it whole?") from None


def _read_pickle(path: Path) -> Any:  # noqa: ANN401 (whatever is in the file)
    """Mapped into memory, so that a rank reads its own blocks only; old files cannot be mapped."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        return torch.load(path, map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class Fitted:
    """A state dict under the names of a model.

    Attributes:
        state: by the model's names.
        fresh: names of the classifier that keep fresh weights: absent, or of another number of
            classes.
        notes: what was made of the file, one line each.
    """

    state: dict[str, Tensor]
    fresh: list[str]
    notes: list[str]

    def check_finite(self) -> None:
        """Refuse weights that would spoil a run from its first step on; it reads all of them.

        Raises:
            UserError: one holds NaN or infinity, or would in float32.
        """
        used = ((name, value) for name, value in self.state.items() if name not in self.fresh)
        if odd := [name for name, value in used if not value.float().isfinite().all()]:
            raise UserError(
                f"model.weights: {few(odd)}: NaN or infinity in it; take an earlier checkpoint"
            )


def fitted(backbone: Backbone, state: Mapping[str, Tensor]) -> Fitted:
    """Compare a state dict with the backbone; take prefixes off its names, and add counters.

    Raises:
        UserError: anything but the classifier is missing, unexpected, or of another shape or kind.
    """
    body, classifier = _tensors(backbone.blocks), _tensors([backbone.classifier])
    wanted = body | classifier
    state, read = backbone.adopt(state) if backbone.adopt else (state, [])
    state, renamed = _renamed(state, wanted.keys())
    renamed += read
    language = backbone.language
    if language:
        state, adopted = language.adopt(state)
        renamed += adopted
    counters = [n for n in wanted if n.rpartition(".")[2] == _COUNTER and n not in state]
    # as torch loads files from before there were counters
    state |= {name: torch.zeros((), dtype=torch.int64) for name in counters}
    fresh = [] if language else _fresh(classifier, state)
    groups = {
        "missing": [name for name in (wanted if language else body) if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(value.shape)}"
            for name, value in wanted.items()
            if name in state and name not in fresh and state[name].shape != value.shape
        ],
    }
    found = [f"{what}: {few(names)}" for what, names in groups.items() if names]
    if found:
        raise UserError(
            f"model.weights does not fit the model; {'; '.join([*renamed, *found])};"
            f" set model.name and model.* as in the model that was saved"
        )
    used = {name: value for name, value in state.items() if name not in fresh}
    if odd := [why for name, value in used.items() if (why := _odd(name, value, wanted[name]))]:
        raise UserError(f"model.weights: {few(odd)}; save the weights as the model has them")
    notes = [*renamed]
    if counters:
        notes.append(f"{len(counters)} {_COUNTER} begin at 0, as there are none")
    if fresh:
        notes.append(f"the classifier keeps fresh weights: {few(fresh)}")
    return Fitted(state, fresh, [f"model.weights: {note}" for note in notes])


def _odd(name: str, value: Tensor, wanted: Tensor) -> str:
    """Why a value cannot be copied into the model's tensor as it is; empty if it can."""
    if value.is_meta:
        return f"{name} has no values (it is on the meta device)"
    if value.is_quantized or value.layout != torch.strided:
        kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
        return f"{name} is {kind}"
    kinds = _FLOATS if wanted.is_floating_point() else (wanted.dtype,)
    if value.dtype in kinds or (wanted.dtype == torch.int64 and value.dtype == torch.int32):
        return ""
    return f"{name} is {value.dtype} instead of {wanted.dtype}".replace("torch.", "")


def _renamed(
    state: Mapping[str, Tensor], wanted: Collection[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The same by the model's names, where only a prefix or the names of wrappers are in the way.

    A prefix is what stands before the model's first name.
    """
    state = {name: value for name, value in state.items() if name not in _BESIDE - {*wanted}}
    known = {_plain(name): name for name in wanted}
    first = next(iter(known), "")
    plain = {name: _plain(name) for name in state}
    outers = ["", *(p.removesuffix(first) for p in plain.values() if p.endswith(f".{first}"))]

    def names(outer: str) -> dict[str, str]:
        inner = {name: known.get(plain[name].removeprefix(outer), name) for name in state}
        return {old: old if old in wanted or new in state else new for old, new in inner.items()}

    outer = max(outers, key=lambda outer: sum(name in wanted for name in names(outer).values()))
    found = names(outer)
    if len({*found.values()}) < len(found):  # the same tensor twice: say what there is
        return dict(state), []
    parts = {p for old, new in found.items() for p in {*old.split(".")} - {*new.split(".")}}
    off = ([outer] if outer else []) + [f"{part}." for part in sorted(parts & _INNER)]
    note = [f"the prefix {' and '.join(map(repr, off))} is taken off its names"] if off else []
    return {found[name]: value for name, value in state.items()}, note


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _INNER)


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


def _tensors(blocks: Iterable[Block]) -> dict[str, Tensor]:
    """By the model's names, on the meta device."""
    return {
        block.prefix + name: value
        for block in blocks
        for name, value in block.module.state_dict().items()
    }


def _fresh(classifier: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Absent, or different in nothing but the number of classes: the last layer's first axis."""
    num_classes = [value.shape[0] for value in classifier.values() if value.shape][-1:]

    def only_classes_differ(got: torch.Size, want: torch.Size) -> bool:
        return len(got) == len(want) and got[1:] == want[1:] and [*want[:1]] == num_classes

    return [
        name
        for name, value in classifier.items()
        if name not in state
        or (
            state[name].shape != value.shape and only_classes_differ(state[name].shape, value.shape)
        )
    ]
