"""The command line: what every command takes. Torch is not needed for it, nor waited for.

Help and mistakes of usage are there at once; what a command does is in `commands.py`.
"""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TypeAlias, get_type_hints

from pipeline_local import __version__
from pipeline_local.config import Config
from pipeline_local.screen import complain
from pipeline_local.values import expanded

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
DESCRIPTION = "Pipelined training without a global backward pass."
CALL = "call"
"""The command by which a program's function is started on new ranks."""


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse as argparse does, but allow `key=value` behind an option, and old spellings.

    Args:
        arguments: behind the program's name.

    Returns:
        The options, of which `run` names the command; and the arguments in today's spelling, which
        start the same command again on other ranks.
    """
    arguments = _with_baselines(_without_local_rank(arguments))
    known = parser()
    options, rest = known.parse_known_args(arguments)
    stray = [text for text in rest if text.startswith("-") or "=" not in text]
    if stray or (rest and not hasattr(options, "overrides")):
        keys = [key for text in stray for key in _keys(text)]
        hint = f"; keys have no dashes: {' '.join(keys)}" if keys else ""
        known.error(f"unrecognized arguments: {' '.join(stray or rest)}{hint}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options, arguments


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(prog="pipeline-local", description=DESCRIPTION)
    whole.add_argument("--version", action="version", version=__version__)
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_config(commands)
    _add_tokenize(commands)
    _add_planning(commands)
    _add_finished(commands)
    _add_bench(commands)
    call = commands.add_parser(CALL)  # without help: not for people
    call.add_argument("file", type=Path)
    call.set_defaults(run="call")
    return whole


def _command(commands: Commands, name: str, about: str, *examples: str) -> argparse.ArgumentParser:
    """Add a command whose help ends with examples."""
    command = commands.add_parser(
        name, help=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = (f"  {command.prog} {example}" for example in examples)
    command.epilog = "\n".join(["examples:", *shown])
    return command


def _add_configuration(command: argparse.ArgumentParser, example: str) -> None:
    """Add a configuration file and what overrides it."""
    command.add_argument("config", type=_path, help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value", help=example)


def _path(text: str) -> Path:
    """Expand `~` and variables as in the configuration; the shell leaves `--json=~/x` alone."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"should be {error}, got {text!r}") from None


def _tokenizer(text: str) -> str | Path:
    return text if text == "bytes" else _path(text)


def _add_train(commands: Commands) -> None:
    """Add what trains."""
    train = _command(
        commands,
        "train",
        "train; starts parallel.stages local ranks itself",
        "configs/digits.yaml run.dir=runs/first",
        "configs/cifar10.yaml data.root=PATH parallel.stages=4 train.epochs=3",
    )
    _add_configuration(train, "such as train.epochs=3")
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, show the modules, start nothing"
    )
    train.set_defaults(run="train")

    resume = _command(
        commands,
        "resume",
        "continue a run by its own configuration",
        "runs/first",
        "runs/first train.epochs=24",
    )
    resume.add_argument("run_folder", type=Path, help="run.dir of a run")
    resume.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=9")
    resume.set_defaults(run="resume")


def _add_config(commands: Commands) -> None:
    """Add what shows a configuration."""
    config = _command(
        commands,
        "config",
        "print the whole configuration, and where each value comes from",
        "configs/digits.yaml",
        "configs/digits.yaml optimizer.lr=0.05 parallel.stages=4",
    )
    _add_configuration(config, "such as train.epochs=3")
    config.set_defaults(run="config")


def _add_tokenize(commands: Commands) -> None:
    """Add what makes data."""
    tokenize = _command(
        commands,
        "tokenize",
        "write token files of a folder of texts",
        "novels --vocabulary 8192",
        "novels --tokenizer bytes --output novels-bytes",
    )
    tokenize.add_argument("data", type=_path, help="folder with texts in train/ and test/")
    which = tokenize.add_mutually_exclusive_group(required=True)
    which.add_argument("--vocabulary", type=int, help="train a byte-level BPE of so many tokens")
    which.add_argument("--tokenizer", type=_tokenizer, help="bytes, tokenizer.json or folder")
    tokenize.add_argument("--output", type=_path, help="new folder; default: DATA with a suffix")
    tokenize.add_argument("--field", default="text", help="of JSON lines or parquet")
    tokenize.add_argument("--end", help="end token; default: what the tokenizer's folder says")
    tokenize.set_defaults(run="tokenize")


