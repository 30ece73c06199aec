"""Files that are not what they should be get no name, and nothing is left of them."""

import errno
import sys
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline_local.errors import UserError
from pipeline_local.finished.exporting import formats

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Depends(nn.Module):
    """Its way depends on values, which no exporter can follow."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class FixesTheBatch(nn.Module):
    """It asks for the batch's size as a number."""

    def forward(self, x):
        return x.reshape(len(x), 2, 2)


class Draws(nn.Module):
    """Its outputs are others each time."""

    def forward(self, x):
        return torch.rand_like(x)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Depends(), "this network cannot be exported as"),
        (FixesTheBatch(), r"x\.shape\[0\] instead of len\(x\)"),
        (Draws(), "gives other outputs"),
    ],
)
def test_a_network_that_does_not_come_back(tmp_path, suffix, network, words):
    with pytest.raises(UserError, match=words) as error:
        formats.write_program(network, X, {}, tmp_path / f"model{suffix}")
    assert len(str(error.value).splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_program_of_whole_numbers_in_float64(tmp_path):
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)).double().eval()
    tokens = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))
    formats.write_program(network, tokens, {"a": "b"}, tmp_path / "deep" / "model.pt2")
    found = torch.export.load(tmp_path / "deep" / "model.pt2").module()(tokens)
    assert torch.equal(found, network(tokens))


def test_weights_that_change_on_the_way(tmp_path, monkeypatch):
    state = {"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor(3), "c": torch.zeros(0)}
    formats.write_weights(state, {"format": "pt"}, tmp_path / "model.safetensors")
    monkeypatch.setattr(formats, "load_file", lambda _: {**state, "b": torch.tensor(2)})
    with pytest.raises(UserError, match="does not hold what was written"):
        formats.write_weights(state, {"format": "pt"}, tmp_path / "other.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    formats.check_libraries(tmp_path / "model.pt2")
    with pytest.raises(UserError, match=r'pip install "pipeline-local\[onnx\]"'):
        formats.check_libraries(tmp_path / "model.onnx")


def test_weights_are_readable_as_other_new_files_are(tmp_path):
    (tmp_path / "other").touch()
    formats.write_weights({"w": torch.ones(2)}, {}, tmp_path / "w.safetensors")
    mode = (tmp_path / "other").stat().st_mode
    assert (tmp_path / "w.safetensors").stat().st_mode == mode


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_another_process_has_made_meanwhile_stays(tmp_path, monkeypatch, links):
    output = tmp_path / "w.safetensors"
    if not links:
        refused = OSError(errno.EPERM, "Operation not permitted")
        monkeypatch.setattr(formats.os, "link", Mock(side_effect=refused))
        formats.write_weights({"w": torch.ones(2)}, {}, output)
        assert [path.name for path in tmp_path.iterdir()] == [output.name]
        return
    monkeypatch.setattr(formats, "load_file", lambda path: output.touch() or load_file(path))
    with pytest.raises(UserError, match=r"cannot be written .*File exists"):
        formats.write_weights({"w": torch.ones(2)}, {}, output)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]
