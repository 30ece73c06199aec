"""The tables of `evaluate --exits`."""

from rich.table import Table

from pipeline_local.console.screen import Screen, new_table
from pipeline_local.finished.exits.evaluation import ExitReport


def show(report: ExitReport) -> None:
    """Print a table of the exits, and one of early exit at several thresholds."""
    console = Screen()
    console.print(_exits(report))
    console.print(_thresholds(report))
    console.sentence(
        "A sample leaves at the first head whose top probability reaches the threshold."
        " Operations are multiply-adds over those of the whole network without auxiliary heads."
    )


def _exits(report: ExitReport) -> Table:
    title = f"Exits after step {report.step}, {report.samples} test samples, {report.device}"
    table = new_table(title)
    table.add_column("\nexit", justify="right")
    table.add_column("\nblocks")
    columns = ("head\nalone", "heads\ntogether", "calibration\nerror", "operations,\nmillions")
    for column in (*columns, "of the\nwhole", "ms per\nsample"):
        table.add_column(column, justify="right")
    whole = max(1, report.exits[-1].multiply_adds)
    for row in report.exits:
        table.add_row(
            str(row.exit),
            row.blocks,
            f"{row.accuracy:.2%}",
            f"{row.ensemble_accuracy:.2%}",
            f"{row.calibration_error:.2%}",
            f"{row.multiply_adds / 1e6:.4g}",
            f"{row.multiply_adds / whole:.0%}",
            f"{1e3 * row.seconds:.3g}",
        )
    return table


def _thresholds(report: ExitReport) -> Table:
    table = new_table("Early exit")
    leaves = [f"exit {row.exit}" for row in report.exits]
    for column in ("threshold", "accuracy", "operations", *leaves):
        table.add_column(column, justify="right")
    for row in report.thresholds:
        shares = [f"{share:.1%}" for share in row.shares]
        table.add_row(f"{row.threshold:g}", f"{row.accuracy:.2%}", f"{row.operations:.0%}", *shares)
    return table
