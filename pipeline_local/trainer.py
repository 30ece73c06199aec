"""config -> modules -> stage -> the schedule."""

import json

import torch
import torch.distributed as dist

from pipeline_local import configfile
from pipeline_local.config import Config
from pipeline_local.data.datasets import DataInfo, describe
from pipeline_local.errors import EXIT_USER_ERROR, UserError
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.models import weights
from pipeline_local.pipeline.blueprint import Blueprint
from pipeline_local.pipeline.board import Board, Facts
from pipeline_local.pipeline.place import TIMEOUT, Place, joined, wires
from pipeline_local.pipeline.schedule import Evaluate, Save
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.stage import Nowhere, Stage
from pipeline_local.pipeline.transport import Receiver, Sender
from pipeline_local.record import metrics, summary
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.progress import Progress, Silent
from pipeline_local.record.trace import Trace


def train(config: Config, place: Place | None = None) -> Facts:
    """Run a configuration on this rank and, together with the others, on all of them.

    Args:
        config: the same on every rank.
        place: this rank; None reads it from the launcher's environment.

    Returns:
        What summary.json holds; on any rank but the first, this stage's own part of it.

    Raises:
        UserError: what the user must mend.
    """
    place = place or Place.from_environment()
    place.num_stages(config.parallel)
    torch.set_num_threads(place.threads(config.parallel))
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    with joined(place) as store:
        board = Board(store, place.rank, place.world_size)
        info, start = _agree(config, place, board)
        blueprint = Blueprint.draw(config, info)
        if start >= blueprint.schedule.num_steps:
            return _already_complete(config, board, start)
        return Trainer(blueprint, place, board, start).run()


def check(config: Config, place: Place) -> DataInfo:
    """Refuse whatever can be refused before a rank starts to work.

    Args:
        config: of the run.
        place: any of the ranks that will run it.

    Raises:
        UserError: what the user must mend.
    """
    info = describe(config.data)
    blueprint = Blueprint.draw(config, info)
    blueprint.stages(place.world_size)
    place.wire_kind(config.parallel)
    if config.model.weights is not None:
        blueprint.check_weights(weights.load(config.model.weights))
    RunFolder(config.run.dir).check(config.run.resume)
    return info


def _agree(config: Config, place: Place, board: Board) -> tuple[DataInfo, int]:
    """Facts of the data and the step to start from, once every rank has found nothing amiss.

    The rank that refuses explains itself; all others then end in silence, exit code 2.
    """
    return _lead(config, place, board) if board.rank == 0 else _follow(config, board)


def _lead(config: Config, place: Place, board: Board) -> tuple[DataInfo, int]:
    """The first rank checks everything, makes the run folder, and tells what only it knows."""
    try:
        info = check(config, place)
        folder = RunFolder(config.run.dir)
        folder.create(config)
    except UserError:
        board.pin("start", {"refused": True})
        raise
    start = Checkpoints(folder.checkpoints, config.modules.count).latest() or 0
    text = configfile.dump(config)
    board.pin("start", {"config": text, "info": info.to_json(), "step": start})
    answers = [board.wait("ready", rank, TIMEOUT) for rank in range(1, place.world_size)]
    refused = any(answer["refused"] for answer in answers)
    board.pin("go", {"refused": refused})
    if refused:
        raise SystemExit(EXIT_USER_ERROR)
    return info, start


def _follow(config: Config, board: Board) -> tuple[DataInfo, int]:
    """The other ranks compare notes with the first."""
    facts = _hear("start", board)
    same = facts["config"] == configfile.dump(config)
    board.pin("ready", {"refused": not same})
    if not same:
        raise UserError("this rank's configuration differs from the first rank's; make them equal")
    _hear("go", board)
    return DataInfo.from_json(facts["info"]), facts["step"]


def _hear(topic: str, board: Board) -> Facts:
    try:
        facts = board.wait(topic, 0, TIMEOUT)
    except dist.DistError:
        raise SystemExit(EXIT_USER_ERROR) from None  # the first rank is gone, and has said why
    if facts.get("refused"):
        raise SystemExit(EXIT_USER_ERROR)
    return facts


