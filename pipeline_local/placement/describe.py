"""Describes a blueprint and its placement for display."""

from collections.abc import Iterator

from torch import nn

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.run_plan import microbatch_size
from pipeline_local.config import Config
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import counted
from pipeline_local.learning.reconcile import subsample_size
from pipeline_local.learning.tasks import Task
from pipeline_local.models import hf_config
from pipeline_local.placement.placement import Placement
from pipeline_local.record.summary import ModuleRow

LEAST_SAMPLES = 32
"""Samples at once that no advice goes below: fewer leave a GPU idle, and batch norms with noisy
statistics."""


def describe(placement: Placement) -> list[ModuleRow]:
    """Returns a row per module: its stage, its blocks and its head."""
    blueprint = placement.blueprint
    stage_of = {k: s for s, part in enumerate(placement.stages) for k in part}
    rows = []
    for index in range(len(blueprint.modules)):
        names = [block.name for block in blueprint.blocks(index)]
        blocks = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
        rows.append(ModuleRow(stage_of[index], blocks, _head(blueprint, index)))
    return rows


def _head(blueprint: Blueprint, index: int) -> str:
    """The name of a module's head, with that of its information term."""
    head, term = blueprint.config.head.name, blueprint.config.information.name
    if blueprint.is_last(index):
        return "classifier"
    return head if term is None else f"{head} + {term}"


def explain(blueprint: Blueprint) -> str:
    """Returns one line for display: what is trained."""
    blocks = [*blueprint.backbone.blocks, blueprint.backbone.classifier]
    millions = sum(p.numel() for block in blocks for p in block.module.parameters()) / 1e6
    modules = counted(len(blueprint.modules), "module")
    modules += " (BP-free)" if is_bp_free(blueprint) else ""
    return (
        f"{blueprint.config.model.name}: {millions:.2f} M parameters in"
        f" {counted(len(blocks) - 1, 'block')}, {modules}; {_data(blueprint.info, blueprint.task)}"
    )


def _data(info: DataInfo, task: Task) -> str:
    if info.label_shape == info.sample_shape and info.dtype.startswith("int"):
        return f"sequences of {info.sample_shape[0]} tokens, {info.num_classes} different ones"
    inputs = "images" if len(info.sample_shape) == 3 else "inputs"
    number = task.label_dtype.is_floating_point
    outputs = counted(info.num_classes, *(("output",) if number else ("class", "classes")))
    return f"{inputs} {'x'.join(map(str, info.sample_shape))}, {outputs}"


def is_bp_free(blueprint: Blueprint) -> bool:
    """Whether there are several modules, and no body and no head has two weight matrices.

    Then no error is chained through two trainable layers of the network.
    """
    numbers = range(len(blueprint.modules))
    bodies = [sum(map(_num_matrices, blueprint.meta_body(k))) for k in numbers]
    heads = [_num_matrices(blueprint.meta_head(k)) for k in numbers]
    return len(numbers) > 1 and max(*bodies, *heads) <= 1


def doubts(config: Config, blueprint: Blueprint) -> Iterator[str]:
    """Yields what a user may not know of a run that is about to start.

    Args:
        config: as the user has written it.
        blueprint: what has been drawn of it.
    """
    cuts = {"modules.cuts": config.modules.cuts, "parallel.cuts": config.parallel.cuts}
    if config.modules.profile is None and (by := [key for key in cuts if cuts[key] == "auto"]):
        yield (
            f"{' and '.join(f'{key}=auto' for key in by)}: costs are FLOPs, and blocks with large"
            f" maps take longer on CPUs than these say; pipeline-local profile measures times, for"
            f" modules.profile"
        )
    language = blueprint.backbone.language
    if language and (odd := hf_config.unknown(language.args)):
        yield (
            f"{', '.join(f'model.{key}' for key in odd)}: {language.args['architecture']} has no"
            f" such key, and the model is the same without; leave it out"
        )
    if config.reconcile.weight > 0 and len(blueprint.modules) == 1:
        yield (
            f"reconcile.weight={config.reconcile.weight}: a single module has no neighbour to be"
            f" reconciled with; set modules.count to at least 2, or leave reconcile out"
        )
    size = microbatch_size(config)
    seen = subsample_size(size, config.head.fraction)
    heads = (blueprint.meta_head(index) for index in range(len(blueprint.modules) - 1))
    if config.head.fraction < 1 and seen < LEAST_SAMPLES and any(map(has_batch_norm, heads)):
        yield (
            f"head.fraction={config.head.fraction}: batch norms of heads see"
            f" {counted(seen, 'sample')} at once, and are noisy below {LEAST_SAMPLES}; raise it, or"
            f" take heads without (head.name=linear)"
        )


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a module holds a batch norm, whose statistics depend on the batch size."""
    norms = nn.modules.batchnorm._BatchNorm
    return any(isinstance(part, norms) for part in module.modules())


def _num_matrices(module: nn.Module) -> int:
    """Counts weight matrices; the scales and shifts of norms, and biases, are none."""
    return sum(p.dim() > 1 for p in module.parameters())
