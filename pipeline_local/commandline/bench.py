"""Commands that measure."""

from pipeline_local.commandline.shared import Commands, add_command, add_configuration, path

BASELINES = (
    *("bp", "checkpoint", "accumulate", "loop", "ddp", "gpipe", "1f1b", "interleaved"),
    *("zerobubble", "zbv", "dualpipev", "deepspeed", "deepspeed-dualpipev", "local"),
)
"""What `bench.request` knows by name, said without torch."""


def add_all(commands: Commands) -> None:
    """Add what measures."""
    bench = commands.add_parser("bench", help="measure a step; prints a Markdown table of ratios")
    what = bench.add_subparsers(required=True, metavar="WHAT")
    reconcile = add_command(
        what,
        "reconcile",
        "cost of reconciliation over a plain local step",
        "configs/bench-vit.yaml",
        "configs/bench-resnet.yaml --module 2 --runs 9",
    )
    add_configuration(reconcile, "such as train.microbatches=4")
    reconcile.add_argument(
        "--module", type=int, help="its number; default: the first with a discord"
    )
    reconcile.add_argument("--runs", type=int, default=5, help="interleaved repetitions")
    reconcile.add_argument("--json", type=path, help="also write the rows to this file")
    reconcile.set_defaults(run="bench_reconcile")
    methods = "local learning beside backpropagation, DDP, pipelines"
    baselines = add_command(
        what,
        "baselines",
        methods,
        "configs/bench-resnet.yaml",
        "configs/bench-vit.yaml --baselines ddp,1f1b,local --microbatches 2,8",
    )
    add_configuration(baselines, "such as train.microbatches=4")
    baselines.add_argument("--baselines", help=f"which of {','.join(BASELINES)}")
    baselines.add_argument(
        "--microbatches", help="of pipelines and accumulate, such as 2,4,8; default: stages"
    )
    baselines.add_argument("--runs", type=int, default=5, help="turns of each")
    baselines.add_argument("--steps", type=int, help="timed steps of a turn; default: 8 or more")
    baselines.add_argument("--json", type=path, help="also write the rows to this file")
    baselines.set_defaults(run="bench_baselines")
