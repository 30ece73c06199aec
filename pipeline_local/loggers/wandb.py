"""Weights & Biases."""

import os
import uuid
from collections.abc import Sequence

from pipeline_local.loggers.logger import LoggedRun
from pipeline_local.loggers.rows import LogRow


class WandB:
    """Logs to one run of Weights & Biases; see `Logger`. Its variables, such as WANDB_MODE, count.

    Args:
        run: the run.
        where: the project.
    """

    def __init__(self, run: LoggedRun, where: str) -> None:
        import wandb

        known = run.known("wandb") or uuid.uuid4().hex[:8]
        run.keep("wandb", known)
        self._run = wandb.init(
            project=where,
            id=known,
            name=run.folder.name,
            resume="allow",
            config=run.config,
            dir=os.environ.get("WANDB_DIR", run.folder),
            settings=wandb.Settings(console="off"),
        )
        # not W&B's own count of steps, which cannot go back to where a run is resumed
        self._run.define_metric("*", step_metric="step")

    @property
    def address(self) -> str | None:
        """The page of the run; None offline."""
        url: str | None = self._run.url
        return url

    def write(self, rows: Sequence[LogRow]) -> None:
        """Log each row with its step."""
        for row in rows:
            self._run.log({"step": row.step, **row.values})

    def close(self, code: int) -> None:
        """Upload what is left."""
        self._run.finish(exit_code=code)
