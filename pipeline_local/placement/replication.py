"""How many replicas each stage gets, where its cost decides it (`parallel.replicas=auto`)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline_local.config import Config
from pipeline_local.data.datasets import describe
from pipeline_local.errors import UserError, counted
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement


def resolved(config: Config, ranks: int) -> Config:
    """Returns the configuration with numbers in place of `parallel.replicas=auto`.

    Args:
        config: the run, with a number of stages.
        ranks: all that there are.

    Raises:
        UserError: so many ranks cannot share the microbatches.
    """
    stages = config.parallel.stages
    assert stages is not None, "the configuration has been checked"
    single = replace(config, parallel=replace(config.parallel, replicas=1))
    placement = Placement.of(draw(single.on_stages(stages), describe(config.data)), stages)
    parts = config.train.microbatches
    counts = [count for count in range(1, parts + 1) if parts % count == 0]
    costs = [
        {count: sum(cost.shared(count) for cost in stage) for count in counts}
        for stage in placement.module_costs
    ]
    found = fastest(costs, ranks)
    if found is None:
        raise UserError(
            f"parallel.replicas=auto: {counted(ranks, 'rank')} cannot share"
            f" {counted(parts, 'microbatch', 'microbatches')} on {counted(stages, 'stage')}, as"
            f" each stage has a number of replicas that divides them; change train.microbatches"
            f" or the number of ranks"
        )
    return replace(config, parallel=replace(config.parallel, replicas=found))


def fastest(costs: Sequence[Mapping[int, float]], ranks: int) -> tuple[int, ...] | None:
    """Returns the replicas of each stage that minimise the time of the slowest stage.

    Args:
        costs: of a step on each replica of each stage, by each number of replicas it may have.
        ranks: to be used, all of them.

    Returns:
        None where there is no way to use so many.
    """
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for stage in costs:
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for used, (slowest, before) in best.items():
            for count, cost in stage.items():
                if used + count <= ranks:
                    option = max(slowest, cost), (*before, count)
                    longer[used + count] = min(longer.get(used + count, option), option)
        best = longer
    return best[ranks][1] if ranks in best else None
