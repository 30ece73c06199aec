"""What each worker of a method does, act by act, as programs for the simulator."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from pipeline_local.learning.step import LAG
from pipeline_local.pipeline.transport import DEPTH
from pipeline_local.placement.costs import Link
from pipeline_local.simulation.simulator import (
    Act,
    Channel,
    Group,
    Program,
    Recv,
    Reduce,
    Reduced,
    Send,
    Sent,
    Update,
    Work,
)
from pipeline_local.simulation.work import StageWork

FIRST_BUCKET_BYTES, BUCKET_BYTES = 2**20, 25 * 2**20
"""Gradients that DDP sums at a time: in its first bucket, and in each later one."""


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Attributes:
        stages: of the pipeline, in order.
        microbatches: of a step.
        steps: to do.
        links: between each stage and the next, or one for all; between replicas the worst of them.
        every: steps from one comparison of gradients to the next; 0: never.
        feedback: input gradients go back upstream on those steps.
        replicas: of each stage.
        jitter: most seconds by which a message may be late.
        seed: of the jitter.
    """

    stages: tuple[StageWork, ...]
    microbatches: int
    steps: int
    links: tuple[Link, ...]
    every: int = 0
    feedback: bool = False
    replicas: int = 1
    jitter: float = 0.0
    seed: int = 0

    def link(self, stage: int) -> Link:
        """Between a stage and the next."""
        return self.links[stage if len(self.links) > 1 else 0]

    @property
    def worst(self) -> Link:
        """As late as the latest and as narrow as the narrowest."""
        return Link(
            max(link.latency_seconds for link in self.links),
            min(link.bytes_per_second for link in self.links),
        )


Method = Callable[[Setting], list[Program]]


def local(setting: Setting) -> list[Program]:
    """Local learning: three acts per module, no stage waits for a backward pass of another."""
    sums = [sum(module.gradients for module in stage.modules) for stage in setting.stages]
    return _pipelines(setting, _local, sums, depth=DEPTH, ahead=True)


def gpipe(setting: Setting) -> list[Program]:
    """All microbatches forward, then all of them backward."""
    return _pipelines(setting, _gpipe, _of_stages(setting), depth=math.inf, ahead=False)


def one_f_one_b(setting: Setting) -> list[Program]:
    """Stage k of p runs min(m, p - k) microbatches forward, then one forward per backward."""
    return _pipelines(setting, _one_f_one_b, _of_stages(setting), depth=math.inf, ahead=False)


def data_parallel(setting: Setting) -> list[Program]:
    """Each worker has the whole network and its share of the batch; sums overlap the backward pass.

    As many workers as there are stages.
    """
    count = len(setting.stages) * setting.replicas
    group = Group(count, setting.worst)
    return [_replica(setting, group, count) for _ in range(count)]


METHODS: dict[str, Method] = {
    "local": local,
    "1f1b": one_f_one_b,
    "gpipe": gpipe,
    "ddp": data_parallel,
}


@dataclass(frozen=True)
class _Ends:
    """A stage between its channels; None where it has no neighbour.

    Attributes:
        number: of the stage.
        above: bytes of the activations of the stage before, for backpropagation.
    """

    number: int
    above: float
    recv: Channel | None
    send: Channel | None
    back_send: Channel | None
    back_recv: Channel | None


def _pipelines(
    setting: Setting,
    program: Callable[[Setting, _Ends], Iterator[Act]],
    gradients: Sequence[float],
    depth: float,
    ahead: bool,
) -> list[Program]:
    """One pipeline per replica; the replicas of a stage sum their gradients."""
    random = Random(setting.seed)
    count = len(setting.stages)
    groups = [Group(setting.replicas, setting.worst) for _ in setting.stages]
    edges = [setting.link(stage) for stage in range(count - 1)]
    programs: list[Program] = []
    for _ in range(setting.replicas):
        down = [Channel(link, depth, ahead, setting.jitter, random) for link in edges]
        up = [Channel(link, math.inf, ahead, setting.jitter, random) for link in edges]
        for k in range(count):
            first, last = k == 0, k == count - 1
            ends = _Ends(
                k,
                0.0 if first else setting.stages[k - 1].activations,
                None if first else down[k - 1],
                None if last else down[k],
                None if first else up[k - 1],
                None if last else up[k],
            )
            programs.append(_with_sums(program(setting, ends), groups[k], gradients[k]))
    return programs


def _of_stages(setting: Setting) -> list[float]:
    return [stage.gradients for stage in setting.stages]


