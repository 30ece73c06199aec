"""Each logger gets one run with the curves of all modules, whose values are those of the JSONL."""

import json
import os
import sqlite3
import struct
import sys
from contextlib import closing

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.errors import StoppedError, UserError
from pipeline_local.loggers import logger_process
from pipeline_local.loggers.logger_process import LoggerProcess
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.metrics import Metrics

STEPS = (20, 40, 60)


def config_of(folder, **log):
    return configfile.parse(
        {
            "model": {"name": "resnet20"},
            "data": {"name": "digits"},
            "train": {"steps": 60},
            "run": {"dir": str(folder)},
            "log": log,
        }
    )


def trained(stage, step):
    module = {"loss": 1 / (step + stage), "cosine": -0.25 * stage}
    return {
        "event": "train",
        "step": step,
        "lr": 0.1 / step,
        "samples_per_second": 100.5 + step,
        "waiting_up": 0.25,
        "seconds": {"act1": 0.5},
        "modules": {str(stage + 1): module},
    }


def scored(stage, step):
    scores = {"loss": float("nan") if stage else 0.5, "accuracy": 0.5 + step / 1000}
    return {"event": "test", "step": step, "modules": {str(stage + 1): scores}}


def log(folder, log, steps=STEPS, start=0, error=None):
    """A run of two stages, of which the second is always behind the first."""
    stages = [
        Metrics(folder.metrics(stage), {"stage": stage}, 20, RankInfo()) for stage in range(2)
    ]
    try:
        with LoggerProcess() as following:
            following.start(config_of(folder.path, **log), 2, start)
            for number, metrics in enumerate(stages):
                for step in steps:
                    metrics.write(metrics.placed(trained(number, step)))
                    metrics.write(metrics.placed(scored(number, step)))
            if error:
                raise error
    except StoppedError:
        pass
    finally:
        for metrics in stages:
            metrics.close()


def written(folder):
    """Step -> curve -> value, of the JSONL files, by the names that the loggers are to show."""
    found = {}
    for stage in range(2):
        for line in folder.metrics(stage).read_text().splitlines():
            facts = json.loads(line)
            row = found.setdefault(facts["step"], {})
            prefix = "test_" if facts["event"] == "test" else ""
            for number, values in facts["modules"].items():
                row |= {f"{prefix}{k}/module_{number}": v for k, v in values.items()}
            if facts["event"] == "train":
                row[f"waiting_up/stage_{stage}"] = facts["waiting_up"]
                row[f"seconds_act1/stage_{stage}"] = facts["seconds"]["act1"]
                if stage == 0:
                    row |= {name: facts[name] for name in ("lr", "samples_per_second")}
            row["epoch"] = facts["epoch"]
    for row in found.values():
        assert row.pop("test_loss/module_2") is None, "it is not a number"
    return found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder):
        events = EventAccumulator(str(folder.path / "tensorboard"), {"scalars": 0}).Reload()
        found = {}
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                found.setdefault(event.step, {})[tag] = event.value
        return found, events

    return read


def test_tensorboard(folder, tensorboard, capfd):
    log(folder, {"tensorboard": True})
    found, events = tensorboard(folder)
    wanted = written(folder)
    assert found.keys() == wanted.keys()
    for step, row in wanted.items():
        assert found[step] == pytest.approx(row, rel=1e-6), "float32"
    assert {"loss/module_1", "cosine/module_2", "test_accuracy/module_2"} <= found[20].keys()
    about = events.SummaryMetadata("_hparams_/session_start_info")
    assert b"optimizer.lr" in about.plugin_data.content
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_goes_on(folder, tensorboard):
    """Rows after the last checkpoint are done again, and count once."""
    log(folder, {"tensorboard": True}, error=StoppedError(40, ""))
    log(folder, {"tensorboard": True}, steps=(60, 80), start=40)
    found, events = tensorboard(folder)
    assert [event.step for event in events.Scalars("lr")] == [20, 40, 60, 80]
    assert found[80] == pytest.approx(written(folder)[80], rel=1e-6)


