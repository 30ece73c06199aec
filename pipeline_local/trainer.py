"""config -> modules -> stage -> the schedule."""

import json
from contextlib import AbstractContextManager
from typing import NoReturn

import torch

from pipeline_local.agreement import accept, propose
from pipeline_local.config import Config
from pipeline_local.data.datasets import DataInfo
from pipeline_local.errors import StoppedError
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.models import weights
from pipeline_local.pipeline.blueprint import Blueprint
from pipeline_local.pipeline.board import Board, Facts
from pipeline_local.pipeline.place import TIMEOUT, Kind, Place, common_kind, joined, wires
from pipeline_local.pipeline.schedule import Action, Evaluate, Save
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.stage import Nowhere, Stage
from pipeline_local.pipeline.stop import Stop
from pipeline_local.pipeline.transport import Receiver, Sender
from pipeline_local.record import metrics, summary
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.progress import Progress, Silent
from pipeline_local.record.trace import Trace
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
    _set_up_torch(config, place)
    with joined(place) as store:
        board = Board(store, place.rank, place.world_size)
        start = propose(config, place, board)
        with board.unanimous(TIMEOUT):
            accept(config, place, start)
            blueprint = Blueprint.draw(config, DataInfo.from_json(start["info"]))
            if start["complete"]:
                return _already_complete(config, board)
            modules = _modules(blueprint, place, start["step"])
        board.pin("wire", {"kind": place.wire_kind(config.parallel)})
        kind = common_kind([facts["kind"] for facts in board.gather("wire", TIMEOUT)])
        return Trainer(blueprint, place, board, modules, kind, start["step"]).run()


def _set_up_torch(config: Config, place: Place) -> None:
    torch.set_num_threads(place.threads(config.parallel))
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
        # float32 means float32: TF32 would drown the small differences of finite differences
        torch.backends.cudnn.allow_tf32 = False


def _modules(blueprint: Blueprint, place: Place, step: int) -> list[LocalModule]:
    """This stage's modules: fresh, from a state dict, or from the checkpoint at `step`."""
    config = blueprint.config
    numbers = blueprint.stages(place.world_size)[place.rank]
    modules = [blueprint.module(index, place.device) for index in numbers]
    if step:
        checkpoints = Checkpoints(RunFolder(config.run.dir).checkpoints, config.modules.count)
        for module in modules:
            checkpoints.load(module, step)
    elif config.model.weights is not None:
        state = weights.load(config.model.weights)
        for module in modules:
            blueprint.load_weights(module, state)
    return modules


def _already_complete(config: Config, board: Board) -> Facts:
    """Nothing is left to do: the summary that is there stays as it is."""
    summary_file = RunFolder(config.run.dir).summary
    facts: Facts = json.loads(summary_file.read_text())
    if board.rank == 0:
        steps = facts["steps"]
        print(f"{config.run.dir} is complete after {steps} steps; raise train.epochs to go on")
    return facts


