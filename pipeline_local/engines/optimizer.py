"""Optimizers: each module has its own, with the same settings. Registry entries own options."""

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from pipeline_local.config import OptimizerConfig
from pipeline_local.engines.muon import Group, MuonWithAdamW
from pipeline_local.errors import UserError
from pipeline_local.user_input.registry import Registry

OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry(
    "optimizer.name", kind="optimizer", given=("params",)
)
"""All optimizers, by name (`optimizer.name`); `python:torch.optim:Adagrad` names one of torch's.

An entry gets a module's parameters, and those keys of the section that its signature names.
"""

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""A function that makes the optimizer of parameters."""
NUMBER = "number."
"""The prefix of plain numbers in a saved state; tensors have none."""


@OPTIMIZERS.add("sgd")
def sgd(
    params: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
) -> torch.optim.SGD:
    """SGD with Nesterov momentum, fused into one kernel."""
    made = torch.optim.SGD(
        params,
        lr=lr,
        momentum=momentum,
        nesterov=momentum > 0,
        weight_decay=weight_decay,
        fused=True,
    )
    if momentum > 0:  # torch's would be undefined after a refused first update
        for parameter in (p for group in made.param_groups for p in group["params"]):
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return made


@OPTIMIZERS.add("adamw")
def adamw(
    params: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
) -> torch.optim.AdamW:
    """AdamW with `momentum` as beta1, fused into one kernel."""
    betas = (momentum, 0.999)
    return torch.optim.AdamW(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


class _Muon:
    """The registry entry for Muon; it gets groups as `decay=matrices` makes them."""

    splits = True

    def __call__(
        self,
        params: Iterable[Group],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> MuonWithAdamW:
        """Torch's Muon for matrices; AdamW for all else, which does not decay."""
        groups = list(params)
        matrices = [p for g in groups if "weight_decay" not in g for p in g["params"]]
        flat = [p for p in matrices if p.dim() == 2]
        rest = [{"params": [p for p in matrices if p.dim() > 2]}]
        rest += [group for group in groups if "weight_decay" in group]
        rest = [group for group in rest if group["params"]]
        return MuonWithAdamW(flat, rest, lr=lr, momentum=momentum, weight_decay=weight_decay)


OPTIMIZERS.add("muon", _Muon())


def build(
    config: OptimizerConfig,
    params: Iterable[nn.Parameter],
    tables: Collection[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Return the configured optimizer of these parameters.

    Args:
        config: the section.
        params: of a module.
        tables: the embeddings and unembeddings among them.

    Raises:
        UserError: it refuses its options, or the entry makes no optimizer, or one of others.
    """
    own = {name: getattr(config, name) for name in ("lr", "momentum", "weight_decay")}
    options = OPTIMIZERS.options(config.name, config.args, own)
    params = [*params]
    splits = getattr(OPTIMIZERS.find(config.name), "splits", False)
    given = _groups(params, tables) if splits or config.decay == "matrices" else params
    try:
        made: torch.optim.Optimizer = OPTIMIZERS.make(
            config.name, torch.optim.Optimizer, {"params": given}, options
        )
    except ValueError as error:  # torch's own refuse their options by it
        raise UserError(
            f"optimizer.name: {config.name} refuses {options} ({error}); change optimizer.*"
        ) from None
    own_ids = {id(parameter) for parameter in params}
    if any(id(p) not in own_ids for group in made.param_groups for p in group["params"]):
        raise UserError(
            f"optimizer.name: {config.name} has made an optimizer of other parameters than those of"
            f" a module, which it gets; make it of these"
        )
    return made


def _groups(params: Iterable[nn.Parameter], tables: Collection[nn.Parameter]) -> list[Group]:
    """Matrices and other maps of activations; and the rest, which does not decay."""
    split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    known = {*tables}
    for parameter in params:
        split[parameter.dim() > 1 and parameter not in known].append(parameter)
    groups: list[Group] = [
        {"params": split[True]},
        {"params": split[False], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named `<parameter index>.<quantity>`."""
    return {
        f"{index}.{quantity}": value
        for index, state in optimizer.state_dict()["state"].items()
        for quantity, value in state.items()
        if isinstance(value, Tensor)
    }


def numbers(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the numbers that an optimizer keeps beside tensors, as scalars on the CPU.

    They are named `number.<parameter index>.<quantity>`, and those of its groups
    `number.group<index>.<key>`. Rates are not among them: a schedule sets those.
    """
    described = optimizer.state_dict()
    owners = {str(index): state for index, state in described["state"].items()}
    for index, group in enumerate(described["param_groups"]):
        owners[f"group{index}"] = {key: value for key, value in group.items() if key != "lr"}
    return {
        f"{NUMBER}{owner}.{quantity}": _scalar(value)
        for owner, quantities in owners.items()
        for quantity, value in quantities.items()
        if isinstance(value, int | float)
    }


def _scalar(value: float) -> Tensor:
    """A tensor whose `item` is of the same type, and the same number."""
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def load(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> None:
    """Restore the state of an optimizer from the results of `tensors` and `numbers`."""
    params: list[nn.Parameter] = [p for g in optimizer.param_groups for p in g["params"]]
    state: dict[int, dict[str, Tensor | float]] = {}
    for name, value in named.items():
        owner, quantity = name.removeprefix(NUMBER).split(".", 1)
        if owner.startswith("group"):
            optimizer.param_groups[int(owner.removeprefix("group"))][quantity] = value.item()
        elif name.startswith(NUMBER):
            state.setdefault(int(owner), {})[quantity] = value.item()
        else:
            parameter = params[int(owner)]
            if value.shape == parameter.shape:  # checkpoints do not keep strides
                value = laid_out_as(parameter, value)
            state.setdefault(int(owner), {})[quantity] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for index, saved in state.items():  # torch has made all dtypes the parameter's
        parameter = params[index]
        own = optimizer.state.get(parameter, {})
        for quantity in (own.keys() & saved.keys()) - {"step"}:
            kept = saved[quantity]
            own[quantity] = kept.to(parameter.device) if isinstance(kept, Tensor) else kept


def laid_out_as(parameter: Tensor, like: Tensor) -> Tensor:
    """Return a gradient or a state with the strides of its parameter.

    Autograd guarantees this for `.grad`, but `autograd.grad` does not. A fused optimizer reads all
    tensors in memory order, and would mix up their elements.
    """
    if like.stride() == parameter.stride():
        return like
    return torch.empty_like(parameter, dtype=like.dtype).copy_(like)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the rate of each of an optimizer's groups over the usual one."""
    usual = optimizer.defaults.get("lr") or 1.0
    return [float(group["lr"]) / usual for group in optimizer.param_groups]
