"""What the harness is asked for, checked before a rank starts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline_local import newfile
from pipeline_local.bench.peers import PIPELINED, REPLICATED, WHOLE
from pipeline_local.bench.pipelines import LOOPS
from pipeline_local.config import Config
from pipeline_local.data.datasets import describe
from pipeline_local.errors import ConfigError, UserError, did_you_mean
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement

NAMES = (*WHOLE, *REPLICATED, *PIPELINED, "local")
"""All peers, in the order of the table."""

SHORTEST = 8
"""Least steps of a turn: enough to be long against what begins and ends it."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        peers: names, in the order of their turns.
        microbatches: numbers that pipelines are measured with.
        runs: turns of each peer.
        steps: timed steps of a turn, a multiple of `reconcile.every`.
        output: file for the rows, or None.
    """

    peers: tuple[str, ...]
    microbatches: tuple[int, ...]
    runs: int
    steps: int
    output: Path | None

    @classmethod
    def read(
        cls,
        config: Config,
        num_stages: int,
        peers: str | None = None,
        microbatches: str | None = None,
        runs: int = 5,
        steps: int | None = None,
        output: Path | None = None,
    ) -> "Request":
        """Check everything, against the configuration too.

        Args:
            config: what the peers train.
            num_stages: ranks.
            peers: comma-separated names; None: all.
            microbatches: comma-separated numbers; None: as many as stages.
            runs: turns of each peer.
            steps: timed steps of a turn; None: at least `SHORTEST`.
            output: file for the rows.

        Raises:
            ConfigError: with every problem, one line each.
            UserError: stages, modules and blocks do not fit together.
        """
        every = config.reconcile.every if config.reconcile.weight else 1
        names = NAMES if peers is None else _words(peers)
        counts = (num_stages,) if microbatches is None else _numbers(microbatches)
        steps = -(-SHORTEST // every) * every if steps is None else steps
        request = cls(tuple(names), counts, runs, steps, output)
        problems = [
            *request._own_problems(every, str(microbatches)),
            *request._misfits(config, num_stages),
        ]
        if problems:
            raise ConfigError(problems)
        blueprint = draw(config, describe(config.data))
        Placement.of(blueprint, num_stages)
        request._refuse_too_few(len(blueprint.backbone.blocks), num_stages)
        return request

    def _own_problems(self, every: int, microbatches: str) -> Iterator[str]:
        for name in self.peers:
            if name not in NAMES:
                hint = did_you_mean(name, NAMES) or f"; the peers are {', '.join(NAMES)}"
                yield f"--peers: got {name!r}{hint}"
        if not self.peers:
            yield f"--peers: got none; the peers are {', '.join(NAMES)}"
        if not self.microbatches:
            yield f"--microbatches: whole numbers such as 2,4,8, got {microbatches!r}"
        if self.runs < 1:
            yield f"--runs: at least 1, got {self.runs}"
        if self.steps < 1 or self.steps % every:
            yield (
                f"--steps: a positive multiple of reconcile.every, so that turns are alike,"
                f" got {self.steps} with reconcile.every={every}"
            )
        if self.output is not None and (reason := newfile.problem("--json", self.output)):
            yield reason

    def _misfits(self, config: Config, num_stages: int) -> Iterator[str]:
        size = config.data.batch_size
        pipelined = num_stages > 1 and any(name in PIPELINED for name in self.peers)
        looped = ", ".join(name for name in self.peers if name in LOOPS)
        for count in self.microbatches if pipelined else ():
            rounds = count // num_stages
            if count < num_stages or size % count:
                yield (
                    f"--microbatches: at least one per stage ({num_stages}), in equal parts of"
                    f" data.batch_size={size}, got {count}"
                )
            elif looped and count % rounds:
                yield (
                    f"--microbatches: those of {looped} come in {rounds} equal rounds, got {count};"
                    f" a multiple of the {num_stages} ranks always fits"
                )
        if "ddp" in self.peers and size % num_stages:
            yield (
                f"data.batch_size must be a multiple of the {num_stages} ranks for ddp, got {size};"
                f" change it or leave ddp out of --peers"
            )
        if config.optimizer.clip is not None:
            yield (
                f"optimizer.clip: peers are compared without, as each clips something else, got"
                f" {config.optimizer.clip}; pass optimizer.clip=null"
            )
        if config.data.mixup:
            yield (
                f"data.mixup: peers learn whole labels, got {config.data.mixup}; pass data.mixup=0"
            )

    def _refuse_too_few(self, num_blocks: int, num_stages: int) -> None:
        """Pipelines with several stages per rank need a block for each."""
        for name in LOOPS if num_stages > 1 else ():
            least = num_stages * LOOPS[name]
            if name in self.peers and num_blocks < least:
                raise UserError(
                    f"--peers: {name} has {LOOPS[name]} stages on each of {num_stages} ranks, so at"
                    f" least {least} blocks, got {num_blocks}; take a deeper model, or leave"
                    f" {','.join(LOOPS)} out"
                )


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(text: str) -> tuple[int, ...]:
    """Nothing, if one of them is none."""
    words = _words(text)
    return tuple(map(int, words)) if all(word.isdecimal() for word in words) else ()
