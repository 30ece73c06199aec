"""Which GPU each rank of a host takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline_local.errors import UserError, counted
from pipeline_local.gpus import links, nvml


@dataclass(frozen=True)
class Choice:
    """The GPUs of a host's ranks, as torch numbers them, in the order of local ranks; and why."""

    devices: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        """As the plan of a run says it."""
        numbers = ", ".join(map(str, self.devices))
        return f"GPU{'s' * (len(self.devices) > 1)} {numbers} in the order of ranks ({self.reason})"


def check(ranks: int, wanted: Sequence[int] | None) -> None:
    """Refuses GPUs that this host does not have.

    Args:
        ranks: of this host.
        wanted: `parallel.devices`.

    Raises:
        UserError: one is not here or named twice, or some ranks would have none.
    """
    if wanted is None:
        return
    has = count()
    if not has:
        raise UserError(
            f"parallel.devices={list(wanted)} names GPUs, but torch sees none here; leave it out"
        )
    if len(set(wanted)) < len(wanted) or max(wanted, default=0) >= has or len(wanted) < ranks:
        raise UserError(
            f"parallel.devices={list(wanted)} must name a GPU for each of the"
            f" {counted(ranks, 'rank')} of this host, each of them once, from 0 to {has - 1}"
        )


def choose(ranks: int, wanted: Sequence[int] | None, pairs: links.Pairs) -> Choice | None:
    """Returns the GPU of each rank of this host; None where there is nothing to choose.

    Neighbours get the fastest links, where every rank has a GPU of its own and NVML knows the
    links. Whoever has started the ranks may have shown each of them one GPU only; that stays.

    Args:
        ranks: of this host.
        wanted: `parallel.devices`.
        pairs: of ranks of this host that are neighbours.

    Raises:
        UserError: as `check` says.
    """
    check(ranks, wanted)
    if wanted is not None:
        return Choice(tuple(wanted[:ranks]), "parallel.devices")
    if not pairs or not ranks <= count() or not nvml.knows(_gpu(0)):
        return None
    try:
        with nvml.opened() as module:
            handles = [nvml.handle_of(module, _gpu(number)) for number in range(count())]
            found = links.read(module, handles)
    except Exception:  # whatever a driver does; telemetry says it
        return None
    devices = links.order(found, ranks, pairs)
    used = sorted((found[devices[a]][devices[b]] for a, b in pairs), reverse=True)
    texts = dict.fromkeys(link.text for link in used)
    return Choice(devices, f"along the fastest links: {', '.join(texts)}")


def count() -> int:
    """Returns how many GPUs ranks of this host see."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def _gpu(number: int) -> torch.device:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None, "there are some"
    return torch.device(accelerator.type, number)
