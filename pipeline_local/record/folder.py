"""The run folder: what a run leaves behind, and where."""

from dataclasses import dataclass
from itertools import count
from pathlib import Path

from pipeline_local import configfile
from pipeline_local.config import Config
from pipeline_local.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """config.yaml, data.json, metrics/, checkpoints/, trace/, summary.json."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def info(self) -> Path:
        """The facts of the data, so that the weights can be exported without it."""
        return self.path / "data.json"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        """The results, once the run is complete."""
        return self.path / "summary.json"

    def metrics(self, stage: int) -> Path:
        """One JSON object per line."""
        return self.path / "metrics" / f"stage-{stage}.jsonl"

    def trace(self, stage: int) -> Path:
        """The newest spans, in Chrome's trace format."""
        return self.path / "trace" / f"stage-{stage}.json"

    def check(self, config: Config, resume: bool) -> None:
        """Refuse to write over an earlier run, or to go on with another one.

        Raises:
            UserError: something is there and `resume` is false, or it is a run of another network.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run.dir: {self.path} is a file; name a folder")
        if not resume and self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(
                f"run.dir: {self.path} already holds a run, and runs are never overwritten;"
                f" pass run.resume=true to go on with it, or run.dir=ANOTHER"
            )
        if self.config.is_file():
            earlier = self.load_config()
            fixed = ("model", "modules", "head", "precision")
            changed = [name for name in fixed if getattr(earlier, name) != getattr(config, name)]
            if changed:
                raise UserError(
                    f"run.resume: {self.path} holds a run with another {' and '.join(changed)};"
                    f" resume it as it was, or name another run.dir"
                )

    def create(self, config: Config, info: str) -> None:
        """Make the folder and write the configuration; one that was there gets another name.

        Raises:
            UserError: the folder cannot be written.
        """
        text = configfile.dump(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.config.is_file() and self.config.read_text() != text:
                self.config.rename(self._free_name())
            self.config.write_text(text)
            self.info.write_text(info)
        except OSError as error:
            raise UserError(
                f"run.dir: {self.path} cannot be written ({error}); name another"
            ) from None

    def _free_name(self) -> Path:
        names = (self.path / f"config-{number}.yaml" for number in count(1))
        return next(name for name in names if not name.exists())

    def load_config(self) -> Config:
        """The configuration of the run that is here.

        Raises:
            UserError: this is not a run folder.
        """
        if not self.config.is_file():
            raise UserError(
                f"{self.path} is not a run folder: it has no config.yaml; give the run.dir of a run"
            )
        return configfile.load(self.config)