def _already_complete(config: Config, board: Board, start: int) -> Facts:
    """Nothing is left to do: the summary that is there stays as it is."""
    folder = RunFolder(config.run.dir)
    if board.rank == 0:
        print(f"{folder.path} is complete after {start} steps; raise train.epochs to go on")
    facts: Facts = json.loads(folder.summary.read_text()) if folder.summary.is_file() else {}
    return facts


class Trainer:
    """One rank of a run: its stage, and what it does at each point of the schedule.

    Args:
        blueprint: the run.
        place: this rank; its stage has the same number.
        board: where the ranks tell each other how far they are.
        start: optimizer steps already done.
    """

    def __init__(self, blueprint: Blueprint, place: Place, board: Board, start: int) -> None:
        config = blueprint.config
        folder = RunFolder(config.run.dir)
        self.blueprint = blueprint
        self.place = place
        self.board = board
        self.start = start
        self.folder = folder
        self.checkpoints = Checkpoints(folder.checkpoints, config.modules.count)
        self.trace = Trace()
        self.metrics = metrics.Metrics(folder.metrics(place.rank))
        self.clock = metrics.Clock()
        self.scores: dict[str, dict[str, float]] = {}
        self.upstream, self.downstream = self._edges()
        self.stage = Stage(self._modules(), self.upstream, self.downstream, self.trace)
        self.display = self._display()

    def run(self) -> Facts:
        """Follow the schedule to its end."""
        self.display.announce(self._plan())
        for action in self.blueprint.schedule.actions(self.start):
            match action:
                case Step():
                    self.train(action)
                case Evaluate():
                    self.evaluate(action)
                case Save():
                    self.save(action)
        return self._finish()

    def train(self, step: Step) -> None:
        """One optimizer step; on logged steps also the metrics."""
        with self.clock.training(lambda: self.upstream.waited + self.downstream.waited):
            self.stage.train(step)
        if step.log:
            self._log(step)

    def evaluate(self, action: Evaluate) -> None:
        """Score every head on the test set."""
        batches = self.blueprint.schedule.test_batches
        scores = self.stage.evaluate(batches, action.number)
        self.scores = metrics.of_scores(self.stage.modules, scores)
        self._publish("test", {"step": action.number, "modules": self.scores})

    def save(self, action: Save) -> None:
        """Write this stage's modules."""
        with self.clock.saving():
            self.checkpoints.save(self.stage.modules, action.number)
            self.checkpoints.prune(self.blueprint.config.checkpoint.keep)

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
        self.metrics.write({"event": topic, **facts})
        self.board.pin(topic, facts)

    def _finish(self) -> Facts:
        self.downstream.close()
        self.upstream.close()
        self.display.close()
        self.metrics.close()
        self.trace.write(self.folder.trace(self.place.rank), self.place.rank)
        facts = {
            "modules": self.scores,
            "steps": self.blueprint.schedule.num_steps,
            "peak_memory_bytes": metrics.peak_memory_bytes(self.place.device),
            **self.clock.facts(),
        }
        self.board.pin("result", facts)
        if self.place.rank > 0:
            return facts
        return self._conclude(self.board.gather("result", TIMEOUT))

    def _conclude(self, stages: list[Facts]) -> Facts:
        """The first rank: write and show the summary."""
        steps = self.blueprint.schedule.num_steps - self.start
        facts = summary.combine(stages, steps * self.blueprint.config.data.batch_size)
        summary.write(facts, self.folder.summary)
        summary.show(self.blueprint.describe(self.place.world_size), facts)
        return facts

    # ---- assembly ---------------------------------------------------------------------------

    def _modules(self) -> list[LocalModule]:
        """This stage's modules: fresh, from a state dict, or from the newest checkpoint."""
        blueprint, path = self.blueprint, self.blueprint.config.model.weights
        numbers = blueprint.stages(self.place.world_size)[self.place.rank]
        modules = [blueprint.module(index, self.place.device) for index in numbers]
        if self.start:
            for module in modules:
                self.checkpoints.load(module, self.start)
        elif path is not None:
            state = weights.load(path)
            for module in modules:
                blueprint.load_weights(module, state)
        return modules

    def _edges(self) -> tuple[Source | Receiver, Nowhere | Sender]:
        blueprint, place = self.blueprint, self.place
        schedule, start = blueprint.schedule, self.start
        up, down = wires(place, place.wire_kind(blueprint.config.parallel))
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
