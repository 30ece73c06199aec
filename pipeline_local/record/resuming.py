"""What may change when a run is resumed; the rest is refused, in one line."""

import json
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline_local.config import Config
from pipeline_local.configfile import configfile
from pipeline_local.errors import UserError, few
from pipeline_local.user_input.registry import GIVEN

_PLACE = ("data.root", "data.workers", "data.on_error", "data.tokenizer")
"""Where the data is and how it is read: everything else of `data` says which batch a step gets. Of
a tokenizer the digest counts."""
_BESIDE = ("run.", "log.")
"""Sections that say where results go."""
_NOT_READ = "model.weights"
"""Where a run began, which it does not read again."""
_COUNTS = {
    "num_train": "number of training samples",
    "num_classes": "number of classes",
    "sample_shape": "sample shape",
    "mean": "mean of the pixels",
    "std": "deviation of the pixels",
    "label_shape": "label shape",
    "dtype": "dtype of the inputs",
    "tokenizer": "tokenizer",
    "end_token": "end token",
}
"""Facts of the data that a run depends on, in words; the names of the classes beside."""


@dataclass(frozen=True)
class Change:
    """A key of the configuration that has another value than in the run.

    Attributes:
        key: dotted.
        now: the new value.
        before: the run's own.
    """

    key: str
    now: object
    before: object

    def __str__(self) -> str:
        return f"{self.key}={self.now} (was {self.before})"


def changes(before: Config, now: Config, begun: bool) -> list[Change]:
    """Returns all keys that differ, but for those of `run` and `log` and what is not read again.

    Args:
        before: the configuration of the run.
        now: the new one.
        begun: whether it goes on from a checkpoint, which holds all weights.
    """
    # a run from before every run recorded K, and which does not name it, has one module
    old, new = _leaves(before.on_stages(1)), _leaves(now.on_stages(1))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    ignored = {_NOT_READ} if begun else set()
    others = (key for key in keys if not key.startswith(_BESIDE) and key not in ignored)
    return [Change(key, new.get(key), old.get(key)) for key in others]


def refuse(
    run: Path,
    configs: tuple[Config, Config],
    facts: tuple[str, str],
    overridden: Collection[str] | None,
    begun: bool,
) -> None:
    """Refuses to resume a run with what its checkpoints and its count of steps do not allow.

    Args:
        run: its folder, for messages.
        configs: its own configuration, and the new one.
        facts: of its data as it was and as it is, as JSON; "" where they are not known.
        overridden: the keys that the user has named beside a configuration file, perhaps of a whole
            section; None: all of the new configuration is meant.
        begun: as for `changes`.

    Raises:
        UserError: what differs and may not, or is not said to.
    """
    before, now = configs
    differs = changes(before, now, begun)
    asked = [*_other_data(differs)]
    found = [] if asked else [*_other_facts(*facts)]
    others = [*_others(before, now), *asked, *found]
    if others:
        place = " (data.root may name another place)" if before.data.root else ""
        back = f"put its data back{place}, then " if found else ""
        raise UserError(
            f"run.resume: {run} holds a run with another {' and '.join(dict.fromkeys(others))};"
            f" {back}resume it as it was ({how(run, before)}), or name another run.dir,"
            f" perhaps with model.weights of an export"
        )
    unsaid = [
        str(change)
        for change in differs
        if overridden is not None
        and not change.key.startswith("parallel.")
        and not _is_overridden(change.key, overridden)
    ]
    if unsaid:
        raise UserError(
            f"run.resume: {', '.join(unsaid)} in {run}, and no key=value says so; go on with its"
            f" own settings ({how(run, before)}), or say what is to change"
        )


def _is_overridden(key: str, overridden: Collection[str]) -> bool:
    """Whether the user has named the key, its section, or a part of its value."""
    section = key.partition(".")[0]
    return any(name in (key, section) or name.startswith(f"{key}.") for name in overridden)


def how(run: Path, config: Config) -> str:
    """Returns what resumes a run: a command, or the call in the program that has made it."""
    if is_given(config):
        return f"fit(..., run_dir={str(run)!r}, resume=True)"
    return f"pipeline-local resume {shlex.quote(str(run))}"


def uses(run: Path, config: Config) -> str:
    """Returns where a finished run is and what takes it, in one sentence for display."""
    if is_given(config):
        return (
            f"run folder: {run}; in a program load(run, model) and Predictor take it, and"
            f" pipeline-local report, compare and trace"
        )
    return f"run folder: {run}; pipeline-local report, evaluate, export and diagnose take it"


