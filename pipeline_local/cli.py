"""The command line: `pipeline-local train | plan | profile | export | evaluate | ...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline_local import __version__, configfile
from pipeline_local.errors import (
    EXIT_NEIGHBOUR_LOST,
    EXIT_STALLED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    ConfigError,
    NeighbourLostError,
    RefusedElsewhereError,
    StalledError,
    StoppedError,
    UserError,
)
from pipeline_local.pipeline.place import Place


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one clear line on stderr and exit code 2."""
    arguments = _without_local_rank(sys.argv[1:] if arguments is None else arguments)
    options = _parse(arguments)
    try:
        return int(options.run(options, arguments))
    except UserError as error:
        _explain(error)
        return EXIT_USER_ERROR
    except RefusedElsewhereError:
        return EXIT_USER_ERROR
    except NeighbourLostError as error:
        _explain(error)
        return EXIT_NEIGHBOUR_LOST
    except StalledError as error:
        _explain(error)
        return EXIT_STALLED
    except StoppedError:
        return EXIT_STOPPED
    except (MemoryError, RuntimeError) as error:
        if (shortage := _memory_shortage(error)) is None:
            raise
        _explain(shortage)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 130


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """As argparse, but `key=value` may stand behind an option too."""
    parser = _parser()
    options, rest = parser.parse_known_args(_with_peers(arguments))
    stray = [text for text in rest if text.startswith("-") or "=" not in text]
    if stray or (rest and not hasattr(options, "overrides")):
        keys = [text.lstrip("-") for text in stray if "=" in text]
        hint = f"; keys have no dashes: {' '.join(keys)}" if keys else ""
        parser.error(f"unrecognized arguments: {' '.join(stray or rest)}{hint}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pipeline-local", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train; starts parallel.stages local ranks itself")
    train.add_argument("config", type=Path, help="YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=3")
    train.set_defaults(run=_train)

    plan = commands.add_parser("plan", help="memory, traffic and balance, before anything is paid")
    plan.add_argument("config", type=Path, help="YAML file")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="such as modules.count=4")
    plan.add_argument("--json", type=Path, help="also write all numbers to this file")
    plan.set_defaults(run=_plan)

    profile = commands.add_parser("profile", help="measure blocks and heads, for modules.profile")
    profile.add_argument("config", type=Path, help="YAML file")
    profile.add_argument("overrides", nargs="*", metavar="key=value", help="such as precision=...")
    profile.add_argument("--output", type=Path, required=True, help="file.json")
    profile.add_argument("--runs", type=int, default=10, help="repetitions of each part")
    profile.set_defaults(run=_profile)

    export = commands.add_parser("export", help="write the trained model's weights")
    export.add_argument("run_folder", type=Path, help="run.dir of a run")
    export.add_argument("--output", type=Path, required=True, help="file.safetensors")
    export.set_defaults(run=_export)

    evaluate = commands.add_parser("evaluate", help="accuracy of every head on the test set")
    evaluate.add_argument("run_folder", type=Path, help="run.dir of a run")
    evaluate.set_defaults(run=_evaluate)

    diagnose = commands.add_parser("diagnose", help="local gradients beside the true global one")
    diagnose.add_argument("run_folder", type=Path, help="run.dir of a run")
    diagnose.add_argument("--batches", type=int, default=8, help="training batches to average over")
    diagnose.add_argument("--json", type=Path, help="also write the rows to this file")
    diagnose.set_defaults(run=_diagnose)

    bench = commands.add_parser("bench", help="measure; prints a Markdown table of ratios")
    what = bench.add_subparsers(required=True, metavar="WHAT")
    reconcile = what.add_parser("reconcile", help="cost of reconciliation over a plain local step")
    reconcile.add_argument("config", type=Path, help="YAML file")
    reconcile.add_argument("overrides", nargs="*", metavar="key=value")
    reconcile.add_argument("--module", type=int, default=2, help="number of the module, from 2")
    reconcile.add_argument("--runs", type=int, default=5, help="interleaved repetitions")
    reconcile.add_argument("--json", type=Path, help="also write the rows to this file")
    reconcile.set_defaults(run=_bench_reconcile)
    peers = what.add_parser("peers", help="local learning beside backpropagation, DDP, pipelines")
    peers.add_argument("config", type=Path, help="YAML file")
    peers.add_argument("overrides", nargs="*", metavar="key=value")
    peers.add_argument("--peers", help="which of bp,checkpoint,ddp,gpipe,1f1b,deepspeed,local")
    peers.add_argument("--microbatches", help="of the pipelines, such as 2,4,8; default: stages")
    peers.add_argument("--runs", type=int, default=5, help="turns of each")
    peers.add_argument("--steps", type=int, help="timed steps of a turn; default: 8 or more")
    peers.add_argument("--json", type=Path, help="also write the rows to this file")
    peers.set_defaults(run=_bench_peers)
    return parser


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from pipeline_local import trainer

    config = configfile.load(options.config, options.overrides)
    place = Place.from_environment()
    num_stages = place.num_stages(config.parallel)
    if num_stages > 1 and not place.launched:
        from pipeline_local import agreement
        from pipeline_local.pipeline.launch import start_ranks

        agreement.check(config, Place(world_size=num_stages, local_world_size=num_stages))
        return start_ranks(num_stages, arguments)
    trainer.train(config, place)
    return 0


