"""What the ranks agree on before anything is spent: the first one proposes, all others accept."""

from contextlib import ExitStack

import torch.distributed as dist

from pipeline_local import configfile
from pipeline_local.config import Config
from pipeline_local.data.images.datasets import describe
from pipeline_local.errors import RefusedElsewhereError, UserError
from pipeline_local.models import weights
from pipeline_local.pipeline.blueprint import Blueprint
from pipeline_local.pipeline.board import Board, Facts
from pipeline_local.pipeline.place import TIMEOUT, Place
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.screen import say


def check(config: Config, place: Place) -> Blueprint:
    """Draw the run, and refuse whatever can be refused before a rank starts to work.

    Args:
        config: of the run.
        place: any of the ranks that will run it.

    Raises:
        UserError: what the user must mend.
    """
    blueprint = Blueprint.draw(config, describe(config.data))
    blueprint.stages(place.world_size)
    place.wire_kind(config.parallel)
    if config.modules.profile is not None:
        blueprint.costs_of(place.world_size)
    if config.model.weights is not None:
        blueprint.check_weights(weights.load(config.model.weights))
    resume = config.run.resume or place.restarted
    RunFolder(config.run.dir).check(blueprint.config, blueprint.info.to_json(), resume)
    return blueprint


def propose(config: Config, place: Place, board: Board, run: ExitStack) -> Facts:
    """What the first rank alone knows, once it has checked everything and made the run folder.

    Args:
        config: of the run.
        place: this rank.
        board: where the first rank says it.
        run: for its time, the folder is this run's alone.

    Returns:
        config, info (of the data), step (to start from), complete (nothing is left to do).

    Raises:
        UserError: on the first rank, what the user must mend.
        RefusedElsewhereError: on all others, if the first rank refuses.
    """
    if place.rank > 0:
        return _hear(board)
    try:
        facts = _lead(config, place, run)
    except BaseException:
        board.pin("start", {"refused": True})
        raise
    board.pin("start", facts)
    return facts


def _lead(config: Config, place: Place, run: ExitStack) -> Facts:
    blueprint = check(config, place)
    config, info = blueprint.config, blueprint.info.to_json()
    folder = RunFolder(config.run.dir)
    run.enter_context(folder.claimed())
    checkpoints = Checkpoints(folder.checkpoints, len(blueprint.modules))
    step = checkpoints.latest() or 0  # reads and verifies all K files
    complete = step >= blueprint.schedule.num_steps and folder.summary.is_file()
    if not complete:  # a complete run stays as it is
        if step or config.run.resume:
            say(folder.going_on(config, step))
        folder.create(config, info)
        checkpoints.set_aside_after(step)
    return {
        "config": configfile.dump(config),
        "stages": _openings(blueprint, place),
        "info": info,
        "step": step,
        "complete": complete,
    }


def _openings(blueprint: Blueprint, place: Place) -> list[int]:
    return [part.start for part in blueprint.stages(place.world_size)]


def _hear(board: Board) -> Facts:
    try:
        facts = board.wait("start", 0, TIMEOUT)
    except dist.DistError:  # the first rank is gone, and has said why
        raise RefusedElsewhereError from None
    if facts.get("refused"):
        raise RefusedElsewhereError
    return facts


def accept(blueprint: Blueprint, place: Place, start: Facts) -> None:
    """This rank must mean the same run as the first, and see the same folder.

    Raises:
        UserError: it does not.
    """
    config = blueprint.config
    mine = configfile.dump(config), _openings(blueprint, place)
    if (start["config"], start["stages"]) != mine:
        raise UserError("this rank's configuration differs from the first rank's; make them equal")
    if not RunFolder(config.run.dir).config.is_file():
        raise UserError(
            f"run.dir: {config.run.dir} is not what the first rank sees there; name a folder on a"
            f" file system that all hosts share"
        )
    place.wire_kind(config.parallel)
