"""The commands: what each takes from the command line, and what it calls."""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeAlias

from pipeline_local import __version__, configfile
from pipeline_local.config import Config
from pipeline_local.errors import UserError, counted
from pipeline_local.ranks.call import COMMAND, run_here
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.screen import say
from pipeline_local.values import expanded

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
DESCRIPTION = "Pipelined training without a global backward pass."


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; `options.run(options, arguments)` runs the command."""
    whole = argparse.ArgumentParser(prog="pipeline-local", description=DESCRIPTION)
    whole.add_argument("--version", action="version", version=__version__)
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_tokenize(commands)
    _add_planning(commands)
    _add_finished(commands)
    _add_bench(commands)
    call = commands.add_parser(COMMAND)  # without help: not for people
    call.add_argument("file", type=Path)
    call.set_defaults(run=_call)
    return whole


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
    train = commands.add_parser("train", help="train; starts parallel.stages local ranks itself")
    train.add_argument("config", type=_path, help="YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=3")
    train.set_defaults(run=_train)

    resume = commands.add_parser("resume", help="continue a run by its own configuration")
    resume.add_argument("run_folder", type=Path, help="run.dir of a run")
    resume.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=9")
    resume.set_defaults(run=_resume)


def _add_tokenize(commands: Commands) -> None:
    """Add what makes data."""
    tokenize = commands.add_parser("tokenize", help="write token files of a folder of texts")
    tokenize.add_argument("data", type=_path, help="folder with texts in train/ and test/")
    which = tokenize.add_mutually_exclusive_group(required=True)
    which.add_argument("--vocabulary", type=int, help="train a byte-level BPE of so many tokens")
    which.add_argument("--tokenizer", type=_tokenizer, help="bytes, tokenizer.json or folder")
    tokenize.add_argument("--output", type=_path, help="new folder; default: DATA with a suffix")
    tokenize.add_argument("--field", default="text", help="of JSON lines or parquet")
    tokenize.add_argument("--end", help="end token; default: what the tokenizer's folder says")
    tokenize.set_defaults(run=_tokenize)


def _add_planning(commands: Commands) -> None:
    """Add what is asked before a run is paid for."""
    plan = commands.add_parser("plan", help="predict memory, traffic and balance")
    plan.add_argument("config", type=_path, help="YAML file")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="such as modules.count=4")
    plan.add_argument("--json", type=_path, help="also write all numbers to this file")
    plan.add_argument("--device", help="cpu or cuda; default: the profile's, or what is here")
    plan.set_defaults(run=_plan)

    simulate = commands.add_parser("simulate", help="predict other stages, links and methods")
    simulate.add_argument("config", type=_path, help="YAML file")
    simulate.add_argument("overrides", nargs="*", metavar="key=value", help="such as modules.count")
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
    simulate.set_defaults(run=_simulate)

    profile = commands.add_parser("profile", help="measure blocks and heads, for modules.profile")
    profile.add_argument("config", type=_path, help="YAML file")
    profile.add_argument("overrides", nargs="*", metavar="key=value", help="such as precision=...")
    profile.add_argument("--output", type=_path, required=True, help="file.json")
    profile.add_argument("--runs", type=int, default=10, help="repetitions of each part")
    profile.set_defaults(run=_profile)


def _add_finished(commands: Commands) -> None:
    """Add what uses a run that is there."""
    export = commands.add_parser("export", help="write the trained model's weights")
    export.add_argument("run_folder", type=_path, help="run.dir of a run")
    help_text = "file.safetensors; or of a language model a folder"
    export.add_argument("--output", type=_path, required=True, help=help_text)
    export.set_defaults(run=_export)

    evaluate = commands.add_parser("evaluate", help="score every head on the test set")
    evaluate.add_argument("run_folder", type=_path, help="run.dir of a run")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=NEW")
    evaluate.set_defaults(run=_evaluate)

    generate = commands.add_parser("generate", help="continue a text by a language model's run")
    generate.add_argument("run_folder", type=_path, help="run.dir of a run")
    generate.add_argument("--prompt", default="", help="beginning of the text; default: none")
    generate.add_argument("--exit", type=int, help="module whose head speaks; default: the last")
    generate.add_argument("--tokens", type=int, default=100, help="at most so many")
    generate.add_argument("--temperature", type=float, default=1.0, help="0: the most probable")
    generate.add_argument("--seed", type=int, default=0, help="of what is drawn")
    generate.set_defaults(run=_generate)

    diagnose = commands.add_parser("diagnose", help="compare local gradients with the global ones")
    diagnose.add_argument("run_folder", type=_path, help="run.dir of a run")
    diagnose.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=NEW")
    diagnose.add_argument("--batches", type=int, default=8, help="training batches to average over")
    diagnose.add_argument("--json", type=_path, help="also write the rows to this file")
    diagnose.set_defaults(run=_diagnose)


def _add_bench(commands: Commands) -> None:
    """Add what measures."""
    bench = commands.add_parser("bench", help="measure a step; prints a Markdown table of ratios")
    what = bench.add_subparsers(required=True, metavar="WHAT")
    reconcile = what.add_parser("reconcile", help="cost of reconciliation over a plain local step")
    reconcile.add_argument("config", type=_path, help="YAML file")
    reconcile.add_argument("overrides", nargs="*", metavar="key=value")
    reconcile.add_argument(
        "--module", type=int, help="its number; default: the first with a discord"
    )
    reconcile.add_argument("--runs", type=int, default=5, help="interleaved repetitions")
    reconcile.add_argument("--json", type=_path, help="also write the rows to this file")
    reconcile.set_defaults(run=_bench_reconcile)
    methods = "local learning beside backpropagation, DDP, pipelines"
    baselines = what.add_parser("baselines", help=methods)
    baselines.add_argument("config", type=_path, help="YAML file")
    baselines.add_argument("overrides", nargs="*", metavar="key=value")
    every = "bp,checkpoint,accumulate,ddp,gpipe,1f1b,interleaved,zerobubble,zbv,dualpipev"
    every += ",deepspeed,deepspeed-dualpipev,local"
    baselines.add_argument("--baselines", help=f"which of {every}")
    baselines.add_argument(
        "--microbatches", help="of pipelines and accumulate, such as 2,4,8; default: stages"
    )
    baselines.add_argument("--runs", type=int, default=5, help="turns of each")
    baselines.add_argument("--steps", type=int, help="timed steps of a turn; default: 8 or more")
    baselines.add_argument("--json", type=_path, help="also write the rows to this file")
    baselines.set_defaults(run=_bench_baselines)


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    config = configfile.load(options.config, options.overrides)
    said = {text.partition("=")[0] for text in options.overrides}
    return _run(config, arguments, said)


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


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in _words(text)]
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
