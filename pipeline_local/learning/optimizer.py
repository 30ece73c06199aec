"""Optimizers: one per module, made from the same settings."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline_local.config import OptimizerConfig


def build(config: OptimizerConfig, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; fused, so that a step is one kernel."""
    if config.name == "adamw":
        return torch.optim.AdamW(
            params,
            lr=config.lr,
            betas=(config.momentum, 0.999),
            weight_decay=config.weight_decay,
            fused=True,
        )
    params = list(params)
    sgd = torch.optim.SGD(
        params,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.momentum > 0:  # torch's own buffers hold garbage if the first update is refused
        for parameter in params:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: `<parameter index>.<quantity>`."""
    return {
        f"{index}.{quantity}": value
        for index, state in optimizer.state_dict()["state"].items()
        for quantity, value in state.items()
        if isinstance(value, Tensor)
    }


def load(optimizer: torch.optim.Optimizer, named: dict[str, Tensor]) -> None:
    """The inverse of `tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in named.items():
        index, quantity = name.split(".")
        state.setdefault(int(index), {})[quantity] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Autograd's own contract for `.grad`, which `autograd.grad` does not keep: the strides of the
    parameter. A fused optimizer walks both in memory order, and would mix up the elements."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
