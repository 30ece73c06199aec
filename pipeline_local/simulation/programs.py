"""Training methods as programs for the simulator: the acts of each worker, in order."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from pipeline_local.learning.step import LAG
from pipeline_local.pipeline.transport import DEPTH
from pipeline_local.placement.costs import Link
from pipeline_local.ranks.mesh import Mesh
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
"""Sizes of DDP's gradient buckets: the first one, and all others."""


@dataclass(frozen=True)
class SimulatedRun:
    """The run to simulate.

    Attributes:
        stages: the work of each stage of the pipeline, in order.
        microbatches: number of microbatches in a step, which the replicas of each stage share.
        steps: number of optimizer steps.
        links: the link from each stage to the next, or one for all. Replicas use the worst of them.
        every: steps from one comparison of gradients to the next; 0: never.
        feedback: whether input gradients are sent upstream on those steps.
        refresh: steps from one publication of parameters to the next; 0: never.
        distill: steps from one distillation to the next; 0: never. All stages have theirs in the
            same steps, though each is some steps behind the next stage: the average is the same.
        replicas: number of replicas of each stage; one for all, or one for each.
        jitter: largest random delay of a message, in seconds.
        seed: seed of the jitter.
        value_bytes: bytes of a value of the activations that backpropagation sends.
    """

    stages: tuple[StageWork, ...]
    microbatches: int
    steps: int
    links: tuple[Link, ...]
    every: int = 0
    feedback: bool = False
    refresh: int = 0
    distill: int = 0
    replicas: tuple[int, ...] = (1,)
    jitter: float = 0.0
    seed: int = 0
    value_bytes: float = 4.0

    def link(self, stage: int) -> Link:
        """Return the link from a stage to the next."""
        return self.links[stage if len(self.links) > 1 else 0]

    @property
    def mesh(self) -> Mesh:
        """The workers of a pipeline."""
        count = len(self.stages)
        return Mesh(self.replicas if len(self.replicas) == count else self.replicas * count)

    @property
    def worst(self) -> Link:
        """A link with the highest latency and the lowest bandwidth of all."""
        return Link(
            max(link.latency_seconds for link in self.links),
            min(link.bytes_per_second for link in self.links),
        )


Method = Callable[[SimulatedRun], list[Program]]


def local(run: SimulatedRun) -> list[Program]:
    """Local learning: three acts per module; no stage waits for the backward pass of another."""
    sums = [sum(module.gradients for module in stage.modules) for stage in run.stages]
    return _pipelines(run, _local, sums, depth=DEPTH, ahead=True)


def gpipe(run: SimulatedRun) -> list[Program]:
    """GPipe: all microbatches forward, then all of them backward."""
    return _pipelines(run, _gpipe, _of_stages(run), depth=math.inf, ahead=False)


def one_f_one_b(run: SimulatedRun) -> list[Program]:
    """1F1B: stage k of p runs min(m, p - k) microbatches forward, then one forward per backward."""
    return _pipelines(run, _one_f_one_b, _of_stages(run), depth=math.inf, ahead=False)


def eight_bits(run: SimulatedRun) -> list[Program]:
    """1F1B whose messages, activations and their gradients, have 8 bits per value."""
    return one_f_one_b(_compressed(run, 1.0 / run.value_bytes))


def one_percent(run: SimulatedRun) -> list[Program]:
    """1F1B whose messages, activations and their gradients, have 1 % of their bytes."""
    return one_f_one_b(_compressed(run, 0.01))


def _compressed(run: SimulatedRun, share: float) -> SimulatedRun:
    """The run with messages of a share of the bytes; compressing takes no time."""
    stages = (replace(stage, activations=share * stage.activations) for stage in run.stages)
    return replace(run, stages=tuple(stages))


def data_parallel(run: SimulatedRun) -> list[Program]:
    """DDP: each worker has the whole network and its share of the batch.

    There are as many workers as a pipeline has. All-reduces overlap the backward pass.
    """
    count = run.mesh.num_ranks
    group = Group(count, run.worst)
    return [_replica(run, group, count) for _ in range(count)]


