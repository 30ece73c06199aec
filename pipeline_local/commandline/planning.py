"""Commands that are asked before a run is paid for."""

from pipeline_local.commandline.shared import Commands, add_command, add_configuration, path, words

METHODS = ("local", "1f1b", "1f1b-8bit", "1f1b-1percent", "gpipe", "ddp")
"""What `simulation.programs` knows by name, said without torch."""


def add_all(commands: Commands) -> None:
    """Add what is asked before a run is paid for."""
    plan = add_command(
        commands,
        "plan",
        "predict memory, traffic and balance",
        "configs/digits.yaml parallel.stages=4",
        "configs/cifar10.yaml data.root=PATH --device cuda --json plan.json",
    )
    add_configuration(plan, "such as modules.count=4")
    plan.add_argument("--json", type=path, help="also write all numbers to this file")
    plan.add_argument("--device", help="cpu or cuda; default: the profile's, or what is here")
    plan.set_defaults(run="plan")

    advise = add_command(
        commands,
        "advise",
        "measure the network, and say which method to train it with",
        "configs/bench-vit.yaml --devices 4 --bandwidth 1e9",
        "configs/cifar10.yaml data.root=PATH parallel.memory=16 --devices 8 --latency 0.001",
    )
    add_configuration(advise, "such as parallel.memory=16")
    advise.add_argument("--devices", type=int, required=True, help="how many there are")
    advise.add_argument("--bandwidth", type=float, help="bits per second; default: as measured")
    advise.add_argument("--latency", type=float, help="seconds, one way; default: as measured")
    advise.set_defaults(run="advise")

    simulate = add_command(
        commands,
        "simulate",
        "predict other stages, links and methods",
        "configs/bench-vit.yaml modules.profile=profile.json --stages 2,4,8",
        "configs/bench-vit.yaml modules.profile=profile.json --bandwidth 1e9 --latency 0.01",
    )
    add_configuration(simulate, "such as modules.count")
    simulate.add_argument("--methods", type=words, default=METHODS)
    simulate.add_argument("--stages", help="such as 4,64; default: parallel.stages")
    simulate.add_argument(
        "--microbatches", type=int, help="of 1f1b, compressed or not, and gpipe; default: ranks"
    )
    simulate.add_argument("--bandwidth", type=float, help="bits per second; default: as profiled")
    simulate.add_argument("--latency", type=float, help="seconds, one way; default: as profiled")
    simulate.add_argument("--jitter", type=float, default=0.0, help="most seconds more, at random")
    simulate.add_argument("--json", type=path, help="also write the rows to this file")
    simulate.set_defaults(run="simulate")

    profile = add_command(
        commands,
        "profile",
        "measure blocks and heads, for modules.profile",
        "configs/bench-vit.yaml --output profile.json",
        "configs/cifar10.yaml data.root=PATH precision=bfloat16 --output bfloat16.json",
    )
    add_configuration(profile, "such as precision=...")
    profile.add_argument("--output", type=path, required=True, help="file.json")
    profile.add_argument("--runs", type=int, default=10, help="repetitions of each part")
    profile.set_defaults(run="profile")
