"""One rank of a run: its stage follows the run plan."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import NoReturn

from pipeline_local.blueprint.run_plan import Action, Evaluate, Save
from pipeline_local.console.screen import warn
from pipeline_local.data.datasets import passed_over
from pipeline_local.data.skipped import Skipped
from pipeline_local.errors import StoppedError
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.connect import connect, open_edges
from pipeline_local.pipeline.stage import Stage
from pipeline_local.placement import profile_file
from pipeline_local.placement.describe import describe, explain
from pipeline_local.placement.placement import Placement, costs_by_device
from pipeline_local.ranks.join import COLLECTIVE_TIMEOUT
from pipeline_local.ranks.p2p import P2PKind
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record import measurements, summary
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.choice import recorded
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.live import display
from pipeline_local.record.metrics import Metrics
from pipeline_local.record.peak_memory import peak_memory, peak_memory_bytes
from pipeline_local.record.recorder import Recorder
from pipeline_local.record.resuming import how, uses
from pipeline_local.record.wall_time import WallTime, settle
from pipeline_local.record.writer import Writer
from pipeline_local.training.callbacks import Callback, Callbacks, Run
from pipeline_local.user_input.json_text import Facts
from pipeline_local.watch.lead import Lead, lead
from pipeline_local.watch.status import EVERYONE, RankStatus
from pipeline_local.watch.stop import Stop
from pipeline_local.watch.store import RankStore


class Trainer:
    """One rank of a run: its stage, and what it does at each point of the run plan.

    Args:
        placement: of the run.
        rank_info: this rank.
        rank_store: where the ranks tell each other how far they are.
        stop: may end the run plan early.
        status: what this rank is doing, for the watchdog.
        modules: of this stage.
        kind: how the ranks talk.
        start: optimizer steps already done.
        closing: ends, in any case, what this has opened.
        callbacks: are called at the points of the run plan.
    """

    def __init__(
        self,
        placement: Placement,
        rank_info: RankInfo,
        rank_store: RankStore,
        stop: Stop,
        status: RankStatus,
        modules: list[LocalModule],
        kind: P2PKind,
        start: int,
        closing: ExitStack,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        blueprint, config = placement.blueprint, placement.blueprint.config
        folder = RunFolder(config.run.dir)
        self.placement = placement
        self.blueprint = blueprint
        self.rank_info = rank_info
        self.rank_store = rank_store
        self.status = status
        self.start = start
        self.batch_size = config.data.batch_size
        self.folder = folder
        self.stop = stop
        self.checkpoints = Checkpoints.of(blueprint)
        mesh, rank = placement.mesh, rank_info.rank
        self._closing = closing  # in reverse; what comes later may raise in the making
        self.recorder = Recorder(config.trace, folder, rank_info, rank_store, status, mesh)
        closing.push(lambda _, error, __: self.recorder.write(failed=error is not None))
        self.trace = self.recorder.trace
        self.writer = Writer(self.checkpoints, config.checkpoint.keep, self.trace)
        closing.callback(self.writer.close)
        stage, replica = mesh.stage(rank), mesh.replica(rank)
        self.metrics = Metrics(
            folder.metrics(stage, replica),
            {"stage": stage} | ({"replica": replica} if mesh.is_replicated else {}),
            blueprint.run_plan.steps_per_epoch,
            rank_info,
        )
        closing.callback(self.metrics.close)
        self.utilization = placement.utilization(rank_info)
        self.scores: dict[str, dict[str, float]] = {}
        self.skipped = Skipped()
        ends = open_edges(blueprint, rank_info, kind, status, mesh)
        self.upstream, self.downstream = connect(
            blueprint, placement.stages[stage], rank_info, ends, start, mesh, self.skipped
        )
        closing.callback(self.upstream.close)
        self.callbacks = Callbacks(callbacks)
        self.run_facts = self._run_facts(modules)
        self.stage = Stage(modules, self.upstream, self.downstream, self.trace)
        self.lead = Lead(rank_info.device, self._waiting_for_others)
        self._steps_ahead = lead(kind)
        self.clock = WallTime(lambda: self.upstream.waited, lambda: self.downstream.waited)
        self.display = display(blueprint, placement.stages, rank_info.rank, start)
        closing.callback(self.display.close)

    def _run_facts(self, modules: list[LocalModule]) -> Run:
        task = self.blueprint.task
        return Run(
            config=self.blueprint.config,
            folder=self.folder.path,
            modules=modules,
            parts=[part for module in modules for part in self.blueprint.parts(module)],
            rank=self.rank_info.rank,
            replica=modules[0].replicas.index,
            is_last=self.blueprint.is_last(modules[-1].index),
            metric=task.metric,
            better=task.better,
            plan=self.blueprint.run_plan,
            checkpoints=self.checkpoints,
            stop=self.stop.request,
        )

    def run(self) -> Facts:
        """Follow the run plan to its end, or until a signal asks to stop."""
        self.display.announce(self._plan())
        self._follow()
        with self.status.during("end", self._done):
            return self._leave(self._done) if self.stop.by_signal else self._conclude()

    def _follow(self) -> None:
        with self._closing:
            self.callbacks.on_start(self.run_facts, self.start)
            actions = self.blueprint.run_plan.actions(self.start)
            for action in self.stop.follow(actions, self._steps_ahead):
                with self._phase(action):
                    self.recorder.reach(self.status.now.step)
                    self._do(action)
            last = self.status.during("checkpoint", self._done, "last", act="write")
            with last, self.clock.saving():
                self.writer.wait()
            # what is still on its way upstream is part of the last checkpoint, and is taken here
            self.downstream.finish(self._done)
            self.upstream.finish()
            with self.status.during("end", self._done):
                self.recorder.align()

    @property
    def _done(self) -> int:
        """Optimizer steps at the end."""
        stopped = self.stop.after
        return self.blueprint.run_plan.num_steps if stopped is None else stopped

    def _leave(self, step: int) -> NoReturn:
        self.stop.leave_together(COLLECTIVE_TIMEOUT)
        error = StoppedError(step, how(self.folder.path, self.blueprint.config))
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
                return self.status.during("step", action.number + 1, kind)
            case Evaluate():
                return self.status.during("evaluation", action.number)
            case Save():
                # each of a kind of its own: storage may be slow at any time
                return self.status.during("checkpoint", action.number, action, act="write")

    def train(self, step: Step) -> None:
        """Run one optimizer step of every module; on logged steps also write the metrics."""
        self.writer.check()
        with self.clock.training():
            self.stage.train(step)
            if self.rank_info.rank > 0:  # the first one decides where all stop, and asks nobody
                self.lead.queued()
            if step.log:
                self._settle()
        if step.log:
            with self.trace.beside("log", step.number):
                self._log(step)
        self.callbacks.on_step(self.run_facts, step.number + 1)

    def evaluate(self, action: Evaluate) -> None:
        """Score every head on the test set."""
        with self.clock.training(steps=0):
            self._settle()
        batches, train = self.blueprint.run_plan.test_batches, self.blueprint.config.train
        with self.clock.evaluating():
            scores = self.stage.evaluate(batches, action.number, train.microbatches)
            self.scores = measurements.of_scores(self.stage.modules, scores)
        if train.on_nan == "fail":
            measurements.refuse_divergence(self.stage.modules, self.scores, action.number)
        self._publish("test", {"step": action.number, "modules": self.scores})
        self.callbacks.on_evaluation(self.run_facts, action.number, self.scores)

    def save(self, action: Save) -> None:
        """Begin to write this stage's modules."""
        with self.clock.training(steps=0):
            self._settle()
        with self.clock.saving(), self.trace.beside("save", action.number - 1):
            for module in self.stage.modules:
                module.guard.verify_weights(action.number)
            self.writer.save(self.stage.modules, action.number)
        self.callbacks.on_checkpoint(self.run_facts, action.number)

    def _settle(self) -> None:
        """Wait for the device; the only points at which modules can tell what they have refused."""
        with self._waiting_for_others():
            settle(self.rank_info.device)
        for module in self.stage.modules:
            module.guard.verify()

    def _waiting_for_others(self) -> AbstractContextManager[None]:
        """While the host waits for its device, which may wait for what other ranks send to it."""
        alone = self.rank_info.rank == 0 and self.stage.replicas.size == 1
        return nullcontext() if alone else self.status.waiting(EVERYONE)

    def _plan(self) -> list[str]:
        """What has been derived, with its reasons."""
        own = self.rank_info.explain(self.blueprint.config.parallel)
        lines = [explain(self.blueprint), self.blueprint.run_plan.explain(), own]
        if self.rank_info.rank:  # shown by the first rank only, whose host has data and profile
            return lines
        lines += passed_over(self.blueprint.config.data)
        if self.blueprint.config.modules.profile is None:
            return lines
        measured = costs_by_device(self.blueprint)[0]
        return [*lines, *profile_file.doubts(measured, self.rank_info.device_name)]

    def _log(self, step: Step) -> None:
        pace, (waiting_up, waiting_down) = self.clock.pace(self.batch_size)
        facts = {
            "step": step.number + 1,
            "lr": step.lr,
            "samples_per_second": pace,
            "waiting_up": waiting_up,
            "waiting_down": waiting_down,
            "seconds": self.trace.take_seconds(),
            "memory_bytes": peak_memory_bytes(self.rank_info.device),
            **self.metrics.telemetry.facts(),
            **self.utilization.facts(pace),
            **self.skipped.facts(),
            "modules": measurements.of_step(self.stage.modules),
        }
        self._publish("train", facts)
        self.callbacks.on_log(self.run_facts, facts)
        self.display.show(self.rank_store.get_all("train"), self.rank_store.get_all("test"))

    def _publish(self, topic: str, facts: Facts) -> None:
        facts = self.metrics.placed(facts)
        self.metrics.write({"event": topic, **facts})
        self.rank_store.set(topic, facts)

    def _conclude(self) -> Facts:
        """Hand in this stage's results; the first rank writes and shows the summary."""
        self.status.enter("gathering the results", peer=EVERYONE)
        facts = {
            "modules": self.scores,
            "steps": self._done,
            "resumed_after": self.start,
            **peak_memory(self.rank_info.device),
            "warnings": self.skipped.warnings() + measurements.warnings(self.stage.modules),
            **self.clock.facts(self.writer.device_seconds),
        }
        self.rank_store.set("result", facts)
        if self.rank_info.rank == 0:
            facts = self._sum_up(self.rank_store.gather("result", COLLECTIVE_TIMEOUT))
            self.rank_store.set("summary", facts)
        facts = self.rank_store.wait("summary", 0, COLLECTIVE_TIMEOUT)
        self.stop.leave_together(COLLECTIVE_TIMEOUT)  # or rank 0 would sum up unwatched
        self.callbacks.on_end(self.run_facts, facts)
        return facts

    def _sum_up(self, results: list[Facts]) -> Facts:
        steps = self._done - self.start
        plan, mesh = self.placement.stage_times(steps), self.placement.mesh
        stages = [[results[rank] for rank in mesh.ranks(s)] for s in range(mesh.num_stages)]
        facts = summary.combine([*map(summary.of_stage, stages)], steps * self.batch_size, plan)
        if not self.scores:  # stopped before its first evaluation
            facts = recorded(self.folder, self.start, len(self.blueprint.modules)) | facts
        if tokens := self.blueprint.task.tokens:
            facts["tokens_per_second"] = round(facts["samples_per_second"] * tokens, 1)
        self.checkpoints.prune(self.blueprint.config.checkpoint.keep)  # all have written their last
        summary.write(facts, self.folder.summary)
        self.recorder.conclude()
        last = uses(self.folder.path, self.blueprint.config)
        summary.show(describe(self.placement), facts, self.blueprint.task, last)
        warn(*dict.fromkeys(line for result in results for line in result["warnings"]))
        return facts