METHODS: dict[str, Method] = {
    "local": local,
    "1f1b": one_f_one_b,
    "1f1b-8bit": eight_bits,
    "1f1b-1percent": one_percent,
    "gpipe": gpipe,
    "ddp": data_parallel,
}


@dataclass(frozen=True)
class _Ends:
    """The channels of a worker, one for each of its microbatches; None where it has no neighbour.

    Attributes:
        number: index of the stage.
        upstream: bytes of the upstream stage's activations, under backpropagation.
        microbatches: the worker's own.
    """

    number: int
    upstream: float
    microbatches: Sequence[int]
    recv: list[Channel | None]
    send: list[Channel | None]
    back_send: list[Channel | None]
    back_recv: list[Channel | None]


def _pipelines(
    run: SimulatedRun,
    program: Callable[[SimulatedRun, _Ends], Iterator[Act]],
    gradients: Sequence[float],
    depth: float,
    ahead: bool,
) -> list[Program]:
    """A worker for each replica of each stage; microbatches are dealt to them round-robin, and the
    replicas of a stage all-reduce their gradients."""
    mesh, random = run.mesh, Random(run.seed)
    down: dict[tuple[int, int], Channel] = {}
    up: dict[tuple[int, int], Channel] = {}
    for edge in sorted(mesh.edges()):
        link = run.link(mesh.stage(edge[0]))
        down[edge] = Channel(link, depth, ahead, run.jitter, random)
        up[edge] = Channel(link, math.inf, ahead, run.jitter, random)
    programs: list[Program] = []
    for k, count in enumerate(mesh.replicas):
        group = Group(count, run.worst)
        for rank in mesh.ranks(k):
            own = [j for j in range(run.microbatches) if mesh.rank(k, j) == rank]
            before = [k > 0 and (mesh.rank(k - 1, j), rank) for j in own]
            after = [k + 1 < mesh.num_stages and (rank, mesh.rank(k + 1, j)) for j in own]
            ends = _Ends(
                k,
                run.stages[k - 1].activations if k else 0.0,
                own,
                recv=[down[edge] if edge else None for edge in before],
                send=[down[edge] if edge else None for edge in after],
                back_send=[up[edge] if edge else None for edge in before],
                back_recv=[up[edge] if edge else None for edge in after],
            )
            programs.append(_with_sums(program(run, ends), group, gradients[k]))
    return programs


def _of_stages(run: SimulatedRun) -> list[float]:
    return [stage.gradients for stage in run.stages]


def _with_sums(acts: Iterator[Act], group: Group, gradients: float) -> Program:
    """Insert the all-reduce of so many bytes before the update that ends a step."""
    for act in acts:
        if group.members > 1 and isinstance(act, Update):
            yield Reduce(group, gradients)
            yield Reduced(group)
        yield act


def _local(run: SimulatedRun, ends: _Ends) -> Iterator[Act]:
    stage = run.stages[ends.number]
    for step in range(run.steps):
        compares = run.every > 0 and step % run.every == 0
        distils = run.distill > 0 and step % run.distill == 0
        for n, microbatch in enumerate(ends.microbatches):
            yield from _on(ends.recv[n], Recv)
            yield from _three_acts(stage, ends, n, compares, distils)
            if size := _lagged(run, ends.number, step, microbatch):
                yield from _on(ends.back_send[n], Send, size)
            if _lagged(run, ends.number + 1, step - LAG, microbatch):
                yield from _on(ends.back_recv[n], Recv)
        yield Update(sum(module.update for module in stage.modules))


def _lagged(run: SimulatedRun, sender: int, step: int, microbatch: int) -> float:
    """Bytes that a stage sends upstream with a microbatch."""
    size = 0.0
    if not 0 < sender < len(run.stages) or step < 0:
        return size
    if run.feedback and run.every > 0 and step % run.every == 0:
        size += run.stages[sender - 1].messages
    if run.distill and step % run.distill == 0:
        size += run.stages[sender].outputs
    if run.refresh and step > 0 and step % run.refresh == 0 and microbatch == run.microbatches - 1:
        size += run.stages[sender].copies
    return size


