"""The blueprint: all that follows from the configuration and the data, before anything is spent.

Drawn on the meta device in milliseconds, alike on every rank: blocks and their shapes, modules,
stages, contracts, schedule. Only `Blueprint.module` allocates memory, for one module.
"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from pipeline_local import seeds
from pipeline_local.config import Config
from pipeline_local.data.images.datasets import DataInfo
from pipeline_local.errors import UserError
from pipeline_local.learning import heads, optimizer
from pipeline_local.learning.body import Body, compile_part
from pipeline_local.learning.crossing import Crossing
from pipeline_local.learning.heads import Head, Site
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.models import backbone as backbones
from pipeline_local.models import registry, weights
from pipeline_local.models.backbone import Backbone, Block
from pipeline_local.pipeline import cuts, partition, profilefile
from pipeline_local.pipeline.costs import Costs, by_flops, head_key
from pipeline_local.pipeline.device import Device
from pipeline_local.pipeline.schedule import Schedule
from pipeline_local.pipeline.transport import Contract, Spec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Blueprint:
    """A run on paper.

    Attributes:
        config: of the run; cuts that were `auto` or `memory` are the blocks that they came to.
        backbone: blocks and classifier, on the meta device.
        input_shapes: of each block, for one sample.
        output_shapes: of each block, for one sample.
        modules: the blocks of each module.
        schedule: what happens when.
        device: what stages compute on, unless a profile says so.
    """

    config: Config
    info: DataInfo
    backbone: Backbone
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    modules: tuple[range, ...]
    schedule: Schedule
    device: Device

    @classmethod
    def draw(cls, config: Config, info: DataInfo, device: Device | None = None) -> "Blueprint":
        """Derive everything, for this host's device if for none, and refuse what does not fit.

        Raises:
            UserError: the model cannot be built, or K does not fit its blocks.
        """
        model = config.model
        backbone = registry.build(model.name, model.args, info.num_classes, info.image_shape)
        if config.channels_last and backbone.layout != "NCHW":
            raise UserError(
                f"channels_last: model.name={model.name} has no maps whose channels come first,"
                f" got layout {backbone.layout}; leave it out"
            )
        outputs = [tuple(s[1:]) for s in backbones.shapes(backbone, (1, *info.image_shape))]
        sketch = cls(
            config=config,
            info=info,
            backbone=backbone,
            input_shapes=(info.image_shape, *outputs[:-1]),
            output_shapes=tuple(outputs),
            modules=(range(len(outputs)),),
            schedule=Schedule(config, info.num_train, info.num_test),
            device=device or Device.here(),
        )
        names = [block.name for block in backbone.blocks]
        sizes = [sum(p.numel() for p in b.module.parameters()) for b in backbone.blocks]
        modules = partition.modules_of(names, sizes, config.modules, sketch._best_modules)
        if config.modules.cuts in ("auto", "memory"):
            opens = tuple(names[part.start] for part in modules[1:])
            config = replace(config, modules=replace(config.modules, cuts=opens))
        blueprint = replace(sketch, config=config, modules=tuple(modules))
        blueprint._check_trainable()
        return blueprint

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters."""
        return torch.float64 if self.config.precision == "float64" else torch.float32

    @property
    def crossing(self) -> Crossing:
        """How activations and gradients cross between modules."""
        return Crossing.of(self.config)

    def stages(self, num_stages: int) -> list[range]:
        """The modules of each stage."""
        if num_stages not in self._stages:
            self._stages[num_stages] = partition.stages_of(
                len(self.modules),
                num_stages,
                self.config.parallel.cuts,
                lambda: cuts.best_stages(self, self.costs_of(num_stages)),
            )
        return self._stages[num_stages]

    @cached_property
    def _stages(self) -> dict[int, list[range]]:
        return {}

    @cached_property
    def devices(self) -> tuple[Costs, ...]:
        """What each part of the network costs: as measured on each device of `modules.profile`,
        else in FLOPs; a single one if all devices are alike."""
        paths = self.config.modules.profile
        if paths is None:
            return (by_flops(self),)
        paths = (paths,) if isinstance(paths, Path) else paths
        return tuple(profilefile.load(path, self) for path in paths)

    def costs_of(self, num_stages: int) -> tuple[Costs, ...]:
        """The costs on the device of each stage.

        Raises:
            UserError: there are profiles of several devices, and they are not as many.
        """
        if len(self.devices) not in (1, num_stages):
            raise UserError(
                f"modules.profile: give one file for all stages or one for each, got"
                f" {len(self.devices)} for {num_stages}"
            )
        return self.devices if len(self.devices) == num_stages else self.devices * num_stages

    def costs_for(self, count: int) -> tuple[Costs, ...]:
        """The costs on the device of each of so many modules, were they spread evenly."""
        return tuple(self.devices[k * len(self.devices) // count] for k in range(count))

    def contract(self, index: int) -> Contract:
        """What crosses the edge between module `index` (from 0) and the next one."""
        data, train, crossing = self.config.data, self.config.train, self.crossing
        _, *shape = crossing.shape((1, *self.output_shapes[self.modules[index][-1]]))
        micro = data.batch_size // train.microbatches
        classes, soft = self.info.num_classes, data.mixup > 0
        return Contract(
            activations=Spec((micro, *shape), crossing.activations),
            gradients=Spec((micro, *shape), crossing.gradients),
            labels=Spec((micro, classes), torch.float32) if soft else Spec((micro,), torch.int64),
            test_activations=Spec((data.batch_size, *shape), crossing.activations),
            test_labels=Spec((data.batch_size,), torch.int64),
            test_votes=Spec((data.batch_size, classes), torch.float32),
        )

    def blocks(self, index: int) -> list[Block]:
        """The blocks of a module; the last module's classifier is not among them."""
        return [self.backbone.blocks[i] for i in self.modules[index]]

    def is_last(self, index: int) -> bool:
        """Whether this module's head is the network's own classifier."""
        return index == len(self.modules) - 1

    def module(self, index: int, device: torch.device) -> LocalModule:
        """Allocate and initialise a module: weights are a function of (seed, block) alone."""
        blocks = [self.fresh(block, device) for block in self.blocks(index)]
        body, head = Body(blocks, self.config.modules.recompute), self._head(index, device)
        if self.config.compile:
            body.compile_blocks()
            compile_part(head)
        return self.assembled(index, body, head)

    def outline(self, index: int, device: torch.device) -> LocalModule:
        """The same module in unfilled memory, not compiled, for a FakeTensorMode."""
        with unset_fake_temporarily():  # paper is of another kind than what is drawn on it
            paper = [*self.paper_body(index), self.paper_head(index)]
        *blocks, head = [backbones.hollow(part, device, self.dtype) for part in paper]
        return self.assembled(index, Body(blocks, self.config.modules.recompute), head)

    def assembled(self, index: int, body: Body, head: nn.Module) -> LocalModule:
        """A module of these parts, under the rules of the run."""
        config = self.config
        rules = Rules(
            seed=config.train.seed,
            reconcile=config.reconcile,
            label_smoothing=config.train.label_smoothing,
            clip=config.optimizer.clip,
            on_nan=config.train.on_nan,
            layout=self.backbone.layout,
            crossing=self.crossing,
        )
        make = partial(optimizer.build, config.optimizer)
        return LocalModule(index, body, head, make, rules)

    def fresh(self, block: Block, device: torch.device) -> nn.Module:
        """Allocate and initialise one block: weights are a function of (seed, block) alone."""
        seed = seeds.derive(self.config.train.seed, "block", block.name)
        rule = self.backbone.initialize
        return self._laid_out(backbones.materialize(block.module, rule, seed, device, self.dtype))

    def fresh_head(self, head: Head, seed: int, device: torch.device) -> nn.Module:
        """Allocate and initialise an auxiliary head."""
        fresh = backbones.materialize(head, lambda h: h.initialize(), seed, device, self.dtype)
        return self._laid_out(fresh)

    def _laid_out(self, part: nn.Module) -> nn.Module:
        """With the weights of convolutions where their kernels want them."""
        if self.config.channels_last:
            part.to(memory_format=torch.channels_last)
        return part

    def check_weights(self, state: dict[str, Tensor]) -> list[str]:
        """Names of the classifier that keep fresh weights because the classes differ.

        Raises:
            UserError: the state dict is of another model.
        """
        return weights.check(self.backbone, state)

    def load_weights(self, module: LocalModule, state: dict[str, Tensor]) -> None:
        """Start a module from its part of a whole model's state dict."""
        skip = self.check_weights(state)
        for block, part in self.parts(module):
            weights.load_block(part, block, state, skip)

    def parts(self, module: LocalModule) -> list[tuple[Block, nn.Module]]:
        """The backbone's blocks in a module, each with its weights; the classifier last."""
        parts = list(zip(self.blocks(module.index), module.body.children(), strict=True))
        if self.is_last(module.index):
            parts.append((self.backbone.classifier, module.head))
        return parts

    def _best_modules(self, count: int) -> list[range]:
        if self.config.modules.cuts == "memory":
            return cuts.even_memory(self, count)
        return cuts.best_modules(self, self.costs_for(count))

    def _head(self, index: int, device: torch.device) -> nn.Module:
        if self.is_last(index):
            return self.fresh(self.backbone.classifier, device)
        seed = seeds.derive(self.config.train.seed, "head", index)
        return self.fresh_head(self._auxiliary_head(index), seed, device)

    def _check_trainable(self) -> None:
        for index in range(len(self.modules)):
            parts = [*self.paper_body(index), self.paper_head(index)]
            if not any(p.requires_grad for part in parts for p in part.parameters()):
                names = ", ".join(block.name for block in self.blocks(index))
                raise UserError(
                    f"modules.cuts: module {index + 1} ({names}) and its head have nothing to"
                    f" learn; cut elsewhere, or choose a head that learns (head.name)"
                )

    def paper_body(self, index: int) -> list[nn.Module]:
        """A module's blocks on the meta device."""
        return [block.module for block in self.blocks(index)]

    def paper_head(self, index: int) -> nn.Module:
        """A module's head on the meta device."""
        if self.is_last(index):
            return self.backbone.classifier.module
        return self._auxiliary_head(index)

    def _auxiliary_head(self, index: int) -> Head:
        blocks, end, count = self.backbone.blocks, self.modules[index].stop, len(self.modules)
        return self.auxiliary_head(*head_key(self.config, end, len(blocks), index, count))

    def auxiliary_head(self, end: int, copies: int) -> Head:
        """The head behind the first `end` blocks, on the meta device.

        Args:
            end: from 1; at least one block stands behind the head, which copies so many of those.

        Raises:
            UserError: it does not fit there.
        """
        site = Site(
            layout=self.backbone.layout,
            shape=self.output_shapes[end - 1],
            later=[block.module for block in self.backbone.blocks[end:]],
            later_shapes=self.input_shapes[end:],
            copies=copies,
            initialize=self.backbone.initialize,
        )
        try:
            return heads.build(self.config.head, site, self.info.num_classes)
        except ValueError as error:
            raise UserError(
                f"head.name: {self.config.head.name} does not fit behind block"
                f" {self.backbone.blocks[end - 1].name} ({error});"
                f" choose another head or other modules.cuts"
            ) from None
