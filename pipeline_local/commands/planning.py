"""Commands that are asked before a run is paid for."""

import argparse
from collections.abc import Sequence

from pipeline_local.commandline.shared import numbers
from pipeline_local.commands.shared import Commands, on_new_ranks, read
from pipeline_local.config import ModulesConfig
from pipeline_local.configfile import configfile
from pipeline_local.console.screen import say
from pipeline_local.errors import UserError
from pipeline_local.ranks.rank import RankInfo


def _plan(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.blueprint.device import Device
    from pipeline_local.data.datasets import describe
    from pipeline_local.planning import drawing, plan
    from pipeline_local.user_input import new_file

    if options.json is not None:
        new_file.check("--json", options.json)
    config, _rank_info, num_stages = read(options)
    device = None if options.device is None else Device.named(options.device)
    drawn = plan.draw(config, describe(config.data), num_stages, device)
    drawing.show(drawn)
    if options.json is not None:
        plan.write(drawn, options.json)
    return 0


def _advise(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.data.datasets import describe
    from pipeline_local.placement.costs import LinkOptions
    from pipeline_local.planning import advice

    situation = advice.Situation(options.devices, LinkOptions(options.latency, options.bandwidth))
    situation.check()
    # a module per device, unless the command line says otherwise
    free = ["modules.count=null", f"modules.cuts={ModulesConfig().cuts}"]
    overrides = [*free, *options.overrides, f"parallel.stages={options.devices}"]
    config = configfile.load(options.config, overrides).on_stages(options.devices)
    rank_info = RankInfo.from_environment()
    for line in advice.report(advice.draw(config, describe(config.data), situation, rank_info)):
        say(line)
    return 0


def _simulate(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.data.datasets import describe
    from pipeline_local.placement.costs import LinkOptions
    from pipeline_local.simulation import simulate
    from pipeline_local.simulation.scenario import Scenario

    config, _rank_info, num_stages = read(options)
    stages = (num_stages,) if options.stages is None else numbers(options.stages)
    if not stages:
        raise UserError(f"--stages: whole numbers such as 4,64, got {options.stages!r}")
    scenario = Scenario(
        methods=options.methods,
        stages=stages,
        microbatches=options.microbatches,
        link=LinkOptions(options.latency, options.bandwidth),
        jitter=options.jitter,
    )
    say(simulate.report(config, describe(config.data), scenario, options.json))
    return 0


def _profile(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from pipeline_local.data.datasets import describe
    from pipeline_local.planning import profile

    config, rank_info, num_stages = read(options, single=True)
    profile.check(options.runs, options.output, num_stages)
    info = describe(config.data)
    if (code := on_new_ranks(num_stages, config, rank_info, arguments)) is not None:
        return code
    rank_info.prepare(config.parallel)
    if line := profile.profile(config, info, options.runs, options.output, rank_info):
        say(line)
    return 0


COMMANDS: Commands = {
    "plan": _plan,
    "advise": _advise,
    "simulate": _simulate,
    "profile": _profile,
}
