"""The blueprint: the run's specification, derived from the configuration and the data alone.

Drawn on the meta device in milliseconds, alike on every rank: blocks and their shapes, modules,
contracts, run plan. Only `Blueprint.module` allocates memory, for one module.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from pipeline_local import seeds
from pipeline_local.blueprint.contract import Contract, Spec
from pipeline_local.blueprint.device import Device
from pipeline_local.blueprint.run_plan import RunPlan, microbatch_size
from pipeline_local.config import Config
from pipeline_local.data.info import DataInfo
from pipeline_local.engines import optimizer, settings
from pipeline_local.engines.batch_norm import synchronize
from pipeline_local.engines.replicas import Replicas
from pipeline_local.errors import FitsNowhereError, UserError
from pipeline_local.layout import Layout
from pipeline_local.learning import heads
from pipeline_local.learning import information as terms
from pipeline_local.learning.body import Body
from pipeline_local.learning.compiler import compile_head
from pipeline_local.learning.heads import HasCopy, Site, copies
from pipeline_local.learning.information import Ends, Information, InformedHead
from pipeline_local.learning.lag_plan import LaggedContent, ModuleSpecs
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.tasks import Task
from pipeline_local.learning.tasks.next_token import HasHidden
from pipeline_local.learning.wire_format import WireFormat
from pipeline_local.models import backbone as backbones
from pipeline_local.models import weights
from pipeline_local.models.backbone import Backbone, Block
from pipeline_local.models.embedding import TiedEmbedding

Shape = tuple[int, ...]
HeadKey = tuple[int, int]
"""The number of blocks before a head, and the number of later blocks that it copies."""


@dataclass(frozen=True)
class Blueprint:
    """The specification of a run. It allocates no tensors; its parts are on the meta device.

    Attributes:
        config: the configuration; cuts that were `auto` or `memory` are the names of blocks.
        info: the facts about the data.
        task: the task: loss, score, and the shape of labels.
        backbone: blocks and classifier, on the meta device.
        input_shapes: the input shape of each block, for one sample.
        output_shapes: the output shape of each block, for one sample.
        modules: the blocks of each module.
        run_plan: the order of steps, evaluations and checkpoints.
        device: the device that stages compute on, unless a profile says which.
    """

    config: Config
    info: DataInfo
    task: Task
    backbone: Backbone
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    modules: tuple[range, ...]
    run_plan: RunPlan
    device: Device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return torch.float64 if self.config.precision == "float64" else torch.float32

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype of the first module's input: that of parameters, or an integer."""
        given = input_dtype(self.info)
        return self.dtype if given.is_floating_point else given

    def example_inputs(self, size: int, generator: torch.Generator) -> Tensor:
        """Returns random inputs [size, ...] on the CPU; whole numbers are below num_classes."""
        shape = (size, *self.info.sample_shape)
        if self.input_dtype.is_floating_point:
            return torch.randn(*shape, generator=generator).to(self.input_dtype)
        most = self.info.num_classes
        return torch.randint(most, shape, generator=generator).to(self.input_dtype)

    def meta_input(self, block: int) -> Tensor:
        """Returns two samples of a block's input on the meta device, as it takes them."""
        dtype = torch.float32 if block else input_dtype(self.info)
        return torch.empty(2, *self.input_shapes[block], device="meta", dtype=dtype)

    @property
    def wire_format(self) -> WireFormat:
        """The dtypes and layout of activations and gradients on the wire between modules."""
        return WireFormat.of(self.config)

    def contract(self, index: int) -> Contract:
        """Returns the contract of the edge between module `index` (from 0) and the next one."""
        wire_format, task, micro = self.wire_format, self.task, microbatch_size(self.config)
        _, *shape = wire_format.shape((1, *self.output_shapes[self.modules[index][-1]]))
        return Contract(
            activations=Spec((micro, *shape), wire_format.activations),
            gradients=Spec((micro, *shape), wire_format.gradients),
            labels=self._labels(micro),
            test_activations=Spec((micro, *shape), wire_format.activations),
            test_labels=Spec((micro, *task.label_shape), task.label_dtype),
            test_ensemble=Spec((micro, *task.part_shape), torch.float32),
            receiver=index,
            lagged={
                content: tuple(map(wire_format.lagged, specs))
                for content, specs in self.lagged_specs(index + 1).items()
            },
        )

    def module_specs(self, index: int, size: int | None = None) -> ModuleSpecs:
        """The tensors of a module (from 0), as they are inside the module.

        Args:
            index: of the module.
            size: of the microbatch; None: as configured.
        """
        blocks, inside = self.modules[index], self.wire_format.inside
        size = size or microbatch_size(self.config)
        x_dtype = inside if index else self.input_dtype
        return ModuleSpecs(
            x=Spec((size, *self.input_shapes[blocks.start]), x_dtype),
            y=Spec((size, *self.output_shapes[blocks.stop - 1]), inside),
            labels=self._labels(size),
            recalls_input=self.config.information.name is not None and not self.is_last(index),
            blocks=tuple(
                tuple(Spec(tuple(p.shape), self.dtype) for p in part.parameters())
                for part in self.meta_body(index)
            ),
            part=Spec((size, *self.task.part_shape), torch.float32),
            unembedding=self._unembedding,
        )

    @property
    def _unembedding(self) -> tuple[Spec, ...]:
        classifier = self.backbone.classifier.module
        if not isinstance(classifier, HasHidden):
            return ()
        return (Spec(tuple(classifier.weight.shape), self.dtype),)

    def lagged_specs(
        self, index: int, size: int | None = None
    ) -> dict[LaggedContent, tuple[Spec, ...]]:
        """What module `index` (from 0) sends upstream, by content; none where it sends nothing.

        Args:
            index, size: as for `module_specs`.
        """
        if not 0 < index < len(self.modules):
            return {}
        of = partial(self.module_specs, size=size)
        return {content: content.specs(index, of) for content in self.run_plan.lag.contents}

    def _labels(self, size: int) -> Spec:
        """Labels of so many training samples."""
        task = self.task
        if self.config.data.mixup > 0:
            return Spec((size, *task.output_shape), torch.float32)
        return Spec((size, *task.label_shape), task.label_dtype)

    def blocks(self, index: int) -> list[Block]:
        """Returns the blocks of a module; the last module's classifier is not among them."""
        return [self.backbone.blocks[i] for i in self.modules[index]]

    def is_last(self, index: int) -> bool:
        """Whether this module's head is the network's own classifier."""
        return index == len(self.modules) - 1

    def module(
        self, index: int, device: torch.device, replicas: Replicas | None = None
    ) -> LocalModule:
        """Allocates and initialises a module: weights are a function of (seed, block) alone."""
        body, head = self._body_and_head(index, device)
        if self.config.parallel.sync_batchnorm:
            synchronize((body, head), replicas)
        if self.config.compile:
            body.compile_blocks()
            for part in terms.parts(head):
                compile_head(part)
        return self.assembled(index, body, head, replicas)

    def uncompiled(self, index: int, device: torch.device) -> LocalModule:
        """Returns the same module, whatever `compile` says."""
        return self.assembled(index, *self._body_and_head(index, device))

    def _body_and_head(self, index: int, device: torch.device) -> tuple[Body, nn.Module]:
        blocks = [self.fresh(block, device) for block in self.blocks(index)]
        for block in blocks:
            if isinstance(block, HasCopy):
                block.begin(self.fresh(self._original(index, block), device))
        return self._joined(index, blocks, self._head(index, device))

    def _joined(
        self, index: int, blocks: list[nn.Module], head: nn.Module
    ) -> tuple[Body, nn.Module]:
        """Makes a body of blocks, which is tied to the head where both are of the only module."""
        for block in blocks:
            if isinstance(block, TiedEmbedding) and self.is_last(index):
                block.tie(head)
        return Body(blocks, self.config.modules.recompute), head

    def fake_module(self, index: int, device: torch.device) -> LocalModule:
        """Returns the same module, uninitialised and not compiled, for a FakeTensorMode."""
        with unset_fake_temporarily():  # a fake mode would make fake tensors of meta tensors
            meta = [*self.meta_body(index), self.meta_head(index)]
        how = device, self.dtype, self.config.channels_last
        *blocks, head = [backbones.fake_copy(part, *how) for part in meta]
        return self.assembled(index, *self._joined(index, blocks, head))

    def assembled(
        self, index: int, body: Body, head: nn.Module, replicas: Replicas | None = None
    ) -> LocalModule:
        """Returns a module of a body and a head, with the rules and the optimizer of the run."""
        config = self.config
        rules = Rules(
            seed=config.train.seed,
            fraction=config.head.fraction,
            reconcile=config.reconcile,
            distill=config.distill,
            task=self.task,
            clip=config.optimizer.clip,
            on_nan=config.train.on_nan,
            engine=settings.EngineSettings.of(config if replicas else None),  # else nobody trains
            layout=self.backbone.layout,
            wire_format=self.wire_format,
            lag=self.run_plan.lag,
        )
        make = partial(optimizer.build, config.optimizer, tables=tables(body, head))
        return LocalModule(index, body, head, make, rules, not self.is_last(index), replicas)

    def fresh(self, block: Block, device: torch.device) -> nn.Module:
        """Makes a block, with the values that it carries or fresh ones of (seed, block) alone."""
        seed = seeds.derive(self.config.train.seed, "block", block.name)
        rule = self.backbone.initialize
        return self._laid_out(backbones.made(block, rule, seed, device, self.dtype))

    def fresh_head(self, head: nn.Module, seed: int, device: torch.device) -> nn.Module:
        """Allocates and initialises an auxiliary head."""
        fresh = backbones.materialize(head, heads.initialize, seed, device, self.dtype)
        return self._laid_out(fresh)

    def _laid_out(self, part: nn.Module) -> nn.Module:
        """Puts the weights of convolutions into the memory format of the configuration."""
        if self.config.channels_last:
            part.to(memory_format=torch.channels_last)
        return part

    def fit_weights(self, state: dict[str, Tensor]) -> weights.Fitted:
        """Returns a whole model's state dict under the names of this one.

        Raises:
            UserError: the state dict is of another model.
        """
        return weights.fitted(self.backbone, state)

    def load_weights(self, module: LocalModule, found: weights.Fitted) -> None:
        """Loads a module's part of a whole model's state dict."""
        parts = self.parts(module)
        head = terms.parts(module.head)[0]
        if isinstance(head, HasCopy) and head.copy is not None:
            parts.append((self._original(module.index, head), head.copy))
        for block, part in parts:
            weights.load_block(part, block, found.state, found.fresh)

    def parts(self, module: LocalModule) -> list[tuple[Block, nn.Module]]:
        """Returns a module's blocks, each with its weights; the classifier last."""
        parts = list(zip(self.blocks(module.index), module.body.children(), strict=True))
        if self.is_last(module.index):
            parts.append((self.backbone.classifier, module.head))
        return parts

    def _head(self, index: int, device: torch.device) -> nn.Module:
        if self.is_last(index):
            return self.fresh(self.backbone.classifier, device)
        seed = seeds.derive(self.config.train.seed, "head", index)
        head = self.fresh_head(self._auxiliary_head(index), seed, device)
        if isinstance(own := terms.parts(head)[0], HasCopy):
            own.begin(self.fresh(self._original(index, own), device))
        return head

    def _original(self, index: int, follower: HasCopy) -> Block:
        """Returns what a part of a module follows."""
        if follower.follows == "unembedding":
            return self.backbone.classifier
        return self.backbone.blocks[self.modules[index].stop]

    def meta_body(self, index: int) -> list[nn.Module]:
        """Returns a module's blocks on the meta device."""
        return [block.module for block in self.blocks(index)]

    def meta_head(self, index: int) -> nn.Module:
        """Returns a module's head on the meta device."""
        if self.is_last(index):
            return self.backbone.classifier.module
        return self._auxiliary_head(index)

    def _auxiliary_head(self, index: int) -> nn.Module:
        blocks, part, count = self.backbone.blocks, self.modules[index], len(self.modules)
        key = head_key(self.config, part.stop, len(blocks), index, count)
        head, term = self.auxiliary_head(*key), self.information(part)
        if term is None:
            return head
        return InformedHead(head, term, *terms.weights(self.config.information, index, count))

    def auxiliary_head(self, end: int, copies: int) -> nn.Module:
        """Returns the head behind the first `end` blocks, on the meta device.

        Args:
            end: the number of blocks before the head, from 1; at least one block follows.
            copies: the number of later blocks that the head copies.

        Raises:
            UserError: the head does not fit there.
        """
        site = Site(
            layout=self.backbone.layout,
            shape=self.output_shapes[end - 1],
            later=[block.module for block in self.backbone.blocks[end:]],
            later_shapes=(*self.input_shapes[end:], self.output_shapes[-1]),
            copies=copies,
            rules=self.backbone.rules(end),
            output_shape=self.task.output_shape,
            classifier=self.backbone.classifier.module,
        )
        try:
            return heads.build(self.config.head, site)
        except ValueError as error:
            raise UserError(
                f"head.name: {self.config.head.name} does not fit behind block"
                f" {self.backbone.blocks[end - 1].name} ({error});"
                f" {_advice(error, 'choose another head or other modules.cuts')}"
            ) from None

    def ends(self, blocks: range) -> Ends:
        """The two ends of a module of these blocks."""
        shape = self.input_shapes[blocks.start]
        of_data: dict[int, Layout] = {1: "NC", 2: "NCT", 3: "NCHW"}
        return Ends(
            layout=self.backbone.layout,
            shape=self.output_shapes[blocks.stop - 1],
            input_layout=self.backbone.layout if blocks.start else of_data.get(len(shape)),
            input_shape=shape,
            input_dtype=self.wire_format.inside if blocks.start else self.input_dtype,
            labels=self._labels(microbatch_size(self.config)),
        )

    def information(self, blocks: range) -> Information | None:
        """Returns the information term of a module of these blocks, on the meta device; None where
        none is configured.

        Raises:
            UserError: it does not fit there.
        """
        config = self.config.information
        if config.name is None:
            return None
        try:
            return terms.build(config, self.ends(blocks))
        except ValueError as error:
            names = [self.backbone.blocks[i].name for i in (blocks.start, blocks.stop - 1)]
            raise UserError(
                f"information.name: {config.name} does not fit a module of the blocks"
                f" {' .. '.join(dict.fromkeys(names))} ({error});"
                f" {_advice(error, 'choose another term or other modules.cuts')}"
            ) from None


def _advice(error: ValueError, usual: str) -> str:
    return error.advice if isinstance(error, FitsNowhereError) else usual


def tables(*networks: nn.Module) -> set[nn.Parameter]:
    """The embeddings and unembeddings among the parameters of networks."""
    weights: list[object] = [
        layer.weight
        for network in networks
        for layer in network.modules()
        if isinstance(layer, nn.Embedding | HasHidden)
    ]
    return {weight for weight in weights if isinstance(weight, nn.Parameter)}


def input_dtype(info: DataInfo) -> torch.dtype:
    """The dtype of the data's inputs; a meta tensor of floating point stands for any precision."""
    dtype: torch.dtype = getattr(torch, info.dtype)
    return torch.float32 if dtype.is_floating_point else dtype


def head_key(config: Config, end: int, num_blocks: int, index: int, count: int) -> HeadKey:
    """Returns the key of the head of module `index` (from 0) of `count`, behind block `end`."""
    return end, copies(config.head, index, count, num_blocks - end)
