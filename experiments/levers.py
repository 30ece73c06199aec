"""Two cheaper kinds of heads, tried and left out: `python experiments/levers.py LEVER CONFIG ...`.

`every2`: auxiliary modules learn on every second step alone, and pass batches through in others.
`shared`: of auxiliary heads that are alike, only the last one learns; the others are copies of it.
On one stage, without reconciliation. The findings are in docs/results/reconciliation.md.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from pipeline_local.blueprint import blueprint
from pipeline_local.configfile import configfile
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.stage import Stage
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training import trainer
from pipeline_local.training.train import train


class RestingModule(LocalModule):
    """A module that learns on every second step, if its head is an auxiliary one."""

    def rests(self, step: Step) -> bool:
        """Whether it has nothing to learn in this step."""
        return self.auxiliary and step.number % 2 > 0

    def signal(self) -> Tensor:
        """Return the signal; zeros where it rests."""
        now = self._now()
        return torch.zeros_like(now.y) if self.rests(now.step) else super().signal()

    def learn(self) -> tuple[Tensor, ...]:
        """Run act 3; where it rests, do nothing."""
        return () if self.rests(self._now().step) else super().learn()

    def update(self, step: Step) -> None:
        """Run an optimizer step; where it rests, do nothing."""
        if not self.rests(step):
            super().update(step)


class SharingStage(Stage):
    """A stage whose modules share heads."""

    def train(self, step: Step) -> None:
        """Do one optimizer step of every module, then copy heads upstream."""
        super().train(step)
        self.copy_heads()

    @torch.no_grad()
    def copy_heads(self) -> None:
        """Give heads the parameters of the last one that is like them."""
        last: dict[object, LocalModule] = {}
        for module in reversed([module for module in self.modules if module.auxiliary]):
            named = dict(module.head.named_parameters())
            owner = last.setdefault(tuple((n, p.shape) for n, p in named.items()), module)
            for name, parameter in owner.head.named_parameters():
                named[name].copy_(parameter)


LEVERS: dict[str, tuple[object, str, type]] = {
    "every2": (blueprint, "LocalModule", RestingModule),
    "shared": (trainer, "Stage", SharingStage),
}
"""Where a class is looked up, and what stands in for it."""


def main() -> None:
    """Train once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lever", choices=LEVERS)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = configfile.load(options.config, options.overrides)
    with patch.object(*LEVERS[options.lever]):
        train(config, RankInfo())


if __name__ == "__main__":
    main()
