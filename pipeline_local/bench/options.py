"""The options of `pipeline-local bench baselines`, checked before a rank starts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline_local.bench.methods import ACCUMULATING, PIPELINED, REPLICATED, WHOLE
from pipeline_local.bench.pipelines import SHAPES
from pipeline_local.commandline.shared import numbers, words
from pipeline_local.config import Config
from pipeline_local.data.datasets import describe
from pipeline_local.errors import ConfigError, UserError, did_you_mean
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.user_input import new_file

NAMES = (*WHOLE, *REPLICATED, *PIPELINED, "local")
"""All baselines and local learning, in the order of the table."""

SHORTEST = 8
"""Least number of steps in a turn, so that its start and end cost little in comparison."""


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        baselines: names of the methods, in the order of their turns.
        microbatches: the numbers of microbatches of each pipeline and of `accumulate`.
        runs: number of turns of each method.
        steps: timed steps in a turn, a multiple of `reconcile.every`.
        output: JSON file for the rows, or None.
    """

    baselines: tuple[str, ...]
    microbatches: tuple[int, ...]
    runs: int
    steps: int
    output: Path | None

    @classmethod
    def read(
        cls,
        config: Config,
        mesh: Mesh,
        baselines: str | None = None,
        microbatches: str | None = None,
        runs: int = 5,
        steps: int | None = None,
        output: Path | None = None,
    ) -> "BenchOptions":
        """Parse the options and check them, also against the configuration.

        Args:
            config: the configuration of the network to train.
            mesh: the stages and their replicas.
            baselines: comma-separated names; None: all.
            microbatches: comma-separated numbers; None: the number of stages.
            runs: number of turns of each method.
            steps: timed steps in a turn; None: at least `SHORTEST`.
            output: JSON file for the rows.

        Raises:
            ConfigError: it lists every problem, one per line.
            UserError: there are too few modules or blocks for these stages.
        """
        parts = (config.reconcile, config.distill)
        every = math.lcm(*(part.every for part in parts if part.weight))
        names = NAMES if baselines is None else words(baselines)
        counts = (mesh.num_stages,) if microbatches is None else numbers(microbatches)
        steps = -(-SHORTEST // every) * every if steps is None else steps
        request = cls(tuple(names), counts, runs, steps, output)
        problems = [
            *request._own_problems(every, str(microbatches)),
            *request._parts_that_differ(config.data.batch_size, mesh),
            *request._misfits(config),
        ]
        if problems:
            raise ConfigError(problems)
        blueprint = draw(config, describe(config.data))
        Placement.of(blueprint, mesh.num_stages)
        if blueprint.run_plan.tied and {*names} != {"local"}:
            raise UserError(
                "model.tie_word_embeddings: baselines train embedding and unembedding apart, got"
                " true; pass model.tie_word_embeddings=false or --baselines local"
            )
        request._refuse_too_few(len(blueprint.backbone.blocks), mesh)
        return request

    def _own_problems(self, every: int, microbatches: str) -> Iterator[str]:
        for name in self.baselines:
            if name not in NAMES:
                hint = did_you_mean(name, NAMES) or f"; the baselines are {', '.join(NAMES)}"
                yield f"--baselines: got {name!r}{hint}"
        if not self.baselines:
            yield f"--baselines: got none; the baselines are {', '.join(NAMES)}"
        if not self.microbatches:
            yield f"--microbatches: whole numbers such as 2,4,8, got {microbatches!r}"
        if self.runs < 1:
            yield f"--runs: at least 1, got {self.runs}"
        if self.steps < 1 or self.steps % every:
            yield (
                f"--steps: a positive multiple of {every} (reconcile.every, distill.every), so that"
                f" all turns are alike, got {self.steps}"
            )
        if self.output is not None and (reason := new_file.problem("--json", self.output)):
            yield reason

    def _parts_that_differ(self, size: int, mesh: Mesh) -> Iterator[str]:
        """Ranks share the batch, and pipelines cut their shares, into equal parts."""
        stages, alike = mesh.num_stages, len({*mesh.replicas}) == 1  # else there are no pipelines
        pipelined = alike and mesh.num_ranks > 1 and any(n in PIPELINED for n in self.baselines)
        looped = ", ".join(name for name in self.baselines if SHAPES.get(name) == "loop")
        least, shares = (stages, mesh.replicas[0]) if pipelined else (1, 1)
        whole = f"data.batch_size={size}"
        if shares > 1:
            whole = f"the {shares} replicas' shares of {whole}"
        cut = pipelined or any(name in ACCUMULATING for name in self.baselines)
        for count in self.microbatches if cut else ():
            rounds = count // stages
            if count < least or size % (shares * count):
                yield (
                    f"--microbatches: at least one per stage ({least}), in equal parts of {whole},"
                    f" got {count}"
                )
            elif pipelined and looped and count % rounds:
                yield (
                    f"--microbatches: {looped} runs them in {rounds} equal rounds, got {count};"
                    f" pass a multiple of the {stages} ranks of a pipeline"
                )
        if "ddp" in self.baselines and size % mesh.num_ranks:
            yield (
                f"data.batch_size must be a multiple of the {mesh.num_ranks} ranks for ddp, got"
                f" {size}; change it or leave ddp out of --baselines"
            )

    def _misfits(self, config: Config) -> Iterator[str]:
        if config.optimizer.clip is not None:
            yield (
                f"optimizer.clip: each baseline would clip another norm, got"
                f" {config.optimizer.clip}; pass optimizer.clip=null"
            )
        if config.precision == "float16":
            yield (
                "precision: baselines scale no losses, got float16; pass precision=bfloat16"
                " engine=torch deepspeed.fp16=null"
            )
        if config.data.mixup:
            yield f"data.mixup: baselines have none, got {config.data.mixup}; pass data.mixup=0"

    def _refuse_too_few(self, num_blocks: int, mesh: Mesh) -> None:
        """Pipelines with several stages per rank need a block for each stage."""
        names = [name for name in self.baselines if name in SHAPES] if mesh.num_ranks > 1 else []
        least = 2 * mesh.num_stages
        if names and num_blocks < least:
            raise UserError(
                f"--baselines: {names[0]} has 2 stages on each of {mesh.num_stages} ranks, so at"
                f" least {least} blocks are needed, got {num_blocks}; use a deeper model or leave"
                f" {','.join(names)} out"
            )
