"""The cost table: what it compares, and that its agreement is right. No assertion on times."""

import json

import pytest
import torch

from pipeline_local.bench import reconcile
from pipeline_local.cli import main
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe

TREE = {
    "model": {"name": "mlp", "hidden": 16, "activation": "gelu"},
    "data": {"name": "digits", "batch_size": 16},
    "modules": {"count": 2},
    "head": {"name": "linear"},
    "reconcile": {"weight": 1e-3, "every": 2, "step": 1e-3, "estimator": "finite_difference"},
    "train": {"steps": 1},
    "precision": "float64",
    "parallel": {"threads": 1},
}


@pytest.fixture(scope="module")
def rows():
    config = configfile.parse(TREE)
    found = reconcile.measure(config, describe(config.data), 1, 2, torch.device("cpu"))
    return {row.variant: row for row in found}


def test_variants(rows):
    assert list(rows)[:3] == ["plain", "exact", "exact, every 8"]
    assert "configured" in rows
    assert rows["plain"].cost == rows["plain"].memory == 1
    assert all(row.seconds > 0 for row in rows.values())


def test_agreement(rows):
    assert rows["exact"].cosine == pytest.approx(1)
    assert rows["plain"].cosine == 0
    for name in ("finite_difference", "finite_difference, every 4", "configured"):
        assert rows[name].cosine > 0.99
        assert rows[name].norm_ratio == pytest.approx(1, abs=0.05)
    assert rows["shift, every 8"].cosine > 0.99
    assert rows["shift, every 8"].norm_ratio == pytest.approx(1, abs=0.05)
    assert rows["exact, a quarter, every 4"].cosine < rows["exact, every 8"].cosine
    assert rows["exact, every 8"].cosine == pytest.approx(1)


def test_nothing_to_agree_with_is_no_agreement():
    """A head that the signal does not move adds nothing, however it is estimated."""
    some, none = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert reconcile._compare(some, some) == (pytest.approx(1), 1)
    for pair in ((some, none), (none, some), (none, none)):
        assert reconcile._compare(*pair) == (0, 0)


def test_upstream():
    """A head in the middle, towards the real input gradient of its downstream neighbour."""
    tree = {**TREE, "modules": {"count": 3}, "model": {**TREE["model"], "depth": 3}}
    own = {"direction": "upstream", "distance": "relative", "weight": 0.5, "step": 1e-3}
    config = configfile.parse({**tree, "reconcile": own})
    found = reconcile.measure(config, describe(config.data), 1, 1, torch.device("cpu"))
    rows = {row.variant: row for row in found}
    assert rows["exact"].cosine == pytest.approx(1)
    assert rows["finite_difference, every 8"].cosine > 0.99
    assert rows["plain"].cosine == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it
def test_compiled_modules_are_compared_with_uncompiled_exact_ones(monkeypatch):
    monkeypatch.setattr(torch, "compile", eagerly(torch.compile))
    config = configfile.parse({**TREE, "compile": True})
    found = reconcile.measure(config, describe(config.data), 1, 1, torch.device("cpu"))
    rows = {row.variant: row for row in found}
    assert not any(name.startswith("exact") for name in rows)
    assert rows["finite_difference"].cosine > 0.99


def eagerly(compile):
    """Through AOTAutograd, but without its code generator."""
    return lambda part, **options: compile(part, **{**options, "backend": "aot_eager"})


def test_exact_needs_more_memory(rows):
    assert rows["exact"].memory > rows["finite_difference"].memory >= 1


def test_command(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(configfile.dump(configfile.parse(TREE)))
    out = tmp_path / "rows.json"
    command = ["bench", "reconcile", str(path), "--runs", "1", "--json", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "mlp, module 2 of 2, head linear, batch 16, float64, cpu, 1 thread" in shown
    assert "| exact |" in shown
    assert json.loads(out.read_text())[0]["variant"] == "plain"
    assert main(command) == 2
    assert main(["bench", "reconcile", str(path), "--module", "1"]) == 2
    assert main(["bench", "reconcile", str(path), "--runs", "0"]) == 2


def test_upstream_reconciles_other_modules(tmp_path, capsys):
    """Their heads follow the downstream neighbour, which the last module does not have."""
    path = tmp_path / "config.yaml"
    path.write_text(configfile.dump(configfile.parse(TREE)))
    command = ["bench", "reconcile", str(path), "--runs", "1", "reconcile.direction=upstream"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "mlp, module 1 of 2" in shown
    (exact,) = [line for line in shown.splitlines() if line.startswith("| exact |")]
    assert exact.endswith("| 1.000 | 1.00 |"), "it adds something"
    assert main([*command, "--module", "2"]) == 2
    assert (
        "--module: from 1 to 1 (the last one has no downstream neighbour), got 2"
        in capsys.readouterr().err
    )
