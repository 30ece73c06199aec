"""What a run folder holds, read once for a report or a comparison; the run may still go on."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_local.config import ParallelConfig
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import UserError
from pipeline_local.learning.tasks import Task
from pipeline_local.placement.draw import make_task
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.record import environment
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.frame import load_metrics
from pipeline_local.user_input import yaml_text
from pipeline_local.user_input.json_text import Facts

if TYPE_CHECKING:
    import pandas as pd

NONE = "-"
"""Stands for what a run does not have."""


@dataclass(frozen=True)
class Metric:
    """The score of a run's task.

    Attributes:
        name: its name in metrics and summaries.
        percent: whether it is displayed in percent.
        shown: further metrics of each head that the task shows.
    """

    name: str = "accuracy"
    percent: bool = True
    shown: tuple[str, ...] = ()

    def text(self, value: float | None) -> str:
        """Returns a score for people; a dash where there is none."""
        if value is None:
            return NONE
        return f"{value:.2%}" if self.percent else f"{value:.4g}"


@dataclass(frozen=True)
class RecordedRun:
    """One run.

    Attributes:
        name: the shortest end of its path that no other run of the report has.
        folder: its files.
        settings: the resolved configuration, by key: `section.key`.
        frame: its measurements as `load_metrics` gives them; None where it has logged nothing yet.
        results: what summary.json holds; None of a run that is not finished.
        starts: where it was started, oldest first.
    """

    name: str
    folder: RunFolder
    settings: dict[str, Any]
    frame: "pd.DataFrame | None"
    results: Facts | None
    starts: Sequence[Facts]

    @property
    def step(self) -> int:
        """The newest step that is recorded."""
        return 0 if self.frame is None else int(self.frame.step.max())

    @property
    def num_modules(self) -> int:
        """K, as far as it is known."""
        known = 0 if self.frame is None else int(self.frame.module.max())
        return max(known, int(self.settings.get("modules.count") or 1))

    @property
    def num_stages(self) -> int:
        """S of the newest start."""
        asked = {name: self.settings.get(f"parallel.{name}") for name in ("stages", "replicas")}
        several = asked["replicas"]
        replicas = tuple(several) if isinstance(several, list) else several or 1
        ranks = self.starts[-1].get("ranks", 1) if self.starts else 1
        return Mesh.of(ParallelConfig(stages=asked["stages"], replicas=replicas), ranks).num_stages

    @property
    def begun(self) -> int:
        """The steps that were done before the newest start."""
        return int(self.starts[-1].get("step", 0)) if self.starts else 0

    @cached_property
    def metric(self) -> Metric:
        """The score of its task; by the names of the measurements where a program knows the task.

        The configuration of such a run cannot be read without that program.
        """
        with suppress(UserError, ValueError):
            info = DataInfo.from_json(self.folder.load_info())
            return _of_task(make_task(self.folder.load_config(), info))
        names = [] if self.frame is None else [*self.frame.columns]
        names = [name.removeprefix("ensemble_") for name in names if name.startswith("ensemble_")]
        return Metric(names[0], percent="accuracy" in names[0]) if names else Metric()

    @cached_property
    def heads(self) -> list[Facts]:
        """The scores of the newest complete evaluation, a row for each head; empty without one."""
        if self.frame is None:
            return []
        tests = self.frame[self.frame.event == "test"]
        sizes = tests.groupby("step").module.nunique()
        complete = sizes[sizes == self.num_modules].index
        if not len(complete):
            return []
        rows = tests[tests.step == complete.max()].sort_values("module")
        return [_known(row) for row in rows.to_dict("records")]

    @property
    def samples_per_second(self) -> float | None:
        """The rate of the finished run, or of the last step that it has logged since it started."""
        if self.results is not None:
            return float(self.results["samples_per_second"])
        if self.logged is None or "samples_per_second" not in self.logged:
            return None
        return float(self.logged.samples_per_second.iloc[-1])

    @property
    def memory(self) -> list[float]:
        """The measured peak of each stage, in bytes; empty where it is not known."""
        if self.results is not None:
            return [float(peak) for peak in self.results["peak_memory_bytes"]]
        if self.logged is None or "memory_bytes" not in self.logged:
            return []
        return [float(peak) for peak in self.logged.groupby("stage").memory_bytes.max()]

    @property
    def on_accelerator(self) -> bool:
        """Whether `memory` is that of an allocator; on a CPU it is the whole process's."""
        return bool(self.starts) and self.starts[-1].get("device", "cpu") != "cpu"

    @property
    def memory_name(self) -> str:
        """What `memory` counts, in words."""
        return "peak memory of tensors" if self.on_accelerator else "process memory"

    @property
    def logged(self) -> "pd.DataFrame | None":
        """The measurements of training steps since the newest start; None where there are none.

        Earlier ones may be those of other stages.
        """
        if self.frame is None:
            return None
        steps = self.frame[(self.frame.event == "train") & (self.frame.step > self.begun)]
        return steps if len(steps) else None


def read(paths: Sequence[Path]) -> list[RecordedRun]:
    """Reads runs, finished or not.

    Raises:
        UserError: a folder is no run, or is given twice.
    """
    whole = [path.resolve() for path in paths]
    for path in paths:
        if whole.count(path.resolve()) > 1:
            raise UserError(f"{path} is given more than once; name each run once")
    return [_read(path, name) for path, name in zip(paths, _names(whole), strict=True)]


def _read(path: Path, name: str) -> RecordedRun:
    folder = RunFolder(path)
    settings = _settings(folder)
    frame = None
    try:
        frame = load_metrics(path)
    except UserError as error:
        if "has no metrics" not in str(error):
            raise
    if frame is not None and frame[["stage", "epoch", "time"]].isna().any(axis=None):
        raise UserError(
            f"{path} was recorded by an earlier version, whose metrics say no stage or time; report"
            f" and compare need a run of this one"
        )
    results = folder.load_summary() if folder.summary.is_file() else None
    run = RecordedRun(name, folder, settings, frame, results, environment.load(folder.environment))
    if results is None or results["steps"] >= run.step:
        return run
    # of an earlier, shorter run, which has been resumed since
    return RecordedRun(name, folder, settings, frame, None, run.starts)


def _settings(folder: RunFolder) -> dict[str, Any]:
    """The keys of config.yaml as they stand there: registered names of a program need not exist."""
    if not folder.config.is_file():
        folder.load_config()  # says what a run folder has
    try:
        tree = yaml_text.parse(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.config} cannot be read ({error}); restore it") from None
    if not isinstance(tree, dict):
        raise UserError(f"{folder.config} holds no configuration; restore it")
    flat: dict[str, Any] = {}
    for section, value in tree.items():
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{section}.{key}".rstrip("."): item for key, item in inner.items()}
    return flat


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ."""
    longest = max(len(path.parts) for path in paths)
    for size in range(1, longest + 1):
        names = ["/".join(path.parts[-size:]) for path in paths]
        if len({*names}) == len(names):
            break
    return names


def _of_task(task: Task) -> Metric:
    return Metric(task.metric, task.percent, task.shown)


def _known(row: dict[Any, Any]) -> Facts:
    """Without the columns that have no value in this row; a loss that was not finite has none."""
    return {str(key): value for key, value in row.items() if value is not None and value == value}
