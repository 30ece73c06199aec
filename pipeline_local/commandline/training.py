"""Commands that train, and those that make or show what a run is made of."""

from pathlib import Path

from pipeline_local.commandline.shared import (
    Commands,
    add_command,
    add_configuration,
    add_overrides,
    add_run_folder,
    path,
)


def add_all(commands: Commands) -> None:
    """Add `train`, `resume`, `config` and `tokenize`."""
    _add_train(commands)
    _add_config(commands)
    _add_tokenize(commands)


def _add_train(commands: Commands) -> None:
    """Add what trains."""
    train = add_command(
        commands,
        "train",
        "train; starts parallel.stages local ranks itself",
        "configs/digits.yaml run.dir=runs/first",
        "configs/cifar10.yaml data.root=PATH parallel.stages=4 train.epochs=3",
    )
    add_configuration(train, "such as train.epochs=3")
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, show the modules, start nothing"
    )
    train.set_defaults(run="train")

    resume = add_command(
        commands,
        "resume",
        "continue a run by its own configuration",
        "runs/first",
        "runs/first train.epochs=24",
    )
    add_run_folder(resume)
    add_overrides(resume, "such as train.epochs=9")
    resume.set_defaults(run="resume")


def _add_config(commands: Commands) -> None:
    """Add what shows a configuration."""
    config = add_command(
        commands,
        "config",
        "print the whole configuration, and where each value comes from",
        "configs/digits.yaml",
        "configs/digits.yaml optimizer.lr=0.05 parallel.stages=4",
    )
    add_configuration(config, "such as train.epochs=3")
    config.set_defaults(run="config")


def _add_tokenize(commands: Commands) -> None:
    """Add what makes data."""
    tokenize = add_command(
        commands,
        "tokenize",
        "write token files of a folder of texts",
        "novels --vocabulary 8192",
        "novels --tokenizer bytes --output novels-bytes",
    )
    tokenize.add_argument(
        "data", type=path, metavar="DATA", help="folder with texts in train/ and test/"
    )
    which = tokenize.add_mutually_exclusive_group(required=True)
    which.add_argument("--vocabulary", type=int, help="train a byte-level BPE of so many tokens")
    which.add_argument("--tokenizer", type=_tokenizer, help="bytes, tokenizer.json or folder")
    tokenize.add_argument("--output", type=path, help="new folder; default: DATA with a suffix")
    tokenize.add_argument("--field", default="text", help="of JSON lines or parquet")
    tokenize.add_argument("--end", help="end token; default: what the tokenizer's folder says")
    tokenize.set_defaults(run="tokenize")


def _tokenizer(text: str) -> str | Path:
    return text if text == "bytes" else path(text)
