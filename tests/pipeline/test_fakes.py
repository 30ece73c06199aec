"""Fake tensors spend nothing, whoever steps them."""

import pytest
import torch
from torch import nn

from pipeline_local.config import OptimizerConfig
from pipeline_local.learning import optimizer
from pipeline_local.pipeline.fakes import Fakes


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_fused_step_of_more_than_any_machine_has(name):
    with Fakes():
        weight = nn.Parameter(torch.empty(2**44))
        stepper = optimizer.build(OptimizerConfig(name), [weight])
        assert stepper.param_groups[0]["fused"]
        for _ in range(2):
            weight.grad = torch.empty_like(weight)
            stepper.step()
        state = stepper.state[weight]
    assert any(value.numel() == 2**44 for value in state.values())
