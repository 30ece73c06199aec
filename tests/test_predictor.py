"""All heads of a run together, on images: what its evaluation has told of them."""

import copy

import pytest
import torch
from torch import nn

from pipeline_local import configfile
from pipeline_local.data.images.datasets import describe, open_split
from pipeline_local.errors import UserError
from pipeline_local.fitting import fit
from pipeline_local.predictor import Predictor
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.trainer import train


@pytest.mark.parametrize("narrow", [None, "bfloat16"])
def test_a_run_classifies(tmp_path, narrow):
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 32},
        "modules": {"count": 3},
        "train": {"steps": 20},
        "parallel": {"threads": 1, "wire_dtype": narrow},
        "run": {"dir": str(tmp_path / "run")},
    }
    config = configfile.parse(tree)
    summary = train(config, RankInfo())
    predict = Predictor(tmp_path / "run")
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
    with pytest.raises(
        ValueError, match=r"inputs must be a tensor \[B, 1, 8, 8\], got \[1, 8, 8\]"
    ):
        predict(images[0])


def test_a_run_of_fit_predicts_by_all_heads(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(40, 6), torch.arange(40) % 3
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    run = tmp_path / "run"
    settings = {"modules": 2, "epochs": 1, "batch_size": 20, "head": {"name": "linear"}}
    summary = fit(network, (x, y), (x, y), run_dir=run, **settings)
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    predicted = Predictor(run, model=other)(x)
    assert predicted.shape == (40, 3)
    right = (predicted.argmax(1) == y).float().mean().item()
    assert right == pytest.approx(summary["ensemble_accuracy"][-1])
    assert not any(p.any() for p in other.parameters()), "it is a pattern, and stays as it is"
    with pytest.raises(UserError, match="Predictor"):
        Predictor(run)
