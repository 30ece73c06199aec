"""The printed plan."""

import re
from pathlib import Path

import pytest

from pipeline_local.cli import main
from pipeline_local.configfile import configfile
from pipeline_local.console import screen
from pipeline_local.data.images.datasets import describe
from pipeline_local.planning import alternatives, drawing, plan


@pytest.fixture(autouse=True)
def as_configured(monkeypatch, request):
    """One number of microbatches, for speed; the whole page has all."""
    if request.node.name != "test_the_whole_page":
        monkeypatch.setattr(alternatives, "microbatches", lambda placement: [1])


ROOT = Path(__file__).parent.parent.parent


def draw(num_stages=2, **sections):
    tree = {
        "model": {"name": "mlp", "hidden": 32, "depth": 6},
        "data": {"name": "digits", "batch_size": 32},
        "modules": {"count": 3},
        "head": {"name": "linear"},
        "train": {"steps": 40},
        **sections,
    }
    config = configfile.parse(tree)
    return plan.draw(config, describe(config.data), num_stages)


def test_the_whole_page(capsys):
    arguments = ["modules.count=4", "parallel.stages=2", "train.epochs=1"]
    assert main(["plan", str(ROOT / "configs" / "digits.yaml"), *arguments]) == 0
    shown = capsys.readouterr().out
    for text in (
        "Stages",
        "Modules",
        "Sent per step",
        "1F1B, p=2, m=8",
        "Verdict",
        "What helps",
        "Imbalance",
        "fill",
    ):
        assert text in shown


@pytest.mark.parametrize("columns", [80, 140])
def test_the_page_fits(monkeypatch, capsys, columns):
    """Names and numbers are whole, and the timeline is not broken."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(screen, "is_terminal", lambda: True)
    monkeypatch.setattr(alternatives, "microbatches", lambda placement: [16])
    drawn = draw(modules={"count": 3}, parallel={"memory": 1e-5})
    drawing.show(drawn)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)
    for text in ("BP checkpointed, 1 device, m=16", " no "):
        assert any(text in line for line in lines)
    timeline = [line for line in lines if line.startswith(("stage  ", "         |"))]
    assert len({len(line) for line in timeline}) == 1
    assert all(line.endswith("|") for line in timeline)


def test_an_existing_file_is_refused_before_anything(tmp_path, capsys):
    output = tmp_path / "plan.json"
    output.write_text("mine")
    config = str(ROOT / "configs" / "digits.yaml")
    assert main(["plan", config, "--json", str(output)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert output.read_text() == "mine"


@pytest.mark.parametrize(("device", "said"), [("cpu", "for a GPU"), ("cuda", "cuBLAS")])
def test_a_plan_for_another_device(capsys, device, said):
    assert main(["plan", str(ROOT / "configs" / "digits.yaml"), "--device", device]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Peaks on" in line]
    assert line.startswith(f"Peaks on {device}: tensors")
    assert said in line


def test_an_unknown_device_is_refused(capsys):
    assert main(["plan", str(ROOT / "configs" / "digits.yaml"), "--device", "tpu9"]) == 2
    assert capsys.readouterr().err.startswith("error: --device: cpu or cuda, got tpu9 (")


def test_the_better_cut_is_named():
    modules = draw(modules={"cuts": [4, 5]})
    (line,) = [line for line in drawing.warnings(modules) if "module costs" in line]
    names = ",".join(modules.block_names[block] for block in modules.module_cut.edges)
    assert f"modules.cuts=[{names}]" in line
    balanced = draw(1, modules={"cuts": list(modules.module_cut.edges)})
    assert drawing.warnings(balanced) == []


@pytest.mark.parametrize(("cuts", "num_stages"), [("uniform", 1), ("memory", 1), ("uniform", 2)])
def test_modules_that_are_uneven_in_memory(cuts, num_stages):
    """ResNets keep most in front, where maps are large. Of stages apart, each has its own room."""
    sections = {
        "model": {"name": "resnet20", "width": 8},
        "data": {"name": "synthetic", "batch_size": 32},
        "modules": {"count": 4, "cuts": cuts},
    }
    uneven, *_ = [*drawing._uneven_memory(draw(num_stages, **sections)), ""]
    assert ("modules.cuts=memory would take" in uneven) == (cuts == "uniform" and num_stages == 1)


def test_timeline_in_text():
    _legend, first, second, phases = drawing.lines_of(draw(), width=60)
    assert first.startswith("stage  0 |F")
    assert first.endswith(".|")
    assert second.startswith("stage  1 |.")
    assert second[-2] in "LSF"
    assert len(first) == len(second) == len(phases)
    assert "steady" in phases


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (2**19, "0.50"), (3 * 2**20, "3.0"), (2**30, "1024")]
)
def test_mebibytes(size, text):
    assert drawing.mebibytes(size) == text
