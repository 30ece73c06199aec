"""Muon for matrices with AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

Group = dict[str, Any]


class MuonWithAdamW(torch.optim.Optimizer):
    """Torch's Muon and torch's AdamW over disjoint parameters.

    Both share this optimizer's state and groups, which are those of Muon first.

    Args:
        matrices: parameters of two axes, for Muon; may be empty.
        rest: groups of parameters for AdamW; may be empty.
        lr: highest learning rate of both. Muon's steps are scaled to the size of AdamW's.
        momentum: of Muon, and beta1 of AdamW.
        weight_decay: of both.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        rest: Iterable[Group],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        matrices, rest = list(matrices), list(rest)
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append(muon)
        if rest:
            adamw = torch.optim.AdamW(
                rest, lr, (momentum, 0.95), weight_decay=weight_decay, fused=True
            )
            self._parts.append(adamw)
        groups = [group for part in self._parts for group in part.param_groups]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimizer's own groups and state."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def load_state_dict(self, state_dict: Group) -> None:
        """Restore the state of both."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Run one step of both."""
        assert closure is None, "gradients are there already"
        for part in self._parts:
            part.step()
