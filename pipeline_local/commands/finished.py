"""Commands that use a run that is there."""

import argparse
from collections.abc import Sequence

from pipeline_local.commands.shared import Commands
from pipeline_local.console.screen import say
from pipeline_local.errors import UserError, counted
from pipeline_local.user_input import new_file


def _export(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.finished.exporting import formats
    from pipeline_local.finished.exporting.export import export

    output = formats.named(options.output, options.format)
    asked = output, options.checkpoint, options.exit, options.overrides
    state = export(options.run_folder, *asked)
    say(f"wrote {counted(len(state), 'tensor')} to {output}")
    return 0


def _evaluate(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.finished import finished
    from pipeline_local.finished.exits import evaluation, table
    from pipeline_local.record import summary

    if options.json is not None:
        new_file.check("--json", options.json)
    asked = options.run_folder, options.overrides, options.checkpoint
    if options.exits:
        report = evaluation.evaluate_exits(*asked)
        table.show(report)
        facts = report.facts()
    else:
        run, *others = asked
        facts = finished.evaluate(run, summary.show, *others)
    if options.json is not None:
        new_file.write_json("--json", options.json, facts)
    return 0


def _predict(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.finished import prediction

    if options.json is not None:
        new_file.check("--json", options.json)
    rows = []
    asked = prediction.Asked(options.exit, options.confidence, options.top, options.checkpoint)
    for row in prediction.predict(options.run_folder, options.images, asked):
        say(str(row))
        rows.append(row.facts())
    if options.json is not None:
        new_file.write_json("--json", options.json, rows)
    return 0


def _report(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.report import page

    say(f"wrote {page.write(options.run_folders, options.output)}")
    return 0


def _compare(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.report import compare

    compare.show([options.run_folder, options.other])
    return 0


def _generate(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.finished.generation import Generator

    given = {name: getattr(options, name) for name in ("temperature", "tokens", "seed")}
    for (name, value), least in zip(given.items(), (0, 1, 0), strict=True):
        if not least <= value < 2**63:
            raise UserError(f"--{name} must be at least {least} and below 2**63, got {value}")
    speaker = Generator(options.run_folder, exit=options.exit, overrides=options.overrides)
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


COMMANDS: Commands = {
    "export": _export,
    "evaluate": _evaluate,
    "predict": _predict,
    "report": _report,
    "compare": _compare,
    "generate": _generate,
    "diagnose": _diagnose,
    "trace": _trace,
}
