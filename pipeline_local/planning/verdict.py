"""What follows from a plan, in words: which method is the best choice here, and what would help."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline_local.placement.describe import LEAST_SAMPLES, has_batch_norm
from pipeline_local.placement.placement import Placement
from pipeline_local.planning.alternatives import Alternative, stage_peaks

LITTLE = 2**30
"""Bytes that any device has, so that nothing needs to be saved."""

CLOSE = 1.02
"""Speeds whose ratio is below this are called equal."""


@dataclass(frozen=True)
class Lever:
    """A setting that lets local learning take less memory.

    Attributes:
        setting: the setting, as it is written on the command line.
        peak: bytes on the device that needs the most memory then.
        price: what it costs; "" for nothing.
        reservation: why it is not advised; "" where it is.
    """

    setting: str
    peak: int
    price: str
    reservation: str = ""


def lever(placement: Placement, found: Sequence[Alternative]) -> Lever | None:
    """Return what helps most: microbatches, and where these do not help, recomputation; None where
    neither does.

    Args:
        placement: the run and its stages.
        found: local learning as configured first, and the others.
    """
    own, *others = found
    size, norms = placement.blueprint.config.data.batch_size, _learns_by_batch_norm(placement)
    rows = [one for one in others if one.method == "local" and one.peak < 0.9 * own.peak]
    allowed = [one for one in rows if size // one.microbatches >= LEAST_SAMPLES] or rows
    if own.fits is False:
        allowed = [one for one in rows if one.fits][:1] or rows
    best = min(allowed, key=lambda one: one.peak, default=None)
    if best is None or best.fits is False:
        return _recomputing(placement, found)
    samples, reservation = size // best.microbatches, ""
    price = f"batch norms then see {samples} samples at once" if norms else ""
    if own.fits is not False and own.peak < LITTLE:
        reservation = "so little memory needs no saving"
    elif own.fits is not False and samples < LEAST_SAMPLES:
        reservation = f"with fewer than {LEAST_SAMPLES} samples in a microbatch a GPU idles"
    return Lever(f"train.microbatches={best.microbatches}", best.peak, price, reservation)


def _recomputing(placement: Placement, found: Sequence[Alternative]) -> Lever | None:
    config = placement.blueprint.config
    if config.modules.recompute:
        return None
    config = replace(config, modules=replace(config.modules, recompute=True))
    peak = max(stage_peaks(placement, replace(placement.blueprint, config=config)))
    reservation = "" if found[0].fits is False else "it fits as it is"
    price = "costs another forward pass of every body"
    return (
        Lever("modules.recompute=true", peak, price, reservation) if peak < found[0].peak else None
    )


def _learns_by_batch_norm(placement: Placement) -> bool:
    """Whether some module learns otherwise from smaller microbatches."""
    blueprint = placement.blueprint
    parts = (
        part
        for index in range(len(blueprint.modules))
        for part in (*blueprint.meta_body(index), blueprint.meta_head(index))
    )
    return any(map(has_batch_norm, parts))


def best_of_each(found: Sequence[Alternative]) -> list[Alternative]:
    """Return each method with its best number of microbatches: of those that fit, the fastest; of
    those as fast, the one that takes the least memory."""
    names = dict.fromkeys(one.method for one in found)
    return [_best([one for one in found if one.method == name]) for name in names]


def _best(rows: Sequence[Alternative]) -> Alternative:
    fitting = [one for one in rows if one.fits is not False] or rows
    fastest = max(one.speed for one in fitting)
    return min((o for o in fitting if o.speed * CLOSE >= fastest), key=lambda one: one.peak)


def verdict(found: Sequence[Alternative], unit: str) -> Iterator[str]:
    """Yield the verdict in words, for people who have to choose.

    Args:
        found: local learning as configured first, and the others.
        unit: the unit of costs.
    """
    local, *rivals = best_of_each(found)
    own = found[0]
    basis = "by measured times" if unit == "seconds" else "by operations"
    fitting = [one for one in rivals if one.fits is not False]
    if own.fits is False and local.fits:
        yield f"Verdict: local does not fit with m={own.microbatches}, but with {local.name}."
    if not fitting:
        rest = "local does" if local.fits else "nor does local: use more devices"
        yield f"Verdict: no other method of this table fits, and {rest}."
        return
    rival = max(fitting, key=lambda one: one.speed)
    ratio = rival.speed / local.speed
    fits = f"{rival.method} fits and is" if rival.fits else f"{rival.method} is"
    where = "here" if rival.fits else "here, wherever it fits (parallel.memory=GIB says the room)"
    memory = f"{mebibytes(rival.peak)} MiB ({rival.name}) to {mebibytes(local.peak)} ({local.name})"
    if local.fits is False:
        yield f"Verdict: local does not fit, {rival.method} does: {memory}."
    elif ratio >= CLOSE:
        yield (
            f"Verdict: {fits} faster {where}: {ratio:.2f} times as fast as local {basis},"
            f" messages {'included' if unit == 'seconds' else 'aside'}, with {memory}."
        )
    elif ratio > 1 / CLOSE:
        yield f"Verdict: {fits} as fast as local {where}, {basis}, with {memory}."
    else:
        yield (
            f"Verdict: local is the fastest{' of what fits' if rival.fits else ''} here:"
            f" {1 / ratio:.2f} times as fast as {rival.method} {basis}; it takes"
            f" {mebibytes(local.peak)} MiB ({local.name}) to {mebibytes(rival.peak)}"
            f" ({rival.name})."
        )


def helps(found: Sequence[Alternative], best: Lever | None) -> str:
    """Return one line: the lever that helps most."""
    own = found[0]
    if best is None:
        return "What helps most: neither microbatches nor recomputation take local lower."
    price = f" ({best.price})" if best.price else ""
    reservation = f"; not advised: {best.reservation}" if best.reservation else ""
    return (
        f"What helps most: {best.setting} takes local from {mebibytes(own.peak)} MiB to"
        f" {mebibytes(best.peak)}{price}{reservation}."
    )


def mebibytes(size: float) -> str:
    """Return bytes as a number of MiB, with at most two decimals."""
    value = size / 2**20
    digits = 2 if value < 1 else 1 if value < 100 else 0
    return f"{value:.{digits}f}" if value else "0"
