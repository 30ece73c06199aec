"""Checkpoints: one sealed file per module, keyed by module, not by rank.

Step t at every stage is a consistent cut by construction, so a stage writes its modules after its
own step t without asking other ranks. A checkpoint counts once all K modules are there and match
their checksums; it can be resumed on any number of stages. No state of a random generator is saved,
as there is none.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from torch import Tensor

from pipeline_local import atomic
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.console.screen import warn
from pipeline_local.engines.sharded import kind
from pipeline_local.errors import UserError
from pipeline_local.learning.lagged_queue import current_names
from pipeline_local.learning.module import LocalModule
from pipeline_local.record import sealed
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.sealed import BrokenSealError

Report = Callable[[str], None]
_NAMED = ".step"
"""Ending of a file that names a checkpoint."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the folder that holds one folder per checkpoint.
        num_modules: K.
    """

    folder: Path
    num_modules: int
    _sound: set[int] = field(default_factory=set, repr=False)
    """The steps whose checkpoints have been verified here."""

    @classmethod
    def of(cls, blueprint: Blueprint) -> "Checkpoints":
        """Returns those of a run, in the folder that its configuration names."""
        return cls(RunFolder(blueprint.config.run.dir).checkpoints, len(blueprint.modules))

    def write(
        self, index: int, state: Mapping[str, Tensor], step: int, optimizer: str | None = None
    ) -> None:
        """Writes one module's state (on the CPU); the file appears complete or not at all.

        Args:
            index: of the module, from 0.
            state: its `tensors`.
            step: the number of optimizer steps that it has done.
            optimizer: the name of its optimizer's class.

        Raises:
            OSError: no space, no permission.
        """
        target = self.at(step)
        if not target.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            atomic.sync(self.folder)
        facts = {"module": str(index + 1), "step": str(step)}
        facts |= {"optimizer": optimizer} if optimizer else {}
        sealed.write(self._file(step, index), state, facts)

    def latest(self, report: Report = warn) -> int | None:
        """Returns the newest step whose modules are all there and match their checksums.

        It reads every file of that step. Newer checkpoints that do not count are reported, one line
        each.

        Raises:
            UserError: a file cannot be read, so nobody knows whether it counts.
        """
        for step in reversed(self.steps()):
            problems = self.problems(step)
            if not problems:
                self._sound.add(step)
                return step
            report(f"checkpoint {self.at(step)} does not count: {', '.join(problems.values())}")
        return None

    def begun(self) -> bool:
        """Whether a checkpoint has all its files, whatever is in them: reads none.

        Raises:
            UserError: a folder cannot be read.
        """
        return any(map(self._is_whole, self.steps()))

    def problems(self, step: int) -> dict[int, str]:
        """Returns which modules (from 0) of a checkpoint are not as they were written, and why.

        Raises:
            UserError: a file cannot be read.
        """
        found = {}
        for index in range(self.num_modules):
            path = self._file(step, index)
            try:
                facts = sealed.verify(path)
            except BrokenSealError as error:
                found[index] = f"{path.name} {error}"
                continue
            if (facts.get("module"), facts.get("step")) != (str(index + 1), str(step)):
                found[index] = f"{path.name} is of another module or step"
        return found

    def load(self, module: LocalModule, step: int) -> None:
        """Restores a module's state after `step` optimizer steps.

        Raises:
            UserError: the file is damaged, cannot be read, or is of another model.
        """
        path = self._file(step, module.index)
        try:
            named = _with_axes(current_names(sealed.read(path)), module)
        except BrokenSealError as error:
            raise UserError(
                f"checkpoint {path} {error}; start again, to fall back to an earlier checkpoint"
            ) from None
        try:
            module.load_state_dict(_part("", named), strict=True)
        except RuntimeError as error:
            raise UserError(
                f"checkpoint {path} is of another model: {str(error).splitlines()[1].strip()};"
                f" resume with the configuration of that run"
            ) from None
        module.engine.load(_part("optimizer.", named))
        device = next(iter(module.state_dict().values())).device
        lagged = _part("lagged.", named)
        module.lagged.load(
            {name: tensor.to(device) for name, tensor in lagged.items()}, module.replicas
        )

    def refuse_other_optimizer(self, module: LocalModule, step: int) -> None:
        """Refuses to go on with an optimizer of another class, which would misread the state.

        Raises:
            UserError: the checkpoint says that it was another one; earlier versions did not say.
        """
        own, path = kind(module.engine.optimizer), self._file(step, module.index)
        with suppress(BrokenSealError):  # `load` says what is wrong
            if (found := sealed.facts(path).get("optimizer", own)) != own:
                raise UserError(
                    f"optimizer: checkpoint {path} is of {found}, and this run has {own}; resume"
                    f" with the same one, or start another run (run.dir)"
                )

    def set_aside_after(self, step: int, report: Report = warn) -> None:
        """Renames checkpoints after `step`, so that new ones do not mix with them; deletes nothing.

        A checkpoint that only lacks files was cut off while it was written: `step-*.unfinished`.
        Any other one is damaged: `step-*.damaged`.
        """
        for later in self.steps():
            if later > step:
                missing = [not self._file(later, k).exists() for k in self.problems(later)]
                aside = self._aside(later, "unfinished" if all(missing) else "damaged")
                self.at(later).rename(aside)
                report(f"{self.at(later).name} is now {aside.name}; going on after step {step}")

    def keep(self, name: str, step: int) -> None:
        """Give the checkpoint of a step a name, under which it stays for good.

        A name that is in use moves.

        Raises:
            UserError: the name is no plain word, or is `newest` or a number, which `load` reads
                otherwise.
        """
        word = isinstance(name, str) and re.fullmatch(r"\w[\w-]*", name)
        if not word or name == "newest" or name.isdigit():
            raise UserError(
                f"keep: the name of a checkpoint is a word of letters, digits, - and _, neither a"
                f" number nor 'newest', got {name!r}; choose another one"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self.folder / f"{name}{_NAMED}", f"{step}\n")

    def named(self, name: str) -> int:
        """The step of the checkpoint with this name.

        Raises:
            UserError: there is none, it is not complete, or a name cannot be read.
        """
        named = self._named()
        if (step := named.get(name)) is None:
            names = ", ".join(named) or "none"
            raise UserError(
                f"{self.folder} has no complete checkpoint {name!r}; the named ones are {names}"
                f" (the callback BestCheckpoint gives a name)"
            )
        if problems := self.problems(step):
            raise UserError(
                f"checkpoint {self.at(step)}, which has the name {name!r}, is not complete"
                f" ({', '.join(problems.values())}); choose another one"
            )
        return step

    def _named(self) -> dict[str, int]:
        found = {}
        for path in sorted(self.folder.glob(f"*{_NAMED}")):
            try:
                found[path.name.removesuffix(_NAMED)] = int(path.read_text())
            except (OSError, ValueError):
                raise UserError(
                    f"{path} is damaged or cannot be read; remove it, or name the checkpoint again"
                ) from None
        return found

    def prune(self, keep: int) -> None:
        """Deletes everything that is older than the newest `keep` valid checkpoints.

        Those that have a name stay; while a name cannot be read, all of them do.

        Damaged ones that were set aside stay; unfinished ones go with the others of their age.
        """
        sound = [step for step in self.steps() if self._is_sound(step)]
        if len(sound) < keep:
            return
        try:
            named = set(self._named().values())
        except UserError as error:  # any of them may be the one with that name
            warn(f"{error}; until then, no checkpoint is deleted")
            return
        for path in self.folder.glob("step-*"):
            name = re.fullmatch(r"step-(\d+)(\.unfinished(-\d+)?)?", path.name)
            if name and int(name[1]) < sound[-keep] and int(name[1]) not in named:
                shutil.rmtree(path, ignore_errors=True)  # another rank may be at it

    def at(self, step: int) -> Path:
        """Returns the folder of a checkpoint."""
        return self.folder / f"step-{step:08d}"

    def _is_sound(self, step: int) -> bool:
        if step not in self._sound:
            with suppress(UserError):  # what cannot be read now does not count
                if self._is_whole(step) and not self.problems(step):
                    self._sound.add(step)
        return step in self._sound

    def _is_whole(self, step: int) -> bool:
        with sealed.reading(self.at(step)):
            return all(self._file(step, k).is_file() for k in range(self.num_modules))

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, complete or not.

        Raises:
            UserError: the folder cannot be read.
        """
        names = []
        with suppress(BrokenSealError), sealed.reading(self.folder):
            names = os.listdir(self.folder)
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name))

    def _aside(self, step: int, kind: str) -> Path:
        name = f"{self.at(step).name}.{kind}"
        names = (self.folder / (f"{name}-{n}" if n else name) for n in count())
        return next(path for path in names if not path.exists())

    def _file(self, step: int, index: int) -> Path:
        return self.at(step) / f"module-{index + 1:03d}.safetensors"


