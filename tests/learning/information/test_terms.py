"""Information terms against their formulas, and their networks on every layout."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_local.config import InformationConfig
from pipeline_local.layout import Layout
from pipeline_local.learning.heads import initialize
from pipeline_local.learning.information import Ends, build, weights
from pipeline_local.learning.information.reconstruction import ToPixels
from pipeline_local.learning.spec import Spec

LABELS = Spec((6,), torch.int64)
NO_LABELS = torch.empty(6, 0)


def ends(
    layout: Layout, shape, input_layout, input_shape, dtype=torch.float32, labels=LABELS
) -> Ends:
    return Ends(layout, shape, input_layout, input_shape, dtype, labels)


MAPS = ends("NCHW", (4, 4, 4), "NCHW", (3, 8, 8))
PLACES = {
    "half the side": (MAPS, (3, 8, 8)),
    "a side that is no multiple": (ends("NCHW", (4, 3, 4), "NCHW", (5, 8, 8)), (5, 8, 8)),
    "smaller input": (ends("NCHW", (4, 9, 9), "NCHW", (2, 3, 3)), (2, 3, 3)),
    "images from tokens": (ends("NTC", (17, 8), "NCHW", (3, 16, 16)), (3, 16, 16)),
    "tokens with a class token": (ends("NTC", (17, 8), "NTC", (17, 6)), (6, 4, 4)),
    "channels last": (ends("NHWC", (2, 2, 8), "NHWC", (4, 4, 6)), (6, 4, 4)),
    "series": (ends("NCT", (4, 5), "NCT", (2, 10)), (2, 1, 10)),
    "vectors": (ends("NC", (7,), "NC", (9,)), (9, 1, 1)),
    "images from vectors": (ends("NC", (7,), "NCHW", (1, 8, 8)), (1, 8, 8)),
}


def made(name, at, **options):
    torch.manual_seed(0)
    term = build(InformationConfig(name, args=options), at).to_empty(device="cpu")
    initialize(term)
    return term


@pytest.mark.parametrize("place", PLACES)
def test_every_layout_is_reconstructed(place):
    at, maps = PLACES[place]
    term = made("reconstruction", at)
    y, x = torch.randn(6, *at.shape), torch.randn(6, *at.input_shape)
    assert term(y).shape == (6, *maps)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        losses.append(term.loss(term(y), x, NO_LABELS))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * min(1.0, losses[0])


def test_the_loss_is_the_unexplained_variance():
    term = made("reconstruction", MAPS)
    x = torch.randn(6, 3, 8, 8) * 3 + torch.arange(3).view(3, 1, 1)
    assert term.loss(x, x, NO_LABELS) == 0
    means = torch.stack([x[:, c].mean() for c in range(3)]).view(1, 3, 1, 1).expand_as(x)
    assert term.loss(means, x, NO_LABELS).item() == pytest.approx(1, rel=1e-5)
    prediction = torch.randn_like(x)
    wanted = (prediction - x).square().sum() / (x - means).square().sum()
    assert term.loss(prediction, x, NO_LABELS).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert term.loss(10 * prediction, 10 * x, NO_LABELS).item() == pytest.approx(
        wanted.item(), rel=1e-5
    )
    constant = torch.ones_like(x)
    assert term.loss(constant, constant, NO_LABELS) == 0, (
        "nothing to explain, and nothing divided by zero"
    )


def test_tokens_are_normalised_and_the_class_token_is_left_out():
    at, _ = PLACES["tokens with a class token"]
    term = made("reconstruction", at)
    x, prediction = torch.randn(6, 17, 6), torch.randn(6, 6, 4, 4)
    loss = term.loss(prediction, x, NO_LABELS)
    assert torch.allclose(loss, term.loss(prediction, 5 * x + 2, NO_LABELS), rtol=1e-3)
    other = x.clone()
    other[:, 0] = 9
    assert term.loss(prediction, other, NO_LABELS) == loss
    wanted = functional.layer_norm(x, (6,))[:, 1:].transpose(1, 2).reshape(6, 6, 4, 4)
    assert term.loss(wanted, x, NO_LABELS) < 1e-6


def test_pixels_are_unfolded_as_by_torch():
    x = torch.randn(2, 12, 3, 5)
    assert torch.equal(ToPixels((2, 2), (6, 10))(x), nn.PixelShuffle(2)(x))
    assert torch.equal(ToPixels((2, 2), (5, 9))(x), nn.PixelShuffle(2)(x)[..., :5, :9])
    assert ToPixels((1, 3), (3, 14))(x).shape == (2, 4, 3, 14)


def test_contrast_is_that_of_its_formula():
    term = made("contrast", MAPS, temperature=0.5)
    z, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1, 0])
    costs = []
    for i in range(6):
        cosines = [float(torch.cosine_similarity(z[i], z[j], dim=0)) / 0.5 for j in range(6)]
        total = sum(math.exp(cosines[j]) for j in range(6) if j != i)
        same = [j for j in range(6) if j != i and labels[j] == labels[i]]
        own = [math.log(total) - cosines[j] for j in same]
        costs.append(sum(own) / len(own) if own else 0.0)
    assert costs[3] == 0
    assert term.loss(z, z, labels).item() == pytest.approx(sum(costs) / 6, rel=1e-12)


def test_contrast_has_first_and_second_derivatives():
    """A lonely sample and the excluded diagonal give no NaN."""
    term = made("contrast", MAPS).double()
    labels = torch.tensor([0, 1, 0])

    def loss(z):
        return term.loss(z, z, labels)

    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, z)
    assert torch.autograd.gradgradcheck(loss, z)


@pytest.mark.parametrize("place", PLACES)
def test_contrast_projects_every_layout(place):
    at, _ = PLACES[place]
    term = made("contrast", at, features=7)
    assert term(torch.randn(6, *at.shape)).shape == (6, 7)


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("reconstruction", {"dtype": torch.int64}, "floating-point inputs, got torch.int64"),
        ("reconstruction", {"input_layout": None}, r"inputs of 1 to 3 axes, got \[3, 8, 8\]"),
        ("contrast", {"labels": Spec((6, 10), torch.float32)}, "one class per sample"),
        ("contrast", {"labels": Spec((6, 8, 8), torch.int64)}, "one class per sample"),
        ("contrast", {"labels": Spec((1,), torch.int64)}, "got microbatches of one"),
    ],
)
def test_what_does_not_fit_is_refused(name, change, line):
    own = {"input_layout": "NCHW", "input_shape": (3, 8, 8), **change}
    with pytest.raises(ValueError, match=line):
        build(InformationConfig(name), ends("NCHW", (4, 4, 4), **own))


def test_weights_are_linear_between_the_first_and_the_last_auxiliary_head():
    config = InformationConfig(weight=(6.0, 1.0), task_weight=(0.0, 2.0))
    assert [weights(config, k, 4) for k in range(3)] == [(0, 6), (1, 3.5), (2, 1)]
    assert weights(config, 0, 2) == (0, 6), "the only one is the first"
    assert weights(InformationConfig(weight=0.5), 1, 4) == (1, 0.5)
