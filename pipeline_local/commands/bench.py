"""Commands that measure."""

import argparse
from collections.abc import Sequence

from pipeline_local.commands.shared import Commands, on_new_ranks, read
from pipeline_local.configfile import configfile
from pipeline_local.console.screen import say


def _bench_reconcile(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.bench import reconcile

    config = configfile.load(options.config, options.overrides)
    say(reconcile.report(config, options.module, options.runs, options.json))
    return 0


def _bench_baselines(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from pipeline_local.bench import table
    from pipeline_local.bench.options import BenchOptions

    config, rank_info, _ = read(options)
    mesh = rank_info.mesh(config.parallel)
    request = BenchOptions.read(
        config,
        mesh,
        baselines=options.baselines,
        microbatches=options.microbatches,
        runs=options.runs,
        steps=options.steps,
        output=options.json,
    )
    if (code := on_new_ranks(mesh.num_ranks, config, rank_info, arguments)) is not None:
        return code
    if shown := table.report(config, rank_info, request):
        say(shown)
    return 0


COMMANDS: Commands = {
    "bench_reconcile": _bench_reconcile,
    "bench_baselines": _bench_baselines,
}
