"""The acts of a run's last steps, from its trace."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from pipeline_local.record.folder import RunFolder

STEPS = 6
"""Steps in the picture: enough to see how stages overlap."""


class Act(NamedTuple):
    """One act of one module: its number from 1, its stage and step; begin and length in ms."""

    name: str
    module: int
    stage: int
    step: int
    begin: float
    length: float


def last_acts(folder: RunFolder) -> list[Act]:
    """Returns all acts from the begin of the last steps, which is 0 ms, to their end.

    Without a trace there are none. Ranks of several hosts have clocks of their own, so that their
    rows do not fit together.
    """
    acts = list(_acts(folder))
    newest = max((act.step for act in acts if act.name == "learn"), default=0)
    last = [act for act in acts if act.step > newest - STEPS and act.name in ("forward", "learn")]
    begin = min((act.begin for act in last), default=0.0)
    end = max((act.begin + act.length for act in last), default=0.0)
    shown = (act for act in acts if begin <= act.begin and act.begin + act.length <= end)
    return [act._replace(begin=act.begin - begin) for act in shown]


def _acts(folder: RunFolder) -> Iterator[Act]:
    """The only place that knows the format of the trace."""
    for path in sorted(folder.trace(0).parent.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # cut off with its run
            for event in json.loads(path.read_text())["traceEvents"]:
                if event.get("ph") == "X" and "step" in event.get("args", {}):
                    yield _act(event)


def _act(event: dict[str, Any]) -> Act:
    return Act(
        name=event["cat"],
        module=event["tid"] + 1,
        stage=event["pid"],
        step=event["args"]["step"],
        begin=event["ts"] / 1000,
        length=event["dur"] / 1000,
    )
