"""Fake tensors spend nothing, whoever steps them, and are what a device would have."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline_local.config import OptimizerConfig
from pipeline_local.engines import optimizer
from pipeline_local.memory.fake_mode import fake_mode


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_fused_step_of_more_than_any_machine_has(name):
    with fake_mode():
        weight = nn.Parameter(torch.empty(2**44))
        stepper = optimizer.build(OptimizerConfig(name), [weight])
        assert stepper.param_groups[0]["fused"]
        for _ in range(2):
            weight.grad = torch.empty_like(weight)
            stepper.step()
        state = stepper.state[weight]
    assert any(value.numel() == 2**44 for value in state.values())


def kept(result):
    """Bytes that a graph of one operation keeps for its backward pass, inputs included."""
    saved = [name for name in dir(result.grad_fn) if name.startswith("_saved_")]
    found = [getattr(result.grad_fn, name) for name in saved]
    tensors = [value for value in found if isinstance(value, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_autocast_widens_layer_norms_on_a_gpu(device):
    with fake_mode(device), torch.autocast("cpu", torch.bfloat16):
        x = torch.empty(4, 8, dtype=torch.bfloat16, requires_grad=True)
        y = functional.layer_norm(x, (8,), torch.empty(8), torch.empty(8))
        product = y @ torch.empty(8, 8)
    wide = device == "cuda"
    assert y.dtype == (torch.float32 if wide else torch.bfloat16)
    assert y.grad_fn._saved_input.dtype == y.dtype
    assert product.dtype == torch.bfloat16


@pytest.mark.parametrize(("device", "size"), [("cpu", 4), ("cuda", 1)])
def test_dropout_keeps_a_byte_on_a_gpu(device, size):
    with fake_mode(device):
        x = torch.empty(1000, requires_grad=True)
        assert kept(functional.dropout(x, 0.1)) == 1000 * size
        assert functional.dropout(x, 0.1, training=False) is x or not kept(
            functional.dropout(x, 0.1, training=False)
        )


def attend(dtype, mask=None, dropout=0.0):
    """Heads as torch's own attention makes them: batch and positions change places in memory."""
    lying = torch.empty(6, 2, 4, 8, dtype=dtype, requires_grad=True)  # [N, B, heads, C]
    heads = lying.permute(1, 2, 0, 3)
    return functional.scaled_dot_product_attention(heads, heads, heads, mask, dropout)


@pytest.mark.parametrize(
    ("device", "dtype", "masked", "lies"),
    [
        ("cpu", torch.float32, False, "as the query"),
        ("cuda", torch.float32, False, "by position"),
        ("cuda", torch.bfloat16, False, "as the query"),
        ("cuda", torch.bfloat16, True, "by position"),
    ],
)
def test_how_attention_lies_in_memory(device, dtype, masked, lies):
    """The kernels that an H200 chose (docs/results/gpu.md): a block copies what lies otherwise."""
    with fake_mode(device):
        result = attend(dtype, torch.empty(6, 6, dtype=dtype) if masked else None)
    order = {"as the query": (2, 0, 1, 3), "by position": (0, 2, 1, 3)}[lies]
    assert result.shape == (2, 4, 6, 8)
    assert result.permute(order).is_contiguous()


def test_attention_with_dropout_keeps_no_map_on_a_gpu():
    maps = {}
    for device in ("cpu", "cuda"):
        with fake_mode(device):
            graph, maps[device] = [attend(torch.float32, dropout=0.1).grad_fn], False
            while graph:
                node = graph.pop()
                maps[device] |= "Softmax" in node.name()
                graph += [after for after, _ in node.next_functions if after]
    assert maps == {"cpu": True, "cuda": False}


def test_attention_without_a_fused_kernel_keeps_its_map():
    def names(result):
        graph, found = [result.grad_fn], set()
        while graph:
            node = graph.pop()
            found.add(node.name())
            graph += [after for after, _ in node.next_functions if after]
        return " ".join(found)

    with fake_mode("cuda"):
        q = torch.empty(2, 4, 6, 8, requires_grad=True)
        attention = functional.scaled_dot_product_attention
        assert "Softmax" not in names(attention(q, q, q))
        assert "Softmax" in names(attention(q.double(), q.double(), q.double()))
        assert "Softmax" in names(attention(q[0], q[0], q[0]))
        assert attention(q, q, torch.empty(2, 4, 6, 16)).shape == (2, 4, 6, 16)
        bias = torch.empty(6, 6, requires_grad=True)
        (given,) = torch.autograd.grad(attention(q, q, q, bias).sum(), bias)
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            assert "Softmax" not in names(attention(q, q, q))
        with sdpa_kernel(SDPBackend.MATH):
            assert "Softmax" in names(attention(q, q, q))
    assert given.shape == bias.shape


def test_another_thread_computes_as_ever():
    """On real tensors, while somebody plans."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 8)

    def work():
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            norm = functional.layer_norm(x.bfloat16(), (8,))
        dropped = functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
        return [functional.dropout(x, 0.5), dropped, norm]

    expected = work()
    with ThreadPoolExecutor(1) as other, fake_mode("cuda"):
        found = other.submit(work).result()
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


def test_nothing_stays_imitated():
    with pytest.raises(KeyError), fake_mode("cuda"):
        raise KeyError
    with torch.autocast("cpu", torch.bfloat16):
        y = functional.layer_norm(torch.ones(4, 8, dtype=torch.bfloat16), (8,))
    assert y.dtype == torch.bfloat16
    dropped = functional.dropout(torch.ones(8, requires_grad=True), 0.5)
    assert "NativeDropout" not in dropped.grad_fn.name()
