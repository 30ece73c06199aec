"""Names of computations on the meta device: equal for equal values, and for these alone."""

import pytest
import torch
from torch.nn import functional

from pipeline_local.models.symbolic import Symbolic


def names(*functions):
    """The name of what each function computes of the same two tensors."""
    x = torch.empty(3, 3, device="meta")
    y = torch.empty(3, 3, device="meta")
    with Symbolic() as symbolic:
        return [symbolic.name(function(x, y)) for function in functions]


def in_place(x, y):
    z = x.clone()
    z[0] += y[0]
    return z


SAME = [
    (lambda x, y: x @ y + x, lambda x, y: torch.add(x.matmul(y), x)),
    (lambda x, y: x.sin(), lambda x, y: (x.sin() if y.sum() is not None else x).view(9).view(3, 3)),
    (lambda x, y: torch.arange(3, device="meta") + 0, lambda x, y: torch.arange(3, device="meta")),
    (in_place, in_place),
    (lambda x, y: (x.cos(), y.cos())[1], lambda x, y: y.cos()),
]
OTHER = [
    (lambda x, y: x @ y, lambda x, y: y @ x),
    (lambda x, y: x + y, lambda x, y: x - y),
    (lambda x, y: x * 2, lambda x, y: x * 3),
    (lambda x, y: x, lambda x, y: y),
    (lambda x, y: x.sin(), lambda x, y: x.sin().T),
    (lambda x, y: x.sin()[0], lambda x, y: x.sin()[1]),
    (lambda x, y: x.topk(2)[0], lambda x, y: x.topk(2)[1].float()),
    (in_place, lambda x, y: x.clone()),
    (in_place, lambda x, y: in_place(y, x)),
    (lambda x, y: functional.softmax(x, 0), lambda x, y: functional.softmax(x, 1)),
    (lambda x, y: x + 0.5, lambda x, y: x),
    (lambda x, y: x.to(torch.bfloat16).float(), lambda x, y: x),
    (
        lambda x, y: functional.scaled_dot_product_attention(x[None], y[None], y[None]),
        lambda x, y: functional.scaled_dot_product_attention(
            x[None], y[None], y[None], is_causal=True
        ),
    ),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_the_same_computation_has_the_same_name(first, second):
    assert len({*names(first, second)}) == 1


@pytest.mark.parametrize(("first", "second"), OTHER)
def test_another_computation_has_another_name(first, second):
    assert len({*names(first, second)}) == 2


def test_values_are_not_made_up():
    with Symbolic(), pytest.raises(RuntimeError):
        int(torch.empty(1, dtype=torch.int64, device="meta"))
