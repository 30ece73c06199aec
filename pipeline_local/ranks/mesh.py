"""The mesh: which stage and which replica each rank is, and which ranks share an edge.

The ranks of a stage have consecutive numbers, so that those of one host are often replicas of each
other, whose gradients are more bytes than what crosses to the next stage. The microbatches of a
batch are dealt to the replicas of each stage (`engines/replicas.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import gcd, lcm

from pipeline_local.config import ParallelConfig
from pipeline_local.engines.replicas import replica_of
from pipeline_local.errors import counted, note_place


@dataclass(frozen=True)
class Mesh:
    """All ranks of a run.

    Attributes:
        replicas: the number of ranks of each stage.
    """

    replicas: tuple[int, ...]

    @classmethod
    def of(cls, config: ParallelConfig, ranks: int = 1) -> "Mesh":
        """Returns the mesh that a configuration asks for.

        Args:
            config: names the stages and replicas.
            ranks: that are there, for as many stages as they make where it does not say that.
        """
        if config.replicas == "auto":  # so many in all: which, the costs of the stages will say
            stages = config.stages or 1
            return cls((*[1] * (stages - 1), max(1, ranks - stages + 1)))
        if isinstance(config.replicas, tuple):
            return cls(config.replicas)
        return cls((config.replicas,) * (config.stages or max(1, ranks // config.replicas)))

    @property
    def num_stages(self) -> int:
        """The number of stages."""
        return len(self.replicas)

    @property
    def num_ranks(self) -> int:
        """The number of ranks."""
        return sum(self.replicas)

    @property
    def is_replicated(self) -> bool:
        """Whether some stage has several ranks."""
        return max(self.replicas) > 1

    @property
    def parts(self) -> int:
        """The number that the microbatches of a batch must be a multiple of."""
        return lcm(*self.replicas)

    def ranks(self, stage: int) -> range:
        """The ranks of a stage."""
        first = [0, *accumulate(self.replicas)][stage]
        return range(first, first + self.replicas[stage])

    def stage(self, rank: int) -> int:
        """The stage of a rank."""
        return next(s for s in range(self.num_stages) if rank in self.ranks(s))

    def replica(self, rank: int) -> int:
        """The number of a rank among the replicas of its stage."""
        return self.ranks(self.stage(rank)).index(rank)

    def edges(self) -> Iterator[tuple[int, int]]:
        """Yields the pairs of ranks that share microbatches, upstream and downstream one; first
        those behind the stages 0, 2, 4..., then the others."""
        stages = range(self.num_stages - 1)
        for stage in [*stages[::2], *stages[1::2]]:
            common = gcd(*self.replicas[stage : stage + 2])
            for upstream in self.ranks(stage):
                for downstream in self.ranks(stage + 1):
                    if (self.replica(upstream) - self.replica(downstream)) % common == 0:
                        yield upstream, downstream

    def neighbours(self) -> Iterator[tuple[int, int]]:
        """Yields the pairs of ranks that send to each other: those of `edges`, and replicas that
        add up their gradients in a ring."""
        yield from self.edges()
        for stage in range(self.num_stages):
            ranks = self.ranks(stage)
            yield from pairwise(ranks)
            if len(ranks) > 2:
                yield ranks[0], ranks[-1]

    def rank(self, stage: int, microbatch: int) -> int:
        """The rank of a stage that a microbatch belongs to."""
        return self.ranks(stage)[replica_of(microbatch, self.replicas[stage])]

    def place(self, rank: int) -> str:
        """Names the stage of a rank, and its replica where there are several, for a message."""
        stage = self.stage(rank)
        replica = f", replica {self.replica(rank)}" if self.replicas[stage] > 1 else ""
        return f"stage {stage}{replica}"

    def name(self, rank: int) -> str:
        """Names a rank, in front of a message."""
        return f"[{self.place(rank)} | rank {rank}]"

    def describe(self) -> str:
        """Describes it in a few words, for display."""
        stages = counted(self.num_stages, "stage")
        if not self.is_replicated:
            return stages
        same = len(set(self.replicas)) == 1
        each = self.replicas[:1] if same else self.replicas
        return f"{stages} of {', '.join(map(str, each))} replicas"


@contextmanager
def placing(mesh: Mesh, rank: int) -> Iterator[None]:
    """A context whose errors, of any class, say in which stage and replica they were raised."""
    try:
        yield
    except BaseException as error:
        note_place(error, mesh.name(rank))
        raise


def chain(stages: int) -> Mesh:
    """Returns a mesh with one rank for each stage."""
    return Mesh((1,) * stages)
