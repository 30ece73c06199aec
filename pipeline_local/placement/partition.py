"""Blocks -> modules -> stages: pure functions."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from pipeline_local.config import ModulesConfig
from pipeline_local.errors import UserError, counted, few


def modules_of(
    names: Sequence[str],
    num_parameters: Sequence[int],
    config: ModulesConfig,
    best: Callable[[int], list[range]],
) -> list[range]:
    """Returns the blocks of each module, in order: K contiguous non-empty ranges.

    Args:
        names: the names of all blocks, in order.
        num_parameters: the number of parameters of each block.
        config: `modules.count` and `modules.cuts`.
        best: returns the best cut into a number of modules, for `auto` and `memory`.

    Raises:
        UserError: K does not fit the blocks, or a cut names no block or is out of order.
    """
    count = config.known_count or len(names)
    if count > len(names):
        raise UserError(
            f"modules.count: a module holds at least one block, got {counted(count, 'module')} for"
            f" {counted(len(names), 'block')} ({few(names)}; the classifier goes with the last"
            f" one); lower modules.count to at most {len(names)}"
        )
    if config.cuts == "blocks" and count < len(names):
        raise UserError(
            f"modules.count: modules.cuts=blocks makes {len(names)} modules of this model's blocks,"
            f" got {count}; leave modules.count out, or pass modules.count=null"
        )
    if config.cuts in ("uniform", "blocks"):
        return uniform(len(names), count)
    if config.cuts in ("auto", "memory"):
        return best(count)
    if config.cuts == "parameters":
        return balanced(num_parameters, count)
    return _between([_index_of(cut, names) for cut in config.cuts], names)


def uniform(num_items: int, parts: int) -> list[range]:
    """Returns contiguous ranges of equal length; if impossible, some later ones are longer."""
    edges = [part * num_items // parts for part in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(edges)]


def balanced(costs: Sequence[float], parts: int) -> list[range]:
    """Returns contiguous non-empty ranges whose largest total cost is as small as possible."""
    prefix = [0, *accumulate(costs)]
    return cheapest(len(costs), parts, lambda _, part: prefix[part.stop] - prefix[part.start])


def cheapest(num_items: int, parts: int, cost: Callable[[int, range], float]) -> list[range]:
    """Returns contiguous non-empty ranges whose largest cost is as small as possible.

    Args:
        num_items: the number of items to divide.
        parts: the number of ranges, at most `num_items`.
        cost: returns the cost of a part, given its number (from 0) and its range; infinite if the
            part is not allowed.
    """
    # best[end]: (largest cost, start of the last range) of the first `end` items in `part` ranges
    best = [(float("inf"), 0)]
    best += [(float(cost(0, range(end))), 0) for end in range(1, num_items + 1)]
    history = [best]
    for part in range(1, parts):
        row: list[tuple[float, int]] = [(float("inf"), 0)] * (part + 1)
        for end in range(part + 1, num_items + 1):
            row.append(
                min(
                    (max(best[start][0], cost(part, range(start, end))), start)
                    for start in range(part, end)
                )
            )
        best = row
        history.append(row)
    edges = [num_items]
    for row in reversed(history):
        edges.append(row[edges[-1]][1])
    edges.reverse()
    return [range(a, b) for a, b in pairwise(edges)]


def stages_of(
    num_modules: int,
    num_stages: int,
    cuts: str | Sequence[int],
    best: Callable[[], list[range]],
) -> list[range]:
    """Returns the modules of each stage: S contiguous non-empty ranges.

    Args:
        num_modules: K.
        num_stages: S; a single stage has all modules, whatever the cuts.
        cuts: `parallel.cuts`.
        best: returns the best stages, for `auto`.

    Raises:
        UserError: more stages than modules, or cuts that make no such stages.
    """
    if num_stages > num_modules:
        raise UserError(
            f"parallel.stages: a stage holds at least one module, got"
            f" {counted(num_stages, 'stage')} for {counted(num_modules, 'module')}; lower"
            f" parallel.stages or raise modules.count"
        )
    if num_stages == 1 or cuts == "uniform":
        return uniform(num_modules, num_stages)
    if isinstance(cuts, str):
        return best()
    edges = [0, *(number - 1 for number in cuts), num_modules]
    if len(edges) != num_stages + 1 or any(a >= b for a, b in pairwise(edges)):
        raise UserError(
            f"parallel.cuts: {num_stages} stages of {num_modules} modules need"
            f" {counted(num_stages - 1, 'rising number')} from 2 to {num_modules}, got {list(cuts)}"
        )
    return [range(a, b) for a, b in pairwise(edges)]


def _index_of(cut: str | int, names: Sequence[str]) -> int:
    index = names.index(cut) if cut in names else cut
    if isinstance(index, int) and 0 < index < len(names):
        return index
    raise UserError(
        f"modules.cuts: got {cut!r}, which is no block that a module can begin with;"
        f" give an index from 1 to {len(names) - 1} or a name of {', '.join(names[1:])}"
    )


def _between(opens: Sequence[int], names: Sequence[str]) -> list[range]:
    edges = [0, *opens, len(names)]
    if any(a >= b for a, b in pairwise(edges)):
        raise UserError(
            f"modules.cuts: the blocks must come in rising order, none twice and not the first one,"
            f" got {[names[i] for i in opens]}"
        )
    return [range(a, b) for a, b in pairwise(edges)]