def is_given(config: Config) -> bool:
    """Whether a Python program has handed in a part of the run, without which nobody resumes it."""
    names = (config.model.name, config.data.name, config.optimizer.name, config.optimizer.schedule)
    return GIVEN in names or config.task.name == GIVEN


def to_write(before: Config, now: Config, overridden: Collection[str] | None) -> Config:
    """Returns what config.yaml is to hold: a forgotten key keeps its place, and so does the start.

    Args:
        before: the configuration of the run.
        now: the new one.
        overridden: as for `refuse`.
    """
    model = replace(now.model, weights=before.model.weights)
    forgotten = overridden is not None and not any(key.startswith("parallel") for key in overridden)
    parallel = before.parallel if forgotten else now.parallel
    return replace(now, model=model, parallel=parallel)


def _leaves(config: Config) -> dict[str, object]:
    """Returns all settings by dotted keys."""
    return {
        (f"{name}.{key}" if key else name): value
        for name, part in configfile.tree(config).items()
        for key, value in (part.items() if isinstance(part, dict) else [("", part)])
    }


def _others(before: Config, now: Config) -> list[str]:
    """Returns the names of what the checkpoints depend on and is another one now.

    They hold the feedback and the outputs under way, microbatch by microbatch, for the steps that
    follow. Copies of parameters under way fit any microbatches.
    """
    old, new = _identity(before.on_stages(1)), _identity(now.on_stages(1))
    return [name for name, value in old.items() if new.get(name, value) != value]


def _identity(config: Config) -> dict[str, object]:
    feeds_back = config.reconcile.feeds_back
    feedback = {
        "reconcile.every": config.reconcile.every,
        "train.microbatches": config.train.microbatches,
    }
    distills = config.distill.weight > 0
    distilled = {
        "distill.every": config.distill.every,
        "distill.teacher": config.distill.teacher,
        "train.microbatches": config.train.microbatches,
    }
    sections = configfile.tree(config)
    model, modules, information = (sections[k] for k in ("model", "modules", "information"))
    return {
        "model": {key: value for key, value in model.items() if key != "weights"},
        "modules": {key: modules[key] for key in ("count", "cuts")},
        "head": sections["head"],
        "information": {k: v for k, v in information.items() if not k.endswith("weight")},
        "task": sections["task"],
        "precision": config.precision,
        "parallel.wire_dtype": config.parallel.wire_dtype,
        "optimizer.name": config.optimizer.name,
        "optimizer.decay": config.optimizer.decay,
        "option of this optimizer": config.optimizer.args,  # it may need other state
        "train.seed": config.train.seed,
        "kind of lagged message (reconcile.direction, reconcile.weight)": feeds_back,
        **(feedback if feeds_back else {}),
        "kind of lagged message (distill.weight)": distills,
        **(distilled if distills else {}),
    }


def _other_data(differs: Collection[Change]) -> Iterator[str]:
    for change in differs:
        if change.key.startswith("data.") and change.key not in _PLACE:
            less = "; for less memory, raise train.microbatches"
            hint = less if change.key == "data.batch_size" else ""
            yield f"{change.key} ({change.now}, was {change.before}{hint})"


def _other_facts(before: str, now: str) -> Iterator[str]:
    """Yields nothing where the earlier ones are damaged, as they are written again."""
    try:
        old, new = json.loads(before), json.loads(now)
        if "image_shape" in old:  # what earlier runs call it
            old["sample_shape"] = old["image_shape"]
        if old.get("classes", ()) != new.get("classes", ()):
            yield "set of classes"
        for key, name in _COUNTS.items():
            if key in old and key in new and old[key] != new[key]:
                yield f"{name} ({_short(new[key])}, was {_short(old[key])})"
        if changed := _changed_files(old.get("files"), new.get("files")):
            yield f"content of {few(changed)}"
    except (ValueError, TypeError, AttributeError):
        return


def _changed_files(old: list[str] | None, new: list[str] | None) -> list[str]:
    """The names of files that are new, are gone, or hold something else; each begins a line."""
    if old is None or new is None:
        return []
    differs = {*old} ^ {*new}
    return list(dict.fromkeys(line.rpartition(" ")[0] for line in [*old, *new] if line in differs))


def _short(value: object) -> object:
    return "x".join(map(str, value)) if isinstance(value, list) else value
