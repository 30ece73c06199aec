"""The measurements of a run as one data frame."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_local.configfile import configfile
from pipeline_local.errors import UserError
from pipeline_local.record import history
from pipeline_local.record.folder import RunFolder
from pipeline_local.user_input.json_text import Facts

if TYPE_CHECKING:
    import pandas as pd


def load_metrics(run: str | Path) -> "pd.DataFrame":
    """Return the measurements of a run: a row for each module, step and event.

    The columns are `event` ("train" or "test"), `step`, `epoch`, `time`, `stage`, `module` (from
    1), then what the module has measured (`loss`, `accuracy`, `cosine`, ...) and what its stage has
    (`lr`, `samples_per_second`, `waiting_up`, ...). Where a run has been resumed, what an earlier
    start has done after that checkpoint is left out.

    Args:
        run: the run folder; the run may still go on.

    Raises:
        UserError: there is no such run, or pandas is not installed.

    Example:
        >>> short = ["data.limit=256", "train.epochs=1", "run.dir=runs/seen"]
        >>> config = load_config("configs/digits.yaml", short)
        >>> summary = train(config)
        >>> frame = load_metrics("runs/seen")
        >>> sorted(frame.event.unique())
        ['test', 'train']
    """
    try:
        import pandas as pd
    except ImportError:
        raise UserError(
            'a table of metrics needs pandas, which is missing; pip install "pipeline-local[frame]"'
        ) from None
    folder = RunFolder(configfile.path("run", run))
    rows = [row for facts in history.lines(folder) for row in _rows(facts)]
    if not rows:
        raise UserError(f"{run} has no metrics; give the run.dir of a run that has logged a step")
    frame = pd.DataFrame(rows)
    key = ["event", "step", "module"]
    newest = frame.drop_duplicates(key, keep="last").sort_values(["step", "event", "module"])
    return newest.reset_index(drop=True)


def _rows(facts: Facts) -> Iterator[Facts]:
    """A row for each module of a line."""
    modules = facts.pop("modules")
    parted = {name: value for name, value in facts.items() if isinstance(value, dict)}
    first = {name: facts.pop(name, None) for name in ("event", "step", "epoch", "time", "stage")}
    parts = {
        f"{name}_{part}": value for name, values in parted.items() for part, value in values.items()
    }
    for name in parted:
        del facts[name]
    for number, row in modules.items():
        yield {**first, "module": int(number), **row, **facts, **parts}
