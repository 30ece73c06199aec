"""The rows of exits say what the run's own evaluation says, and what a loop by hand counts."""

import json

import pytest
import torch
from torch import nn

from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import open_split
from pipeline_local.data.images.normalize import Normalize
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import UserError
from pipeline_local.finished import finished
from pipeline_local.finished.exits.evaluation import THRESHOLDS, evaluate_exits
from pipeline_local.finished.exits.network import ExitNetwork
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.training.train import train


@pytest.fixture(scope="module")
def report(exit_run):
    return evaluate_exits(exit_run)


def test_accuracies_are_those_of_the_run(exit_run, report):
    summary = RunFolder(exit_run).load_summary()
    assert [row.accuracy for row in report.exits] == pytest.approx(summary["accuracy"])
    together = [row.ensemble_accuracy for row in report.exits]
    assert together == pytest.approx(summary["ensemble_accuracy"])
    assert (report.step, [row.exit for row in report.exits]) == (40, [1, 2, 3])
    assert all(row.seconds > 0 for row in report.exits)
    json.dumps(report.facts())


def counted(network, x):
    """Multiply-adds of convolutions and linear layers, by their shapes."""
    total = 0

    def count(layer, _, y):
        nonlocal total
        total += y[0].numel() * layer.weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(x)
    return total


def test_operations_are_those_of_the_layers(exit_run, report):
    _, modules, _ = finished.load(exit_run)
    x = torch.zeros(1, 1, 8, 8)
    for row in report.exits:
        assert row.multiply_adds == counted(ExitNetwork(modules[: row.exit]), x)


def test_thresholds_by_hand(exit_run, report):
    """One sample at a time, as a program would do it."""
    blueprint, modules, _ = finished.load(exit_run)
    test = open_split(blueprint.config.data, "test")
    info = DataInfo.from_json(RunFolder(exit_run).load_info())
    images = torch.stack([test[k][0] for k in range(len(test))])
    x = Normalize(info)(images)
    heads = [ExitNetwork(modules[:k]) for k in (1, 2, 3)]
    with torch.no_grad():
        said = [head(x).softmax(1).max(1) for head in heads]
    costs, y, tried = [], x[:1], []
    for module, head, row in zip(modules, heads, report.exits, strict=True):
        y = module.activations(y)
        costs.append(counted(head.head, y))
        tried.append(row.multiply_adds + sum(costs[:-1]))  # the earlier heads were asked, too
    for row in report.thresholds:
        left, right = [0, 0, 0], 0
        for sample in range(len(test)):
            sure = [k for k in range(3) if said[k].values[sample] >= row.threshold]
            exit = (sure or [2])[0]
            left[exit] += 1
            right += int(said[exit].indices[sample] == test.labels[sample])
        assert row.shares == pytest.approx([count / len(test) for count in left])
        assert row.accuracy == pytest.approx(right / len(test))
        spent = sum(count * cost for count, cost in zip(left, tried, strict=True))
        assert row.operations == pytest.approx(spent / len(test) / report.exits[-1].multiply_adds)
    assert [row.threshold for row in report.thresholds] == list(THRESHOLDS)
    assert len({tuple(row.shares) for row in report.thresholds}) > 3, "they differ"


def test_images_that_cannot_be_read_and_microbatches(tmp_path, capsys):
    """Only what has a label counts, however a batch is cut."""
    from tests.finished.test_finished import draw_images

    draw_images(tmp_path / "images", ("bee", "cat"), 5)
    data = {"name": "imagefolder", "root": str(tmp_path / "images"), "image_size": 8}
    tree = {
        "model": {"name": "mlp", "hidden": 8, "depth": 2},
        "data": {**data, "batch_size": 4, "on_error": "skip"},
        "modules": {"count": 2},
        "head": {"name": "linear"},
        "train": {"steps": 4, "microbatches": 2},
        "parallel": {"threads": 1},
        "run": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "images/test/bee/1.png").write_text("broken")
    summary = train(configfile.parse(tree), RankInfo())
    report = evaluate_exits(tmp_path / "run")
    assert report.samples == 9
    assert [row.accuracy for row in report.exits] == pytest.approx(summary["accuracy"])
    assert "1 image could not be read" in capsys.readouterr().err
    few = evaluate_exits(tmp_path / "run", ["data.limit=2"])
    assert few.samples == 2


def test_checkpoints_can_be_chosen(exit_run, report):
    earlier = evaluate_exits(exit_run, step=20)
    assert earlier.step == 20
    assert [row.calibration_error for row in earlier.exits] != [
        row.calibration_error for row in report.exits
    ]
    with pytest.raises(UserError, match="step-00000007: is not there; name another step: 20, 40"):
        evaluate_exits(exit_run, step=7)


def test_other_tasks_are_refused(tmp_path):
    tree = {
        "model": {"name": "causal_lm", "architecture": "llama", "hidden_size": 16}
        | {"num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2},
        "data": {"name": "synthetic_tokens", "batch_size": 8, "sequence_length": 16},
        "task": {"name": "next_token"},
        "modules": {"count": 2},
        "head": {"name": "readout", "depth": 1},
        "train": {"steps": 1},
        "parallel": {"threads": 1},
        "run": {"dir": str(tmp_path / "run")},
    }
    train(configfile.parse(tree), RankInfo())
    with pytest.raises(UserError, match=r"--exits: needs one class per sample.*next_token"):
        evaluate_exits(tmp_path / "run")
