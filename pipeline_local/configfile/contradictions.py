"""Values of a configuration that are fine alone and impossible together."""

from collections.abc import Iterator
from math import lcm

from pipeline_local.config import (
    Config,
    DataConfig,
    OptimizerConfig,
    ParallelConfig,
    ReconcileConfig,
    TrainConfig,
)
from pipeline_local.data.datasets import DATA
from pipeline_local.data.registry import missing_root
from pipeline_local.engines import settings
from pipeline_local.engines.optimizer import OPTIMIZERS
from pipeline_local.engines.schedule import SCHEDULES
from pipeline_local.errors import counted
from pipeline_local.learning.estimators import estimator
from pipeline_local.learning.heads import HEADS
from pipeline_local.learning.tasks import TASKS
from pipeline_local.ranks.p2p import P2PS
from pipeline_local.user_input.registry import GIVEN

LENGTHS = ("epochs", "steps", "tokens")
"""The keys of `train` that say how long, of which a run has one."""


def _lengths(train: TrainConfig, data: DataConfig) -> Iterator[str]:
    """What is wrong with how long to train."""
    lengths = [key for key in LENGTHS if getattr(train, key) is not None]
    if len(lengths) != 1:
        got = " and ".join(lengths) or "none"
        yield f"give one of train.epochs, train.steps and train.tokens, got {got}"
    if train.tokens is not None and "sequence_length" not in data.args:
        yield (
            f"train.tokens needs data.name=tokens, got {data.name}; give train.epochs or"
            f" train.steps"
        )


def _replicas(parallel: ParallelConfig, train: TrainConfig) -> Iterator[str]:
    """What is wrong with the numbers of ranks."""
    several = parallel.replicas
    if several == "auto":
        if parallel.stages is None:
            yield "parallel.replicas=auto needs parallel.stages, got none; say how many stages"
        return
    each = several if isinstance(several, tuple) else (several,)
    if isinstance(several, tuple) and (not several or parallel.stages not in (None, len(several))):
        yield (
            f"parallel.replicas must have a number for each of parallel.stages={parallel.stages},"
            f" got {list(several)}; give one for each stage, or one for all"
        )
    if train.microbatches % (parts := lcm(*each)):
        yield (
            f"train.microbatches must be a multiple of parallel.replicas, as microbatches are dealt"
            f" to them round-robin: got {train.microbatches} and {several}; pass"
            f" train.microbatches={parts}"
        )


def _ranks(config: Config) -> Iterator[str]:
    """What ranks are asked to do and cannot."""
    parallel = config.parallel
    yield from _replicas(parallel, config.train)
    if parallel.sync_batchnorm and config.compile:
        yield (
            "parallel.sync_batchnorm=true exchanges statistics within a pass, which compile=true"
            " cannot; leave one of them out"
        )
    if parallel.backend and getattr(P2PS.find(parallel.backend), "derived", False):
        yield (
            f"parallel.backend: got {parallel.backend!r}, which ranks get by themselves where it is"
            f" needed; leave it out"
        )
    places = parallel.cuts
    if not isinstance(places, str) and parallel.stages not in (None, len(places) + 1):
        yield (
            f"parallel.cuts must name the first module of each stage but the first: expected"
            f" {counted((parallel.stages or 1) - 1, 'entry', 'entries')} for"
            f" {counted(parallel.stages or 1, 'stage')}, got {len(places)}"
        )
    if parallel.wire_dtype == "float16" and config.precision == "bfloat16":
        yield (
            "parallel.wire_dtype=float16 sends nothing narrower than precision=bfloat16 does, with"
            " less range; leave it null, or use precision=float32"
        )


