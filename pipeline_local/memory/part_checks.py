"""What one block or head may be, and what it may do in a step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.errors import UserError
from pipeline_local.learning.information import term_of
from pipeline_local.record.sealed import DTYPES
from pipeline_local.user_input.registry import GIVEN

REENTRANT = (
    "uses reentrant checkpointing, whose gradients go past the module; pass use_reentrant=False"
    " to torch.utils.checkpoint, or set modules.recompute=true instead"
)
"""What is wrong with a part whose gradients go past the module."""


@dataclass(frozen=True)
class CheckedPart:
    """A block or a head.

    Attributes:
        label: for people.
        key: of the configuration, which chose it.
        module: the block or head itself.
        shape: of its output for one sample, in evaluation; None: any.
    """

    label: str
    key: str
    module: nn.Module
    shape: tuple[int, ...] | None


class RefusedError(Exception):
    """What a part gives cannot be trained; the message goes on after its label."""


def model_key(blueprint: Blueprint) -> str:
    """Returns the key that the blocks come from."""
    return "model" if blueprint.config.model.name == GIVEN else "model.name"


def parts_of(blueprint: Blueprint, index: int, held: Sequence[nn.Module]) -> list[CheckedPart]:
    """Returns the blocks of a module, and its head; `held` has them in this order."""
    key, output_shape = model_key(blueprint), blueprint.task.output_shape
    blocks = [
        CheckedPart(
            f"block {blueprint.backbone.blocks[i].name!r}", key, part, blueprint.output_shapes[i]
        )
        for i, part in zip(blueprint.modules[index], held, strict=False)
    ]
    if blueprint.is_last(index):
        name = blueprint.backbone.classifier.name
        return [*blocks, CheckedPart(f"block {name!r}", key, held[-1], output_shape)]
    label = f"the {blueprint.config.head.name} head of module {index + 1}"
    head = CheckedPart(label, "head.name", held[-1], output_shape)
    if (term := term_of(held[-1])) is None:
        return [*blocks, head]
    label = f"the {blueprint.config.information.name} term of module {index + 1}"
    return [*blocks, head, CheckedPart(label, "information.name", term, None)]


def check_kinds(blueprint: Blueprint, index: int) -> None:
    """Refuses what is not real and dense, as gradients, optimizers and checkpoints need it.

    Raises:
        UserError: a part has a parameter, a gradient or a buffer of another kind.
    """
    meta = [*blueprint.meta_body(index), blueprint.meta_head(index)]
    for part in parts_of(blueprint, index, meta):
        for name, parameter in part.module.named_parameters():
            if parameter.is_complex():
                raise UserError(
                    f"{part.key}: {part.label} has a parameter of {parameter.dtype} ({name}), and"
                    f" optimizers take real ones; hold torch.view_as_real of it, and use"
                    f" torch.view_as_complex in forward"
                )
        for name, layer in part.module.named_modules():
            is_table = isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
            if is_table and layer.sparse and layer.weight.requires_grad:
                raise UserError(
                    f"{part.key}: {part.label} has sparse gradients"
                    f" ({name or type(layer).__name__}), and fused optimizers take dense ones; set"
                    f" sparse=False"
                )
        for name, tensor in part.module.state_dict().items():
            if tensor.dtype not in DTYPES:
                raise UserError(
                    f"{part.key}: {part.label} has a buffer of {tensor.dtype} ({name}), which no"
                    f" checkpoint holds; register it with persistent=False, or another dtype"
                )


def _frozen(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if not p.requires_grad)


class Watch:
    """Notes which part is running, and looks at what it gives.

    Attributes:
        now: the part that is running.
    """

    def __init__(self, parts: Sequence[CheckedPart]) -> None:
        self.now: CheckedPart | None = None
        self._evaluated: dict[str, torch.dtype] = {}
        self._seen: set[Any] = set()
        self._versions: dict[str, int] = {}
        self._saved = {
            p.label: {n: t.shape for n, t in p.module.state_dict().items()} for p in parts
        }
        for part in parts:
            part.module.register_forward_pre_hook(partial(self._before, part))
            part.module.register_forward_hook(partial(self._after, part))

    def _before(self, part: CheckedPart, module: nn.Module, args: tuple[Any, ...]) -> Any:  # noqa: ANN401
        self.now = part
        self._versions = {name: tensor._version for name, tensor in _frozen(module)}
        x = args[0]
        if torch.is_grad_enabled() and x.is_floating_point() and not x.requires_grad:
            return (x.detach().requires_grad_(),)  # what happens inside has a graph then
        return None

    def _after(
        self, part: CheckedPart, module: nn.Module, args: tuple[Any, ...], y: object
    ) -> None:
        mode = "while training" if module.training else "in evaluation"
        if not isinstance(y, Tensor) or not y.is_floating_point():
            kind = str(y.dtype) if isinstance(y, Tensor) else type(y).__name__
            raise RefusedError(
                f"gives {kind} {mode} instead of a tensor of numbers; return one in both modes"
            )
        shape = y.shape if part.shape is None else (len(args[0]), *part.shape)
        if tuple(y.shape) != tuple(shape):
            raise RefusedError(
                f"gives {list(y.shape)} {mode}, and {list(shape)} are needed; return the same"
                f" shape in both modes"
            )
        evaluated = self._evaluated.setdefault(part.label, y.dtype)
        if module.training and y.dtype != evaluated:
            raise RefusedError(
                f"gives {y.dtype} {mode} and {evaluated} in evaluation; return the same in both"
            )
        if self._reaches_checkpoint(y):
            raise RefusedError(REENTRANT)
        self._check_buffers(part)
        self._check_frozen(part)
        self.now = None

    def _check_buffers(self, part: CheckedPart) -> None:
        for name, buffer in part.module.named_buffers():
            before = self._saved[part.label].get(name, buffer.shape)
            if buffer.requires_grad:
                raise RefusedError(
                    f"keeps the graph of a step in its buffer {name}; assign a detached tensor"
                )
            if buffer.shape != before:
                raise RefusedError(
                    f"changes the shape of its buffer {name} from {list(before)} to"
                    f" {list(buffer.shape)}, with which no checkpoint could be loaded; keep one"
                    f" shape, or register it with persistent=False"
                )

    def _check_frozen(self, part: CheckedPart) -> None:
        for name, tensor in _frozen(part.module):
            if tensor._version != self._versions.get(name, tensor._version):
                raise RefusedError(
                    f"writes to its frozen parameter {name}, also in second passes and evaluations;"
                    f" register it as a buffer"
                )

    def _reaches_checkpoint(self, y: Tensor) -> bool:
        """Whether there is a reentrant checkpoint, torch's or another library's, in the graph."""
        nodes = [y.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in self._seen:
                continue
            if "CheckpointFunction" in node.name():
                return True
            self._seen.add(node)
            nodes.extend(following for following, _ in node.next_functions)
        return False
