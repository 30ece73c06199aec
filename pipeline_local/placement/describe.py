"""A blueprint in words, for people."""

from torch import nn

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.placement.placement import Placement
from pipeline_local.record.summary import ModuleRow


def describe(placement: Placement) -> list[ModuleRow]:
    """What each module is and where it runs."""
    blueprint = placement.blueprint
    stage_of = {k: s for s, part in enumerate(placement.stages) for k in part}
    rows = []
    for index in range(len(blueprint.modules)):
        names = [block.name for block in blueprint.blocks(index)]
        blocks = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
        head = "classifier" if blueprint.is_last(index) else blueprint.config.head.name
        rows.append(ModuleRow(stage_of[index], blocks, head))
    return rows


def explain(blueprint: Blueprint) -> str:
    """One line: what is trained."""
    blocks = [*blueprint.backbone.blocks, blueprint.backbone.classifier]
    millions = sum(p.numel() for block in blocks for p in block.module.parameters()) / 1e6
    modules = f"{len(blueprint.modules)} modules{' (BP-free)' if is_bp_free(blueprint) else ''}"
    return (
        f"{blueprint.config.model.name}: {millions:.2f} M parameters in {len(blocks) - 1} blocks,"
        f" {modules}; images {'x'.join(map(str, blueprint.info.image_shape))},"
        f" {blueprint.info.num_classes} classes"
    )


def is_bp_free(blueprint: Blueprint) -> bool:
    """No body of several modules has two weight matrices, nor has any head.

    So no error is chained through two trainable layers of the network.
    """
    numbers = range(len(blueprint.modules))
    bodies = [sum(map(_num_matrices, blueprint.meta_body(k))) for k in numbers]
    heads = [_num_matrices(blueprint.meta_head(k)) for k in numbers]
    return len(numbers) > 1 and max(*bodies, *heads) <= 1


def _num_matrices(module: nn.Module) -> int:
    """Weights that mix their inputs; the scales and shifts of norms and biases do not."""
    return sum(p.dim() > 1 for p in module.parameters())
