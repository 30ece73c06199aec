"""The wait graph, model-checked: whatever the sizes, speeds and failures, a run moves on or ends.

A small pure model of what `stage.py` and `transport.py` wait for. A stage is a list of sends and
receives; a channel bounds its unfinished sends, posts one receive ahead, and finishes a send either
once it is received (rendezvous: large messages) or at any time (eager: small ones). A scheduler
drawn by hypothesis lets stages and transfers move in any order and at any speed.

In the end every stage has done its work or has ended because a neighbour had. Where a stage hangs
without ending, the stall is there for all to see, and the diagnosis must name that stage.

What flows upstream is consumed a fixed number of steps after it was sent: feedback with every
microbatch, copies of parameters with the last one of a step, in one message where both are due;
outputs for distillation with every microbatch, and each stage passes on what it has got a step ago.
Its channel must hold all that may be on its way: see `test_feedback_needs_room_for_its_delay`.

Where stages have replicas, each rank has a channel to every one that it shares microbatches with,
and before an update it waits until all replicas of its stage have come as far.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_local.engines.replicas import Replicas
from pipeline_local.learning.contents import BlockCopies, Distillation, Feedback
from pipeline_local.learning.lag_plan import LagPlan
from pipeline_local.learning.lagged import LaggedMessages
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import LAG, Step
from pipeline_local.pipeline.stage import Stage
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.record.trace import Trace
from pipeline_local.watch.stall import Sighting, find_stall
from pipeline_local.watch.status import EVERYONE, Position


@dataclass(frozen=True)
class Plan:
    """A run: `compared` says of each step whether signals are sent."""

    stages: int
    microbatches: int
    compared: tuple[bool, ...]
    depth: int = 2
    delay: int | None = None
    """Steps after which lagged messages are consumed; None: there are none."""
    every: int | None = 1
    """Feedback flows on every n-th step; None: never."""
    refresh: int | None = None
    """Copies flow on every n-th step but the first; None: never."""
    distill: int | None = None
    """Outputs of every n-th step flow from stage to stage; None: never."""
    rendezvous: bool = True
    narrow: bool = False
    """Room for one message of feedback only, whatever the delay: a mistake."""
    replicas: tuple[int, ...] = ()
    """Of each stage; none: one of each."""

    @property
    def mesh(self):
        return Mesh(self.replicas or (1,) * self.stages)

    @property
    def parts(self):
        """All microbatches of a batch."""
        return self.microbatches * self.mesh.parts

    @property
    def feedback_depth(self):
        """As `RunPlan.most_pending`; a channel without messages has room for one."""
        periods = [self.every, self.distill] * self.parts + [self.refresh]
        return 1 if self.narrow else sum((self.delay or 0) // n + 1 for n in periods if n) or 1

    def sends_lagged(self, sender, step, microbatch):
        """Whether a stage sends a lagged message with this microbatch."""
        if self.delay is None or step < 0:
            return False
        last = microbatch == self.parts - 1
        begun = step - (self.stages - 1 - sender) * (self.delay + 1)
        return bool(
            (self.every and step % self.every == 0)
            or (self.refresh and last and step > 0 and step % self.refresh == 0)
            or (self.distill and begun >= 0 and begun % self.distill == 0)
        )


@dataclass(frozen=True)
class Op:
    """`peer` is the rank at the other end of the channel; EVERYONE: all replicas of a stage."""

    kind: str
    peer: int
    feedback: bool = False


NOBODY = -2


def program(plan, rank):
    """What a rank does that can make it wait, in order. As `Stage.train` does it."""
    ops, mesh = [], plan.mesh
    stage = mesh.stage(rank)

    def at(stage, microbatch):
        return mesh.rank(stage, microbatch) if 0 <= stage < plan.stages else NOBODY

    for step, compared in enumerate(plan.compared):
        for microbatch in range(mesh.replica(rank), plan.parts, mesh.replicas[stage]):
            above, below = at(stage - 1, microbatch), at(stage + 1, microbatch)
            ops += [Op("recv", above), Op("send", below)]
            if compared:
                ops += [Op("send", below), Op("recv", above)]
            applied = step + (plan.delay or 0) < len(plan.compared)
            if plan.sends_lagged(stage, step, microbatch) and applied:
                ops.append(Op("send", above, feedback=True))
            if plan.sends_lagged(stage + 1, step - (plan.delay or 0), microbatch):
                ops.append(Op("recv", below, feedback=True))
        if mesh.replicas[stage] > 1:
            ops += [Op("offer", EVERYONE), Op("take", EVERYONE)]
    ops += [Op("close", b) for a, b in mesh.edges() if a == rank]
    ops += [Op("close", a, feedback=True) for a, b in mesh.edges() if b == rank]
    return [op for op in ops if op.peer != NOBODY]


@dataclass
class Channel:
    """One directed edge, as Sender and Receiver treat it."""

    depth: int
    rendezvous: bool
    issued: int = 0
    sent: int = 0
    arrived: int = 0
    consumed: int = 0

    def may(self, kind):
        if kind == "send":
            return self.issued - self.sent < self.depth
        return self.issued == self.sent if kind == "close" else self.arrived > self.consumed

    def do(self, kind):
        self.issued += kind == "send"
        self.consumed += kind == "recv"

    def transfers(self):
        """What the network can do now: a message arrives, or its send is finished early."""
        if self.arrived < min(self.issued, self.consumed + 1):
            yield self.arrive
        if not self.rendezvous and self.sent < self.issued:
            yield self.finish

    def arrive(self):
        self.arrived += 1
        self.sent = max(self.sent, self.arrived)

    def finish(self):
        self.sent += 1


@dataclass
class Run:
    """The whole pipeline in motion."""

    plan: Plan
    programs: list
    fails: tuple[int, int] | None = None
    """(stage, number of its operations before it dies)."""
    hangs: tuple[int, int] | None = None
    """As `fails`, but it stays there, alive."""
    position: list = field(init=False)
    ended: set = field(init=False)
    channels: dict = field(init=False)

    def __post_init__(self):
        plan = self.plan
        self.mesh = plan.mesh
        self.position = [0] * self.mesh.num_ranks
        self.offered, self.taken = [0] * self.mesh.num_ranks, [0] * self.mesh.num_ranks
        self.ended = set()
        self.channels = {}
        for above, below in self.mesh.edges():
            self.channels[above, below] = Channel(plan.depth, plan.rendezvous)
            self.channels[below, above] = Channel(plan.feedback_depth, plan.rendezvous)

    def may(self, rank):
        """Whether a rank need not wait before its next operation."""
        op = self.next(rank)
        if op.kind == "offer":
            return True
        if op.kind == "take":
            return min(self.offered[other] for other in self.group(rank)) > self.taken[rank]
        return self.channel(rank).may(op.kind)

    def group(self, rank):
        return self.mesh.ranks(self.mesh.stage(rank))

    def lost(self, rank):
        """Whether the next operation is with one who has ended: its connection broke."""
        peer = self.next(rank).peer
        return bool({peer, *(self.group(rank) if peer == EVERYONE else ())} & self.ended)

    def done(self, stage):
        return self.position[stage] == len(self.programs[stage])

    def next(self, stage):
        return self.programs[stage][self.position[stage]]

    def channel(self, stage):
        op = self.next(stage)
        ends = (op.peer, stage) if op.kind == "recv" else (stage, op.peer)
        return self.channels[ends]

    def moves(self):
        for (upper, lower), channel in self.channels.items():
            if not {upper, lower} & self.ended:
                for transfer in channel.transfers():
                    yield lower, transfer
        for stage in range(self.mesh.num_ranks):
            if (stage, self.position[stage]) == self.hangs or stage in self.ended:
                continue
            if (stage, self.position[stage]) == self.fails:
                yield stage, lambda s=stage: self.ended.add(s)
            elif not self.done(stage):
                if self.may(stage):
                    yield stage, lambda s=stage: self.step(s)
                elif self.lost(stage):
                    yield stage, lambda s=stage: self.ended.add(s)

    def step(self, stage):
        kind = self.next(stage).kind
        self.offered[stage] += kind == "offer"
        self.taken[stage] += kind == "take"
        if kind not in ("offer", "take"):
            self.channel(stage).do(kind)
        self.position[stage] += 1

    def follow(self, random, speeds):
        """Move at random until nobody can."""
        while moves := list(self.moves()):
            weights = [speeds[stage] for stage, _ in moves]
            random.choices(moves, weights)[0][1]()
        return self

    def stuck(self):
        ranks = range(self.mesh.num_ranks)
        return [s for s in ranks if not self.done(s) and s not in self.ended]


def planned(replicas, microbatches, compared, *rest):
    made = Plan(len(replicas), microbatches, tuple(compared), *rest, replicas=tuple(replicas))
    return made if made.parts <= 6 else replace(made, microbatches=1)


PLANS = st.builds(
    planned,
    st.lists(st.just(1), min_size=1, max_size=6)
    | st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3),
    st.integers(1, 5),
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.integers(1, 4),
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 4),
    st.booleans(),
)
SPEEDS = st.lists(st.sampled_from([1, 10, 1000]), min_size=12, max_size=12)
SEEDS = st.integers(0, 2**32)
POINTS = st.tuples(st.integers(0, 11), st.integers(0, 200))


def start(plan, **faults):
    return Run(plan, [program(plan, rank) for rank in range(plan.mesh.num_ranks)], **faults)


def within(run_plan, point):
    """A point of the program of some rank; also the one behind its end."""
    stage = point[0] % run_plan.mesh.num_ranks
    return stage, point[1] % (len(program(run_plan, stage)) + 1)


@settings(max_examples=400)
@given(PLANS, SPEEDS, SEEDS)
def test_every_run_comes_to_its_end(plan, speeds, seed):
    run = start(plan).follow(Random(seed), speeds)
    assert run.stuck() == []
    assert not run.ended
    assert all(c.issued == c.sent == c.arrived == c.consumed for c in run.channels.values())


@settings(max_examples=400)
@given(PLANS, SPEEDS, SEEDS, POINTS)
def test_after_a_failure_nobody_waits_for_ever(plan, speeds, seed, point):
    run = start(plan, fails=within(plan, point)).follow(Random(seed), speeds)
    assert run.stuck() == []
    assert run.ended


def sighting(run, stage):
    """As the watchdog would see it, long after the last move."""
    if run.done(stage):
        return Sighting(Position(), left=True)
    hangs = (stage, run.position[stage]) == run.hangs
    peer = None if hangs else run.next(stage).peer
    return Sighting(Position("step", 1, False, "act", 1, 0, peer), age=100.0)


@settings(max_examples=400)
@given(PLANS, SPEEDS, SEEDS, POINTS)
def test_the_diagnosis_names_the_stage_that_hangs(plan, speeds, seed, point):
    stage, rank_info = within(plan, point)
    if rank_info == len(program(plan, stage)):
        return  # it is done
    run = start(plan, hangs=(stage, rank_info)).follow(Random(seed), speeds)
    assert stage in run.stuck()
    ranks = range(plan.mesh.num_ranks)
    verdict = find_stall({s: sighting(run, s) for s in ranks}, timeout=60)
    assert verdict is not None
    assert (verdict.kind, verdict.rank) == ("stalled", stage)


# -- wrong orders are found --------------------------------------------------------------------


def ends(run):
    return run.follow(Random(0), [1] * 12).stuck() == []


def test_waiting_for_downstream_before_sending_is_found():
    """Feedback of the same step, wanted before the activations that it is made from are sent."""
    plan = Plan(2, 1, (True,) * 3, delay=0)
    programs = [program(plan, 0), program(plan, 1)]
    assert ends(Run(plan, programs))
    send, wait = Op("send", 1), Op("recv", 1, feedback=True)
    early = [wait, send, send] * 3 + programs[0][-1:]
    assert Counter(early) == Counter(programs[0])
    run = Run(plan, [early, programs[1]])
    assert not ends(run)
    verdict = find_stall({s: sighting(run, s) for s in range(2)}, timeout=60)
    assert verdict is not None
    assert "wait for each other" in verdict.text


def test_messages_that_nobody_takes_are_found():
    """Of two that a receiver forgets, one is taken ahead; the other stays with its sender."""
    plan = Plan(3, 2, (True, True))
    programs = [program(plan, stage) for stage in range(3)]
    assert ends(Run(plan, programs))
    programs[1].remove(Op("recv", 0))
    programs[1].remove(Op("recv", 0))
    assert not ends(Run(plan, programs))


def test_feedback_needs_room_for_its_delay():
    """A stage can only get rid of feedback when the one before is `delay` steps further on."""
    own = {"stages": 2, "microbatches": 2, "compared": (True,) * 12, "depth": 1, "delay": 6}
    assert not ends(start(Plan(**own, narrow=True)))
    assert ends(start(Plan(**own)))


def test_so_do_copies():
    own = {"stages": 2, "microbatches": 2, "compared": (True,) * 12, "depth": 1, "delay": 6}
    assert not ends(start(Plan(**own, every=None, refresh=1, narrow=True)))
    assert ends(start(Plan(**own, every=None, refresh=1)))


# -- the model is that of the code ---------------------------------------------------------------


NUMBER = torch.zeros(1)
STEPS = 12


class Recorder:
    """Both ends of the edges of a stage in the middle, and its module."""

    def __init__(self, compare):
        self.ops = []
        self.compare = compare
        self.received = 0

    def recv(self):
        self.ops.append(Op("recv", 0))
        self.received += 1
        return (NUMBER,) if self.compare and self.received % 2 == 0 else (NUMBER, NUMBER)

    def send(self, *tensors):
        self.ops.append(Op("send", 2))

    def send_lagged(self, *tensors):
        self.ops.append(Op("send", 0, feedback=True))

    def recv_lagged(self):
        self.ops.append(Op("recv", 2, feedback=True))
        return (NUMBER,)


class Module:
    """A module in the middle without any mathematics; the lagged messages are the real ones."""

    index = 1
    rules = Rules()
    replicas = Replicas()

    def __init__(self, lag, steps):
        self.lagged = LaggedMessages(lag, self.index)
        self.steps = steps
        self.body = torch.nn.Sequential(torch.nn.Linear(1, 1))
        self.head = None

    def forward(self, x, labels, step, microbatch):
        self.now = step, microbatch
        self.lagged.keep(*self.now, NUMBER, NUMBER)
        return NUMBER

    def signal(self):
        return NUMBER

    def receive(self, *_):
        pass

    def learn(self):
        """The real edges drop what would be consumed after the end."""
        lagged = self.lagged.send(self, *self.now, NUMBER)
        return lagged if self.now[0].number + LAG < self.steps else ()

    def apply_feedback(self, step, kept, feedback):
        pass

    def imitate(self, step, kept, later, heads):
        return later

    def apply_lagged(self, step, microbatch, *tensors):
        self.lagged.apply(self, step, microbatch, (NUMBER, NUMBER))

    def reduce(self, step):
        pass

    def update(self, step):
        pass


@pytest.mark.parametrize(
    ("every", "refresh", "distill"),
    [
        (1, None, None),
        (2, None, None),
        (9, 3, None),
        (2, 1, None),
        (None, 2, None),
        (None, None, 1),
        (3, 2, 2),
    ],
)
@pytest.mark.parametrize("compare", [True, False])
@pytest.mark.parametrize("microbatches", [1, 3])
def test_a_stage_waits_in_the_order_of_the_model(compare, microbatches, every, refresh, distill):
    lagged = {"delay": LAG, "every": every, "refresh": refresh, "distill": distill}
    plan = Plan(3, microbatches, (compare,) * STEPS, **lagged)
    contents = [Feedback(every)] if every else []
    contents += [BlockCopies(refresh)] if refresh else []
    contents += [Distillation(distill, 3, True)] if distill else []
    edges = Recorder(compare)
    module = Module(LagPlan(tuple(contents)), STEPS)
    stage = Stage([module], edges, edges, Trace())
    for number in range(STEPS):
        stage.train(Step(number, 0.1, microbatches, compare=compare))
    ops = [op for op in program(plan, 1) if op.kind != "close"]
    assert edges.ops == ops
    assert {op.kind for op in ops if op.feedback} == {"send", "recv"}
