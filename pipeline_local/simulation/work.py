"""The work of the stages of a simulated run: seconds of compute and bytes of messages."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from torch import nn

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.contract import Spec
from pipeline_local.memory.fake_edges import num_bytes
from pipeline_local.placement.costs import Cost, Costs
from pipeline_local.placement.placement import Placement, costs_by_device, per_stage


@dataclass(frozen=True)
class ModuleWork:
    """Seconds of a module's acts for one microbatch.

    Attributes:
        forward: seconds of act 1.
        signal: seconds of act 2.
        learn: seconds of act 3, without reconciliation, distillation and update.
        added: seconds that reconciliation adds to act 3.
        update: seconds of the optimizer, once per step.
        gradients: bytes of all gradients, head included, that replicas all-reduce.
        distilled: seconds that distillation adds to act 3.
    """

    forward: float
    signal: float
    learn: float
    added: float = 0.0
    update: float = 0.0
    gradients: float = 0.0
    distilled: float = 0.0


@dataclass(frozen=True)
class StageWork:
    """The work of one stage: the first two attributes for local learning, the others for
    backpropagation.

    Attributes:
        modules: the work of its modules.
        messages: bytes of one microbatch's activations as sent to the next stage; signals and
            feedback are as large.
        forward: seconds of the forward pass of one microbatch.
        backward: seconds of the backward pass of one microbatch.
        update: seconds of the optimizer, once per step.
        activations: bytes of one microbatch's activations as sent to the next stage; their
            gradients are as large.
        gradients: bytes of all gradients, classifier included, that replicas all-reduce.
        copies: bytes of the parameters that it publishes to the stage upstream.
        outputs: bytes of the outputs of one microbatch that it sends upstream for distillation.
    """

    modules: tuple[ModuleWork, ...]
    messages: float
    forward: float
    backward: float
    update: float
    activations: float
    gradients: float
    copies: float = 0.0
    outputs: float = 0.0


def stage_works(
    blueprint: Blueprint, count: int, samples: float, cut: Sequence[range] | None = None
) -> tuple[StageWork, ...]:
    """Return the work of each stage for one microbatch.

    Args:
        blueprint: the specification of a run with a profile.
        count: number of stages. With more stages than modules, each gets the mean module.
        samples: samples in a microbatch; times are proportional to them.
        cut: the blocks of each stage, for backpropagation alone; None: those of its modules.
    """
    part = samples / blueprint.config.data.batch_size
    modules = len(blueprint.modules)
    if cut is not None:
        devices = per_stage(costs_by_device(blueprint), len(cut))
        return tuple(
            _backpropagated(blueprint, costs, blocks, part)
            for costs, blocks in zip(devices, cut, strict=True)
        )
    if count <= modules:
        placement = Placement.of(blueprint, count)
        placed = zip(placement.costs, placement.stages, strict=True)
        return tuple(_stage(blueprint, costs, numbers, part) for costs, numbers in placed)
    single = [
        _stage(blueprint, costs, range(k, k + 1), part)
        for k, costs in enumerate(per_stage(costs_by_device(blueprint), modules))
    ]
    return stretched(single, count)


def _stage(blueprint: Blueprint, costs: Costs, numbers: range, part: float) -> StageWork:
    modules = blueprint.modules
    blocks = range(modules[numbers[0]].start, modules[numbers[-1]].stop)
    plain = _backpropagated(blueprint, costs, blocks, part)
    last, micro = blueprint.is_last(numbers[-1]), blueprint.config.train.microbatches
    message = num_bytes([blueprint.contract(numbers[-1]).activations])
    published = blueprint.contract(numbers[0] - 1).lagged if numbers[0] else {}
    return replace(
        plain,
        modules=tuple(_module(blueprint, costs, k, part) for k in numbers),
        messages=0.0 if last else message * micro * part,
        copies=float(sum(num_bytes(specs) for each, specs in published.items() if each.once)),
        outputs=_outputs(blueprint, numbers[0]) * micro * part,
    )


def _outputs(blueprint: Blueprint, sender: int) -> int:
    """Bytes of the outputs that a module sends upstream with a microbatch for distillation."""
    distils = sender > 0 and blueprint.config.distill.weight > 0
    if not distils:
        return 0
    return num_bytes([blueprint.wire_format.lagged(blueprint.module_specs(sender).part)])


def _backpropagated(blueprint: Blueprint, costs: Costs, blocks: range, part: float) -> StageWork:
    """The work of consecutive blocks under backpropagation, the classifier behind the last one."""
    own = sum((costs.blocks[i] for i in blocks), Cost(0, 0, 0))
    meta = [blueprint.backbone.blocks[i].module for i in blocks]
    last = blocks.stop == len(costs.blocks)
    if last:
        own += costs.classifier
        meta.append(blueprint.backbone.classifier.module)
    shape = blueprint.config.data.batch_size, *blueprint.output_shapes[blocks[-1]]
    activations = num_bytes([Spec(shape, blueprint.wire_format.inside)]) * part
    return StageWork(
        modules=(),
        messages=0.0,
        forward=own.forward * part,
        backward=own.backward * part,
        update=own.update,
        activations=0.0 if last else activations,
        gradients=_gradients(blueprint, meta),
    )


def _module(blueprint: Blueprint, costs: Costs, index: int, part: float) -> ModuleWork:
    modules, every = blueprint.modules, blueprint.config.reconcile.every
    cost = costs.module(index, len(modules), modules[index])
    return ModuleWork(
        forward=cost.forward * part,
        signal=cost.signal * part,
        learn=(cost.learn - cost.added - cost.distilled - cost.update) * part,
        added=cost.added * every * part,
        distilled=cost.distilled * blueprint.config.distill.every * part,
        update=cost.update,
        gradients=_gradients(blueprint, [*blueprint.meta_body(index), blueprint.meta_head(index)]),
    )


def _gradients(blueprint: Blueprint, parts: Sequence[nn.Module]) -> float:
    """Bytes of the gradients that replicas all-reduce."""
    trained = (p for part in parts for p in part.parameters() if p.requires_grad)
    return float(sum(p.numel() for p in trained) * blueprint.dtype.itemsize)


def stretched(stages: Sequence[StageWork], count: int) -> tuple[StageWork, ...]:
    """Return `count` stages, each with the mean work and the largest messages of those given."""

    def mean(items: Sequence[ModuleWork] | Sequence[StageWork], *names: str) -> dict[str, float]:
        return {name: sum(getattr(item, name) for item in items) / len(stages) for name in names}

    modules = [module for stage in stages for module in stage.modules]
    one = StageWork(
        modules=(ModuleWork(**mean(modules, *(field.name for field in fields(ModuleWork)))),),
        messages=max(stage.messages for stage in stages),
        activations=max(stage.activations for stage in stages),
        copies=max(stage.copies for stage in stages),
        outputs=max(stage.outputs for stage in stages),
        **mean(stages, "forward", "backward", "update", "gradients"),
    )
    return (one,) * count
