"""What is exported is the run's network, or its exit, in every format, and says what it is."""

import json
import shutil

import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline_local import __version__, cli
from pipeline_local.configfile import configfile
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import UserError
from pipeline_local.finished.exporting.export import export
from pipeline_local.fitting import fitting
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.folder import RunFolder
from pipeline_local.training.train import train


@pytest.fixture
def x():
    return torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def outputs(run, exit, x):
    with torch.no_grad():
        return fitting.load(run, exit=exit)(x)


@pytest.mark.parametrize("exit", [1, 3])
def test_weights_of_an_exit_load_strictly(exit_run, tmp_path, x, exit):
    export(exit_run, tmp_path / "exit.safetensors", exit=exit)
    wanted = outputs(exit_run, exit, x)
    network = fitting.load(exit_run, step=20, exit=exit)
    with torch.no_grad():
        assert not torch.equal(network(x), wanted), "an earlier checkpoint"
        network.load_state_dict(load_file(tmp_path / "exit.safetensors"), strict=True)
        assert torch.equal(network(x), wanted)


@pytest.mark.parametrize("exit", [2, None])
def test_a_program_of_torch_export(exit_run, tmp_path, x, exit):
    export(exit_run, tmp_path / "exit.pt2", exit=exit)
    files = {"classes": "", "exit": "", "mean": ""}
    program = torch.export.load(tmp_path / "exit.pt2", extra_files=files).module()
    info = DataInfo.from_json(RunFolder(exit_run).load_info())
    for batch in (x, x[:1]):
        torch.testing.assert_close(program(batch), outputs(exit_run, exit or 3, batch))
    assert json.loads(files["classes"]) == list(info.classes)
    assert json.loads(files["exit"]) == (exit or 3)
    assert json.loads(files["mean"]) == list(info.mean)


@pytest.mark.parametrize("exit", [1, None])
def test_a_transformer_takes_any_batch(tmp_path, exit):
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    tree = {
        "model": {"name": "vit", "patch_size": 8, **sizes},
        "data": {"name": "synthetic", "image_size": 16, "limit": 8, "batch_size": 4},
        "modules": {"count": 2},
        "train": {"steps": 1},
        "parallel": {"threads": 1},
        "run": {"dir": str(tmp_path / "run")},
    }
    train(configfile.parse(tree), RankInfo())
    export(tmp_path / "run", tmp_path / "exit.pt2", exit=exit)
    images = torch.randn(5, 3, 16, 16)
    found = torch.export.load(tmp_path / "exit.pt2").module()(images)
    torch.testing.assert_close(found, outputs(tmp_path / "run", exit or 2, images))


@pytest.mark.parametrize("exit", [2, None])
def test_onnx(exit_run, tmp_path, x, exit):
    export(exit_run, tmp_path / "exit.onnx", exit=exit)
    session = onnxruntime.InferenceSession(tmp_path / "exit.onnx")
    for batch in (x, x[:1]):
        (found,) = session.run(None, {"input": batch.numpy()})
        wanted = outputs(exit_run, exit or 3, batch)
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["exit"]) == (exit or 3)
    assert [path.name for path in tmp_path.iterdir()] == ["exit.onnx"]


def test_the_header_says_what_it_is(exit_run, tmp_path):
    export(exit_run, tmp_path / "model.safetensors", exit=2, step=20)
    info = DataInfo.from_json(RunFolder(exit_run).load_info())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        facts = file.metadata()
    plain = {name: facts.pop(name) for name in ("format", "pipeline_local", "run", "model")}
    assert plain == {"format": "pt", "pipeline_local": __version__, "run": "run"} | {
        "model": "resnet20"
    }
    assert {name: json.loads(value) for name, value in facts.items()} == {
        "model_options": {"width": 4},
        "classes": list(info.classes),
        "mean": list(info.mean),
        "std": list(info.std),
        "input_shape": [1, 8, 8],
        "modules": 3,
        "exit": 2,
        "step": 20,
    }


def test_the_command(exit_run, tmp_path, capsys):
    output = tmp_path / "exit.safetensors"
    arguments = ["export", str(exit_run), "--exit", "1", "--checkpoint", "20", "--output"]
    assert cli.main([*arguments, str(output)]) == 0
    wanted = fitting.load(exit_run, step=20, exit=1).state_dict()
    found = load_file(output)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert f"wrote {len(wanted)} tensors" in capsys.readouterr().out
    assert cli.main([*arguments, str(output)]) == 2
    assert "files are never overwritten" in capsys.readouterr().err


def test_a_format_by_name(exit_run, tmp_path, capsys):
    arguments = ["export", str(exit_run), "--exit", "1", "--format", "torch_export", "--output"]
    assert cli.main([*arguments, str(tmp_path / "v1.2")]) == 0
    assert torch.export.load(tmp_path / "v1.2.pt2")
    assert "v1.2.pt2" in capsys.readouterr().out
    assert cli.main([*arguments, str(tmp_path / "exit.onnx")]) == 2
    assert "torch_export files end in .pt2, got --output " in capsys.readouterr().err
    assert [file.name for file in tmp_path.glob("*.onnx")] == []


def test_a_checkpoint_with_a_name(exit_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(exit_run, run)
    Checkpoints(run / "checkpoints", 3).keep("best", 20)
    best = export(run, tmp_path / "best.safetensors", step="best")
    wanted = export(run, tmp_path / "step.safetensors", step=20)
    newest = export(run, tmp_path / "newest.safetensors")
    assert all(torch.equal(best[name], value) for name, value in wanted.items())
    assert not torch.equal(best["conv1.weight"], newest["conv1.weight"])


def test_what_cannot_be_exported(exit_run, tmp_path):
    for name in ("model.pt", "model", "model.bin"):
        with pytest.raises(UserError, match=r"--output: must end in one of \.safetensors, \.pt2"):
            export(exit_run, tmp_path / name)
    with pytest.raises(UserError, match="--exit: must be a module from 1 to 3, got 4"):
        export(exit_run, tmp_path / "model.onnx", exit=4)
    with pytest.raises(UserError, match="no complete checkpoint 'best'; the named ones are none"):
        export(exit_run, tmp_path / "model.onnx", step="best")
    assert not any(tmp_path.iterdir())
