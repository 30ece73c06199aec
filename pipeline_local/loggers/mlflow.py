"""MLflow."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from pipeline_local.errors import EXIT_STOPPED
from pipeline_local.loggers.logger import LoggedRun
from pipeline_local.loggers.rows import LogRow

T = TypeVar("T")
_MOST_PARAMS = 100
_MOST_METRICS = 1000
"""In one call, as MLflow's servers have it."""
_LONGEST = 500
"""Characters of a parameter's value, for old servers, too."""
_STATUS = {0: "FINISHED", EXIT_STOPPED: "KILLED"}


class MLflow:
    """Logs to one run of MLflow, at MLFLOW_TRACKING_URI; see `Logger`.

    Args:
        run: the run.
        where: the experiment.
    """

    address = None

    def __init__(self, run: LoggedRun, where: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        known = run.known("mlflow")
        if known is None:
            known = self._begin(run, where)
            run.keep("mlflow", known)
        else:
            self._client.update_run(known, status="RUNNING")
        self._id = known

    def _begin(self, run: LoggedRun, experiment: str) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        made: str = self._client.create_run(number, run_name=run.folder.name).info.run_id
        params = [Param(key, str(value)[:_LONGEST]) for key, value in run.config.items()]
        for part in _parts(params, _MOST_PARAMS):
            self._client.log_batch(made, params=part)
        return made

    def write(self, rows: Sequence[LogRow]) -> None:
        """Log all rows, in as few calls as MLflow allows."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, round(row.time * 1000), row.step)
            for row in rows
            for name, value in row.values.items()
        ]
        for part in _parts(metrics, _MOST_METRICS):
            self._client.log_batch(self._id, metrics=part)

    def close(self, code: int) -> None:
        """Say how the run has ended."""
        self._client.set_terminated(self._id, _STATUS.get(code, "FAILED"))


def _parts(items: list[T], most: int) -> Iterator[list[T]]:
    yield from (items[begin : begin + most] for begin in range(0, len(items), most))