def _with_sums(acts: Iterator[Act], group: Group, gradients: float) -> Program:
    """Replicas sum so many bytes of gradients before the update that ends a step."""
    for act in acts:
        if group.members > 1 and isinstance(act, Update):
            yield Reduce(group, gradients)
            yield Reduced(group)
        yield act


def _local(setting: Setting, ends: _Ends) -> Iterator[Act]:
    stage = setting.stages[ends.number]
    for step in range(setting.steps):
        compares = setting.every > 0 and step % setting.every == 0
        applies = setting.feedback and setting.every > 0
        applies = applies and step >= LAG and (step - LAG) % setting.every == 0
        for _ in range(setting.microbatches):
            if ends.recv:
                yield Recv(ends.recv)
            yield from _three_acts(stage, ends, compares)
            if compares and setting.feedback and ends.back_send:
                yield Send(ends.back_send, setting.stages[ends.number - 1].messages)
            if applies and ends.back_recv:
                yield Recv(ends.back_recv)
        yield Update(sum(module.update for module in stage.modules))


def _three_acts(stage: StageWork, ends: _Ends, compares: bool) -> Iterator[Act]:
    """Of every module; only the outermost ones meet the neighbours."""
    last = len(stage.modules) - 1
    for number, module in enumerate(stage.modules):
        yield Work(module.forward, "F")
        if number == last and ends.send:
            yield Send(ends.send, stage.messages)
        yield Work(module.signal, "S")
        if compares and number == last and ends.send:
            yield Send(ends.send, stage.messages)
        if compares and number == 0 and ends.recv:
            yield Recv(ends.recv)
        yield Work(module.learn + (module.added if compares else 0.0), "L")


def _gpipe(setting: Setting, ends: _Ends) -> Iterator[Act]:
    stage = setting.stages[ends.number]
    for _ in range(setting.steps):
        for _ in range(setting.microbatches):
            yield from _hear(ends.recv)
            yield Work(stage.forward)
            yield from _say(ends.send, stage.activations)
        for _ in range(setting.microbatches):
            yield from _hear(ends.back_recv)
            yield Work(stage.backward)
            yield from _say(ends.back_send, ends.above)
        yield from _all_sent(ends.send)
        yield from _all_sent(ends.back_send)
        yield Update(stage.update)


def _one_f_one_b(setting: Setting, ends: _Ends) -> Iterator[Act]:
    """As torch.distributed.pipelining does: a send is waited for with the receive beside it."""
    stage, count = setting.stages[ends.number], setting.microbatches
    warm = min(count, len(setting.stages) - ends.number)
    for _ in range(setting.steps):
        for number in range(warm):
            yield from _hear(ends.recv)
            yield Work(stage.forward)
            yield from _all_sent(ends.send)
            if number < warm - 1:
                yield from _say(ends.send, stage.activations)
        for number in range(count):
            if number <= count - warm:  # the newest forward has not been sent yet
                yield from _say(ends.send, stage.activations)
            yield from _hear(ends.back_recv)
            yield from _all_sent(ends.send)
            yield Work(stage.backward)
            yield from _say(ends.back_send, ends.above)
            if number < count - warm:
                yield from _hear(ends.recv)
                yield from _all_sent(ends.back_send)
                yield Work(stage.forward)
        yield from _all_sent(ends.back_send)
        yield Update(stage.update)


def _hear(channel: Channel | None) -> Iterator[Act]:
    if channel:
        yield Recv(channel)


def _say(channel: Channel | None, size: float) -> Iterator[Act]:
    if channel:
        yield Send(channel, size)


def _all_sent(channel: Channel | None) -> Iterator[Act]:
    if channel:
        yield Sent(channel)


def _replica(setting: Setting, group: Group, count: int) -> Program:
    share = setting.microbatches / len(setting.stages)
    forward = share * sum(stage.forward for stage in setting.stages)
    backward = share * sum(stage.backward for stage in setting.stages)
    gradients = sum(stage.gradients for stage in setting.stages)
    buckets = list(_buckets(gradients)) if count > 1 else []
    for _ in range(setting.steps):
        yield Work(forward)
        for size in buckets:
            yield Work(backward * size / gradients)
            yield Reduce(group, size)
        if buckets:
            yield Reduced(group)
        else:
            yield Work(backward)
        yield Update(sum(stage.update for stage in setting.stages))


def _buckets(gradients: float) -> Iterator[float]:
    """Bytes of each, in the order of the backward pass."""
    most = FIRST_BUCKET_BYTES
    while gradients > 0:
        yield min(gradients, most)
        gradients, most = gradients - most, BUCKET_BYTES