def contradictions(config: Config) -> Iterator[str]:
    """Yields what is wrong, in one line each."""
    train, data, parallel = config.train, config.data, config.parallel
    yield from _lengths(train, data)
    if data.batch_size % train.microbatches:
        yield (
            f"data.batch_size must be a multiple of train.microbatches,"
            f" got {data.batch_size} and {train.microbatches}"
        )
    yield from _ranks(config)
    yield from settings.problems(config)
    count, cuts = config.modules.known_count, config.modules.cuts
    if parallel.stages is not None and count is not None and parallel.stages > count:
        yield (
            f"parallel.stages must not exceed modules.count (a stage holds at least one module),"
            f" got {counted(parallel.stages, 'stage')} for {counted(count, 'module')}; lower"
            f" parallel.stages or raise modules.count"
        )
    if not isinstance(cuts, str) and count is not None and len(cuts) != count - 1:
        yield (
            f"modules.cuts must name the first block of modules 2..{count}:"
            f" expected {counted(count - 1, 'entry', 'entries')}, got {len(cuts)}; or leave"
            f" modules.count out"
        )
    if cuts in ("auto", "memory") and config.modules.count is None:
        yield (
            f"modules.cuts={cuts} needs modules.count, got none; say how many modules to make, or"
            f" set parallel.stages, for one on each"
        )
    yield from SCHEDULES.problems(config.optimizer.schedule, {})
    yield from _dropped(config)
    reconcile = config.reconcile
    twice = reconcile.weight and estimator(reconcile).differentiates_twice
    if config.compile and twice:
        yield (
            f"reconcile.estimator={reconcile.estimator} differentiates twice, which compile=true"
            f" cannot; use reconcile.estimator={ReconcileConfig.estimator} or compile=false"
        )
    if config.precision == "float16" and twice:
        yield (
            f"reconcile.estimator={reconcile.estimator} differentiates twice, and no one scale of"
            f" the loss keeps both gradients within float16; use"
            f" reconcile.estimator={ReconcileConfig.estimator}"
        )
    yield from _about_heads(config)
    steps = config.trace.steps
    if steps is not None and steps[0] > steps[1]:
        yield f"trace.steps must be [first, last], got {list(steps)}; swap them"
    if config.trace.profiler and steps is None:
        yield "trace.profiler=true needs trace.steps=[first, last], got null; give them"
    yield from missing_root(data)
    if data.root is not None and not getattr(DATA.find(data.name), "reads_root", True):
        yield (
            f"data.root={data.root} changes nothing, as data.name={data.name} reads no files; name"
            f" the kind of data that is there, such as data.name=imagefolder, or set data.root=null"
        )


def _dropped(config: Config) -> Iterator[str]:
    """Keys that are an option of what another key names, and that it does not take."""
    own = config.optimizer
    taken = OPTIMIZERS.parameters(own.name)
    for key in ("momentum", "weight_decay"):
        value, usual = getattr(own, key), getattr(OptimizerConfig, key)
        if value != usual and key not in taken:
            yield (
                f"optimizer.{key}={value} changes nothing, as optimizer.name={own.name} does not"
                f" take {key}; leave it at {usual}, and use options of the optimizer's own"
            )
    if config.data.name == GIVEN:
        for key in ("root", "image_size", "augment", "mixup", "limit", "on_error"):
            value, usual = getattr(config.data, key), getattr(DataConfig, key)
            if value != usual:
                yield (
                    f"data.{key}={value} changes nothing, as samples are the program's own; leave"
                    f" it out, and do it in the data set"
                )
    smoothing, task = config.train.label_smoothing, config.task
    named = task.args.get("base", task.name) if task.name == GIVEN else task.name
    if smoothing and "label_smoothing" not in TASKS.parameters(named):
        yield (
            f"train.label_smoothing={smoothing} changes nothing, as task.name={named} does not take"
            f" it; leave it out, or take another task"
        )


def _about_heads(config: Config) -> Iterator[str]:
    """What heads are asked to do and cannot."""
    reconcile, distill, head = config.reconcile, config.distill, config.head
    if reconcile.weight and head.fraction < 1:
        yield (
            f"head.fraction={head.fraction} gives signals for a part of the batch, and the last"
            f" module gradients for all of it: reconcile.weight={reconcile.weight} would make them"
            f" alike; use head.fraction=1 or reconcile.weight=0"
        )
    if reconcile.feeds_back and reconcile.direction == "upstream" and reconcile.fraction < 1:
        yield (
            f"reconcile.fraction={reconcile.fraction} is of the batches that are reconciled"
            f" downstream, and reconcile.direction=upstream reconciles whole ones; leave it out, or"
            f" use reconcile.direction=both"
        )
    trains = reconcile.feeds_back or distill.weight > 0
    if not trains or getattr(HEADS.find(head.name), "learns", True):
        return
    why = f"trains heads, and head.name={head.name} has nothing to train"
    if reconcile.feeds_back:
        yield (
            f"reconcile.direction={reconcile.direction} {why}; use reconcile.direction=downstream"
            f" or another head"
        )
    if distill.weight:
        yield f"distill.weight={distill.weight} {why}; leave distill out, or use another head"
