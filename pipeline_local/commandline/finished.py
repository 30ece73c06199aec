"""Commands that use a run that is there."""

import argparse

from pipeline_local.commandline.shared import (
    Commands,
    add_command,
    add_overrides,
    add_run_folder,
    path,
)

FORMATS = ("safetensors", "torch_export", "onnx")
"""What `exporting.formats` knows by name, said without torch."""


def add_all(commands: Commands) -> None:
    """Add what uses a run that is there."""
    _add_export(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_generate(commands)
    _add_report(commands)
    _add_diagnose(commands)
    _add_trace(commands)


def _add_export(commands: Commands) -> None:
    export = add_command(
        commands,
        "export",
        "write the trained model, or one of its exits",
        "runs/first --output model.safetensors",
        "runs/first --exit 2 --output exit-2.onnx",
    )
    add_run_folder(export)
    add_overrides(export, "such as data.tokenizer=NEW")
    help_text = "NAME.safetensors, .pt2 (torch.export) or .onnx; or of a language model a folder"
    export.add_argument("--output", type=path, required=True, help=help_text)
    export.add_argument("--format", choices=FORMATS, help="default: by the ending")
    export.add_argument("--exit", type=int, help="module whose head is the end; default: the last")
    _add_checkpoint(export)
    export.set_defaults(run="export")


def _add_evaluate(commands: Commands) -> None:
    evaluate = add_command(
        commands,
        "evaluate",
        "score every head on the test set",
        "runs/first",
        "runs/first --exits --json exits.json",
    )
    add_run_folder(evaluate)
    add_overrides(evaluate, "such as data.root=NEW")
    help_text = "accuracy, operations, time and calibration of each exit, and early exit"
    evaluate.add_argument("--exits", action="store_true", help=help_text)
    _add_checkpoint(evaluate)
    evaluate.add_argument("--json", type=path, help="also write the results to this file")
    evaluate.set_defaults(run="evaluate")


def _add_predict(commands: Commands) -> None:
    predict = add_command(
        commands,
        "predict",
        "classify image files",
        "runs/first cat.jpg",
        "runs/first photos --confidence 0.9 --top 3",
    )
    add_run_folder(predict, " on images")
    predict.add_argument("images", nargs="+", type=path, metavar="IMAGE", help="files or folders")
    help_text = "module whose head predicts, or with --confidence the last one that may; default:"
    predict.add_argument("--exit", type=int, help=f"{help_text} as Predictor chooses")
    help_text = "top probability at which an image leaves at an early head; default: no early exit"
    predict.add_argument("--confidence", type=float, help=help_text)
    predict.add_argument("--top", type=int, default=1, help="so many classes; default: 1")
    _add_checkpoint(predict)
    predict.add_argument("--json", type=path, help="also write the results to this file")
    predict.set_defaults(run="predict")


def _add_generate(commands: Commands) -> None:
    generate = add_command(
        commands,
        "generate",
        "continue a text by a language model's run",
        'runs/lm-tiny --prompt "It is a truth"',
        "runs/lm-tiny --exit 1 --tokens 40 --temperature 0.8",
    )
    add_run_folder(generate)
    add_overrides(generate, "such as data.tokenizer=NEW")
    generate.add_argument("--prompt", default="", help="beginning of the text; default: none")
    generate.add_argument("--exit", type=int, help="module whose head speaks; default: the last")
    generate.add_argument("--tokens", type=int, default=100, help="at most so many")
    generate.add_argument("--temperature", type=float, default=1.0, help="0: the most probable")
    generate.add_argument("--seed", type=int, default=0, help="of what is drawn")
    generate.set_defaults(run="generate")


def _add_report(commands: Commands) -> None:
    """Add what shows runs."""
    report = add_command(
        commands,
        "report",
        "write a page of curves, tables and a timeline of runs",
        "runs/first",
        "runs/first runs/second --output both.html",
    )
    report.add_argument("run_folders", type=path, nargs="+", metavar="RUN", help="run.dir of a run")
    report.add_argument("--output", type=path, help="new file; default: report.html in the first")
    report.set_defaults(run="report")

    compare = add_command(
        commands,
        "compare",
        "print what differs between two runs",
        "runs/first runs/second",
        "runs/lm-tiny runs/lm-novels",
    )
    add_run_folder(compare)
    compare.add_argument("other", type=path, help="run.dir of another")
    compare.set_defaults(run="compare")


def _add_diagnose(commands: Commands) -> None:
    """Add what looks at gradients."""
    diagnose = add_command(
        commands,
        "diagnose",
        "compare local gradients with the global ones",
        "runs/first",
        "runs/first --batches 32 --json cosines.json",
    )
    add_run_folder(diagnose)
    add_overrides(diagnose, "such as data.root=NEW")
    diagnose.add_argument("--batches", type=int, default=8, help="training batches to average over")
    diagnose.add_argument("--json", type=path, help="also write the rows to this file")
    diagnose.set_defaults(run="diagnose")


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    text = "step of a checkpoint that the run keeps, or its name, such as best; default: newest"
    command.add_argument("--checkpoint", type=_checkpoint, default="newest", help=text)


def _checkpoint(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _add_trace(commands: Commands) -> None:
    """Add what shows where time goes."""
    trace = add_command(
        commands,
        "trace",
        "put the traces of all stages into one timeline, and name the largest waits",
        "runs/first",
        "runs/first --waits 20",
    )
    add_run_folder(trace, " that has ended, or failed")
    trace.add_argument("--waits", type=int, default=5, help="kinds of waits that are shown")
    trace.set_defaults(run="trace")
