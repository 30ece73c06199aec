"""What the ranks agree on before any work is done: the first one proposes, all others accept."""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline_local.config import Config
from pipeline_local.configfile import configfile
from pipeline_local.console.screen import say
from pipeline_local.errors import RefusedElsewhereError, UserError
from pipeline_local.learning.compiler import try_compiler
from pipeline_local.models.backbone import Backbone
from pipeline_local.pipeline.connect import together
from pipeline_local.placement.placement import Placement
from pipeline_local.placement.replication import resolved
from pipeline_local.ranks.join import COLLECTIVE_TIMEOUT
from pipeline_local.ranks.p2p import HOST_BACKEND, P2PKind, common
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.free import FREE, reserved
from pipeline_local.training import preflight
from pipeline_local.training.preflight import check_weights
from pipeline_local.user_input.json_text import Facts
from pipeline_local.watch.status import RankStatus
from pipeline_local.watch.store import RankStore


def propose(
    config: Config,
    rank_info: RankInfo,
    rank_store: RankStore,
    run: ExitStack,
    overridden: Collection[str] | None = None,
) -> tuple[Facts, Placement | None]:
    """Returns what only the first rank finds out, by checking the run and making its folder.

    Args:
        config: the configuration of the run.
        rank_info: this rank.
        rank_store: the store through which the first rank informs the others.
        run: a stack; until it closes, no other run can use the folder.
        overridden: as for `preflight.check`.

    Returns:
        The facts: config, folder, stages, info (of the data), step (to start from), complete
        (nothing is left to do). And on the first rank the placement, which it has drawn for that.

    Raises:
        UserError: on the first rank, a mistake that the user must fix.
        RefusedElsewhereError: on all others, if the first rank refuses.
    """
    if rank_info.rank > 0:
        return _receive(rank_store, "start"), None
    try:
        if config.run.dir == FREE:
            config = in_folder(config, str(run.enter_context(reserved())))
        placement = preflight.check(config, rank_info, overridden)
        if config.compile:
            try_compiler(rank_info.device)
        facts = _lead(placement, run, overridden, config.run.resume or rank_info.restarted)
    except BaseException:
        rank_store.set("start", {"refused": True})
        raise
    rank_store.set("start", facts)
    return facts, placement


def share_replicas(config: Config, rank_info: RankInfo, rank_store: RankStore) -> Config:
    """Returns the configuration with the replicas that the first rank finds for
    `parallel.replicas=auto`; all of them call it.

    Raises:
        UserError: on the first rank, a mistake that the user must fix.
        RefusedElsewhereError: on all others, if the first rank refuses.
    """
    if config.parallel.replicas != "auto":
        return config
    if rank_info.rank == 0:
        try:
            found = resolved(config, rank_info.world_size).parallel.replicas
        except BaseException:
            rank_store.set("replicas", {"refused": True})
            raise
        rank_store.set("replicas", {"of each stage": found})
    facts = _receive(rank_store, "replicas")
    replicas = tuple(facts["of each stage"])
    return replace(config, parallel=replace(config.parallel, replicas=replicas))


def _lead(
    placement: Placement, run: ExitStack, overridden: Collection[str] | None, resume: bool
) -> Facts:
    blueprint = placement.blueprint
    config, info = blueprint.config, blueprint.info.to_json()
    folder = RunFolder(config.run.dir)
    run.enter_context(folder.claimed())
    checkpoints = Checkpoints.of(blueprint)
    begun = resume and checkpoints.begun()
    folder.check(
        config, info, resume, overridden, begun
    )  # another run may have ended there meanwhile
    step = checkpoints.latest() or 0  # reads and verifies all K files
    if begun and not step:  # none of them counts
        folder.check(config, info, True, overridden, begun=False)
        check_weights(blueprint)
    blueprint.run_plan.refuse_shorter(step)
    complete = step == blueprint.run_plan.num_steps and folder.is_concluded(step)
    if not complete:  # a complete run stays as it is
        if step or config.run.resume:
            say(folder.describe_resume(config, step) + blueprint.run_plan.stand(step))
        folder.create(folder.to_write(config, overridden) if step else config, info)
        folder.add_start(step, placement.mesh.num_ranks, blueprint.device.type)
        checkpoints.set_aside_after(step)
    return {
        "config": configfile.dump(config),
        "folder": str(config.run.dir),
        "stages": _openings(placement),
        "info": info,
        "step": step,
        "complete": complete,
    }


def in_folder(config: Config, path: str) -> Config:
    """Returns the configuration with another run.dir."""
    return replace(config, run=replace(config.run, dir=Path(path)))


def _openings(placement: Placement) -> list[int]:
    return [part.start for part in placement.stages]


def _receive(rank_store: RankStore, topic: str) -> Facts:
    try:
        facts = rank_store.wait(topic, 0, COLLECTIVE_TIMEOUT)
    except dist.DistError:  # the first rank is gone, and has reported why
        raise RefusedElsewhereError from None
    if facts.get("refused"):
        raise RefusedElsewhereError
    return facts


def accept(placement: Placement, rank_info: RankInfo, start: Facts) -> None:
    """Checks that this rank has the same run as the first, and sees the same folder.

    Args:
        placement: the run as this rank has drawn it.
        rank_info: this rank.
        start: what the first rank has proposed.

    Raises:
        UserError: it does not.
    """
    config = placement.blueprint.config
    mine = configfile.dump(config), _openings(placement)
    if (start["config"], start["stages"]) != mine:
        raise UserError("this rank's configuration differs from the first rank's; make them equal")
    if not RunFolder(config.run.dir).config.is_file():
        raise UserError(
            f"run.dir: {config.run.dir} is not what the first rank sees there; name a folder on a"
            f" file system that all hosts share"
        )
    rank_info.p2p_kind(config.parallel)


def share_p2p_kind(config: Config, rank_info: RankInfo, rank_store: RankStore) -> P2PKind:
    """Returns how the ranks talk, which all of them can; all of them call it."""
    rank_store.set("p2p kind", {"kind": rank_info.p2p_kind(config.parallel)})
    return common([facts["kind"] for facts in rank_store.gather("p2p kind", COLLECTIVE_TIMEOUT)])


def share_values(backbone: Backbone, rank_info: RankInfo, status: RankStatus) -> None:
    """Give all ranks the weights that the first one's model came with; all of them call it.

    Each rank of a launched program makes the model itself, perhaps from another random state.

    Raises:
        NeighbourLostError: another rank is gone.
    """
    if rank_info.world_size == 1:
        return
    blocks = *backbone.blocks, backbone.classifier
    if not any(block.values for block in blocks):
        return
    with together(status):
        group = dist.new_group(backend=HOST_BACKEND)  # that of all ranks may be for GPUs alone
    assert isinstance(group, dist.ProcessGroup), "every rank is in it"
    for block in blocks:
        for value in (block.values or {}).values():
            shared = value.detach().cpu().contiguous()
            with together(status):
                dist.broadcast(shared, src=0, group=group)
            with torch.no_grad():
                value.copy_(shared)