def tensors(module: LocalModule) -> dict[str, Tensor]:
    """Returns the whole state of a module, by name; not copied. All its replicas call it together,
    and the first one gets what is under way at all of them.

    Weights and buffers have their own names; the optimizer's state is under `optimizer.`, and the
    lagged messages under way between the module and its neighbours are under `lagged.`.
    """
    parts = {
        "optimizer.": module.engine.tensors(),
        "lagged.": module.replicas.gather(module.lagged.tensors()),
        "": _weights(module),
    }
    return {
        f"{prefix}{name}": value.detach()
        for prefix, named in parts.items()
        for name, value in named.items()
    }


def _with_axes(named: dict[str, Tensor], module: LocalModule) -> dict[str, Tensor]:
    """Gives an optimizer's state of a weight the shape [1] where an earlier version had none.

    Such a weight takes the saved value itself (`ReadoutHead`). A count of steps stays a scalar.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    params = (p for group in module.optimizer.param_groups for p in group["params"])
    for number, parameter in enumerate(params):
        saved = named.get(names[parameter])
        if saved is not None and saved.dim() < parameter.dim() == 1:
            for name in [n for n in named if n.startswith(f"optimizer.{number}.")]:
                if not name.endswith(".step"):
                    named[name] = named[name].reshape(1)
    return named


def _weights(module: LocalModule) -> dict[str, Tensor]:
    """Returns the weights that an engine steps, where parameters are rounded copies of them."""
    exact = module.engine.weights()
    named = module.named_parameters(remove_duplicate=False)
    return module.state_dict() | {name: exact[p] for name, p in named if p in exact}


def _part(prefix: str, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns one part of the tensors, its prefix removed."""
    others = tuple({"optimizer.", "lagged."} - {prefix})
    return {
        name.removeprefix(prefix): value
        for name, value in named.items()
        if name.startswith(prefix) and not name.startswith(others)
    }
