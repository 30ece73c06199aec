"""config -> modules -> stage -> the schedule."""

from contextlib import AbstractContextManager, ExitStack
from typing import NoReturn

from pipeline_local.agreement import accept, propose
from pipeline_local.config import Config
from pipeline_local.data.images.datasets import DataInfo
from pipeline_local.data.images.skipping import Skipped
from pipeline_local.errors import StoppedError
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.models import weights
from pipeline_local.pipeline import profilefile
from pipeline_local.pipeline.blueprint import Blueprint
from pipeline_local.pipeline.board import Board, Facts
from pipeline_local.pipeline.costs import stage_times
from pipeline_local.pipeline.description import describe, explain
from pipeline_local.pipeline.edges import connect, lay
from pipeline_local.pipeline.place import TIMEOUT, Kind, Place, common_kind, joined
from pipeline_local.pipeline.schedule import Action, Evaluate, Save
from pipeline_local.pipeline.stage import Stage
from pipeline_local.pipeline.stop import Stop
from pipeline_local.pipeline.watchdog import Watchdog
from pipeline_local.record import metrics, summary
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.progress import Progress, Silent
from pipeline_local.record.screen import say
from pipeline_local.record.trace import Trace
from pipeline_local.record.whereabouts import EVERYONE, Whereabouts
from pipeline_local.record.writer import Writer


def train(config: Config, place: Place | None = None) -> Facts:
    """Run a configuration on this rank and, together with the others, on all of them.

    Args:
        config: the same on every rank.
        place: this rank; None reads it from the launcher's environment.

    Returns:
        What summary.json holds; on any rank but the first, this stage's own part of it.

    Raises:
        UserError: what the user must mend.
        StoppedError: a signal has asked to stop, and all ranks have saved the same step.
    """
    place = place or Place.from_environment()
    place.num_stages(config.parallel)
    place.prepare(config.parallel)
    with ExitStack() as stack:
        store = stack.enter_context(joined(place))
        board = Board(store, place.rank, place.world_size)
        # around the watchdog: a launcher that hears of a death signals those who are to tell of it
        stop = stack.enter_context(Stop(board))
        watchdog = stack.enter_context(Watchdog(board, place, config.parallel.timeout))
        stop.listen()
        at = watchdog.whereabouts
        at.enter("checking the configuration", peer=0 if place.rank else None)
        start = propose(config, place, board, stack)
        at.enter("making the modules")
        with board.unanimous(TIMEOUT):
            blueprint = Blueprint.draw(config, DataInfo.from_json(start["info"]))
            accept(blueprint, place, start)
            if start["complete"]:
                return _already_complete(config, board)
            modules = _modules(blueprint, place, start["step"])
            at.enter("meeting", peer=EVERYONE)
        board.pin("wire", {"kind": place.wire_kind(config.parallel)})
        kind = common_kind([facts["kind"] for facts in board.gather("wire", TIMEOUT)])
        return Trainer(blueprint, place, board, stop, at, modules, kind, start["step"]).run()


def _modules(blueprint: Blueprint, place: Place, step: int) -> list[LocalModule]:
    """This stage's modules: fresh, from a state dict, or from the checkpoint at `step`."""
    config = blueprint.config
    numbers = blueprint.stages(place.world_size)[place.rank]
    modules = [blueprint.module(index, place.device) for index in numbers]
    if step:
        checkpoints = Checkpoints(RunFolder(config.run.dir).checkpoints, len(blueprint.modules))
        for module in modules:
            checkpoints.load(module, step)
    elif config.model.weights is not None:
        state = weights.load(config.model.weights)
        for module in modules:
            blueprint.load_weights(module, state)
    return modules


def _already_complete(config: Config, board: Board) -> Facts:
    """Nothing is left to do: the summary that is there stays as it is."""
    facts: Facts = RunFolder(config.run.dir).load_summary()
    if board.rank == 0:
        steps = facts["steps"]
        say(f"{config.run.dir} is complete after {steps} steps; raise train.epochs to go on")
    return facts


