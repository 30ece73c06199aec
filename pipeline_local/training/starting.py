"""What a rank starts with: its modules, fresh or as a checkpoint has them."""

from pipeline_local.console.screen import warn
from pipeline_local.engines.replicas import Replicas
from pipeline_local.learning.module import LocalModule
from pipeline_local.models import weights
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.checkpoint import Checkpoints


def modules_of(
    placement: Placement, rank_info: RankInfo, replicas: Replicas, step: int
) -> list[LocalModule]:
    """Returns this rank's modules: fresh, from a state dict, or from the checkpoint at `step`."""
    blueprint = placement.blueprint
    config = blueprint.config
    numbers = placement.stages[placement.mesh.stage(rank_info.rank)]
    modules = [blueprint.module(index, rank_info.device, replicas) for index in numbers]
    if step:
        checkpoints = Checkpoints.of(blueprint)
        for module in modules:
            checkpoints.refuse_other_optimizer(module, step)
            checkpoints.load(module, step)
    elif config.model.weights is not None:
        found = blueprint.fit_weights(weights.load(config.model.weights))
        if rank_info.rank == 0:
            warn(*found.notes)
        for module in modules:
            blueprint.load_weights(module, found)
    return modules
