"""What is refused before anything is spent."""

import pytest
import torch
from torch import nn

from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.learning import estimators
from pipeline_local.learning.step import Step
from pipeline_local.placement.draw import draw
from tests import token_task


def batch_statistics(num_classes, image_shape):
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return [nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm), nn.Linear(8, num_classes)]


def drawn(limit, batch_size=64):
    data = {"name": "digits", "batch_size": batch_size, "limit": limit}
    model = {"name": f"python:{__name__}:batch_statistics"}
    config = configfile.parse({"model": model, "data": data, "train": {"steps": 1}})
    return draw(config, describe(config.data))


def test_a_norm_of_the_batch_is_probed_with_more_than_one_sample():
    assert drawn(66).output_shapes == ((8,),)


def test_a_last_test_batch_of_one_sample_is_refused():
    with pytest.raises(
        UserError, match=r"data.batch_size: 64 leaves a last test batch \(or microbatch\) of one"
    ) as e:
        drawn(65)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"modules": {"count": 1}, "information": {"name": "contrast"}},
            "information.name: contrast stands beside auxiliary heads, and a single module",
        ),
        ({"modules": {"count": 1}}, "distill.weight: 0.5 trains auxiliary heads, and a single"),
        ({"task": {"name": "regression"}}, "distill.weight: task.name=regression does not say"),
    ],
)
def test_what_heads_are_asked_needs_heads_and_probabilities(sections, problem):
    tree = {
        "model": {"name": "mlp"},
        "data": {"name": "digits"},
        "modules": {"count": 2},
        "train": {"steps": 1},
        "distill": {"weight": 0.5},
    }
    config = configfile.parse({**tree, **sections})
    with pytest.raises(UserError) as error:
        draw(config, describe(config.data))
    assert str(error.value).startswith(problem)
    assert "\n" not in str(error.value)
    assert draw(configfile.parse(tree), describe(config.data)).run_plan.lag.contents


def drawn_for_tokens(**sections):
    config = configfile.parse(token_task.settings("unused", **sections))
    return draw(config, describe(config.data))


@pytest.mark.parametrize("name", ["conv", "mlp", "etf"])
def test_a_head_for_images_names_those_for_tokens(name):
    with pytest.raises(UserError) as error:
        drawn_for_tokens(head={"name": name})
    message = str(error.value)
    assert message.startswith(f"head.name: {name} does not fit behind block embedding (it gives a")
    assert message.endswith("at each position: linear, auglocal, ema or readout")
    assert "modules.cuts" not in message


@pytest.mark.parametrize("name", ["linear", "auglocal", "ema", "readout"])
def test_the_heads_for_tokens_fit(name):
    assert len(drawn_for_tokens(head={"name": name}).modules) == 2


@pytest.mark.parametrize(
    ("sections", "advice"),
    [
        ({"information": {"name": "contrast"}}, "leave information out"),
        ({"information": {"name": "reconstruction"}}, "as the first module's input is whole"),
    ],
)
def test_a_term_that_fits_no_tokens_says_what_helps(sections, advice):
    with pytest.raises(UserError) as error:
        drawn_for_tokens(head={"name": "linear"}, **sections)
    message = str(error.value)
    assert advice in message.rpartition("; ")[2]
    assert "modules.cuts" not in message
    assert "\n" not in message


def test_contrast_of_single_samples_says_what_helps():
    tree = {
        "model": {"name": "mlp"},
        "data": {"name": "digits", "batch_size": 2, "limit": 64},
        "modules": {"count": 2},
        "information": {"name": "contrast"},
        "train": {"steps": 1, "microbatches": 2},
        "head": {"name": "linear"},
    }
    config = configfile.parse(tree)
    with pytest.raises(UserError, match=r"choose a larger data\.batch_size, or fewer"):
        draw(config, describe(config.data))


class Own(estimators.Exact):
    """A user's own."""


def test_losses_may_be_differentiated_as_often_as_an_estimator_does():
    """Else the gradient of unformed logits is a constant, and so would the discord be."""
    gradients = []
    for name in ("exact", f"python:{__name__}:Own"):
        blueprint = drawn_for_tokens(
            task={"name": "next_token"},
            head={"name": "readout"},
            reconcile={"weight": 0.5, "every": 1, "estimator": name},
        )
        module = blueprint.module(1, torch.device("cpu"))
        x, g = torch.randn(2, 8, 16, 32, generator=torch.Generator().manual_seed(0))
        module(
            x, torch.ones(8, 16, dtype=torch.int64), Step(0, lr=0.1, reconcile=True, compare=True)
        )
        module.signal()
        module.receive(g)
        module.learn()
        gradients.append(module.gradients)
    for exact, own in zip(*gradients, strict=True):
        assert torch.equal(exact, own)


def test_a_task_for_classes_names_that_for_tokens():
    with pytest.raises(UserError, match=r"choose task\.name=next_token or other data"):
        drawn_for_tokens(task={"name": "classification"})
