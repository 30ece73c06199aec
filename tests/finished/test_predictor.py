"""The heads of a run together, on images: what its evaluation has told of them."""

import copy

import pytest
import torch
from torch import nn

from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe, open_split
from pipeline_local.data.images.normalize import Normalize
from pipeline_local.errors import UserError
from pipeline_local.finished.predictor import Predictor
from pipeline_local.fitting import fitting
from pipeline_local.fitting.fitting import fit
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train


@pytest.mark.parametrize(
    ("narrow", "head"), [(None, "auglocal"), ("bfloat16", "auglocal"), (None, "ema")]
)
def test_a_run_classifies(tmp_path, narrow, head):
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 32},
        "modules": {"count": 3},
        "head": {"name": head},
        "train": {"steps": 20},
        "parallel": {"threads": 1, "wire_dtype": narrow},
        "run": {"dir": str(tmp_path / "run")},
    }
    config = configfile.parse(tree)
    summary = train(config, RankInfo())
    predict = Predictor(tmp_path / "run", heads="all")
    assert predict.heads == (1, 2, 3)
    assert predict.classes == describe(config.data).classes
    test = open_split(config.data, "test")
    images = torch.stack([torch.as_tensor(test[k][0]) for k in range(len(test))])
    labels = torch.tensor([test[k][1] for k in range(len(test))])
    said = predict(images)
    torch.testing.assert_close(said.exp().sum(1), torch.ones(len(test)))
    right = (said.argmax(1) == labels).double().mean().item()
    assert right == pytest.approx(summary["ensemble_accuracy"][-1], abs=1e-9)
    assert summary["ensemble_accuracy"][-1] != summary["accuracy"][-1]
    torch.testing.assert_close(predict(images[:5]), said[:5])
    with torch.no_grad():
        last = fitting.load(tmp_path / "run")(Normalize(describe(config.data))(images))
    if narrow is None:
        alone = Predictor(tmp_path / "run", heads=[3])(images)
        torch.testing.assert_close(alone, last.log_softmax(1))
    own = Predictor(tmp_path / "run")
    right = (own(images).argmax(1) == labels).double().mean().item()
    every = [*summary["ensemble_accuracy"], summary["accuracy"][-1]]
    assert right == pytest.approx(max(every), abs=1e-9), own.reason
    with pytest.raises(
        ValueError, match=r"inputs must be a tensor \[B, 1, 8, 8\], got \[1, 8, 8\]"
    ):
        predict(images[0])