class Trainer:
    """One rank of a run: its stage, and what it does at each point of the schedule.

    Args:
        blueprint: the run.
        place: this rank; its stage has the same number.
        board: where the ranks tell each other how far they are.
        modules: of this stage.
        kind: how the ranks talk.
        start: optimizer steps already done.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        place: Place,
        board: Board,
        modules: list[LocalModule],
        kind: Kind,
        start: int,
    ) -> None:
        config = blueprint.config
        folder = RunFolder(config.run.dir)
        self.blueprint = blueprint
        self.place = place
        self.board = board
        self.start = start
        self.folder = folder
        self.stop = Stop(board)
        self.checkpoints = Checkpoints(folder.checkpoints, config.modules.count)
        self.writer = Writer(self.checkpoints, config.checkpoint.keep)
        self.trace = Trace()
        self.metrics = metrics.Metrics(folder.metrics(place.rank))
        self.clock = metrics.Clock()
        self.scores: dict[str, dict[str, float]] = {}
        self.kind = kind
        self.upstream, self.downstream = self._edges()
        self.stage = Stage(modules, self.upstream, self.downstream, self.trace)
        self.display = self._display()

    def run(self) -> Facts:
        """Follow the schedule to its end, or until a signal asks to stop."""
        with self.stop.listening():
            self.display.announce(self._plan())
            self._follow()
            return self._conclude() if self.stop.after is None else self._leave(self.stop.after)

    def _follow(self) -> None:
        try:
            for action in self.stop.follow(self.blueprint.schedule.actions(self.start)):
                self._do(action)
            with self.clock.saving():
                self.writer.wait()
            self.downstream.close()
        finally:
            self.writer.close()
            self.upstream.close()
            self.display.close()
            self.metrics.close()
            self.trace.write(self.folder.trace(self.place.rank), self.place.rank)

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

    def train(self, step: Step) -> None:
        """One optimizer step; on logged steps also the metrics."""
        self.writer.check()
        with self._training_clock():
            self.stage.train(step)
            if step.log:
                metrics.settle(self.place.device)
        if step.log:
            self._log(step)

    def evaluate(self, action: Evaluate) -> None:
        """Score every head on the test set."""
        with self._training_clock(steps=0):
            metrics.settle(self.place.device)
        batches = self.blueprint.schedule.test_batches
        scores = self.stage.evaluate(batches, action.number)
        self.scores = metrics.of_scores(self.stage.modules, scores)
        self._publish("test", {"step": action.number, "modules": self.scores})

    def save(self, action: Save) -> None:
        """Begin to write this stage's modules."""
        with self.clock.saving():
            self.writer.save(self.stage.modules, action.number)

    def _training_clock(self, steps: int = 1) -> AbstractContextManager[None]:
        return self.clock.training(lambda: self.upstream.waited + self.downstream.waited, steps)

    def _plan(self) -> list[str]:
        """What has been derived, with its reasons."""
        blueprint = self.blueprint
        lines = [blueprint.explain(), blueprint.schedule.explain()]
        lines.append(self.place.explain(blueprint.config.parallel))
        if self.start:
            lines.append(f"resuming after step {self.start}")
        return lines

    def _log(self, step: Step) -> None:
        facts = {
            "step": step.number + 1,
            "lr": step.lr,
            "samples_per_second": self.clock.pace(self.blueprint.config.data.batch_size),
            "seconds": self.trace.take_seconds(),
            **metrics.gpu(self.place.device),
            "modules": metrics.of_step(self.stage.modules),
        }
        self._publish("train", facts)
        self.display.show(self.board.look("train"), self.board.look("test"))

    def _publish(self, topic: str, facts: Facts) -> None:
        metrics.refuse_divergence(facts)
        self.metrics.write({"event": topic, **facts})
        self.board.pin(topic, facts)

    def _conclude(self) -> Facts:
        """Hand in this stage's results; the first rank writes and shows the summary."""
        facts = {
            "modules": self.scores,
            "steps": self.blueprint.schedule.num_steps,
            "peak_memory_bytes": metrics.peak_memory_bytes(self.place.device),
            "waits_seen": self.kind != "nccl",
            **self.clock.facts(self.writer.device_seconds),
        }
        self.board.pin("result", facts)
        if self.place.rank > 0:
            return facts
        steps = self.blueprint.schedule.num_steps - self.start
        samples = steps * self.blueprint.config.data.batch_size
        facts = summary.combine(self.board.gather("result", TIMEOUT), samples)
        self.checkpoints.prune(self.blueprint.config.checkpoint.keep)  # all have written their last
        summary.write(facts, self.folder.summary)
        summary.show(self.blueprint.describe(self.place.world_size), facts)
        return facts

    def _edges(self) -> tuple[Source | Receiver, Nowhere | Sender]:
        blueprint, place = self.blueprint, self.place
        schedule, start = blueprint.schedule, self.start
        up, down = wires(place, self.kind)
        numbers = blueprint.stages(place.world_size)[place.rank]
        upstream: Source | Receiver
        if up is None:
            steps = range(start, schedule.num_steps)
            actions = schedule.actions(start)
            upstream = Source(
                blueprint.config, blueprint.info, actions, steps, place.device, blueprint.dtype
            )
        else:
            contract = blueprint.contract(numbers[0] - 1)
            upstream = Receiver(up, contract.traffic(schedule, start))
        if down is None:
            return upstream, Nowhere()
        return upstream, Sender(down, blueprint.contract(numbers[-1]).traffic(schedule, start))

    def _display(self) -> Progress | Silent:
        return Silent() if self.place.rank else Progress(self.blueprint.schedule.num_steps)
