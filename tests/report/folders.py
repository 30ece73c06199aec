"""Run folders as a run leaves them, without running one."""

import json
import time
from pathlib import Path

from pipeline_local.configfile import configfile
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.stage_trace import StageTrace
from pipeline_local.record.trace import Span

TREE = {
    "model": {"name": "mlp", "hidden": 8, "depth": 2},
    "data": {"name": "digits", "batch_size": 32},
    "modules": {"count": 2},
    "head": {"name": "linear"},
    "train": {"steps": 8},
    "parallel": {"threads": 1, "stages": 2},
}
INFO = {
    "num_train": 1442,
    "num_test": 355,
    "num_classes": 10,
    "sample_shape": [1, 8, 8],
    "mean": [0.3],
    "std": [0.4],
    "classes": [str(digit) for digit in range(10)],
    "label_shape": [],
    "dtype": "float32",
    "tokenizer": None,
    "end_token": None,
    "bytes_per_token": None,
    "files": [],
}


def make_run(path: Path, overrides: dict | None = None, device: str = "cpu") -> Path:
    """A finished run of 8 steps: two modules on two stages, a millisecond for each sample."""
    folder = RunFolder(path)
    folder.path.mkdir(parents=True)
    tree = {section: {**TREE[section], **(overrides or {}).get(section, {})} for section in TREE}
    folder.create(configfile.parse(tree), json.dumps(INFO))
    folder.add_start(0, 2, device)
    (path / "metrics").mkdir()
    for stage in range(2):
        lines = [_step(stage, step) for step in (2, 4, 8)]
        lines[2:2] = [_test(stage, 4, 0.5 + stage / 4)]
        lines += [_test(stage, 8, 0.75 + stage / 8)]
        folder.metrics(stage).write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_trace(folder, stage, range(8))
    folder.summary.write_text(json.dumps(SUMMARY))
    return path


def resume(path: Path, step: int, stages: int, steps: int) -> Path:
    """The same run, gone on from a checkpoint of this step to the end: 2 milliseconds a sample."""
    folder, begin = RunFolder(path), time.time() + 1
    text = folder.config.read_text()
    folder.config.write_text(text.replace("\n  stages: 2\n", f"\n  stages: {stages}\n"))
    folder.add_start(step, stages, "cpu")
    for number in range(stages):
        modules = range(number, 2, stages)
        lines = [_step(k, each) for k in modules for each in range(step + 1, steps + 1)]
        lines += [_test(k, steps, 0.5) for k in modules]
        for line in lines:
            line |= {"stage": number, "time": begin + line["step"], "memory_bytes": 2**20}
            line["samples_per_second"] = 500.0
        with folder.metrics(number).open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    summary = {**SUMMARY, "steps": steps, "peak_memory_bytes": [2**20] * stages}
    folder.summary.write_text(json.dumps(summary))
    return path


SUMMARY = {
    "accuracy": [0.75, 0.875],
    "steps": 8,
    "seconds": 75.5,
    "samples_per_second": 1000.0,
    "efficiency": 0.9,
    "peak_memory_bytes": [2**30, 2**29],
}


def cut_off(path: Path) -> Path:
    """The same run before its end: no summary, and one stage has not evaluated at last."""
    (path / "summary.json").unlink()
    file = path / "metrics" / "stage-1.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    return path


def write_trace(folder: RunFolder, stage: int, steps: range) -> None:
    """Steps of 10 ms, a stage 5 ms after the one before; an evaluation of 100 ms after step 4."""
    spans = []
    for step in steps:
        begin = 1000 + 10 * step + 5 * stage + (100 if step >= 4 else 0)
        for act, offset, length in (("forward", 0, 3), ("signal", 3, 1), ("learn", 4, 5)):
            spans.append(_span(stage, act, step, begin + offset, length))
    spans.append(_span(stage, "evaluate", 4, 1040 + 5 * stage, 90))
    spans.append(_span(stage, "evaluate", 8, 1300, 90))
    StageTrace(stage, 2, "host", "2026-01-01T00:00:00", spans).write(folder.trace(stage))


def _span(stage: int, act: str, step: int, begin: int, length: int) -> Span:
    """Its times are in milliseconds."""
    return Span(act, stage, step, 0, "", begin * 10**6, (begin + length) * 10**6)


def _step(stage: int, step: int) -> dict:
    row = {"loss": 2.0 / step + stage}
    if stage:
        row |= {"discord": 0.5 / step, "cosine": 0.25}
    return {
        **_line("train", stage, step),
        "samples_per_second": 1000.0,
        "waiting_up": 0.25 * stage,
        "waiting_down": 0.0,
        "memory_bytes": 2 ** (30 - stage),
        "modules": {str(stage + 1): row},
    }


def _test(stage: int, step: int, accuracy: float) -> dict:
    row = {"accuracy": accuracy, "ensemble_accuracy": accuracy - stage / 16, "loss": 1 / step}
    return {**_line("test", stage, step), "modules": {str(stage + 1): row}}


def _line(event: str, stage: int, step: int) -> dict:
    return {"event": event, "stage": stage, "step": step, "epoch": step / 4, "time": 60.0 * step}