def test_a_run_of_fit_predicts_by_its_best_heads(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(40, 6), torch.arange(40) % 3
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    run = tmp_path / "run"
    settings = {"modules": 2, "epochs": 1, "batch_size": 20, "head": {"name": "linear"}}
    settings["parallel"] = {"threads": 1}
    summary = fit(network, (x, y), (x, y), run_dir=run, **settings)
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    predict = Predictor(run, model=other, heads="all")
    predicted = predict(x)
    assert predicted.shape == (40, 3)
    right = (predicted.argmax(1) == y).float().mean().item()
    assert right == pytest.approx(summary["ensemble_accuracy"][-1])
    assert not any(p.any() for p in other.parameters()), "it is a pattern, and stays as it is"
    with pytest.raises(UserError, match="Predictor"):
        Predictor(run)
    one = Predictor(run, model=other, heads=1)
    assert torch.equal(one(x), Predictor(run, model=other, heads=[1])(x))
    with pytest.raises(UserError, match="step: should be a number of steps or a name, got None"):
        Predictor(run, model=other, step=None)
    best = Predictor(run, model=other)
    right = (best(x).argmax(1) == y).float().mean().item()
    assert right == pytest.approx(max(*summary["ensemble_accuracy"], summary["accuracy"][-1]))
    assert best(x / 100).shape == (40, 3), "only images have a range"


@pytest.fixture(scope="module")
def weak_heads(tmp_path_factory):
    """A run whose early heads are weak: fixed vertices behind few convolutions."""
    run = tmp_path_factory.mktemp("weak") / "run"
    tree = {
        "model": {"name": "resnet20", "width": 8},
        "data": {"name": "digits", "batch_size": 64},
        "modules": {"cuts": [2, 5, 8]},
        "head": {"name": "etf"},
        "train": {"steps": 60},
        "optimizer": {"lr": 0.05},
        "parallel": {"threads": 1},
        "run": {"dir": str(run)},
    }
    return run, train(configfile.parse(tree), RankInfo())


def test_weak_early_heads_are_left_out(weak_heads):
    run, summary = weak_heads
    assert summary["ensemble_accuracy"][-1] < summary["accuracy"][-1] - 0.05
    predict = Predictor(run)
    assert predict.heads == (4,)
    assert f"all heads {summary['ensemble_accuracy'][-1]:.2%}" in predict.reason
    test = open_split(configfile.load(run / "config.yaml").data, "test")
    images = torch.stack([torch.as_tensor(test[k][0]) for k in range(len(test))])
    right = (predict(images).argmax(1) == test.labels).double().mean().item()
    assert right == pytest.approx(summary["accuracy"][-1])


def test_images_of_another_range_are_refused(weak_heads):
    predict = Predictor(weak_heads[0], heads=[1])
    stored = torch.arange(128).reshape(2, 1, 8, 8)
    right = predict(stored.to(torch.uint8))
    for dtype in (torch.int64, torch.float32, torch.float64, torch.bfloat16):
        torch.testing.assert_close(predict(stored.to(dtype)), right)
    for white, given in ((1, stored / 255), (1.0, (stored / 255).double()), (65535, stored * 257)):
        torch.testing.assert_close(predict(given, white=white), right)
    dark = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    torch.testing.assert_close(predict(dark.float()), predict(dark))
    assert predict(dark + 1).shape == (1, 10), "whole numbers may be as dark as they are"
    assert predict(dark[:0]).shape == (0, 10)
    for wrong in (
        stored / 255,
        (stored / 255).half(),
        stored > 40,
        stored / 255 * 1.05,  # as resizing overshoots
        stored / 64 - 1,
        (stored / 255 - 0.3) / 0.4,
        stored * 257,
        stored.float() * torch.nan,
        stored.int() - 1,
    ):
        with pytest.raises(ValueError, match=r"values in \[0, 255\], got torch\.\w+ from .*white"):
            predict(wrong)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got torch.int64 from 0 to 127"):
        predict(stored, white=1)


@pytest.mark.parametrize("heads", [[], [0], [5], [1, 9]])
def test_heads_that_are_not_there(weak_heads, heads):
    with pytest.raises(ValueError, match="heads must be 'all' or numbers from 1 to 4"):
        Predictor(weak_heads[0], heads=heads)


def digits_of(run):
    test = open_split(configfile.load(run / "config.yaml").data, "test")
    return torch.stack([torch.as_tensor(test[k][0]) for k in range(len(test))]), test.labels


def test_no_module_beyond_is_computed(exit_run):
    images, _ = digits_of(exit_run)
    whole = {k: Predictor(exit_run, heads=[k])(images) for k in (1, 2)}
    predict = Predictor(exit_run, upto=2, heads=[2])
    assert len(predict._modules) == 2
    assert torch.equal(predict(images), whole[2])
    both = Predictor(exit_run, upto=2, heads="all")
    assert both.heads == (1, 2)
    torch.testing.assert_close(both(images), ((whole[1] + whole[2]) / 2).log_softmax(1))
    assert Predictor(exit_run, upto=1).heads == (1,)
    chosen = Predictor(exit_run, upto=2)
    assert max(chosen.heads) <= 2
    assert "head 3" not in chosen.reason
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="upto must be a module from 1 to 3"):
            Predictor(exit_run, upto=wrong)
    with pytest.raises(ValueError, match="numbers from 1 to 2"):
        Predictor(exit_run, upto=2, heads=[3])


def test_each_sample_leaves_at_the_first_sure_head(exit_run):
    images, _ = digits_of(exit_run)
    alone = [Predictor(exit_run, heads=[k])(images).exp() for k in (1, 2, 3)]
    predict = Predictor(exit_run)
    found = predict.classify(images, confidence=0.8)
    for sample, exit in enumerate(found.exits.tolist()):
        sure = [k for k in (1, 2, 3) if alone[k - 1][sample].max() >= 0.8]
        assert exit == (sure or [3])[0]
        torch.testing.assert_close(found.probabilities[sample], alone[exit - 1][sample])
    assert {*found.exits.tolist()} == {1, 2, 3}
    sizes = []
    for module in predict._modules:
        module.body.register_forward_hook(lambda _, x, y: sizes.append(len(y)))
    predict.classify(images, confidence=0.8)
    left = [int((found.exits > k).sum()) for k in (0, 1, 2)]
    assert sizes == left, "later modules see only those that are left"
    sizes.clear()
    predict.classify(images, confidence=1e-6)
    assert sizes == [len(images)], "all have left"


def test_early_exit_among_some_heads(exit_run):
    images, _ = digits_of(exit_run)
    found = Predictor(exit_run, heads=[1, 3]).classify(images, confidence=0.9)
    assert {*found.exits.tolist()} == {1, 3}
    short = Predictor(exit_run, upto=2).classify(images, confidence=0.9)
    assert {*short.exits.tolist()} == {1, 2}
    assert torch.equal(short.exits == 1, found.exits == 1)


def test_probabilities_without_early_exit(exit_run):
    images, _ = digits_of(exit_run)
    predict = Predictor(exit_run, heads="all")
    found = predict.classify(images)
    assert torch.equal(found.probabilities, predict(images).exp())
    assert found.exits.tolist() == [3] * len(images)
    empty = predict.classify(images[:0], confidence=0.5)
    assert (empty.probabilities.shape, empty.exits.shape) == ((0, 10), (0,))
    for wrong in (0, -1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="confidence must be above 0"):
            predict.classify(images, confidence=wrong)
    earlier = Predictor(exit_run, heads="all", step=20)(images)
    assert not torch.equal(earlier, predict(images))
