"""Where files of the package were: programs that import them from there go on, with a warning."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]

MOVED = {
    "agreement": "training.agreement",
    "arguments": "fitting.arguments",
    "building": "side_effects.building",
    "byvalue": "process.by_value",
    "callbacks": "training.callbacks",
    "checking": "fitting.checking",
    "completion": "configfile.completion",
    "contradictions": "configfile.contradictions",
    "data.images.indexfile": "data.index_file",
    "data.images.splits": "data.splits",
    "early": "process.early",
    "exits": "finished.exits",
    "exporting": "finished.exporting",
    "footer": "console.footer",
    "generation": "finished.generation",
    "keys": "configfile.keys",
    "lagged_queue": "learning.lagged_queue",
    "newfile": "user_input.new_file",
    "origins": "configfile.origins",
    "prediction": "finished.prediction",
    "predictor": "finished.predictor",
    "record.atomic": "atomic",
    "registry": "user_input.registry",
    "screen": "console.screen",
    "starter": "configfile.starter",
    "starting": "training.starting",
    "startup": "console.startup",
    "trainer": "training.train",
    "untouched": "side_effects.untouched",
    "values": "user_input.values",
    "writes": "side_effects.writes",
    "yamltext": "user_input.yaml_text",
}
"""The new place of each file or folder, by its old one."""


class Finder(MetaPathFinder):
    """Finds a module of the package by the name that it had; before others, which would load files
    of a folder that has moved a second time."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns a spec that loads the module from its new place; None: it has not moved."""
        package, _, old = fullname.partition(".")
        if package != _PACKAGE:
            return None
        for place, new in MOVED.items():
            if old == place or old.startswith(f"{place}."):
                return ModuleSpec(fullname, _Moved(f"{_PACKAGE}.{new}{old[len(place) :]}"))
        return None


class _Moved(Loader):
    """Loads a module under another name than its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        _warn(spec.name, self._name)
        module = import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the other one there


def from_file(folder: str, name: str) -> Any:  # noqa: ANN401 (whatever the file defines)
    """Returns what a folder's file of the same name defines: before, the file stood alone.

    Raises:
        AttributeError: it defines no such thing.
    """
    file = f"{folder}.{folder.rpartition('.')[2]}"
    if name.startswith("__") or find_spec(f"{folder}.{name}"):  # a file of the folder comes first
        raise AttributeError(f"module {folder!r} has no attribute {name!r}")
    module = sys.modules.get(file) or import_module(file)
    value = getattr(module, name)
    _warn(f"{folder}.{name}", f"{file}.{name}")
    return value


def from_parts(file: str, name: str, parts: Sequence[str]) -> Any:  # noqa: ANN401 (as above)
    """Returns what other files of a file's folder define: before, all of it stood in the file.

    Raises:
        AttributeError: they define no such thing.
    """
    folder = file.rpartition(".")[0]
    for part in () if name.startswith("_") else parts:
        module = import_module(f"{folder}.{part}")
        if getattr(vars(module).get(name), "__module__", None) == module.__name__:
            _warn(f"{file}.{name}", f"{module.__name__}.{name}")
            return getattr(module, name)
    raise AttributeError(f"module {file!r} has no attribute {name!r}")


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} has moved to {new}", DeprecationWarning, stacklevel=3)
