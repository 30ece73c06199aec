"""Several plain hosts without a scheduler: each starts its ranks, and all meet on the first one."""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousParameters

from pipeline_local.errors import UserError
from pipeline_local.ranks.rendezvous import in_time

PATIENCE = timedelta(minutes=10)
"""Longest wait for all hosts."""


@dataclass(frozen=True)
class Hosts:
    """The hosts of a run, as one of them sees them.

    Args:
        count: of all hosts, each with the same number of ranks.
        number: this one's, from 0.
        head: the name or address of host 0.
        port: free on host 0, and open to the others.
        restarts: how often the ranks are started again after a failure.
    """

    count: int
    number: int
    head: str
    port: int
    restarts: int = 0

    def parameters(self) -> RendezvousParameters:
        """Return how torch's agents of all hosts find each other."""
        return RendezvousParameters(
            backend="static",
            endpoint=f"{self.head}:{self.port}",
            run_id="pipeline_local",
            min_nodes=self.count,
            max_nodes=self.count,
            rank=self.number,
            timeout=PATIENCE.total_seconds(),
        )

    def meet(self) -> dist.Store:
        """Wait until every host is there; the store that they share, for as long as it is kept.

        Raises:
            UserError: the port is taken, or a host does not come.
        """
        first = self.number == 0
        connect = partial(
            dist.TCPStore, self.head, self.port, self.count, first, PATIENCE, multi_tenant=True
        )
        try:
            return in_time(connect, PATIENCE)
        except dist.DistError as error:
            why = "the port is taken" if "EADDRINUSE" in str(error) else str(error).splitlines()[0]
            raise UserError(
                f"{self.count} hosts cannot meet at {self.head}:{self.port} ({why[:200]}); start"
                f" this on all of them, or set PORT to one that is free on {self.head}"
            ) from None
