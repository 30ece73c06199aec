"""Code of the user's: how it is found by name, and what it has raised."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pipeline_local.errors import UserError, did_you_mean, type_and_line


def import_named(key: str, name: str) -> Callable[..., Any]:
    """Import `python:package.module:name`, from the current folder too, which comes last: else a
    file there could stand in for a module that a library imports.

    Args:
        key: of the configuration, for messages.
        name: as the user wrote it.

    Raises:
        UserError: not of that form, the import fails, or nothing callable is found there.
    """
    _, module, attribute = (*name.split(":"), "", "")[:3]
    if not module or module.startswith(".") or not attribute or name.count(":") != 2:
        raise UserError(f"{key}: got {name!r}; write python:package.module:name")
    if not {str(Path.cwd()), ""} & {*sys.path}:
        sys.path.append(str(Path.cwd()))
    _refuse_hidden(key, module)
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise UserError(
            f"{key}: module {module!r} cannot be imported ({error}); start from the folder that"
            f" holds it, or install it"
        ) from None
    except (Exception, SystemExit) as error:  # the user's own code
        raise UserError(
            f"{key}: module {module!r} cannot be imported ({reason(error)}); fix it"
        ) from error
    if not callable(found):
        callables = [key for key, value in vars(sys.modules[module]).items() if callable(value)]
        hint = did_you_mean(attribute, callables) or "; name a function or class of it"
        if module == "__main__":
            hint = ", as ranks have a main program of their own; put it into a file, and name that"
        raise UserError(f"{key}: module {module!r} has no callable {attribute!r}{hint}")
    return cast(Callable[..., Any], found)


def _refuse_hidden(key: str, module: str) -> None:
    """Refuses a module of the current folder where Python finds another one of its name."""
    top = module.partition(".")[0]
    here = [path for path in (Path(f"{top}.py"), Path(top, "__init__.py")) if path.is_file()]
    found = sys.modules.get(top)
    spec = found.__spec__ if found is not None else importlib.util.find_spec(top)
    origin = getattr(found, "__file__", None) or (spec and spec.origin)
    if here and not (origin and Path(origin).exists() and here[0].samefile(origin)):
        raise UserError(
            f"{key}: {here[0]} in the current folder has the name of another module ({origin});"
            f" rename it"
        )


def reason(error: BaseException) -> str:
    """What a user's code raised, and the line of it that raised it, or called who did."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = ("site-packages", str(Path(__file__).parents[1]))
    own = [frame for frame in frames if not any(part in frame.filename for part in libraries)]
    origin = (own or frames)[-1]
    where = f", {Path(origin.filename).name} line {origin.lineno}"
    return f"{type_and_line(error)}{'' if isinstance(error, SyntaxError) else where}"
