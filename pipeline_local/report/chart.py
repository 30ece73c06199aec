"""A chart as data: what plotly draws, and the legend that is printed under it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PALETTE = ("#0077bb", "#ee7733", "#009988", "#cc3311", "#33bbee", "#ee3377", "#8c8c8c")
"""Paul Tol's "vibrant" colours: told apart by colour-blind people, on white and on black."""
RAMP = ("#0077bb", "#33bbee", "#009988", "#ee7733", "#cc3311")
"""Those in an order, between which the colours of more modules lie."""
GREY = "#8c8c8c"
"""The colour of waits, and of lines in a legend that stand for any colour."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""The lines of runs that are drawn over each other."""

PlotlyTrace = dict[str, Any]


@dataclass(frozen=True)
class LegendEntry:
    """A line of a legend, by which traces are switched off and on.

    Attributes:
        text: what it stands for.
        key: the traces that have this key under `meta.keys`.
        colour: of its sample.
        dash: of its sample, which is a line; empty: a box.
        fade: the opacity of its sample.
        hatched: whether its sample is hatched.
    """

    text: str
    key: str
    colour: str = GREY
    dash: str = ""
    fade: float = 1.0
    hatched: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: its heading.
        note: one or two sentences on what is seen.
        traces: as plotly takes them; `meta.keys` has the keys of `legend` that they go by, and
            `meta.x` the values of every axis that the reader can choose.
        layout: as plotly takes it; colours and margins are the page's.
        legend: its lines.
        height: in pixels.
        wide: whether it takes the whole width of the page.
    """

    title: str
    note: str
    traces: Sequence[PlotlyTrace]
    layout: Mapping[str, Any] = field(default_factory=dict)
    legend: Sequence[LegendEntry] = ()
    height: int = 300
    wide: bool = False

    def figure(self) -> dict[str, Any]:
        """Returns traces and layout as plotly has checked them."""
        from plotly import graph_objects

        layout = {"showlegend": False, "template": "none", **self.layout}
        drawn: dict[str, Any] = graph_objects.Figure([*self.traces], layout).to_plotly_json()
        drawn["layout"].pop("template", None)
        return drawn


def colour_of(index: int, count: int) -> str:
    """Returns the colour of one of so many things that have an order."""
    if count <= len(PALETTE):
        return PALETTE[index]
    place = index / (count - 1) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    return _mixed(RAMP[low], RAMP[low + 1], place - low)


def _mixed(first: str, second: str, part: float) -> str:
    pairs = ((int(first[k : k + 2], 16), int(second[k : k + 2], 16)) for k in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in pairs)
