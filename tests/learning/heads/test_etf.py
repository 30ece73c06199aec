"""The fixed classifier: a simplex where there is room for one, logits, safe gradients."""

import pytest
import torch
from torch.nn import functional

from pipeline_local.learning.heads.etf import EPSILON, SCALE, SimplexETF


def drawn(width, num_classes, seed=0):
    torch.manual_seed(seed)
    etf = SimplexETF(width, num_classes)
    etf.reset_parameters()
    return etf


@pytest.mark.parametrize(("width", "classes"), [(64, 10), (10, 10), (9, 10), (1, 2), (2, 3)])
def test_vertices_are_a_simplex(width, classes):
    """Unit vectors that sum to zero, every two at the same angle: the definition."""
    vertices = drawn(width, classes).vertices.double()
    gram = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64)
    gram.fill_diagonal_(1)
    torch.testing.assert_close(vertices @ vertices.T, gram, rtol=0, atol=1e-6)
    torch.testing.assert_close(vertices.sum(0), torch.zeros(width).double(), rtol=0, atol=1e-6)


def test_vertices_are_the_formula():
    """sqrt(C / (C - 1)) P (I - 1 1^T / C), with a P that has orthonormal columns."""
    classes, width = 5, 8
    vertices = drawn(width, classes).vertices.double()
    p = (classes / (classes - 1)) ** -0.5 * vertices.T  # up to the direction of ones, P itself
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    torch.testing.assert_close(p.T @ p, centred, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("width", "classes"), [(5, 10), (8, 100), (1, 3)])
def test_too_few_dimensions_still_give_unit_vectors(width, classes):
    vertices = drawn(width, classes).vertices
    torch.testing.assert_close(vertices.norm(dim=1), torch.ones(classes))
    if width > 1:
        cosines = (vertices @ vertices.T).fill_diagonal_(-1)
        assert cosines.max() < 0.999, "two classes in one place"


def test_vertices_follow_the_generator():
    first = drawn(8, 5).vertices
    assert torch.equal(first, drawn(8, 5).vertices)
    assert not torch.allclose(first, drawn(8, 5, seed=1).vertices, atol=0.1)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"at least 2 vertices, got 1 class$"):
        SimplexETF(8, 1)


def test_logits_are_scaled_cosines():
    etf = drawn(8, 5)
    x = 3 * torch.randn(4, 8)
    cosines = functional.cosine_similarity(x[:, None], etf.vertices[None], dim=2)
    torch.testing.assert_close(etf(x), SCALE * cosines, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(etf(100 * x), etf(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_features_on_their_vertex_are_certain(classes):
    etf = drawn(1024, classes)
    assert etf(etf.vertices).softmax(1).diagonal().min() > 0.999


def test_features_at_zero_have_bounded_derivatives():
    etf = drawn(8, 5).double()
    x = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    loss = functional.cross_entropy(etf(x), torch.arange(3))
    (g,) = torch.autograd.grad(loss, x, create_graph=True)
    (gg,) = torch.autograd.grad(g.square().sum(), x)
    assert loss.item() == pytest.approx(torch.tensor(5.0).log().item())
    assert 0 < g.norm() < SCALE / (8 * EPSILON) ** 0.5
    assert torch.isfinite(gg).all()


def test_there_is_nothing_to_learn_but_something_to_keep():
    etf = SimplexETF(8, 5)
    assert not list(etf.parameters())
    assert list(etf.state_dict()) == ["vertices"], "a checkpoint is complete without its seed"
