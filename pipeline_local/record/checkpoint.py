"""Checkpoints: one safetensors file per module, keyed by module, not by rank.

Step t at every stage is a consistent cut by construction, so a stage writes its modules after its
own step t without asking anybody. A checkpoint counts once all K modules are there; it can be
resumed on any number of stages. Nothing random is saved, for nothing random has a state.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline_local.errors import UserError
from pipeline_local.learning import optimizer
from pipeline_local.learning.module import LocalModule


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: holds one folder per checkpoint.
        num_modules: K.
    """

    folder: Path
    num_modules: int

    def save(self, modules: Iterable[LocalModule], step: int) -> None:
        """Write modules after `step` optimizer steps; a file appears whole or not at all."""
        target = self._at(step)
        target.mkdir(parents=True, exist_ok=True)
        for module in modules:
            data = save(_tensors(module), metadata={"step": str(step)})
            _write_atomically(self._file(step, module.index), data)

    def latest(self) -> int | None:
        """The newest step of which all modules are there."""
        return max(self._complete(), default=None)

    def load(self, module: LocalModule, step: int) -> None:
        """Put a module back to where it was after `step` optimizer steps.

        Raises:
            UserError: the file is unreadable, or of another model.
        """
        path = self._file(step, module.index)
        try:
            with safe_open(path, framework="pt") as file:
                named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"checkpoint {path} cannot be read ({error}); delete its folder to fall back to"
                f" an earlier checkpoint"
            ) from None
        try:
            module.load_state_dict(_below("", named), strict=True)
        except RuntimeError as error:
            raise UserError(
                f"checkpoint {path} is of another model: {str(error).splitlines()[1].strip()};"
                f" resume with the configuration of that run"
            ) from None
        optimizer.load(module.optimizer, _below("optimizer.", named))
        module.under_way.load(_below("feedback.", named))

    def discard_after(self, step: int) -> None:
        """Delete what an interrupted run has begun beyond `step`, lest it mix with what follows."""
        for later in self._steps():
            if later > step:
                shutil.rmtree(self._at(later))

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` complete checkpoints, and what is older than those."""
        complete = sorted(self._complete())
        if len(complete) <= keep:
            return
        for step in self._steps():
            if step < complete[-keep]:  # all ranks tidy up, so another one may be at it
                shutil.rmtree(self._at(step), ignore_errors=True)

    def _steps(self) -> list[int]:
        names = [path.name for path in self.folder.glob("step-*")]
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def _complete(self) -> list[int]:
        modules = range(self.num_modules)
        return [s for s in self._steps() if all(self._file(s, k).is_file() for k in modules)]

    def _at(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _file(self, step: int, index: int) -> Path:
        return self._at(step) / f"module-{index + 1:03d}.safetensors"


def _tensors(module: LocalModule) -> dict[str, Tensor]:
    parts = {
        "optimizer.": optimizer.tensors(module.optimizer),
        "feedback.": module.under_way.tensors(),
        "": module.state_dict(),
    }
    return {
        f"{prefix}{name}": value.detach().cpu().contiguous()
        for prefix, named in parts.items()
        for name, value in named.items()
    }


def _below(prefix: str, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, for one part."""
    others = tuple({"optimizer.", "feedback."} - {prefix})
    return {
        name.removeprefix(prefix): value
        for name, value in named.items()
        if name.startswith(prefix) and not name.startswith(others)
    }


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