def _plan(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.data.datasets import describe
    from pipeline_local.planning import drawing, plan

    if options.json is not None:
        plan.refuse_existing(options.json)
    config = configfile.load(options.config, options.overrides)
    num_stages = Place.from_environment().num_stages(config.parallel)
    drawn = plan.draw(config, describe(config.data), num_stages)
    drawing.show(drawn)
    if options.json is not None:
        plan.write(drawn, options.json)
    return 0


def _profile(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.data.datasets import describe
    from pipeline_local.planning import profile

    config = configfile.load(options.config, options.overrides)
    num_stages = Place.from_environment().num_stages(config.parallel)
    place = Place(world_size=num_stages, local_world_size=num_stages)
    torch.set_num_threads(place.threads(config.parallel))
    info = describe(config.data)
    print(profile.profile(config, info, options.runs, options.output, place.device))
    return 0


def _export(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local import finished

    state = finished.export(options.run_folder, options.output)
    print(f"wrote {len(state)} tensors to {options.output}")
    return 0


def _evaluate(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local import finished
    from pipeline_local.record import summary

    finished.evaluate(options.run_folder, summary.show)
    return 0


def _diagnose(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.planning import diagnose

    diagnose.diagnose(options.run_folder, options.batches, options.json)
    return 0


def _bench_reconcile(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.bench import reconcile

    config = configfile.load(options.config, options.overrides)
    print(reconcile.report(config, options.module, options.runs, options.json))
    return 0


def _bench_peers(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from pipeline_local.bench import table
    from pipeline_local.bench.request import Request

    config = configfile.load(options.config, options.overrides)
    place = Place.from_environment()
    num_stages = place.num_stages(config.parallel)
    request = Request.read(
        config,
        num_stages,
        peers=options.peers,
        microbatches=options.microbatches,
        runs=options.runs,
        steps=options.steps,
        output=options.json,
    )
    if num_stages > 1 and not place.launched:
        from pipeline_local.pipeline.launch import start_ranks

        Place(world_size=num_stages, local_world_size=num_stages).wire_kind(config.parallel)
        return start_ranks(num_stages, arguments)
    if shown := table.report(config, place, request):
        print(shown)
    return 0


def _with_peers(arguments: Sequence[str]) -> list[str]:
    """`bench CONFIG ...` is short for `bench peers CONFIG ...`."""
    short = len(arguments) > 1 and arguments[0] == "bench" and Path(arguments[1]).suffix
    return ["bench", "peers", *arguments[1:]] if short else list(arguments)


def _without_local_rank(arguments: Sequence[str]) -> list[str]:
    """deepspeed appends `--local_rank=N`; LOCAL_RANK in the environment says the same."""
    return [text for text in arguments if not text.startswith("--local_rank=")]


def _memory_shortage(error: Exception) -> UserError | None:
    """Torch tells of a full GPU by a type of its own, of a full CPU by its text alone."""
    full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if not full and "can't allocate memory" not in str(error):
        return None
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(
        f"out of memory ({reason}); lower data.batch_size or the model's size, raise"
        f" train.microbatches or parallel.stages, or set modules.recompute=true"
    )


def _explain(error: Exception) -> None:
    """One line per problem; a host's ranks find the same in a configuration: its first speaks."""
    try:
        place = Place.from_environment()
    except UserError:
        place = Place()
    if isinstance(error, ConfigError) and place.local_rank > 0:
        return
    prefix = f"[stage {place.rank} | rank {place.rank}] " if place.rank > 0 else ""
    for line in str(error).splitlines():
        print(f"{prefix}error: {line}", file=sys.stderr)
