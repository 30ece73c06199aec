"""The arguments of `fit` become objects and a configuration, or are refused before any work."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline_local.config import RunConfig
from pipeline_local.errors import UserError
from pipeline_local.fitting import arguments

STEPS = {"train": {"steps": 1}}


def network(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))


def data(count=8, x_shape=(4,), y=None):
    x = torch.randn(count, *x_shape, generator=torch.Generator().manual_seed(0))
    return arguments.samples("train", (x, torch.arange(count) % 3 if y is None else y))


def collected(model=None, samples=None, **more):
    given = {"task": None, "loss": None, "metric": None, "optimizer": "sgd", "schedule": "cosine"}
    model, samples = model or network(), samples or data()
    return arguments.collected(model, samples, layout=None, **{**given, **more})


@pytest.mark.parametrize("length", [{"epochs": 1}, {"steps": 1}, {"tokens": 9}])
def test_how_long_is_said(length):
    arguments.check(network(), length.get("epochs"), {"train": length}, [])
    with pytest.raises(UserError, match="how long to train is not said; pass epochs=N"):
        arguments.check(network(), None, {"train": {"seed": 1}}, [])


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"epoch": 1}, "unknown argument 'epoch'; did you mean 'epochs'?"),
        ({"seed": 1}, "unknown argument 'seed'; pass train={'seed': ...}"),
        ({"data.limit": 1}, "unknown argument 'data.limit'; pass data={'limit': ...}"),
        ({"learning_rate": 1}, "unknown argument 'learning_rate'; there are epochs, lr, model, da"),
    ],
)
def test_an_argument_that_nobody_knows(sections, problem):
    """It is named even where the length is missing: that may be what was misspelled."""
    with pytest.raises(UserError, match=re.escape(problem)):
        arguments.check(network(), None, sections, ["epochs", "lr"])


def test_a_misspelled_length_is_left_to_who_knows_the_keys():
    arguments.check(network(), None, {"train": {"step": 1}}, [])


def test_weights_that_cannot_be_changed():
    with torch.inference_mode():
        model = network()
    with pytest.raises(UserError, match=r"made in torch\.inference_mode"):
        arguments.check(model, 1, {}, [])


def test_a_mistake_in_the_data_has_the_name_of_its_argument():
    with pytest.raises(UserError, match=r"^test: x and y must have one entry per sample each"):
        arguments.samples("test", (torch.zeros(3, 4), torch.zeros(2)))


def test_objects_are_kept_and_names_are_not():
    """What is a name stands in the configuration."""

    def loss(outputs, labels):
        return outputs.mean()

    plain = collected(task="regression")
    assert (plain.task, plain.optimizer, plain.schedule) == (None, None, None)
    own = collected(loss=loss, optimizer=torch.optim.Adam, schedule=lambda step, steps: 1.0)
    assert own.loss is loss
    assert own.optimizer is torch.optim.Adam
    assert own.schedule(0, 1) == 1.0
    assert own.example.shape == (2, 4)


def test_the_example_has_the_precision_of_the_model():
    assert collected(network().double()).example.dtype == torch.float64


def test_the_first_samples_are_numbers():
    x = torch.zeros(8, 4)
    x[1, 2] = float("nan")
    broken = arguments.samples("train", (x, torch.zeros(8)))
    with pytest.raises(UserError, match="first training samples hold NaN or infinity"):
        collected(samples=broken)


@pytest.mark.parametrize(
    ("outputs", "y", "task"),
    [
        (3, None, "classification"),
        (1, torch.zeros(8, 1), "regression"),
    ],
)
def test_the_task_follows_from_the_labels(outputs, y, task):
    samples = data(y=y)
    tree = arguments.learned(collected(network(outputs), samples), samples, None, None)
    assert tree["task"] == {"name": task}
    assert tree["data"]["batch_size"] == 8, "no more than there are"


def test_labels_for_each_place_are_tokens():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    ids = torch.arange(40).reshape(8, 5) % 9
    tokens = arguments.samples("train", (ids, ids))
    tree = arguments.learned(collected(model, tokens), tokens, None, 4)
    assert tree["task"] == {"name": "next_token"}
    assert tree["data"]["batch_size"] == 4
    fewer = arguments.samples("train", (ids, ids[:, :4]))
    with pytest.raises(UserError, match="a token for each of the 5 places of the outputs, got 4"):
        arguments.learned(collected(model, fewer), fewer, None, None)


def test_a_loss_of_its_own_has_a_task_as_its_base():
    samples = data()
    objects = collected(samples=samples, loss=nn.functional.cross_entropy)
    task = arguments.learned(objects, samples, {"name": "classification", "top": 1}, 4)["task"]
    assert task == {"name": "given", "base": "classification", "options": {"top": 1}}


def test_the_rate_is_the_optimizers_own():
    objects = collected()

    def rate(optimizer, lr=None):
        return arguments.updated(objects, optimizer, lr, "cosine", 3)["optimizer"]["lr"]

    assert rate("adamw") == 0.1
    assert rate(lambda params: torch.optim.Adam(params, lr=7e-4)) == 7e-4
    assert rate(lambda params: torch.optim.Adam(params, lr=7e-4), lr=0.5) == 0.5
    assert arguments.updated(objects, "sgd", None, "cosine", None)["train"] == {}


@pytest.mark.parametrize(
    ("optimizer", "problem"),
    [
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), "pass what makes one of parameters.*got SGD"),
        (lambda params: "adam", "must return a torch optimizer .* got str"),
    ],
)
def test_an_optimizer_that_is_none(optimizer, problem):
    with pytest.raises(UserError, match=problem):
        arguments.updated(collected(), optimizer, None, "cosine", 1)


@pytest.mark.parametrize(
    ("modules", "stages", "sections", "count"),
    [
        (3, 2, {}, 3),
        (None, 2, {}, 2),
        (None, None, {"parallel": {"stages": 4}}, 4),
        (None, None, {}, 1),
    ],
)
def test_one_module_per_stage_unless_it_is_said(modules, stages, sections, count):
    run = RunConfig(Path("nowhere"))
    tree = arguments.placed(run, modules, stages, sections)
    assert tree["modules"] == {"count": count}
    assert tree["run"] == {"dir": Path("nowhere"), "resume": False}


def test_one_module_per_stage_beside_further_keys():
    run = RunConfig(Path("nowhere"))

    def modules(**keys):
        return arguments.placed(run, keys, 2, {})["modules"]

    assert modules(recompute=True) == {"recompute": True, "count": 2}
    assert modules(count=3) == {"count": 3}
    assert modules(cuts=["a", "b"]) == {"cuts": ["a", "b"]}, "which say it"
    assert modules(cuts="auto") == {"cuts": "auto", "count": 2}


def test_a_section_takes_the_optimizer_apart():
    assert arguments.updates("adamw", 0.1, "linear") == ("adamw", 0.1, "linear", {})
    section = {"name": "adamw", "lr": 0.2, "schedule": "constant", "clip": 1.0}
    assert arguments.updates(section, None, "cosine") == ("adamw", 0.2, "constant", {"clip": 1.0})
    assert arguments.updates({"clip": 1.0}, 0.1, "cosine") == ("sgd", 0.1, "cosine", {"clip": 1.0})
    with pytest.raises(UserError, match="lr: is also a key of optimizer"):
        arguments.updates(section, 0.1, "cosine")
    with pytest.raises(UserError, match="schedule: is also a key of optimizer"):
        arguments.updates(section, None, "linear")


def test_an_empty_section_changes_nothing():
    assert arguments.merged({"train": {"epochs": 3}}, {"train": None}) == {"train": {"epochs": 3}}


def test_sections_are_merged_key_by_key():
    tree = {"train": {"epochs": 3}, "run": {"dir": "a"}}
    merged = arguments.merged(tree, {"train": {"seed": 1}, "engine": "torch"})
    assert merged == {"train": {"epochs": 3, "seed": 1}, "run": {"dir": "a"}, "engine": "torch"}
    assert tree["train"] == {"epochs": 3}, "what was given stays"
