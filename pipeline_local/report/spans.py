"""The acts of a run's last steps, from its trace."""

from collections.abc import Iterator
from typing import NamedTuple

from pipeline_local.record.folder import RunFolder
from pipeline_local.record.run_trace import gather
from pipeline_local.record.trace import NO_MODULE

STEPS = 6
"""Steps in the picture: enough to see how stages overlap."""


class ActSpan(NamedTuple):
    """One act of one module: its number from 1, its rank and step; begin and length in ms; the
    stage of its rank, and the replica where there are several."""

    name: str
    module: int
    rank: int
    step: int
    begin: float
    length: float
    place: str


def last_acts(folder: RunFolder) -> list[ActSpan]:
    """Returns all acts from the begin of the last steps, which is 0 ms, to their end.

    Without a trace there are none. All stages are on one clock.
    """
    acts = list(_acts(folder))
    newest = max((act.step for act in acts if act.name == "learn"), default=0)
    last = [act for act in acts if act.step > newest - STEPS and act.name in ("forward", "learn")]
    begin = min((act.begin for act in last), default=0.0)
    end = max((act.begin + act.length for act in last), default=0.0)
    shown = (act for act in acts if begin <= act.begin and act.begin + act.length <= end)
    return [act._replace(begin=act.begin - begin) for act in shown]


def _acts(folder: RunFolder) -> Iterator[ActSpan]:
    found = gather(folder.traces())
    for stage in found.stages if found else ():
        for span in stage.spans:
            if span.module != NO_MODULE and span.act != "write":  # it writes beside the acts
                yield ActSpan(
                    name=span.act,
                    module=span.module + 1,
                    rank=stage.rank,
                    step=span.step,
                    begin=span.begin / 1e6,
                    length=(span.end - span.begin) / 1e6,
                    place=stage.named,
                )
