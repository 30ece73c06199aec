"""What the plan says of a run that is there."""

from pathlib import Path

import pytest

from pipeline_local.data.info import DataInfo
from pipeline_local.planning import plan
from pipeline_local.report import prediction
from pipeline_local.report.prediction import predict
from pipeline_local.report.run import read
from tests.report.folders import make_run


def test_it_is_what_plan_says(tmp_path):
    (run,) = read([make_run(tmp_path / "first", {"model": {"depth": 3}, "modules": {"count": 3}})])
    found = predict(run)
    drawn = plan.draw(run.folder.load_config(), DataInfo.from_json(run.folder.load_info()), 2)
    assert found.steps == drawn.steps == 8
    assert found.unit == drawn.unit == "FLOPs"
    assert found.costs == [stage.cost for stage in drawn.stages]
    assert found.peaks == [stage.memory.peak for stage in drawn.stages]
    theirs = {one.name: one.peak for one in drawn.alternatives if one.microbatches == 1}
    theirs.pop("local, p=2, m=1")
    assert found.others == theirs
    assert "BP, 1 device, m=1" in theirs
    assert [row.stage for row in found.modules] == [0, 1, 1]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "data.json").unlink(), "data.json cannot be read"),
        (lambda path: (path / "data.json").write_text("{}"), "facts of the data are damaged"),
        (lambda path: rename(path, "name: mlp", "name: mine"), "model.name"),
        (lambda path: rename(path, "profile: null", "profile: gone.json"), "modules.profile"),
    ],
)
def test_the_reason_why_nothing_is_predicted(tmp_path, damage, reason):
    path = make_run(tmp_path / "first")
    damage(path)
    (run,) = read([path])
    assert reason in predict(run)


def test_an_error_without_a_message_is_a_reason_too(tmp_path, monkeypatch):
    (run,) = read([make_run(tmp_path / "first")])

    def fail(*_):
        raise ValueError

    monkeypatch.setattr(prediction, "_predict", fail)
    assert predict(run) == "ValueError"


def rename(path: Path, before: str, after: str) -> None:
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace(before, after))
