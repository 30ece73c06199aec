"""What the tests of trial steps share."""

import sys

import pytest

from pipeline_local.configfile import configfile
from tests.memory.trials import layers


@pytest.fixture
def config(monkeypatch):
    """The configuration of a model with this block in the middle, or with these blocks."""
    module = type(sys)("trial_models")
    monkeypatch.setitem(sys.modules, "trial_models", module)

    def make(block, *, build=None, **sections):
        def function(num_classes, image_shape):
            return build(num_classes) if build else layers(block(), num_classes)

        module.function = function
        tree = {
            "model": {"name": "python:trial_models:function"},
            "modules": {"count": 2},
            "head": {"name": "linear"},
            "data": {"name": "digits", "batch_size": 8},
            "train": {"steps": 4},
            "reconcile": {"weight": 0.1, "direction": "both"},
            **sections,
        }
        return configfile.parse(tree)

    return make