@pytest.mark.long
def test_mlflow(folder, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    log(folder, {"mlflow": "digits"}, error=StoppedError(60, ""))
    with closing(sqlite3.connect(tmp_path / "store.db")) as store:
        rows = store.execute("select step, key, value from metrics").fetchall()
        found = {}
        for step, key, value in rows:
            found.setdefault(step, {})[key] = value
        assert found == written(folder)
        assert store.execute("select name, status from runs").fetchall() == [("run", "KILLED")]
        params = dict(store.execute("select key, value from params").fetchall())
        assert params["data.name"] == "digits"
    log(folder, {"mlflow": "digits"}, steps=(80,), start=60)
    with closing(sqlite3.connect(tmp_path / "store.db")) as store:
        assert store.execute("select name, status from runs").fetchall() == [("run", "FINISHED")]
        (last,) = store.execute("select max(step) from metrics").fetchall()
        assert last == (80,)


def records(data):
    """Of a file of W&B, in LevelDB's format for logs: blocks of 32 KiB, a record in parts."""
    place, parts = 7, b""  # behind its header
    while place < len(data):
        left = 2**15 - place % 2**15
        length, kind = struct.unpack_from("<HB", data, place + 4) if left >= 7 else (0, 0)
        if kind == 0:
            place += left
            continue
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.long
def test_wandb(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log(folder, {"wandb": "digits"})
    log(folder, {"wandb": "digits"}, steps=(80,), start=60)
    from wandb.proto.wandb_internal_pb2 import Record

    found, runs = {}, []
    for file in sorted((folder.path / "wandb").glob("offline-run-*/*.wandb")):
        for record in map(Record.FromString, records(file.read_bytes())):
            if record.WhichOneof("record_type") == "run":
                runs.append((record.run.run_id, record.run.project, record.run.display_name))
            if record.WhichOneof("record_type") == "history":
                items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
                row = {k: json.loads(v) for k, v in items.items() if not k.startswith("_")}
                found.setdefault(row.pop("step"), {}).update(row)
    assert found == written(folder)
    assert len({*runs}) == 1
    assert runs[0][1:] == ("digits", "run")
    assert json.loads((folder.path / "log.json").read_text())["wandb"] == runs[0][0]


def test_one_that_fails_is_a_warning(folder, tensorboard, tmp_path, monkeypatch, capfd):
    """It is missing only in the other process: what fails there does not matter here."""
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    broken = tmp_path / "broken" / "wandb" / "__init__.py"
    broken.write_text("raise OSError('no network')")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "broken"), *sys.path])
    log(folder, {"wandb": "digits", "tensorboard": True})
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "warning: log.wandb: no network; the run goes on, metrics/ has all"
    assert tensorboard(folder)[0].keys() == {*STEPS}


def test_what_cannot_start_is_a_warning(folder, monkeypatch, capfd):
    monkeypatch.setattr(sys, "executable", os.devnull)
    log(folder, {"tensorboard": True})
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: the loggers cannot be started")


def test_a_process_that_is_gone_is_a_warning(folder, monkeypatch, capfd):
    monkeypatch.setattr(logger_process, "_PROGRAM", "raise SystemExit(3)")
    log(folder, {"tensorboard": True})
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: the loggers did not get all rows")


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(logger_process, "find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "mlflow"):
        with pytest.raises(UserError, match=f"log.{name} needs {name}, .*; pip install {name}"):
            logger_process.check(
                config_of(tmp_path, **{name: True if name == "tensorboard" else "x"}).log
            )
    logger_process.check(config_of(tmp_path).log)


def test_no_logger_no_process(folder):
    with LoggerProcess() as following:
        following.start(config_of(folder.path), 2, 0)
        assert following._process is None
    assert list(folder.path.iterdir()) == []
