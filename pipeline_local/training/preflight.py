"""What a run is checked for before any of its ranks exists, or starts to work."""

import os
from collections.abc import Collection

import torch
from torch import nn

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.config import Config
from pipeline_local.console import startup
from pipeline_local.console.screen import warn
from pipeline_local.data.datasets import describe
from pipeline_local.engines import deepspeed_library
from pipeline_local.engines.settings import EngineSettings
from pipeline_local.errors import UserError
from pipeline_local.loggers import logger_process
from pipeline_local.models import weights
from pipeline_local.models.embedding import TiedEmbedding
from pipeline_local.placement.describe import doubts, has_batch_norm
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.ranks.orphan import LAUNCHER
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.folder import RunFolder


def check(
    config: Config, rank_info: RankInfo, overridden: Collection[str] | None = None
) -> Placement:
    """Draws the blueprint, and refuses whatever can be refused before a rank starts to work.

    Args:
        config: the configuration of the run.
        rank_info: any of the ranks that will run it.
        overridden: the keys named beside a configuration file; None: all are meant.

    Raises:
        UserError: a mistake that the user must fix.
    """
    startup.at("checking the configuration")
    mesh = Mesh.of(config.parallel, rank_info.world_size)
    blueprint = draw(config.on_stages(mesh.num_stages), describe(config.data), tries=True)
    placement = Placement.of(blueprint, mesh.num_stages)
    if LAUNCHER not in os.environ:  # else whoever has started the ranks has said it
        warn(*doubts(config, blueprint))
    blueprint.run_plan.refuse_late_trace()
    rank_info.p2p_kind(config.parallel)
    logger_process.check(config.log)
    _check_engine(blueprint, rank_info.device)
    if config.modules.profile is not None:
        _ = placement.costs  # read and compared with the run
    resume = config.run.resume or rank_info.restarted
    begun = resume and Checkpoints.of(blueprint).begun()
    folder, info = RunFolder(config.run.dir), blueprint.info.to_json()
    folder.check(blueprint.config, info, resume, overridden, begun)
    if not begun:
        check_weights(blueprint)
    return placement


def _check_engine(blueprint: Blueprint, device: torch.device) -> None:
    settings = EngineSettings.of(blueprint.config)
    if settings.deepspeed is None:
        return
    deepspeed_library.check(settings.deepspeed, device)
    if not settings.rounds:
        return
    parts = [
        part
        for index in range(len(blueprint.modules))
        for part in (*blueprint.meta_body(index), blueprint.meta_head(index))
    ]
    key = f"deepspeed.{'fp16' if settings.scales else 'bf16'}.enabled"
    if any(map(has_batch_norm, parts)):
        raise UserError(
            f"{key}: a batch norm has statistics in float32, and torch takes no narrower weights"
            f" beside them; use precision=bfloat16 alone, or another network"
        )
    layers = [layer for part in parts for layer in part.modules()]
    tied = len(blueprint.modules) == 1 and any(isinstance(x, TiedEmbedding) for x in layers)
    tables = [layer.weight for layer in layers if isinstance(layer, nn.Embedding | nn.EmbeddingBag)]
    if device.type == "cpu" and (tied or any(table.requires_grad for table in tables)):
        raise UserError(
            f"{key}: a CPU adds up an embedding's gradient in the narrow dtype of its weights, so"
            f" that of a frequent token stops growing; use precision=bfloat16 alone"
        )


def check_weights(blueprint: Blueprint) -> None:
    """Refuses the weights to start from where they do not fit.

    Raises:
        UserError: they cannot be read, do not fit the network, or are not finite.
    """
    if blueprint.config.model.weights is not None:
        blueprint.fit_weights(weights.load(blueprint.config.model.weights)).check_finite()
