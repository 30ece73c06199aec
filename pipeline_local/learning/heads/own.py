"""A user's own head: what its entry sets while it builds one is kept, as is the head's input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline_local.errors import UserError
from pipeline_local.side_effects.building import (
    Record,
    fill_rest,
    give_shapes,
    loses_values,
    own_tensors,
)
from pipeline_local.side_effects.writes import keeps_input, on_a_copy
from pipeline_local.user_input.user_code import reason

_AGAIN = "_built_again"


class _BuiltAgain:
    """Fills a head by building it once more, on the CPU; copies of the head share it."""

    def __init__(self, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
        self._make = make
        self._shape = shape

    def __deepcopy__(self, memo: Any) -> "_BuiltAgain":  # noqa: ANN401
        return self

    def fill(self, head: nn.Module) -> None:
        """Copy the values of another such head."""
        other, _ = _made(self._make, self._shape, "cpu")
        for layer, source in zip(head.modules(), other.modules(), strict=True):
            values = dict(own_tensors(source))
            for name, tensor in own_tensors(layer):
                if values[name].device.type == "meta":
                    raise UserError(
                        f"head.name: {type(head).__name__} sets values while it is built, and holds"
                        f" {name}, which has none then; give it a method initialize()"
                    )
                tensor.copy_(values[name])


def build(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    initialize: Callable[[nn.Module], object],
) -> nn.Module:
    """Build a head on the meta device.

    Args:
        make: calls the entry.
        shape: of one sample's activations.
        initialize: fills the tensors of a head.

    Raises:
        ValueError: it does not take such activations.
        UserError: the entry fails.
    """
    try:
        head, record = _made(make, shape, "meta")
    except UserError:  # it asks for values; or it is wrong, and fails on the CPU, too
        head, record = _made(make, shape, "cpu")
    if rule(head) is None and loses_values(head, initialize, record):
        setattr(head, _AGAIN, _BuiltAgain(make, shape))
    return head.to("meta")


def rule(head: nn.Module) -> Callable[[], object] | None:
    """Return what fills a head's tensors; None: each layer fills its own."""
    again = getattr(head, _AGAIN, None)
    own: Callable[[], object] | None = getattr(head, "initialize", None)
    return (lambda: again.fill(head)) if again else own


def protected(head: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Return the head; it works on a copy of its input, if it would modify it."""
    if not keeps_input(head, torch.empty(2, *shape, device="meta")):
        on_a_copy(head)
    return head


def _made(
    make: Callable[[], nn.Module], shape: tuple[int, ...], device: str
) -> tuple[nn.Module, Record]:
    record = Record()
    with torch.device(device), record:
        head = make()
        try:
            give_shapes([head], torch.zeros(2, *shape))
        except Exception as error:  # the user's own code
            raise ValueError(reason(error)) from error
        if device == "cpu":
            fill_rest([head], lambda layer: getattr(layer, "reset_parameters", None), record)
    return head, record
