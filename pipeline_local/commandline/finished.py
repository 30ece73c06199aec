"""Commands that use a run that is there."""

from pipeline_local.commandline.shared import Commands, add_command, path


def add_all(commands: Commands) -> None:
    """Add what uses a run that is there."""
    _add_results(commands)
    _add_diagnose(commands)
    _add_trace(commands)


def _add_results(commands: Commands) -> None:
    """Add what uses the trained model."""
    export = add_command(
        commands,
        "export",
        "write the trained model's weights",
        "runs/first --output model.safetensors",
        "runs/lm-tiny --output lm-tiny",
    )
    export.add_argument("run_folder", type=path, help="run.dir of a run")
    help_text = "file.safetensors; or of a language model a folder"
    export.add_argument("--output", type=path, required=True, help=help_text)
    export.set_defaults(run="export")

    evaluate = add_command(
        commands,
        "evaluate",
        "score every head on the test set",
        "runs/first",
        "runs/first data.root=NEW",
    )
    evaluate.add_argument("run_folder", type=path, help="run.dir of a run")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=NEW")
    evaluate.set_defaults(run="evaluate")

    generate = add_command(
        commands,
        "generate",
        "continue a text by a language model's run",
        'runs/lm-tiny --prompt "It is a truth"',
        "runs/lm-tiny --exit 1 --tokens 40 --temperature 0.8",
    )
    generate.add_argument("run_folder", type=path, help="run.dir of a run")
    generate.add_argument("--prompt", default="", help="beginning of the text; default: none")
    generate.add_argument("--exit", type=int, help="module whose head speaks; default: the last")
    generate.add_argument("--tokens", type=int, default=100, help="at most so many")
    generate.add_argument("--temperature", type=float, default=1.0, help="0: the most probable")
    generate.add_argument("--seed", type=int, default=0, help="of what is drawn")
    generate.set_defaults(run="generate")


def _add_diagnose(commands: Commands) -> None:
    """Add what looks at gradients."""
    diagnose = add_command(
        commands,
        "diagnose",
        "compare local gradients with the global ones",
        "runs/first",
        "runs/first --batches 32 --json cosines.json",
    )
    diagnose.add_argument("run_folder", type=path, help="run.dir of a run")
    diagnose.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=NEW")
    diagnose.add_argument("--batches", type=int, default=8, help="training batches to average over")
    diagnose.add_argument("--json", type=path, help="also write the rows to this file")
    diagnose.set_defaults(run="diagnose")


def _add_trace(commands: Commands) -> None:
    """Add what shows where time goes."""
    trace = add_command(
        commands,
        "trace",
        "put the traces of all stages into one timeline, and name the largest waits",
        "runs/first",
        "runs/first --waits 20",
    )
    trace.add_argument("run_folder", type=path, help="run.dir of a run that has ended, or failed")
    trace.add_argument("--waits", type=int, default=5, help="kinds of waits that are shown")
    trace.set_defaults(run="trace")