def _add_planning(commands: Commands) -> None:
    """Add what is asked before a run is paid for."""
    plan = _command(
        commands,
        "plan",
        "predict memory, traffic and balance",
        "configs/digits.yaml parallel.stages=4",
        "configs/cifar10.yaml data.root=PATH --device cuda --json plan.json",
    )
    _add_configuration(plan, "such as modules.count=4")
    plan.add_argument("--json", type=_path, help="also write all numbers to this file")
    plan.add_argument("--device", help="cpu or cuda; default: the profile's, or what is here")
    plan.set_defaults(run="plan")

    simulate = _command(
        commands,
        "simulate",
        "predict other stages, links and methods",
        "configs/bench-vit.yaml modules.profile=profile.json --stages 2,4,8",
        "configs/bench-vit.yaml modules.profile=profile.json --bandwidth 1e9 --latency 0.01",
    )
    _add_configuration(simulate, "such as modules.count")
    methods = ("local", "1f1b", "1f1b-8bit", "1f1b-1percent", "gpipe", "ddp")
    simulate.add_argument("--methods", type=_words, default=methods)
    simulate.add_argument("--stages", help="such as 4,64; default: parallel.stages")
    simulate.add_argument(
        "--microbatches", type=int, help="of 1f1b, compressed or not, and gpipe; default: stages"
    )
    simulate.add_argument("--replicas", type=int, default=1, help="of each stage")
    simulate.add_argument("--bandwidth", type=float, help="bits per second; default: as profiled")
    simulate.add_argument("--latency", type=float, help="seconds, one way; default: as profiled")
    simulate.add_argument("--jitter", type=float, default=0.0, help="most seconds more, at random")
    simulate.add_argument("--json", type=_path, help="also write the rows to this file")
    simulate.set_defaults(run="simulate")

    profile = _command(
        commands,
        "profile",
        "measure blocks and heads, for modules.profile",
        "configs/bench-vit.yaml --output profile.json",
        "configs/cifar10.yaml data.root=PATH precision=bfloat16 --output bfloat16.json",
    )
    _add_configuration(profile, "such as precision=...")
    profile.add_argument("--output", type=_path, required=True, help="file.json")
    profile.add_argument("--runs", type=int, default=10, help="repetitions of each part")
    profile.set_defaults(run="profile")


def _add_finished(commands: Commands) -> None:
    """Add what uses a run that is there."""
    export = _command(
        commands,
        "export",
        "write the trained model's weights",
        "runs/first --output model.safetensors",
        "runs/lm-tiny --output lm-tiny",
    )
    export.add_argument("run_folder", type=_path, help="run.dir of a run")
    help_text = "file.safetensors; or of a language model a folder"
    export.add_argument("--output", type=_path, required=True, help=help_text)
    export.set_defaults(run="export")

    evaluate = _command(
        commands,
        "evaluate",
        "score every head on the test set",
        "runs/first",
        "runs/first data.root=NEW",
    )
    evaluate.add_argument("run_folder", type=_path, help="run.dir of a run")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=NEW")
    evaluate.set_defaults(run="evaluate")

    generate = _command(
        commands,
        "generate",
        "continue a text by a language model's run",
        'runs/lm-tiny --prompt "It is a truth"',
        "runs/lm-tiny --exit 1 --tokens 40 --temperature 0.8",
    )
    generate.add_argument("run_folder", type=_path, help="run.dir of a run")
    generate.add_argument("--prompt", default="", help="beginning of the text; default: none")
    generate.add_argument("--exit", type=int, help="module whose head speaks; default: the last")
    generate.add_argument("--tokens", type=int, default=100, help="at most so many")
    generate.add_argument("--temperature", type=float, default=1.0, help="0: the most probable")
    generate.add_argument("--seed", type=int, default=0, help="of what is drawn")
    generate.set_defaults(run="generate")

    diagnose = _command(
        commands,
        "diagnose",
        "compare local gradients with the global ones",
        "runs/first",
        "runs/first --batches 32 --json cosines.json",
    )
    diagnose.add_argument("run_folder", type=_path, help="run.dir of a run")
    diagnose.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=NEW")
    diagnose.add_argument("--batches", type=int, default=8, help="training batches to average over")
    diagnose.add_argument("--json", type=_path, help="also write the rows to this file")
    diagnose.set_defaults(run="diagnose")


