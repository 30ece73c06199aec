"""What the commands do. `commandline.py` says what they take."""

import argparse
from collections.abc import Callable, Collection, Sequence

from pipeline_local import configfile
from pipeline_local.config import Config
from pipeline_local.errors import UserError, counted
from pipeline_local.ranks.call import run_here
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.screen import say


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    config = configfile.load(options.config, options.overrides)
    said = {text.partition("=")[0] for text in options.overrides}
    if options.dry_run:
        return _try(config, said)
    return _run(config, arguments, said)


def _try(config: Config, said: Collection[str]) -> int:
    """Check all that a run checks before it starts, and show what it would be."""
    from pipeline_local import agreement
    from pipeline_local.placement.describe import describe, explain
    from pipeline_local.record import summary

    rank_info = RankInfo.from_environment()
    count = rank_info.num_stages(config.parallel)
    there = rank_info if rank_info.launched else RankInfo(world_size=count, local_world_size=count)
    placement = agreement.check(config.on_stages(count), there, said)
    if rank_info.rank == 0:
        say(explain(placement.blueprint))
        say(placement.blueprint.run_plan.explain())
        summary.show_modules(describe(placement))
    return 0


def _config(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local import origins

    say(origins.annotated(options.config, options.overrides), end="")
    return 0


def _read(options: argparse.Namespace) -> tuple[Config, RankInfo, int]:
    """The configuration, this rank, and the number of stages."""
    config = configfile.load(options.config, options.overrides)
    rank_info = RankInfo.from_environment()
    num_stages = rank_info.num_stages(config.parallel)
    return config.on_stages(num_stages), rank_info, num_stages


def _resume(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from pipeline_local.record.folder import RunFolder

    return _run(RunFolder(options.run_folder).resumed(options.overrides), arguments, None)


def _run(config: Config, arguments: Sequence[str], said: Collection[str] | None) -> int:
    """Train in this process, or on ranks that are started with the same arguments."""
    from pipeline_local import trainer
    from pipeline_local.ranks.launcher import reporting_failure, start_ranks

    rank_info = RankInfo.from_environment()
    num_stages = rank_info.num_stages(config.parallel)
    if num_stages > 1 and not rank_info.launched:
        from pipeline_local import agreement

        there = RankInfo(world_size=num_stages, local_world_size=num_stages)
        agreement.check(config, there, said)
        return start_ranks(num_stages, arguments)
    with reporting_failure():
        trainer.train(config, rank_info, said=said)
    return 0


def _tokenize(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.data.tokens.command import Request, tokenize

    tokenize(
        Request(
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


def _plan(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local import newfile
    from pipeline_local.blueprint.device import Device
    from pipeline_local.data.datasets import describe
    from pipeline_local.planning import drawing, plan

    if options.json is not None:
        newfile.check("--json", options.json)
    config, _rank_info, num_stages = _read(options)
    device = None if options.device is None else Device.named(options.device)
    drawn = plan.draw(config, describe(config.data), num_stages, device)
    drawing.show(drawn)
    if options.json is not None:
        plan.write(drawn, options.json)
    return 0


def _simulate(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.data.datasets import describe
    from pipeline_local.simulation import simulate
    from pipeline_local.simulation.scenario import Scenario

    config, _rank_info, num_stages = _read(options)
    scenario = Scenario(
        methods=options.methods,
        stages=(num_stages,) if options.stages is None else _numbers("--stages", options.stages),
        microbatches=options.microbatches,
        replicas=options.replicas,
        latency=options.latency,
        bandwidth=options.bandwidth,
        jitter=options.jitter,
    )
    say(simulate.report(config, describe(config.data), scenario, options.json))
    return 0


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UserError(f"{option}: whole numbers such as 4,64, got {text!r}")
    return tuple(map(int, words))


def _profile(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from pipeline_local.data.datasets import describe
    from pipeline_local.planning import profile

    config, rank_info, num_stages = _read(options)
    profile.check(options.runs, options.output, num_stages)
    info = describe(config.data)
    if num_stages > 1 and not rank_info.launched:
        from pipeline_local.ranks.launcher import start_ranks

        RankInfo(world_size=num_stages, local_world_size=num_stages).p2p_kind(config.parallel)
        return start_ranks(num_stages, arguments)
    rank_info.prepare(config.parallel)
    if line := profile.profile(config, info, options.runs, options.output, rank_info):
        say(line)
    return 0


def _export(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local import finished

    state = finished.export(options.run_folder, options.output)
    say(f"wrote {counted(len(state), 'tensor')} to {options.output}")
    return 0


def _evaluate(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local import finished
    from pipeline_local.record import summary

    finished.evaluate(options.run_folder, summary.show, options.overrides)
    return 0


def _generate(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.generation import Generator

    given = {name: getattr(options, name) for name in ("temperature", "tokens", "seed")}
    for (name, value), least in zip(given.items(), (0, 1, 0), strict=True):
        if not least <= value < 2**63:
            raise UserError(f"--{name} must be at least {least} and below 2**63, got {value}")
    speaker = Generator(options.run_folder, exit=options.exit)
    say(options.prompt, end="")
    for piece in speaker.text(options.prompt, options.tokens, options.temperature, options.seed):
        say(piece, end="")
    say("")
    return 0


def _diagnose(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.planning import diagnose

    diagnose.diagnose(options.run_folder, options.batches, options.json, options.overrides)
    return 0


def _bench_reconcile(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.bench import reconcile

    config = configfile.load(options.config, options.overrides)
    say(reconcile.report(config, options.module, options.runs, options.json))
    return 0


def _bench_baselines(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from pipeline_local.bench import table
    from pipeline_local.bench.request import Request

    config, rank_info, num_stages = _read(options)
    request = Request.read(
        config,
        num_stages,
        baselines=options.baselines,
        microbatches=options.microbatches,
        runs=options.runs,
        steps=options.steps,
        output=options.json,
    )
    if num_stages > 1 and not rank_info.launched:
        from pipeline_local.ranks.launcher import start_ranks

        RankInfo(world_size=num_stages, local_world_size=num_stages).p2p_kind(config.parallel)
        return start_ranks(num_stages, arguments)
    if shown := table.report(config, rank_info, request):
        say(shown)
    return 0


RUN: dict[str, Callable[[argparse.Namespace, Sequence[str]], int]] = {
    "call": _call,
    "train": _train,
    "config": _config,
    "resume": _resume,
    "tokenize": _tokenize,
    "plan": _plan,
    "simulate": _simulate,
    "profile": _profile,
    "export": _export,
    "evaluate": _evaluate,
    "generate": _generate,
    "diagnose": _diagnose,
    "bench_reconcile": _bench_reconcile,
    "bench_baselines": _bench_baselines,
}
"""What each command does, by the name that its parser gives as `run`."""
