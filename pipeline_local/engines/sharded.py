"""The optimizer's state of a module, in shards over the replicas of its stage (ZeRO, stage 1).

Each parameter belongs to one replica, which alone holds its state, updates it, and gives the new
weights to the others. Nothing is rounded otherwise than by one optimizer with all the state, so the
weights have the same bits; this holds for any optimizer that treats parameters one by one.

Torch's ZeroRedundancyOptimizer does the same for a class and its arguments, where a registry's
entry makes an optimizer; and it loads step counts to the CPU, where a fused AdamW on a GPU cannot
read them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline_local.engines.replicas import Replicas


class ShardedOptimizer(torch.optim.Optimizer):
    """An optimizer of all parameters, of which this replica updates its own.

    Its groups have all parameters, and its state that of this replica's own ones alone.

    Args:
        whole: an optimizer of all parameters, which becomes the one of this replica's own.
        replicas: of the module's stage; each makes this together with the others.
    """

    def __init__(self, whole: torch.optim.Optimizer, replicas: Replicas) -> None:
        super().__init__([dict(group) for group in whole.param_groups], whole.defaults)
        self._replicas = replicas
        self._shards = shards(self._all_params, replicas.size)
        self._own = whole
        own = {*self._shards[replicas.index]}
        for group in whole.param_groups:
            group["params"] = [p for p in group["params"] if p in own]
        for parameter in {*whole.state} - own:
            del whole.state[parameter]
        self.state = whole.state
        self._step_supports_amp_scaling = getattr(whole, "_step_supports_amp_scaling", False)

    @property
    def _all_params(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update this replica's parameters, and take the others' from theirs.

        All replicas call it together, with equal gradients and rates.
        """
        assert closure is None, "gradients are there already"
        for group, own in zip(self.param_groups, self._own.param_groups, strict=True):
            own.update({key: value for key, value in group.items() if key != "params"})
        if (found := getattr(self, "found_inf", None)) is not None:
            self._own.found_inf = found  # type: ignore[attr-defined]
        self._own.step()
        for group, own in zip(self.param_groups, self._own.param_groups, strict=True):
            group.update({key: value for key, value in own.items() if key != "params"})
        for owner, shard in enumerate(self._shards):
            self._replicas.take(shard, owner)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore this replica's shard from the state of all parameters."""
        params, own = self._all_params, {*self._shards[self._replicas.index]}
        kept = {i: state for i, state in state_dict["state"].items() if params[i] in own}
        super().load_state_dict({**state_dict, "state": kept})
        # in place: parts of an optimizer may share it
        loaded, self.state = self.state, self._own.state
        self.state.clear()
        self.state.update(loaded)


def kind(optimizer: torch.optim.Optimizer) -> str:
    """Return the name of an optimizer's class, whether it is in shards or not."""
    return type(optimizer._own if isinstance(optimizer, ShardedOptimizer) else optimizer).__name__


def shards(params: Sequence[Tensor], count: int) -> list[list[Tensor]]:
    """Deal tensors to so many shards: the largest first, each to the shard that is smallest yet."""
    dealt: list[list[Tensor]] = [[] for _ in range(count)]
    sizes = [0] * count
    for tensor in sorted(params, key=lambda t: -t.numel()):
        least = sizes.index(min(sizes))
        dealt[least].append(tensor)
        sizes[least] += tensor.numel()
    return dealt


def gathered(
    own: Mapping[str, Tensor], replicas: Replicas, device: torch.device
) -> dict[str, Tensor]:
    """Return the tensors of all replicas on the first one, on the CPU, and nothing elsewhere.

    They travel one by one: no replica ever holds more than one that is not its own.

    Args:
        own: of this replica; what another one names alike is equal there.
        replicas: of the stage; all call it together.
        device: what the replicas' group sends from.
    """
    specs: list[dict[str, tuple[torch.Size, torch.dtype]]] = [{}] * replicas.size
    with replicas.waiting():
        mine = {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}
        dist.all_gather_object(specs, mine, group=replicas.group)
    found = {}
    for owner, theirs in enumerate(specs):
        for name, (shape, dtype) in theirs.items():
            held = own.get(name)
            sent = torch.empty(shape, dtype=dtype) if held is None else held
            sent = sent.to(device)
            replicas.take([sent], owner)
            if replicas.index == 0:
                found[name] = sent.cpu()
    return found
