"""The options of `pipeline-local simulate`, and their checks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline_local.config import Config
from pipeline_local.errors import ConfigError, UserError, did_you_mean
from pipeline_local.placement.costs import AS_MEASURED, LinkOptions
from pipeline_local.placement.placement import mesh_of
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.simulation.programs import METHODS


@dataclass(frozen=True)
class Scenario:
    """What to simulate.

    Attributes:
        methods: names from `METHODS`.
        stages: the numbers of stages to simulate. With more stages than modules, each stage gets
            the mean module.
        microbatches: number of microbatches of pipelines with a global backward pass, which
            replicas share; None: one per rank, or the next lower number that divides the batch.
        link: latency and bandwidth between all workers, where not as profiled.
        jitter: largest random delay of a message, in seconds.
    """

    methods: tuple[str, ...]
    stages: tuple[int, ...]
    microbatches: int | None = None
    link: LinkOptions = AS_MEASURED
    jitter: float = 0.0

    def parts(self, config: Config, mesh: Mesh) -> int:
        """Return the number of microbatches of a pipeline with a global backward pass.

        Raises:
            UserError: its replicas cannot share them, or there are pipelines of unequal parts.
        """
        size, several = config.data.batch_size, mesh.parts
        if len({*mesh.replicas}) > 1:
            raise UserError(
                f"--methods: local alone has unequal replicas, got parallel.replicas="
                f"{list(mesh.replicas)} with a pipeline that has a global backward pass; pass"
                f" --methods local,ddp"
            )
        most = range(min(mesh.num_ranks, size), 0, -1)
        choices = (self.microbatches,) if self.microbatches else most
        for parts in choices:
            if size % parts == 0 and parts % several == 0:
                return parts
        raise UserError(
            f"--microbatches: a multiple of parallel.replicas={several} that divides"
            f" data.batch_size={size}, got {self.microbatches or 'no such number'}; change them"
        )

    def check(self, config: Config) -> None:
        """Check all options, also against the configuration.

        Raises:
            ConfigError: it lists every problem, one per line.
        """
        if problems := [*self._own_problems(), *self._misfits(config)]:
            raise ConfigError(problems)

    def _own_problems(self) -> Iterator[str]:
        for name in self.methods:
            if name not in METHODS:
                hint = did_you_mean(name, [*METHODS]) or f"; choose from {', '.join(METHODS)}"
                yield f"--methods: got {name!r}{hint}"
        if not self.methods:
            yield f"--methods: got none; choose from {', '.join(METHODS)}"
        if not self.stages or min(self.stages) < 1:
            got = ",".join(map(str, self.stages))
            yield f"--stages: positive whole numbers such as 4,64, got {got or 'none'}"
        yield from self.link.problems()
        if not 0 <= self.jitter < math.inf:
            yield f"--jitter: seconds, at least 0, got {self.jitter}"

    def _misfits(self, config: Config) -> Iterator[str]:
        count, size = self.microbatches, config.data.batch_size
        meshes = [mesh_of(config, stages) for stages in self.stages if stages > 0]
        most = max((mesh.num_ranks for mesh in meshes), default=0)
        if count is not None and (count < 1 or size % count):
            yield f"--microbatches: equal parts of data.batch_size={size}, got {count}"
        if "ddp" in self.methods and most > size:
            yield (
                f"--stages: at most data.batch_size={size} with ddp, as each of its workers needs a"
                f" sample, got {most}; raise it, or pass --methods without ddp"
            )