def _three_acts(
    stage: StageWork, ends: _Ends, n: int, compares: bool, distils: bool
) -> Iterator[Act]:
    """The acts of every module for the worker's n-th microbatch; only the first and the last one
    exchange messages."""
    last = len(stage.modules) - 1
    for number, module in enumerate(stage.modules):
        yield Work(module.forward, "F")
        if number == last:
            yield from _on(ends.send[n], Send, stage.messages)
        yield Work(module.signal, "S")
        if compares and number == last:
            yield from _on(ends.send[n], Send, stage.messages)
        if compares and number == 0:
            yield from _on(ends.recv[n], Recv)
        more = module.added * compares + module.distilled * distils
        yield Work(module.learn + more, "L")


def _gpipe(run: SimulatedRun, ends: _Ends) -> Iterator[Act]:
    stage = run.stages[ends.number]
    recv, send, back_send, back_recv = _chain(ends)
    for _ in range(run.steps):
        for _ in ends.microbatches:
            yield from _on(recv, Recv)
            yield Work(stage.forward)
            yield from _on(send, Send, stage.activations)
        for _ in ends.microbatches:
            yield from _on(back_recv, Recv)
            yield Work(stage.backward)
            yield from _on(back_send, Send, ends.upstream)
        yield from _on(send, Sent)
        yield from _on(back_send, Sent)
        yield Update(stage.update)


def _one_f_one_b(run: SimulatedRun, ends: _Ends) -> Iterator[Act]:
    """As in torch.distributed.pipelining: a send is waited for together with its paired receive."""
    stage, count = run.stages[ends.number], len(ends.microbatches)
    recv, send, back_send, back_recv = _chain(ends)
    warm = min(count, len(run.stages) - ends.number)
    for _ in range(run.steps):
        for number in range(warm):
            yield from _on(recv, Recv)
            yield Work(stage.forward)
            yield from _on(send, Sent)
            if number < warm - 1:
                yield from _on(send, Send, stage.activations)
        for number in range(count):
            if number <= count - warm:  # the latest output is not sent yet
                yield from _on(send, Send, stage.activations)
            yield from _on(back_recv, Recv)
            yield from _on(send, Sent)
            yield Work(stage.backward)
            yield from _on(back_send, Send, ends.upstream)
            if number < count - warm:
                yield from _on(recv, Recv)
                yield from _on(back_send, Sent)
                yield Work(stage.forward)
        yield from _on(back_send, Sent)
        yield Update(stage.update)


def _chain(ends: _Ends) -> list[Channel | None]:
    """The channels to the same replica of each neighbour, for all microbatches."""
    each = (ends.recv, ends.send, ends.back_send, ends.back_recv)
    assert all(len(set(map(id, channels))) == 1 for channels in each), "one pipeline per replica"
    return [channels[0] for channels in each]


def _on(channel: Channel | None, act: Callable[..., Act], *arguments: float) -> Iterator[Act]:
    """An act on a channel, where the stage has that neighbour."""
    if channel:
        yield act(channel, *arguments)


def _replica(run: SimulatedRun, group: Group, count: int) -> Program:
    share = run.microbatches / count
    forward = share * sum(stage.forward for stage in run.stages)
    backward = share * sum(stage.backward for stage in run.stages)
    gradients = sum(stage.gradients for stage in run.stages)
    buckets = list(_buckets(gradients)) if count > 1 else []
    for _ in range(run.steps):
        yield Work(forward)
        for size in buckets:
            yield Work(backward * size / gradients)
            yield Reduce(group, size)
        if buckets:
            yield Reduced(group)
        else:
            yield Work(backward)
        yield Update(sum(stage.update for stage in run.stages))


def _buckets(gradients: float) -> Iterator[float]:
    """Bytes of each bucket, in the order of the backward pass."""
    most = FIRST_BUCKET_BYTES
    while gradients > 0:
        yield min(gradients, most)
        gradients, most = gradients - most, BUCKET_BYTES
