"""What is to be simulated, checked first."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline_local.config import Config
from pipeline_local.errors import ConfigError, did_you_mean
from pipeline_local.pipeline.costs import Link
from pipeline_local.planning.programs import METHODS


@dataclass(frozen=True)
class Scenario:
    """What to simulate.

    Attributes:
        methods: some of `METHODS`.
        stages: numbers of them; beyond the number of modules, each stage gets the mean module.
        microbatches: of pipelines with a global backward pass; None: one per stage, or as many as
            the batch has equal parts.
        replicas: of each stage, or of each worker of `ddp`.
        latency: seconds, one way, between all workers; None: as profiled.
        bandwidth: bits per second; None: as profiled.
        jitter: most seconds by which a message may be late.
    """

    methods: tuple[str, ...]
    stages: tuple[int, ...]
    microbatches: int | None = None
    replicas: int = 1
    latency: float | None = None
    bandwidth: float | None = None
    jitter: float = 0.0

    def link(self, profiled: Link) -> Link:
        """Between all workers."""
        return Link(
            profiled.latency_seconds if self.latency is None else self.latency,
            profiled.bytes_per_second if self.bandwidth is None else self.bandwidth / 8,
        )

    def parts(self, config: Config, stages: int) -> int:
        """Microbatches of a pipeline with a global backward pass on so many stages."""
        size = config.data.batch_size
        most = range(min(stages, size), 0, -1)
        return self.microbatches or next(parts for parts in most if size % parts == 0)

    def check(self, config: Config) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: with every problem, one line each.
        """
        if problems := [*self._own_problems(), *self._misfits(config.data.batch_size)]:
            raise ConfigError(problems)

    def _own_problems(self) -> Iterator[str]:
        for name in self.methods:
            if name not in METHODS:
                hint = did_you_mean(name, [*METHODS]) or f"; choose from {', '.join(METHODS)}"
                yield f"--methods: got {name!r}{hint}"
        if not self.stages or min(self.stages) < 1:
            got = ",".join(map(str, self.stages))
            yield f"--stages: positive whole numbers such as 4,64, got {got or 'none'}"
        if self.replicas < 1:
            yield f"--replicas: at least 1, got {self.replicas}"
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            yield f"--bandwidth: bits per second, more than 0, got {self.bandwidth}"
        for name, seconds in (("--latency", self.latency), ("--jitter", self.jitter)):
            if seconds is not None and not 0 <= seconds < math.inf:
                yield f"{name}: seconds, at least 0, got {seconds}"

    def _misfits(self, size: int) -> Iterator[str]:
        count, most = self.microbatches, max(self.stages, default=0)
        if count is not None and (count < 1 or size % count):
            yield f"--microbatches: equal parts of data.batch_size={size}, got {count}"
        if "ddp" in self.methods and most > size:
            yield (
                f"--stages: of a batch of {size} (data.batch_size) {most} workers of ddp get less"
                f" than a sample each; raise it, or pass --methods without ddp"
            )
