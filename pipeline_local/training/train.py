"""`train`: the ranks of a configuration meet, agree, make their modules and run them."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial

from pipeline_local.config import Config
from pipeline_local.configfile import configfile
from pipeline_local.console.screen import say
from pipeline_local.data.info import DataInfo
from pipeline_local.loggers.logger_process import LoggerProcess
from pipeline_local.pipeline.connect import open_replicas
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.call import on_ranks
from pipeline_local.ranks.caller import as_found
from pipeline_local.ranks.join import COLLECTIVE_TIMEOUT, joined
from pipeline_local.ranks.mesh import placing
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.free import FREE
from pipeline_local.training import agreement, preflight
from pipeline_local.training.callbacks import Callback, listed
from pipeline_local.training.starting import modules_of
from pipeline_local.training.trainer import Trainer
from pipeline_local.user_input.json_text import Facts
from pipeline_local.watch.status import EVERYONE, RankStatus
from pipeline_local.watch.stop import Stop
from pipeline_local.watch.store import RankStore
from pipeline_local.watch.watchdog import Watchdog


def train(
    config: Config,
    rank_info: RankInfo | None = None,
    callbacks: Sequence[Callback] = (),
    overridden: Collection[str] | None = None,
) -> Facts:
    """Run a configuration on this rank and, together with the others, on all of them.

    Args:
        config: the same on every rank.
        rank_info: this rank; None reads it from the launcher's environment. Without a launcher,
            `parallel.stages` ranks are started, and this process waits for them.
        callbacks: are called at the points of the run plan, on every rank.
        overridden: the keys named beside a configuration file: no other ones may differ from those
            of a run that is resumed; None: all are meant.

    Returns:
        What summary.json holds, on every rank.

    Raises:
        UserError: a mistake that the user must fix.
        StoppedError: a signal has asked to stop, and all ranks have saved the same step.

    Example:
        >>> short = ["data.limit=256", "train.epochs=1", "run.dir=runs/trained"]
        >>> config = load_config("configs/digits.yaml", short)
        >>> summary = train(config)
        >>> summary["steps"] > 0
        True
    """
    config = configfile.checked(config)
    own = (rank_info or RankInfo.from_environment()).placed(config.parallel)
    mesh = own.mesh(config.parallel)
    config, callbacks = config.on_stages(mesh.num_stages), listed(callbacks)
    with as_found(own.device):
        if rank_info is None and mesh.num_ranks > own.world_size:
            return _on_new_ranks(config, mesh.num_ranks, callbacks, overridden)
        return _on_this_rank(config, own, callbacks, overridden)


def _on_this_rank(
    config: Config,
    rank_info: RankInfo,
    callbacks: Sequence[Callback],
    overridden: Collection[str] | None,
) -> Facts:
    with ExitStack() as stack:
        follower = stack.enter_context(LoggerProcess())  # outermost: its end may wait for a network
        store = stack.enter_context(joined(rank_info, grouped=config.engine == "deepspeed"))
        if not rank_info.located:
            rank_info = rank_info.on_host(store).placed(config.parallel)
        rank_info.prepare(config.parallel)
        stack.enter_context(rank_info.repeatable())
        rank_store = RankStore(store, rank_info.rank, rank_info.world_size)
        # outside of the watchdog: a launcher that notices a dead rank signals all others, and one
        # of them must still report it
        stop = stack.enter_context(Stop(rank_store))
        config = agreement.share_replicas(config, rank_info, rank_store)
        mesh = rank_info.mesh(config.parallel)
        watchdog = Watchdog(rank_store, rank_info, config.parallel.timeout, mesh)
        stack.enter_context(watchdog)
        stack.enter_context(placing(mesh, rank_info.rank))
        stop.listen(lambda: watchdog.judged)
        at = watchdog.status
        placement, start = _agreed(config, rank_info, rank_store, at, stack, overridden)
        if start["complete"]:
            return _already_complete(placement, rank_store)
        kind = agreement.share_p2p_kind(config, rank_info, rank_store)
        replicas = open_replicas(mesh, rank_info, kind, at)
        at.enter("making the modules")
        with rank_store.unanimous("modules", COLLECTIVE_TIMEOUT):
            modules = modules_of(placement, rank_info, replicas, start["step"])
            if rank_info.rank == 0:
                follower.start(placement.blueprint.config, len(placement.stages), start["step"])
            at.enter("rendezvous", peer=EVERYONE)
        trainer = Trainer(
            placement=placement,
            rank_info=rank_info,
            rank_store=rank_store,
            stop=stop,
            status=at,
            modules=modules,
            kind=kind,
            start=start["step"],
            closing=stack.enter_context(ExitStack()),
            callbacks=callbacks,
        )
        return trainer.run()


def _agreed(
    config: Config,
    rank_info: RankInfo,
    rank_store: RankStore,
    at: RankStatus,
    run: ExitStack,
    overridden: Collection[str] | None,
) -> tuple[Placement, Facts]:
    """The run as all ranks have drawn it, and what the first rank has found out about it."""
    at.enter("checking the configuration", peer=0 if rank_info.rank else None)
    start, placement = agreement.propose(config, rank_info, rank_store, run, overridden)
    at.enter("drawing the run")
    with rank_store.unanimous("run", COLLECTIVE_TIMEOUT):
        if placement is None:  # the first rank has drawn it, to propose it
            info = DataInfo.from_json(start["info"])
            if config.run.dir == FREE:
                config = agreement.in_folder(config, start["folder"])
            stages = rank_info.mesh(config.parallel).num_stages
            placement = Placement.of(draw(config, info), stages)
        agreement.accept(placement, rank_info, start)
        if not start["complete"]:
            agreement.share_values(placement.blueprint.backbone, rank_info, at)
    return placement, start


def _on_new_ranks(
    config: Config, count: int, callbacks: Sequence[Callback], overridden: Collection[str] | None
) -> Facts:
    """Train on so many ranks of this host; the summary of the run."""
    preflight.check(config, RankInfo.of_host(count), overridden)
    on_ranks(count, partial(train, config, callbacks=callbacks, overridden=overridden))
    return RunFolder(config.run.dir).load_summary()


def _already_complete(placement: Placement, rank_store: RankStore) -> Facts:
    """Nothing is left to do: the summary that is there stays as it is."""
    folder = placement.blueprint.config.run.dir
    if rank_store.rank == 0:
        say(placement.blueprint.run_plan.complete(folder))
    return RunFolder(folder).load_summary()
