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
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in named.items():
        number, quantity = name.split(".")
        parameter = params[int(number)]
        if value.shape == parameter.shape:  # a checkpoint has not kept its strides
            value = laid_out_as(parameter, value)
        state.setdefault(int(number), {})[quantity] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def laid_out_as(parameter: Tensor, like: Tensor) -> Tensor:
    """A gradient or a state with the strides of its parameter.

    It is autograd's own contract for `.grad`, which `autograd.grad` does not keep. A fused
    optimizer walks all of them in memory order, and would mix up the elements.
    """
    if like.stride() == parameter.stride():
        return like
    return torch.empty_like(parameter, dtype=like.dtype).copy_(like)
