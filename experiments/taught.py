"""Heads that learn from upstream heads: `python experiments/taught.py WEIGHT CONFIG ...`.

Beside its own loss each module descends WEIGHT times the divergence of its head from a teacher: the
heads of all modules upstream and itself, together, on the same microbatch. Upstream outputs would
travel with the activations, so nothing is late, and bodies learn from it as well as heads. On one
stage, without reconciliation. The findings are in docs/results/reconciliation.md.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

from torch import Tensor

from pipeline_local.blueprint import blueprint
from pipeline_local.configfile import configfile
from pipeline_local.learning.information import LocalLoss
from pipeline_local.learning.module import LocalModule
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train


class TaughtModule(LocalModule):
    """A module whose local loss has the divergence from upstream heads in it."""

    weight = 0.0
    last_only = False
    upstream: Tensor | None = None
    """The sum of the parts of all upstream heads, for the microbatch on its way."""

    def _loss(self, y: Tensor, labels: Tensor, x: Tensor | None) -> LocalLoss:
        local, task = super()._loss(y, labels, x), self.rules.task
        summed = task.part(local.outputs.detach())
        if self.index:
            assert TaughtModule.upstream is not None, "the first module has begun the sum"
            summed = summed + TaughtModule.upstream
        TaughtModule.upstream = summed
        if not self.index or (self.last_only and self.auxiliary):
            return local
        assert task.divergence is not None, "classes have one"
        teacher = task.together(summed, self.index + 1)
        divergence = task.divergence(local.outputs, teacher, self.rules.distill.temperature)
        return local._replace(total=local.total + self.weight * divergence)


def main() -> None:
    """Train once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weight", type=float)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--last-only", action="store_true", help="teach the classifier alone")
    options = parser.parse_args()
    TaughtModule.weight, TaughtModule.last_only = options.weight, options.last_only
    config = configfile.load(options.config, options.overrides)
    with patch.object(blueprint, "LocalModule", TaughtModule):
        train(config, RankInfo())


if __name__ == "__main__":
    main()