def _add_bench(commands: Commands) -> None:
    """Add what measures."""
    bench = commands.add_parser("bench", help="measure a step; prints a Markdown table of ratios")
    what = bench.add_subparsers(required=True, metavar="WHAT")
    reconcile = _command(
        what,
        "reconcile",
        "cost of reconciliation over a plain local step",
        "configs/bench-vit.yaml",
        "configs/bench-resnet.yaml --module 2 --runs 9",
    )
    reconcile.add_argument("config", type=_path, help="YAML file")
    reconcile.add_argument("overrides", nargs="*", metavar="key=value")
    reconcile.add_argument(
        "--module", type=int, help="its number; default: the first with a discord"
    )
    reconcile.add_argument("--runs", type=int, default=5, help="interleaved repetitions")
    reconcile.add_argument("--json", type=_path, help="also write the rows to this file")
    reconcile.set_defaults(run="bench_reconcile")
    methods = "local learning beside backpropagation, DDP, pipelines"
    baselines = _command(
        what,
        "baselines",
        methods,
        "configs/bench-resnet.yaml",
        "configs/bench-vit.yaml --baselines ddp,1f1b,local --microbatches 2,8",
    )
    baselines.add_argument("config", type=_path, help="YAML file")
    baselines.add_argument("overrides", nargs="*", metavar="key=value")
    every = "bp,checkpoint,accumulate,loop,ddp,gpipe,1f1b,interleaved,zerobubble,zbv,dualpipev"
    every += ",deepspeed,deepspeed-dualpipev,local"
    baselines.add_argument("--baselines", help=f"which of {every}")
    baselines.add_argument(
        "--microbatches", help="of pipelines and accumulate, such as 2,4,8; default: stages"
    )
    baselines.add_argument("--runs", type=int, default=5, help="turns of each")
    baselines.add_argument("--steps", type=int, help="timed steps of a turn; default: 8 or more")
    baselines.add_argument("--json", type=_path, help="also write the rows to this file")
    baselines.set_defaults(run="bench_baselines")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _keys(text: str) -> list[str]:
    """The keys that may be meant by an option that there is not, such as `--epochs=3`."""
    name, sign, value = text.lstrip("-").partition("=")
    if not text.startswith("--") or (sign and "." in name):
        return [text.lstrip("-")] if sign else []
    sections = {key: kind for key, kind in get_type_hints(Config).items() if is_dataclass(kind)}
    found = (
        f"{section}.{field.name}"
        for section, kind in sections.items()
        for field in fields(kind)
        if field.name == name.replace("-", "_")
    )
    return [f"{key}={value or 'VALUE'}" for key in found]


def _with_baselines(arguments: Sequence[str]) -> list[str]:
    """`bench CONFIG` is short for `bench baselines CONFIG`, which was `bench peers CONFIG`."""
    command, *rest = arguments or ("",)
    if command != "bench" or not rest:
        return list(arguments)
    if Path(rest[0]).suffix:
        rest = ["baselines", *rest]
    renamed = [re.sub(r"^--peers(?==|$)", "--baselines", text) for text in rest]
    renamed[0] = "baselines" if rest[0] == "peers" else rest[0]
    if renamed != rest and os.environ.get("RANK", "0") == "0":
        complain("`bench peers CONFIG --peers` is now `bench baselines CONFIG --baselines`")
    return [command, *renamed]


def _without_local_rank(arguments: Sequence[str]) -> list[str]:
    """deepspeed appends `--local_rank=N`; LOCAL_RANK in the environment says the same."""
    return [text for text in arguments if not text.startswith("--local_rank=")]
