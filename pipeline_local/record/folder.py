"""The run folder: the files that a run writes."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import IO, Any

import yaml

from pipeline_local import configfile
from pipeline_local.config import Config
from pipeline_local.errors import UserError
from pipeline_local.learning.lagged import LagPlan
from pipeline_local.record import atomic

LOCK = ".lock"
"""The lock file, which names the process that uses the folder; empty when none does."""

_CLAIMED: set[Path] = set()
"""Folders that this process has claimed, as a file lock does not exclude its own process."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: config.yaml, data.json, metrics/, checkpoints/, trace/, summary.json.

    Args:
        path: the folder, which need not exist yet.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The path of the resolved configuration."""
        return self.path / "config.yaml"

    @property
    def info(self) -> Path:
        """The path of the facts about the data, so that an export does not need the data."""
        return self.path / "data.json"

    @property
    def checkpoints(self) -> Path:
        """The path of the folder that holds one folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        """The path of the results, which exist once the run is complete."""
        return self.path / "summary.json"

    def metrics(self, stage: int) -> Path:
        """Returns the path of a stage's metrics, one JSON object per line."""
        return self.path / "metrics" / f"stage-{stage}.jsonl"

    def trace(self, stage: int) -> Path:
        """Returns the path of a stage's newest spans, in Chrome's trace format."""
        return self.path / "trace" / f"stage-{stage}.json"

    def check(self, config: Config, info: str, resume: bool) -> None:
        """Refuses to overwrite an earlier run, or to resume a different one.

        Args:
            config: the configuration of the new run.
            info: the facts about its data, as JSON.
            resume: whether it resumes an earlier run.

        Raises:
            UserError: the folder is not empty and `resume` is false, it holds a run of another
                network or on other classes, or it cannot be read.
        """
        try:
            self._refuse_overwriting(resume)
            if self.config.is_file():
                self._refuse_another_run(config, info)
        except (OSError, ValueError) as error:
            raise UserError(
                f"run.dir: {_short(self.path)} cannot be read ({_reason(error)}); name another"
            ) from None

    def _refuse_overwriting(self, resume: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run.dir: {self.path} is a file; name a folder")
        for path in (self.path, *self.path.parents):
            if path.is_symlink() and not path.exists():
                raise UserError(
                    f"run.dir: {path} is a link to {path.readlink()}, which is not there; make that"
                    f" folder, or name another"
                )
        if not resume and self.path.is_dir() and any(p.name != LOCK for p in self.path.iterdir()):
            raise UserError(
                f"run.dir: {self.path} already holds a run, and runs are never overwritten;"
                f" pass run.resume=true to resume it, or run.dir=ANOTHER"
            )

    def _refuse_another_run(self, config: Config, info: str) -> None:
        before, now = _identity(self.load_config()), _identity(config)
        if self.info.is_file():
            before |= _classes(self.info.read_text())
            now |= _classes(info)
        if changed := [name for name, value in before.items() if now.get(name, value) != value]:
            raise UserError(
                f"run.resume: {self.path} holds a run with another {' and '.join(changed)};"
                f" resume it as it was, or name another run.dir"
            )

    def describe_resume(self, config: Config, step: int) -> str:
        """Returns one line for display: what is resumed, and which settings have changed."""
        if not self.config.is_file():  # with steps done: cut off while it was written
            new = f"nothing to resume in {_short(self.path)}: a new run"
            return f"resuming after step {step}" if step else new
        before, now = _settings(self.load_config()), _settings(config)
        changed = [
            f"{key}={now.get(key)} (was {before.get(key)})"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        return ", ".join([f"resuming after step {step}", *changed])

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Locks the folder for the time of the context, also against runs on other hosts.

        The system releases the lock when the process ends, however it ends. On a file system
        without locks there is no protection.

        Raises:
            UserError: another run uses the folder, or it cannot be written.
        """
        own = f"process {os.getpid()} on {socket.gethostname()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            folder = self.path.resolve()
            if folder in _CLAIMED:
                raise self._in_use(own)
            lock = (folder / LOCK).open("ab+", buffering=0)
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from None
        with lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    lock.seek(0)
                    raise self._in_use(lock.read().decode(errors="replace")) from None
            _CLAIMED.add(folder)
            try:
                _say_who(lock, own)
                yield
            finally:
                _CLAIMED.remove(folder)
                _say_who(lock, "")

    def _in_use(self, holder: str) -> UserError:
        return UserError(
            f"run.dir: another run is using {_short(self.path)}"
            f"{f' ({holder})' if holder else ''}; stop it, or name another folder"
        )

    def create(self, config: Config, info: str) -> None:
        """Makes the folder and writes the configuration; an earlier one is renamed.

        Raises:
            UserError: the folder cannot be written.
        """
        text = configfile.dump(config)
        try:
            if self.config.is_file() and self.config.read_text() != text:
                self.config.rename(self._free_name())
            atomic.write_text(self.config, text)
            atomic.write_text(self.info, info)
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: Exception) -> UserError:
        reason = _reason(error)
        return UserError(f"run.dir: {_short(self.path)} cannot be written ({reason}); name another")

    def _free_name(self) -> Path:
        names = (self.path / f"config-{number}.yaml" for number in count(1))
        return next(name for name in names if not name.exists())

    def load_config(self) -> Config:
        """Returns the configuration of the run.

        Raises:
            UserError: this is not a run folder.
        """
        if not self.config.is_file():
            raise UserError(
                f"{self.path} is not a run folder: it has no config.yaml; give the run.dir of a run"
            )
        return configfile.load(self.config)

    def load_info(self) -> str:
        """Returns the facts about the data of the run, as JSON.

        Raises:
            UserError: they are missing.
        """
        try:
            return self.info.read_text()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.info} cannot be read ({_reason(error)}); restore it, or resume the run,"
                f" which writes it again"
            ) from None

    def load_summary(self) -> dict[str, Any]:
        """Returns the results of the run.

        Raises:
            UserError: the file is damaged.
        """
        try:
            facts: dict[str, Any] = json.loads(self.summary.read_text())
            facts["steps"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.summary} is damaged ({_reason(error)}); remove it, and resuming writes it"
                f" again"
            ) from None
        return facts


def _say_who(lock: IO[bytes], holder: str) -> None:
    """Writes the holder into the lock file, for messages only; a full disk is no error."""
    with suppress(OSError):
        lock.truncate(0)
        lock.write(holder.encode())


def _identity(config: Config) -> dict[str, object]:
    """Returns what cannot change when a run is resumed, as its checkpoints depend on it.

    They hold the lagged messages under way, microbatch by microbatch, for the steps that follow.
    """
    lag = LagPlan.of(config.reconcile)
    lagged = {
        "reconcile.every": config.reconcile.every,
        "data.batch_size": config.data.batch_size,
        "train.microbatches": config.train.microbatches,
    }
    return {
        "model": config.model,
        "modules": replace(config.modules, profile=None),
        "head": config.head,
        "task": config.task,
        "precision": config.precision,
        "parallel.wire_dtype": config.parallel.wire_dtype,
        "optimizer.name": config.optimizer.name,
        "kind of lagged message (reconcile.direction, reconcile.weight)": lag
        and type(lag.content).__name__,
        **(lagged if lag else {}),
    }


def _settings(config: Config) -> dict[str, object]:
    """Returns all settings that influence the results of a run, by dotted keys."""
    tree = yaml.safe_load(configfile.dump(config))
    rows = ((name, part) for name, part in tree.items() if name not in ("run", "parallel"))
    return {
        (f"{name}.{key}" if key else name): value
        for name, part in rows
        for key, value in (part.items() if isinstance(part, dict) else [("", part)])
    }


def _classes(info: str) -> dict[str, object]:
    """Returns the same of its data; {} where the file is damaged, as it is written again."""
    try:
        facts = json.loads(info)
        return {"set of classes": facts["classes"], "image shape": facts["image_shape"]}
    except (ValueError, TypeError, KeyError):
        return {}


def _short(path: Path) -> str:
    """Shortens a path for a message."""
    text = repr(str(path))[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}..."


def _reason(error: Exception) -> str:
    """Returns the reason without the path, which an OSError would repeat."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
