"""Both splits, the task and a program's own functions are tried before anything is spent."""

import pytest
import torch
from torch import nn

from pipeline_local.errors import UserError
from pipeline_local.fitting import arguments, checking
from pipeline_local.given.given import Given


def data(count=8, x_shape=(4,), y=None):
    x = torch.randn(count, *x_shape, generator=torch.Generator().manual_seed(0))
    return arguments.samples("train", (x, torch.arange(count) % 3 if y is None else y))


@pytest.mark.parametrize(
    ("test", "same"),
    [(data(4), True), (data(4, x_shape=(5,)), False), (data(4, y=torch.zeros(4)), False)],
)
def test_both_splits_look_alike(test, same):
    train = data()
    if same:
        checking._check_alike(train.form, test.form)
        return
    with pytest.raises(UserError, match="test data must look like training data"):
        checking._check_alike(train.form, test.form)


@pytest.mark.parametrize(
    ("functions", "problem"),
    [
        ({"loss": "mse"}, "loss: must be a function of outputs and labels, got 'mse'"),
        ({"loss": lambda o, y: 1.0}, "loss: must return a scalar tensor .* got float"),
        ({"loss": lambda o, y: o}, r"scalar tensor .* got Tensor \[2, 3\] for outputs"),
        ({"metric": lambda o, y: o[9]}, r"metric: cannot be called with outputs \[2, 3\]"),
    ],
)
def test_functions_are_tried(functions, problem):
    samples = data()
    objects = Given(nn.Linear(4, 3), torch.zeros(2, 4), **functions)
    task = type("Three", (), {"output_shape": (3,), "accept": staticmethod(lambda y: y)})
    with pytest.raises(UserError, match=problem):
        checking._try_functions(objects, task, samples)