class Trainer:
    """One rank of a run: its stage, and what it does at each point of the schedule.

    Args:
        blueprint: the run.
        place: this rank; its stage has the same number.
        board: where the ranks tell each other how far they are.
        stop: may end the schedule early.
        whereabouts: what this rank is doing, for the watchdog.
        modules: of this stage.
        kind: how the ranks talk.
        start: optimizer steps already done.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        place: Place,
        board: Board,
        stop: Stop,
        whereabouts: Whereabouts,
        modules: list[LocalModule],
        kind: Kind,
        start: int,
    ) -> None:
        config = blueprint.config
        folder = RunFolder(config.run.dir)
        self.blueprint = blueprint
        self.place = place
        self.board = board
        self.whereabouts = whereabouts
        self.start = start
        self.folder = folder
        self.stop = stop
        self.checkpoints = Checkpoints(folder.checkpoints, len(blueprint.modules))
        self.writer = Writer(self.checkpoints, config.checkpoint.keep)
        self.trace = Trace(whereabouts=whereabouts)
        self.metrics = metrics.Metrics(folder.metrics(place.rank))
        self.scores: dict[str, dict[str, float]] = {}
        self.skipped = Skipped()
        laid = lay(blueprint, place, kind, whereabouts)
        self.upstream, self.downstream = connect(blueprint, place, laid, start, self.skipped)
        self.stage = Stage(modules, self.upstream, self.downstream, self.trace)
        self.clock = metrics.Clock(lambda: self.upstream.waited + self.downstream.waited)
        self.display: Progress | Silent = (
            Silent()
            if place.rank
            else Progress(blueprint.schedule.num_steps, len(blueprint.modules))
        )

    def run(self) -> Facts:
        """Follow the schedule to its end, or until a signal asks to stop."""
        self.display.announce(self._plan())
        self._follow()
        with self.whereabouts.during("end", self._done):
            return self._conclude() if self.stop.after is None else self._leave(self.stop.after)

    def _follow(self) -> None:
        try:
            for action in self.stop.follow(self.blueprint.schedule.actions(self.start)):
                with self._phase(action):
                    self._do(action)
            last = self.whereabouts.during("checkpoint", self._done, "last", act="write")
            with last, self.clock.saving():
                self.writer.wait()
            self.downstream.finish(len(self.stage.modules[-1].under_way.awaiting))
            self.upstream.finish()
        finally:
            self.writer.close()
            self.upstream.close()
            self.display.close()
            self.metrics.close()
            self.trace.write(self.folder.trace(self.place.rank), self.place.rank)

    @property
    def _done(self) -> int:
        """Optimizer steps at the end."""
        stopped = self.stop.after
        return self.blueprint.schedule.num_steps if stopped is None else stopped

    def _leave(self, step: int) -> NoReturn:
        self.stop.leave_together(TIMEOUT)
        error = StoppedError(step)
        self.display.announce([str(error)])
        raise error

    def _do(self, action: Action) -> None:
        match action:
            case Step():
                self.train(action)
            case Evaluate():
                self.evaluate(action)
            case Save():
                self.save(action)

    def _phase(self, action: Action) -> AbstractContextManager[None]:
        """What the watchdog takes an action for; steps that do the same are of one kind."""
        match action:
            case Step():
                kind = action.compare, action.reconcile
                return self.whereabouts.during("step", action.number + 1, kind)
            case Evaluate():
                return self.whereabouts.during("evaluation", action.number)
            case Save():
                # each of a kind of its own: storage may be slow at any time
                return self.whereabouts.during("checkpoint", action.number, action, act="write")

    def train(self, step: Step) -> None:
        """One optimizer step; on logged steps also the metrics."""
        self.writer.check()
        with self.clock.training():
            self.stage.train(step)
            if step.log:
                self._settle()
        if step.log:
            self._log(step)

    def evaluate(self, action: Evaluate) -> None:
        """Score every head on the test set."""
        with self.clock.training(steps=0):
            self._settle()
        batches = self.blueprint.schedule.test_batches
        with self.clock.evaluating():
            scores = self.stage.evaluate(batches, action.number)
            self.scores = metrics.of_scores(self.stage.modules, scores)
        if self.blueprint.config.train.on_nan == "fail":
            metrics.refuse_divergence(self.stage.modules, self.scores, action.number)
        self._publish("test", {"step": action.number, "modules": self.scores})

    def save(self, action: Save) -> None:
        """Begin to write this stage's modules."""
        with self.clock.training(steps=0):
            self._settle()
        with self.clock.saving():
            for module in self.stage.modules:
                module.guard.verify_weights(action.number)
            self.writer.save(self.stage.modules, action.number)

    def _settle(self) -> None:
        """Wait for the device; the only points at which modules can tell what they have refused."""
        metrics.settle(self.place.device)
        for module in self.stage.modules:
            module.guard.verify()

    def _plan(self) -> list[str]:
        """What has been derived, with its reasons."""
        own = self.place.explain(self.blueprint.config.parallel)
        lines = [explain(self.blueprint), self.blueprint.schedule.explain(), own]
        if self.place.rank:  # nobody sees them, and a profile need not be on every host
            return lines
        return [*lines, *profilefile.doubts(self.blueprint, self.place.device_name)]

    def _log(self, step: Step) -> None:
        facts = {
            "step": step.number + 1,
            "lr": step.lr,
            "samples_per_second": self.clock.pace(self.blueprint.config.data.batch_size),
            "seconds": self.trace.take_seconds(),
            **metrics.gpu(self.place.device),
            **self.skipped.facts(),
            "modules": metrics.of_step(self.stage.modules),
        }
        self._publish("train", facts)
        self.display.show(self.board.look("train"), self.board.look("test"))

    def _publish(self, topic: str, facts: Facts) -> None:
        self.metrics.write({"event": topic, **facts})
        self.board.pin(topic, facts)

    def _conclude(self) -> Facts:
        """Hand in this stage's results; the first rank writes and shows the summary."""
        self.whereabouts.enter("gathering the results", peer=EVERYONE)
        facts = {
            "modules": self.scores,
            "steps": self.blueprint.schedule.num_steps,
            "resumed_after": self.start,
            "peak_memory_bytes": metrics.peak_memory_bytes(self.place.device),
            "warnings": self.skipped.warnings() + metrics.warnings(self.stage.modules),
            **self.clock.facts(self.writer.device_seconds),
        }
        self.board.pin("result", facts)
        if self.place.rank == 0:
            facts = self._sum_up(self.board.gather("result", TIMEOUT))
        self.stop.leave_together(TIMEOUT)  # or rank 0 would sum up without anybody watching it
        return facts

    def _sum_up(self, results: list[Facts]) -> Facts:
        config, steps = self.blueprint.config, self.blueprint.schedule.num_steps - self.start
        plan = stage_times(self.blueprint, self.place.world_size, steps)
        facts = summary.combine(results, steps * config.data.batch_size, plan)
        self.checkpoints.prune(config.checkpoint.keep)  # all have written their last
        summary.write(facts, self.folder.summary)
        summary.show(describe(self.blueprint, self.place.world_size), facts)
        summary.warn(line for result in results for line in result["warnings"])
        return facts
