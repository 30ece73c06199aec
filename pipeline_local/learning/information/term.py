"""The seam for information terms: a second term of a module's local loss, beside its head's.

It makes the activations keep what the head's own loss does not ask for, and later modules may need
(InfoPro: Wang et al., ICLR 2021). It exists in training only: its parameters belong to the
auxiliary head, and are left behind with it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pipeline_local.config import InformationConfig
from pipeline_local.layout import Layout
from pipeline_local.learning.heads import initialize, own
from pipeline_local.learning.spec import Spec
from pipeline_local.user_input.registry import Registry
from pipeline_local.user_input.user_code import reason


@dataclass(frozen=True)
class Ends:
    """The two ends of a module, between which a term is attached.

    Attributes:
        layout: meaning of the axes of the activations.
        shape: shape of one sample's activations, without the batch axis.
        input_layout: meaning of the axes of the module's input; None where data has others.
        input_shape: shape of one sample's input.
        input_dtype: dtype of the input.
        labels: labels of a microbatch [B, ...].
    """

    layout: Layout
    shape: tuple[int, ...]
    input_layout: Layout | None
    input_shape: tuple[int, ...]
    input_dtype: torch.dtype
    labels: Spec


class Information(nn.Module, ABC):
    """The base class of information terms: a network behind the activations, and its loss."""

    @abstractmethod
    def forward(self, y: Tensor) -> Tensor:
        """Map activations [B, ...] to a prediction [B, ...]."""

    @abstractmethod
    def loss(self, prediction: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Return the term, a scalar and a mean over the batch.

        Args:
            prediction: what `forward` gives [B, ...].
            x: input of the module [B, ...], detached.
            labels: of the same samples [B, ...].
        """


INFORMATION: Registry[Callable[..., Information]] = Registry(
    "information.name", kind="information term", given=("ends",)
)
"""The registry of information terms, by name (`information.name`).

An entry takes `Ends` and its own options, and returns an `Information` on the meta device.
"""


def build(config: InformationConfig, ends: Ends) -> Information:
    """Build the term of one module on the meta device, uninitialised.

    Raises:
        ValueError: the term does not fit these activations, inputs or labels.
        UserError: a user's own entry fails, or returns no term.
    """
    assert config.name is not None, "who builds a term has one"
    options = INFORMATION.options(config.name, config.args)
    make = partial(INFORMATION.make, config.name, Information, {"ends": ends}, options)
    if INFORMATION.comes_with_us(config.name):
        with torch.device("meta"):
            term: Information = make()
        return term
    made = own.protected(own.build(make, ends.shape, initialize), ends.shape)
    assert isinstance(made, Information), "`make` gives nothing else"
    _check_loss(made, ends)
    return made


def _check_loss(term: Information, ends: Ends) -> None:
    """Try the loss of a user's own term, without values."""
    x = torch.empty(2, *ends.input_shape, dtype=ends.input_dtype, device="meta")
    labels = torch.empty(2, *ends.labels.shape[1:], dtype=ends.labels.dtype, device="meta")
    prediction = term(torch.empty(2, *ends.shape, device="meta"))
    try:
        value = term.loss(prediction, x, labels)
    except NotImplementedError:  # it asks for values
        return
    except Exception as error:  # the user's own code
        raise ValueError(f"its loss fails: {reason(error)}") from error
    if not isinstance(value, Tensor) or value.dim():
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"its loss must be a scalar tensor, a mean over the batch, got {got}")
    if not value.requires_grad:
        raise ValueError("its loss does not depend on what it learns")
