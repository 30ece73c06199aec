"""Commands that train, and those that make or show what a run is made of."""

import argparse
from collections.abc import Collection, Sequence

from pipeline_local.commands.shared import Commands
from pipeline_local.config import Config
from pipeline_local.configfile import configfile
from pipeline_local.console import startup
from pipeline_local.console.screen import say
from pipeline_local.ranks.call import run_here
from pipeline_local.ranks.rank import RankInfo


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    config = configfile.load(options.config, options.overrides)
    overridden = {text.partition("=")[0] for text in options.overrides}
    if options.dry_run:
        return _try(config, overridden)
    return _run(config, arguments, overridden)


def _try(config: Config, overridden: Collection[str]) -> int:
    """Check all that a run checks before it starts, and show what it would be."""
    from pipeline_local.placement.describe import describe, explain
    from pipeline_local.record import summary
    from pipeline_local.training import preflight

    rank_info = RankInfo.from_environment()
    mesh = rank_info.mesh(config.parallel)
    there = rank_info if rank_info.launched else RankInfo.of_host(mesh.num_ranks)
    placement = preflight.check(config.on_stages(mesh.num_stages), there, overridden)
    startup.over()
    if rank_info.rank == 0:
        say(explain(placement.blueprint))
        say(placement.blueprint.run_plan.explain())
        summary.show_modules(describe(placement))
    return 0


def _config(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.configfile import origins

    say(origins.annotated(options.config, options.overrides), end="")
    return 0


def _resume(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from pipeline_local.record.folder import RunFolder

    return _run(RunFolder(options.run_folder).resumed(options.overrides), arguments, None)


def _run(config: Config, arguments: Sequence[str], overridden: Collection[str] | None) -> int:
    """Train in this process, or on ranks that are started with the same arguments."""
    from pipeline_local.ranks.launcher import reporting_failure, start_ranks
    from pipeline_local.training.train import train

    rank_info = RankInfo.from_environment()
    count = rank_info.mesh(config.parallel).num_ranks
    if count > 1 and not rank_info.launched:
        from pipeline_local.training import preflight

        preflight.check(config, RankInfo.of_host(count), overridden)
        return start_ranks(count, arguments)
    with reporting_failure():
        train(config, rank_info, overridden=overridden)
    return 0


def _tokenize(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.data.tokens.command import TokenizeOptions, tokenize

    tokenize(
        TokenizeOptions(
            root=options.data,
            vocabulary=options.vocabulary,
            tokenizer=options.tokenizer,
            output=options.output,
            field=options.field,
            end=options.end,
        )
    )
    return 0


def _call(options: argparse.Namespace, _: Sequence[str]) -> int:
    run_here(options.file)
    return 0


def _hosts(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.gpus import choice
    from pipeline_local.ranks.hosts import Hosts, read_number
    from pipeline_local.ranks.launcher import start_ranks

    keys = ("count", "number", "head", "port", "restarts")
    hosts = Hosts.read(**{key: getattr(options, key) for key in keys})
    ranks = max(1, choice.count())
    if options.ranks:
        ranks = read_number("RANKS_PER_NODE", options.ranks, 1)
    return start_ranks(ranks, options.arguments, hosts)


COMMANDS: Commands = {
    "train": _train,
    "resume": _resume,
    "config": _config,
    "tokenize": _tokenize,
    "call": _call,
    "hosts": _hosts,
}
