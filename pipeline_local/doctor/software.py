"""Checks of Python and the libraries: do they fit each other, and can ranks talk by them?"""

import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from pipeline_local.doctor.finding import Finding, failed, passed, warned

PACKAGE = "pipeline-local"
_EXTRAS = ("lm", "parquet", "frame")
"""Those that runs need; the others are for the development of the package."""


def python() -> Iterator[Finding]:
    """Whether the interpreter is in the range of the package."""
    version = platform.python_version()
    wanted = _fact(PACKAGE, "Requires-Python") or ""
    if SpecifierSet(wanted).contains(version, prereleases=True):
        yield passed(f"{version} on {platform.machine()}", version=version)
    else:
        remedy = f"make an environment with Python {wanted}"
        yield failed(f"{version}, needs {wanted}", remedy, version=version)


def libraries() -> Iterator[Finding]:
    """Whether all libraries are there, in the ranges that the package and they themselves need."""
    if _version(PACKAGE) is None:
        found = f"{PACKAGE} is not installed, so it does not say which versions it needs"
        yield warned(found, "pip install -e . in its folder")
        return
    wanted = _requirements(PACKAGE, ("", *_EXTRAS))
    versions = {_name(need): _version(need.name) for need in wanted}
    present = {name: version for name, version in versions.items() if version is not None}
    for need in _requirements(PACKAGE):
        if _name(need) not in present:
            yield failed(f"{need.name} is not installed", f"pip install '{_plain(need)}'")
    for holder in (PACKAGE, *present):
        needs = wanted if holder == PACKAGE else _requirements(holder)
        yield from (_misfit(holder, need, present) for need in needs if not _fits(need, present))
    shown = ", ".join(f"{name} {version}" for name, version in present.items())
    yield passed(shown, versions=present)


def _requirements(name: str, extras: Sequence[str] = ("",)) -> list[Requirement]:
    """What an installed distribution needs here, with any of some extras."""
    found = [Requirement(text) for text in metadata.requires(name) or ()]
    return [
        need
        for need in found
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def _fits(need: Requirement, present: dict[str, str]) -> bool:
    version = present.get(_name(need))
    return version is None or need.specifier.contains(version, prereleases=True)


def _misfit(holder: str, need: Requirement, present: dict[str, str]) -> Finding:
    version = present[_name(need)]
    found = f"{need.name} {version} does not fit {holder}, which needs {need.specifier}"
    return failed(found, f"pip install '{_plain(need)}'")


def _name(need: Requirement) -> str:
    return str(canonicalize_name(need.name))


def _plain(need: Requirement) -> str:
    return f"{need.name}{need.specifier}"


def _version(name: str) -> str | None:
    return _fact(name, "Version")


def _fact(name: str, key: str) -> str | None:
    """From the metadata of a distribution; None where it is not installed."""
    try:
        return str(metadata.metadata(name)[key])
    except metadata.PackageNotFoundError:
        return None


def backends() -> Iterator[Finding]:
    """Whether torch has gloo, which every run of several ranks needs, and nccl for GPUs."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_gloo_available()):
        yield failed("torch is built without gloo", "install a wheel of pytorch.org")
    elif dist.is_nccl_available():
        nccl: Any = torch.cuda.nccl
        version = ".".join(map(str, nccl.version()))
        yield passed(f"gloo, nccl {version}", nccl=version)
    elif torch.cuda.is_available():
        remedy = "install a wheel of pytorch.org; until then tensors go through the hosts' memory"
        yield warned("gloo; GPUs, but torch is built without nccl", remedy)
    else:
        yield passed(f"gloo on {sys.platform}")
