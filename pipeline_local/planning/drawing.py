"""A plan as text: tables, a timeline, and warnings about cuts that could be better."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal

from rich.table import Table

from pipeline_local.console.screen import Screen, new_table
from pipeline_local.errors import counted
from pipeline_local.planning.alternatives import Alternative
from pipeline_local.planning.plan import TOLERATED, Plan, imbalance
from pipeline_local.planning.timeline import Bar, timeline
from pipeline_local.planning.verdict import best_of_each, helps, mebibytes, verdict

STEPS_DRAWN = 5
"""Steps in the timeline: enough to show fill, steady state and drain."""
_TIMELINE = 72
"""The longest timeline, in columns."""
_FRAME = len("stage 00 ||")


def show(plan: Plan) -> None:
    """Print tables, timeline, facts and warnings."""
    console = Screen()
    columns = min(_TIMELINE, console.width - _FRAME)
    console.print(_stages(plan))
    console.print(_modules(plan))
    if plan.edges:
        console.print(_edges(plan))
    console.print(_alternatives(plan))
    for line in [*_facts(plan), *lines_of(plan, columns), *warnings(plan)]:
        console.sentence(line)


def warnings(plan: Plan) -> list[str]:
    """Return one line for each way in which the plan could be balanced better."""
    lines = [*_memory_warnings(plan), *_uneven_memory(plan), *_link_warning(plan)]
    better = plan.stage_cut
    if better and plan.imbalance > TOLERATED and plan.imbalance / better.imbalance > 1.02:
        opens = ", ".join(str(module + 1) for module in better.edges)
        lines.append(
            f"warning: the most expensive stage costs {plan.imbalance:.2f} times the mean; stages"
            f" that begin with modules {opens} would make it {better.imbalance:.2f}"
        )
    costs = [module.cost.total for stage in plan.stages for module in stage.modules]
    uneven, other = imbalance(costs), plan.module_cut
    apart = len(plan.stages) > 1  # on one device only their sum matters
    if apart and other and uneven > TOLERATED and uneven / other.imbalance > 1.02:
        cuts = ",".join(plan.block_names[block] for block in other.edges)
        lines.append(
            f"warning: the most expensive module costs {uneven:.2f} times the mean;"
            f" modules.cuts=[{cuts}] would make it {other.imbalance:.2f}"
            f" (this changes what is learned)"
        )
    return lines


def _link_warning(plan: Plan) -> Iterator[str]:
    slowest = max(stage.cost for stage in plan.stages)
    if plan.seconds is not None and plan.seconds > TOLERATED * slowest:
        yield (
            f"warning: the link between stages is the bottleneck: no stage computes for more than"
            f" {1000 * slowest:.1f} ms per step, with messages it takes {1000 * plan.seconds:.1f};"
            f" parallel.wire_dtype=bfloat16 halves float32 messages, and parallel.cuts=auto"
            f" prefers cuts where activations are small"
        )


def _memory_warnings(plan: Plan) -> Iterator[str]:
    for number, stage in enumerate(plan.stages):
        peak = stage.memory.peak
        if stage.room is None or peak <= stage.room:
            continue
        if plan.stage_cut:
            remedy = f"parallel.cuts={[edge + 1 for edge in plan.stage_cut.edges]} fits"
        elif plan.module_cut:
            names = ",".join(plan.block_names[block] for block in plan.module_cut.edges)
            remedy = (
                f"modules.cuts=[{names}] fits, one module per stage (this changes what is learned)"
            )
        else:
            remedy = "no other cut fits either; modules.recompute=true or more stages save memory"
        yield (
            f"warning: stage {number} needs {mebibytes(peak)} MiB, its device has"
            f" {mebibytes(stage.room)}; {remedy}"
        )


def _uneven_memory(plan: Plan) -> Iterator[str]:
    peak, even = plan.stages[0].memory.peak, plan.even_memory
    if even is not None and TOLERATED * even < peak:
        yield (
            f"warning: these modules take {mebibytes(peak)} MiB, modules.cuts=memory would take"
            f" {mebibytes(even)} (this changes what is learned)"
        )


def lines_of(plan: Plan, width: int = _TIMELINE) -> list[str]:
    """Return the timeline of a short run, one row per stage, with its phases below."""
    bars = timeline(plan.stages, STEPS_DRAWN)
    end = max((bar.end for bar in chain(*bars)), default=0.0) or 1.0
    rows = [f"stage {number:>2} |{_row(row, end, width)}|" for number, row in enumerate(bars)]
    steady = bars[-1][0].begin / end, bars[0][-1].end / end
    phases = _phases(steady, width)
    legend = (
        f"Timeline of {STEPS_DRAWN} steps: F act 1, forward; S act 2, signal; L act 3, learn;"
        f" . idle (messages are not drawn)"
    )
    return [legend, *rows, f"         |{phases}|"]


def _row(bars: Sequence[Bar], end: float, width: int) -> str:
    cells = ["."] * width
    for bar in bars:
        first, last = round(bar.begin / end * width), round(bar.end / end * width)
        for cell in range(first, max(last, first + 1)):
            cells[min(cell, width - 1)] = bar.act
    return "".join(cells)


def _phases(steady: tuple[float, float], width: int) -> str:
    """The line that names the three phases."""
    begin, end = (round(part * width) for part in steady)
    spans = (("fill", begin), ("steady", max(0, end - begin)), ("drain", width - max(begin, end)))
    return "".join(name.center(size, "-")[:size] for name, size in spans)


def _stages(plan: Plan) -> Table:
    cost = f"{_unit(plan)}\nper\nstep"
    names = ("modules", "param.", "grad.", "optim.", "edges", "queues", "peak")
    table = _table("Stages (MiB)", ["stage", *names, "peak in", cost], left=("peak in",))
    for number, stage in enumerate(plan.stages):
        held = stage.memory
        first, last = stage.modules[0].number, stage.modules[-1].number
        kinds = ("parameters", "gradients", "optimizer")
        sums = [sum(getattr(module, kind) for module in held.modules) for kind in kinds]
        table.add_row(
            str(number),
            str(first) if first == last else f"{first} - {last}",
            *(mebibytes(size) for size in (*sums, held.boundary, held.lagged, held.peak)),
            held.act,
            _cost(plan, stage.cost),
        )
    return table


def _modules(plan: Plan) -> Table:
    columns = ["module", "blocks", "head", "kept\nMiB", "forward", "signal", "learn", "SGR"]
    title = f"Modules (costs: {_unit(plan)} per step)"
    table = _table(title, columns, left=("blocks", "head"))
    for module in chain.from_iterable(stage.modules for stage in plan.stages):
        names, cost = module.blocks, module.cost
        acts = (cost.forward, cost.signal, cost.learn, cost.added)
        table.add_row(
            str(module.number),
            names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)})",
            module.head,
            mebibytes(module.memory.activations),
            *(_cost(plan, act) for act in acts),
        )
    return table


def _edges(plan: Plan) -> Table:
    columns = ["edge", "activations, labels", "signals", "lagged (upstream)", "ms"]
    table = _table("Sent per step, on average (MiB)", columns)
    for number, edge in enumerate(plan.edges):
        sizes = (edge.activations, edge.signals, edge.lagged)
        seconds = "" if edge.seconds is None else f"{1000 * edge.seconds:.2f}"  # of one message
        table.add_row(f"{number} - {number + 1}", *(mebibytes(size) for size in sizes), seconds)
    return table


def _alternatives(plan: Plan) -> Table:
    columns = ["method", "peak\nMiB", "fits", "bubble", f"busiest\n{_unit(plan)}", "speed"]
    title = "Methods with the same microbatches (estimates, per device)"
    table = _table(title, [*columns, "sent MiB\nper step", "ms per\nstep"], left=("method",))
    for m in sorted({one.microbatches for one in plan.alternatives}):
        for one in plan.alternatives:
            if one.microbatches == m:
                table.add_row(*_method(plan, one))
        table.add_section()
    return table


def _method(plan: Plan, one: Alternative) -> list[str]:
    fits = {None: "", True: "yes", False: "no"}[one.fits]
    sizes = mebibytes(one.peak), fits, _share(one.bubble), _cost(plan, one.cost)
    return [one.name, *sizes, f"{one.speed:.2f}x", mebibytes(one.traffic), _ms(one.seconds)]


def _replicas(plan: Plan) -> Iterator[str]:
    if not plan.mesh.is_replicated:
        return
    sent = ", ".join(
        f"{mebibytes(sum(module.memory.gradients for module in stage.modules))}"
        for stage, count in zip(plan.stages, plan.mesh.replicas, strict=True)
        if count > 1
    )
    yield (
        f"On {counted(plan.mesh.num_ranks, 'rank')}, {plan.mesh.describe()}: the table of stages is"
        f" of each replica, that of modules of all together. Each adds up {sent} MiB of gradients"
        f" with the others in a step, and holds as much again for it."
    )


def _unit(plan: Plan) -> str:
    """The unit in which costs are shown."""
    return "ms" if plan.unit == "seconds" else "GFLOP"


def _facts(plan: Plan) -> list[str]:
    own = plan.alternatives[0]
    lines = [
        *verdict(plan.alternatives, plan.unit),
        helps(plan.alternatives, plan.lever),
        f"Best m of each: {_best(plan)}. Speed: steps per second over {own.name}, by simulated"
        f" times, else by operations and bubbles. {_heads(plan)}",
        "Bubbles: (p - 1) / (m + p - 1) for 1F1B with m microbatches in a pipeline of p stages;"
        " local learning waits only while the pipeline fills, once in"
        f" {counted(plan.steps, 'step')}.",
        "BP with m > 1 accumulates gradients. Checkpointed, it keeps only the inputs of blocks, and"
        " runs their forward passes again.",
        "Kept: activations between acts 1 and 3. Learn: act 3, with the update and, on average over"
        " the steps, what distillation and reconciliation (SGR) add. Peak in: the act with the"
        " highest memory.",
        f"Imbalance: the most expensive stage costs {plan.imbalance:.2f} times the mean.",
        *_peaks(plan),
        *_replicas(plan),
    ]
    if plan.seconds is None:
        lines.append(
            f"Costs are {plan.origin}, roughly proportional to time; memory-bound operations do not"
            f" count. pipeline-local profile measures times."
        )
    else:
        rate, hours = plan.batch_size / plan.seconds, plan.steps * plan.seconds / 3600
        lines.append(
            f"Costs are {plan.origin}. Predicted: {1000 * plan.seconds:.1f} ms per step,"
            f" {rate:.1f} samples/s, {hours:.2f} h for {counted(plan.steps, 'step')} (without"
            f" evaluations and"
            f" checkpoints). Step times are simulated, messages included."
        )
    return lines


def _best(plan: Plan) -> str:
    each = best_of_each(plan.alternatives)
    return "; ".join(f"{one.name} ({mebibytes(one.peak)} MiB, {one.speed:.2f}x)" for one in each)


def _heads(plan: Plan) -> str:
    """What local learning computes that backpropagation does not."""
    costs = [module.cost for stage in plan.stages for module in stage.modules]
    whole = sum(cost.total for cost in costs) or 1.0
    heads, added = sum(cost.signal for cost in costs[:-1]), sum(cost.added for cost in costs)
    distilled = sum(cost.distilled for cost in costs)
    more = f", {_share(distilled / whole)} distillation's" if distilled else ""
    return (
        f"Of local's operations {_share(heads / whole)} are auxiliary heads' (head.name=linear:"
        f" nearly none where outputs are few, but weaker){more}"
        f" and {_share(added / whole)} reconciliation's."
    )


def _peaks(plan: Plan) -> Iterator[str]:
    """What peaks include on each type of device."""
    for type_ in sorted({stage.device.type for stage in plan.stages}):
        known = max(s.memory.workspaces for s in plan.stages if s.device.type == type_)
        if type_ == "cpu":
            yield "Peaks on cpu: tensors only (for a GPU: --device cuda)."
        elif type_ != "cuda":
            yield f"Peaks on {type_}: tensors, as CUDA's kernels allocate them; its own may differ."
        elif known:
            yield f"Peaks on {type_}: tensors, and {mebibytes(known)} MiB of library workspaces."
        else:
            yield (
                f"Peaks on {type_}: tensors only; pipeline-local profile measures workspaces of"
                f" libraries (cuBLAS on Hopper: 32 MiB for each of two threads)."
            )


def _table(title: str, columns: Sequence[str], left: Sequence[str] = ()) -> Table:
    table = new_table(title)
    for column in columns:
        justify: Literal["left", "right"] = "left" if column in left else "right"
        table.add_column(column, justify=justify, no_wrap=column != "blocks")
    return table


def _cost(plan: Plan, value: float) -> str:
    return f"{value * (1000 if plan.unit == 'seconds' else 1e-9):.2f}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.1f}"


def _share(part: float) -> str:
    return f"{part:.1%}"
