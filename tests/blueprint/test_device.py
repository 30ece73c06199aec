"""Devices by name."""

import pytest
import torch

from pipeline_local.blueprint.device import Device
from pipeline_local.errors import UserError


def test_by_name():
    assert Device.named("cuda") == Device("cuda")
    assert Device.named("cpu") == Device()


@pytest.mark.parametrize("name", ["gpu", "", "cuda:0", "meta"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UserError, match="--device: cpu or cuda, got"):
        Device.named(name)


def test_what_is_here(monkeypatch):
    found = [None, torch.device("cuda")]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: found.pop(0))
    assert Device.here() == Device("cpu")
    assert Device.here() == Device("cuda")
