"""Versions in and out of range, of the package and of the libraries among each other."""

from importlib import metadata

import pytest
import torch
import torch.distributed as dist

from pipeline_local.doctor import software

NEEDS = {
    "pipeline-local": ["torch<3,>=2.11", "torchvision>=0.26", 'tokenizers>=0.2; extra == "lm"'],
    "torch": [],
    "torchvision": ["torch (>=2.14)", 'scipy; extra == "scipy"'],
    "tokenizers": ["torch>=9; extra == 'dev'"],
}


@pytest.fixture
def installed(monkeypatch):
    """Makes only these be installed, of the versions that are given."""

    def install(**versions):
        here = {name.replace("_", "-"): version for name, version in versions.items()}

        def facts(name):
            if name not in here:
                raise metadata.PackageNotFoundError(name)
            return {"Version": here[name], "Requires-Python": ">=3.10"}

        monkeypatch.setattr(software.metadata, "metadata", facts)
        monkeypatch.setattr(software.metadata, "requires", NEEDS.__getitem__)

    return install


FITS = {"pipeline_local": "1", "torch": "2.14.1+cpu", "torchvision": "0.29"}


def test_all_fit(installed, lines):
    installed(**FITS)
    assert lines(software.libraries) == [("PASS", "torch 2.14.1+cpu, torchvision 0.29; ")]


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"torch": "2.10"}, "torch 2.10 does not fit pipeline-local, which needs <3,>=2.11"),
        ({"torch": "2.11"}, "torch 2.11 does not fit torchvision, which needs >=2.14"),
        ({"tokenizers": "0.1"}, "tokenizers 0.1 does not fit pipeline-local"),
    ],
)
def test_a_version_out_of_range(installed, lines, versions, found):
    installed(**(FITS | versions))
    (status, text), *_ = lines(software.libraries)
    assert status == "FAIL"
    assert text.startswith(found)
    assert "; pip install '" in text
    assert lines(software.libraries)[-1][0] == "PASS"  # it names all versions


def test_a_library_that_is_missing(installed, lines):
    installed(pipeline_local="1", torch="2.14")
    assert lines(software.libraries)[0] == (
        "FAIL",
        "torchvision is not installed; pip install 'torchvision>=0.26'",
    )


def test_the_package_itself_is_not_installed(installed, lines):
    installed(torch="1")
    ((status, text),) = lines(software.libraries)
    assert (status, "is not installed" in text) == ("WARN", True)


@pytest.mark.parametrize(("version", "status"), [("3.11.7", "PASS"), ("3.9.1", "FAIL")])
def test_python(installed, lines, monkeypatch, version, status):
    installed(**FITS)
    monkeypatch.setattr(software.platform, "python_version", lambda: version)
    assert lines(software.python)[0][0] == status


@pytest.mark.parametrize(
    ("gloo", "nccl", "gpu", "status"),
    [(1, 0, 0, "PASS"), (0, 1, 1, "FAIL"), (1, 0, 1, "WARN")],
)
def test_backends(lines, monkeypatch, gloo, nccl, gpu, status):
    monkeypatch.setattr(dist, "is_gloo_available", lambda: bool(gloo))
    monkeypatch.setattr(dist, "is_nccl_available", lambda: bool(nccl))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpu))
    assert lines(software.backends)[0][0] == status


def test_the_version_of_nccl(lines, monkeypatch):
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 30, 7))
    assert lines(software.backends) == [("PASS", "gloo, nccl 2.30.7; ")]
