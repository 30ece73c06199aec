"""Pipelined multi-GPU training without a global backward pass.

The names that a program needs; `docs/how-to/python.md` and `examples/` show them at work. They are
imported when they are first asked for, so that the command line can prepare the process before
torch is loaded.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline_local.moved import Finder as _Finder

if TYPE_CHECKING:
    from pipeline_local.config import Config as Config
    from pipeline_local.configfile import configfile
    from pipeline_local.errors import StoppedError as StoppedError
    from pipeline_local.errors import UserError as UserError
    from pipeline_local.finished.generation import Generator as Generator
    from pipeline_local.finished.predictor import Predictor as Predictor
    from pipeline_local.fitting.fitting import fit as fit
    from pipeline_local.fitting.fitting import load as load
    from pipeline_local.learning.module import LocalModule as LocalModule
    from pipeline_local.learning.rules import Rules as Rules
    from pipeline_local.learning.step import Step as Step
    from pipeline_local.learning.tasks import Task as Task
    from pipeline_local.pipeline.stage import Stage as Stage
    from pipeline_local.record.frame import load_metrics as load_metrics
    from pipeline_local.training.callbacks import BestCheckpoint as BestCheckpoint
    from pipeline_local.training.callbacks import Callback as Callback
    from pipeline_local.training.callbacks import EarlyStopping as EarlyStopping
    from pipeline_local.training.train import train as train

    load_config = configfile.load

__version__ = "0.1.0"

_HOMES = {
    "BestCheckpoint": "training.callbacks",
    "Callback": "training.callbacks",
    "Config": "config",
    "EarlyStopping": "training.callbacks",
    "Generator": "finished.generation",
    "LocalModule": "learning.module",
    "Predictor": "finished.predictor",
    "Rules": "learning.rules",
    "Stage": "pipeline.stage",
    "Step": "learning.step",
    "StoppedError": "errors",
    "Task": "learning.tasks",
    "UserError": "errors",
    "fit": "fitting.fitting",
    "load": "fitting.fitting",
    "load_config": "configfile.configfile",
    "load_metrics": "record.frame",
    "train": "training.train",
}
"""Where each name is defined, below the package."""

__all__ = [*_HOMES, "__version__"]


sys.meta_path.insert(0, _Finder())


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any of the names)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES[name]}")
    value = getattr(home, "load" if name == "load_config" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
