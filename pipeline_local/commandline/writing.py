"""Commands that help to write a configuration, and commands."""

from pathlib import Path

from pipeline_local.commandline.shared import Commands, add_command, path


def add_all(commands: Commands) -> None:
    """Add `init`, `explain` and `completion`."""
    init = add_command(
        commands,
        "init",
        "write a commented configuration file",
        "mine.yaml",
        "language.yaml --model causal_lm",
    )
    init.add_argument("file", nargs="?", type=path, default=Path("config.yaml"), help="new file")
    init.add_argument("--model", default="resnet32", help="such as vit, causal_lm or swin_t")
    init.set_defaults(run="init")

    explain = add_command(
        commands,
        "explain",
        "print what a key of the configuration means",
        "optimizer.lr",
        "head",
    )
    explain.add_argument("key", help="key, or section")
    explain.set_defaults(run="explain")

    completion = add_command(
        commands,
        "completion",
        "print a shell's script that completes commands and keys",
        "bash",
        "zsh",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    completion.set_defaults(run="completion")
