"""What the timed acts of a part are made into."""

from pipeline_local.planning.part_timer import ActTimes


def test_reconciliation_adds_to_two_acts():
    """`shift` spends less on act 2 and more on act 3: a plain step is what it was."""
    times = ActTimes()
    for _ in range(3):
        times.note({"forward": 1.0, "signal": 2.0, "learn": 4.0}, reconciled=False)
        times.note({"forward": 1.0, "signal": 1.5, "learn": 6.0}, reconciled=True)
    found = times.medians(reconciles=True)
    assert found == {"forward": 1.0, "signal": 2.0, "learn": 4.0, "added": 1.5}
    assert times.medians(reconciles=False)["added"] == 0
