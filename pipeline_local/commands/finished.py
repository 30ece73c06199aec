"""Commands that use a run that is there."""

import argparse
from collections.abc import Sequence

from pipeline_local.commands.shared import Run
from pipeline_local.errors import UserError, counted
from pipeline_local.screen import say


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


def _trace(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.record import recorder
    from pipeline_local.record.folder import RunFolder

    if options.waits < 0:
        raise UserError(f"--waits must be at least 0, got {options.waits}")
    say("\n".join(recorder.put_together(RunFolder(options.run_folder), options.waits)))
    return 0


RUN: Run = {
    "export": _export,
    "evaluate": _evaluate,
    "generate": _generate,
    "diagnose": _diagnose,
    "trace": _trace,
}
