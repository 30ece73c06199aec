"""The run folder: the files that a run writes."""

import json
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from pipeline_local import atomic
from pipeline_local.config import Config
from pipeline_local.configfile import configfile
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.record import claim, environment, resuming
from pipeline_local.user_input import yaml_text

_OWN = (
    *("config*.yaml", "data.json", "summary*.json", "best.json", "trace.json"),
    *("metrics", "checkpoints", "trace"),
)
"""What a run leaves, and would overwrite."""

_LEARNING = ("parallel.sync_batchnorm",)
"""What changes the result, of a section that otherwise never does."""


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
        """The path of the results, which exist once the run has ended as planned, or as a callback
        has asked; while it goes on, earlier ones are `summary-*.json`."""
        return self.path / "summary.json"

    @property
    def origin(self) -> Path:
        """The path of what says in which folder the run began."""
        return self.path / "origin.json"

    @property
    def environment(self) -> Path:
        """The path of what says with which versions, and where, the run was started."""
        return self.path / "environment.json"

    def metrics(self, stage: int, replica: int = 0) -> Path:
        """Returns the path of a stage's metrics, one JSON object per line; those of its first
        replica hold what all of them have measured together."""
        return self.path / "metrics" / f"{_named(stage, replica)}.jsonl"

    def trace(self, stage: int, replica: int = 0) -> Path:
        """Returns the path of a rank's spans, in Chrome's trace format."""
        return self.path / "trace" / f"{_named(stage, replica)}.json"

    def traces(self) -> list[Path]:
        """Returns the paths of all ranks' spans that are there."""
        names = _named("*", 0), _named("*", "*")
        return sorted(path for name in names for path in self.path.glob(f"trace/{name}.json"))

    def profile(self, stage: int, replica: int = 0) -> Path:
        """Returns the path of what torch's profiler has seen of a rank."""
        return self.path / "trace" / f"profiler-{_named(stage, replica)}.json"

    @property
    def timeline(self) -> Path:
        """The path of the spans of all stages, in Chrome's trace format."""
        return self.path / "trace.json"

    def check(
        self,
        config: Config,
        info: str,
        resume: bool,
        overridden: Collection[str] | None = None,
        begun: bool = False,
    ) -> None:
        """Refuses to overwrite an earlier run, or to resume a different one.

        Args:
            config: the configuration of the new run.
            info: the facts about its data, as JSON.
            resume: whether it resumes an earlier run.
            overridden: the keys named beside a configuration file; None: all are meant.
            begun: whether it has a checkpoint, from which it goes on.

        Raises:
            UserError: a run is there and `resume` is false, it differs in what must stay, or it
                has no configuration or cannot be read.
        """
        try:
            self._refuse_overwriting(resume, config)
            if begun and not self.config.is_file():
                raise UserError(
                    f"run.dir: {_short(self.path)} has checkpoints, and no config.yaml that says of"
                    f" which run; put it back (config-*.yaml are earlier ones), or name another"
                )
            if self.config.is_file():
                facts = self.info.read_text() if self.info.is_file() else "", info
                before = self.load_config()
                resuming.refuse(self.path, (before, config), facts, overridden, begun)
        except (OSError, ValueError) as error:
            raise UserError(
                f"run.dir: {_short(self.path)} cannot be read ({_reason(error)}); name another"
            ) from None

    def _refuse_overwriting(self, resume: bool, config: Config) -> None:
        for path in (self.path, *self.path.parents):
            if path.is_symlink() and not path.exists():
                raise UserError(
                    f"run.dir: {path} is a link to {path.readlink()}, which is not there; make that"
                    f" folder, or name another"
                )
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run.dir: {self.path} is a file; name a folder")
        if not resume and (found := self._found()):
            raise UserError(
                f"run.dir: {self.path} already holds a run ({', '.join(found)}), and runs are never"
                f" overwritten; name another, or resume it: {resuming.how(self.path, config)}"
            )

    def _found(self) -> list[str]:
        """Returns the names of what only a run leaves; a batch system's log is none of it."""
        if not self.path.is_dir():
            return []
        there = sorted(p for p in self.path.iterdir() if any(map(p.match, _OWN)))
        return [path.name for path in there if not path.is_dir() or any(path.iterdir())]

    def describe_resume(self, config: Config, step: int) -> str:
        """Returns one line for display: what is resumed, and which settings have changed."""
        if not self.config.is_file():
            return f"nothing to resume in {_short(self.path)}: a new run"
        begin = f"resuming after step {step}" if step else "no checkpoint yet: from the beginning"
        differs = resuming.changes(self.load_config(), config, begun=step > 0)
        told = [c for c in differs if not c.key.startswith("parallel.") or c.key in _LEARNING]
        return ", ".join([begin, *map(str, told)])

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Locks the folder for the time of the context, as `claim.claimed` does.

        Raises:
            UserError: another run uses the folder, or it cannot be written.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(claim.claimed(self.path))
            except claim.InUseError as error:
                holder = f" ({error.holder})" if error.holder else ""
                raise UserError(
                    f"run.dir: another run is using {_short(self.path)}{holder}; stop it, or name"
                    f" another folder"
                ) from None
            except (OSError, ValueError) as error:
                raise self._unwritable(error) from None
            yield

    def create(self, config: Config, info: str) -> None:
        """Makes the folder and writes the configuration; of an earlier one a copy stays. Results of
        a run that goes on are renamed.

        Paths in it are absolute, so that the run can be resumed from any folder.

        Raises:
            UserError: the folder cannot be written.
        """
        whole = replace(config, run=replace(config.run, resume=False))
        text = yaml_text.write(configfile.tree(whole))
        try:
            if self.config.is_file() and (before := self.config.read_text()) != text:
                atomic.write_text(_free_beside(self.config), before)  # one is there at any time
            atomic.write_text(self.config, text)
            if self.summary.is_file():
                self.summary.rename(_free_beside(self.summary))
            atomic.write_text(self.info, info)
            if not self.origin.exists():
                atomic.write_text(self.origin, json.dumps({"folder": str(Path.cwd())}) + "\n")
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from None

    def add_start(self, step: int, ranks: int, device: str) -> None:
        """Writes down where and with which versions the run starts, as `environment.add` does.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            environment.add(self.environment, step, ranks, device)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: Exception) -> UserError:
        reason = _reason(error)
        return UserError(f"run.dir: {_short(self.path)} cannot be written ({reason}); name another")

    def to_write(self, config: Config, overridden: Collection[str] | None) -> Config:
        """Returns what config.yaml is to hold of a resumed run.

        Args:
            config, said: as for `check`.
        """
        return resuming.to_write(self.load_config(), config, overridden)

    def is_concluded(self, step: int) -> bool:
        """Whether there are results of so many steps: an earlier, shorter run may have left some.

        Raises:
            UserError: the file is damaged.
        """
        return self.summary.is_file() and self.load_summary()["steps"] == step

    def load_config(self, overrides: Sequence[str] = ()) -> Config:
        """Returns the configuration of the run.

        Args:
            overrides: as `configfile.load` takes them.

        Raises:
            UserError: this is not a run folder.
        """
        if not self.config.is_file():
            raise UserError(
                f"{self.path} is not a run folder: it has no config.yaml; give the run.dir of a run"
            )
        self._find_modules()
        return configfile.load(self.config, overrides)

    def resumed(self, overrides: Sequence[str]) -> Config:
        """Returns the configuration with which the run goes on: its own, and what is to change.

        Args:
            overrides: as `configfile.load` takes them.

        Raises:
            UserError: this is not a run folder, or only a Python program can resume the run.
        """
        named = {text.partition("=")[0] for text in overrides}
        if own := sorted(key for key in named if key.partition(".")[0] == "run"):
            raise UserError(f"{own[0]}: the run goes on in {self.path} itself; leave it out")
        try:
            before = self.load_config()
        except ConfigError as error:
            raise ConfigError([f"{line}; {self._in_program}" for line in error.problems]) from None
        if resuming.is_given(before):
            call = resuming.how(self.path, before)
            raise UserError(f"{self.path} was made by a Python program; go on there, with {call}")
        lengths = {"train.epochs", "train.steps", "train.tokens"}
        other = [f"{key}=null" for key in lengths - named if lengths & named]
        config = self.load_config([*overrides, *other])
        return replace(config, run=replace(config.run, dir=self.path, resume=True))

    @property
    def _in_program(self) -> str:
        call = f"train(load_config({str(self.config)!r}, ['run.resume=true']))"
        return f"where a Python program has registered it, go on there, with {call}"

    def _find_modules(self) -> None:
        """`python:` names are imported from the folder in which the run began, first of all."""
        try:
            folder = str(json.loads(self.origin.read_text())["folder"])
            named = "python:" in self.config.read_text()
        except (OSError, ValueError, TypeError, KeyError):
            return
        here = str(Path.cwd())
        for place in (here, folder):  # the last one wins
            if named and place != sys.path[0] and (place == folder or place not in sys.path):
                sys.path.insert(0, place)

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
            for key in ("steps", "samples_per_second", "peak_memory_bytes"):
                facts[key]  # what other commands read
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else _reason(error)
            raise UserError(
                f"{self.summary} is damaged ({reason}); remove it, and resuming writes it again"
            ) from None
        return facts


def _named(stage: int | str, replica: int | str) -> str:
    """Names a rank, for a file; the first replica as if it were the only one."""
    return f"replica-{replica}-of-stage-{stage}" if replica else f"stage-{stage}"


def _free_beside(path: Path) -> Path:
    """Returns the first free name of `config-1.yaml`, `config-2.yaml` and so on."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def _short(path: Path) -> str:
    """Shortens a path for a message."""
    text = repr(str(path))[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}..."


def _reason(error: Exception) -> str:
    """Returns the reason without the path, which an OSError would repeat."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
