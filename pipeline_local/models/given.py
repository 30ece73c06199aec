"""A user's own model object becomes a backbone, and keeps its weights and their names.

An `nn.Sequential` or a list says itself what the blocks are; any other module is cut where exactly
one tensor is alive. Either way, the blocks one after another are compared with the model.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline_local import seeds
from pipeline_local.errors import UserError, first_line
from pipeline_local.layout import Layout
from pipeline_local.models import layouts
from pipeline_local.models.backbone import Backbone, Block, reset_parameters, shapes, through
from pipeline_local.models.chain import Chain, chain, spans
from pipeline_local.models.frozen import freeze
from pipeline_local.models.tracing import UntraceableError, kept
from pipeline_local.side_effects.building import plain_tensors
from pipeline_local.side_effects.untouched import modes_kept
from pipeline_local.side_effects.writes import Writes

GivenModel = nn.Module | Sequence[nn.Module | tuple[str, nn.Module]]
_ADVICE = "pass an nn.Sequential, or a list of blocks with the classifier last"


def backbone(model: GivenModel, example: Tensor, layout: Layout | None = None) -> Backbone:
    """Cut a model into blocks that carry its weights.

    The model stays as it is, and its tensors are not copied: each block refers to its own until it
    is `made`. Names of tensors are the model's own. Layers that are in evaluation mode while the
    model is in training mode stay in it for good.

    Args:
        model: on one device; or its parts in order, or (name, part) pairs, the classifier last.
        example: a batch of inputs of any size, at least two samples to compare training mode, too.
        layout: of the blocks' outputs; None: found by watching the layers.

    Raises:
        UserError: it cannot be cut, or the blocks do not give what the model gives, or a parameter
            is in two blocks or in none.
    """
    network, opened = network_of(model)
    tensors = [*network.parameters(), *network.buffers()]
    if tensors:
        example = example.to(tensors[0].device)
    _try(network, example)
    with kept(network):
        _check_layers(network)
    reasons = []
    for candidate in _candidates(network):
        try:
            found = chain(candidate, example, opened)
            return _assembled(network, found, example, layout)
        except UntraceableError as reason:
            reasons.append(str(reason))
    why = "; its children in order: ".join(reasons)
    raise UserError(f"model: {type(network).__name__} cannot be cut ({why}); {_ADVICE}")


def output_shape(made: Backbone, example: Tensor) -> tuple[int, ...]:
    """One sample's output of a backbone, for inputs like the example [B, ...].

    Raises:
        UserError: a block has none without values.
    """
    try:
        *_, features = shapes(made, example.shape, example.dtype)
        return tuple(through(made.classifier, torch.empty(features, device="meta")).shape[1:])
    except ValueError as error:
        raise UserError(f"model: {error}") from error


@torch.no_grad()
def receive(model: GivenModel, parts: Iterable[tuple[Block, nn.Module]]) -> nn.Module:
    """Copy trained values into a model that `backbone` has cut.

    Args:
        model: the same one, or one like it.
        parts: its blocks, each with the module that holds its values.

    Returns:
        The model; of a list of blocks, an `nn.Sequential` of them.
    """
    network, _ = network_of(model)
    own = network.state_dict()
    for block, part in parts:
        for name, value in part.state_dict().items():
            own[block.prefix + name].copy_(value)
    return network


def network_of(model: GivenModel) -> tuple[nn.Module, bool]:
    """One module, and whether it may be opened: the parts of a list stay whole.

    Raises:
        UserError: it is neither a module nor a list of blocks.
    """
    if isinstance(model, nn.Module):
        return model, True
    parts = list(model) if isinstance(model, Sequence) else []
    pairs = [part if isinstance(part, tuple) else (str(i), part) for i, part in enumerate(parts)]
    for pair in pairs:
        if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], nn.Module):
            raise UserError(f"model: got {type(pair[-1]).__name__} in a list of blocks; {_ADVICE}")
    if not pairs:
        raise UserError(f"model: got {type(model).__name__}; pass an nn.Module or a list of blocks")
    names = [name for name, _ in pairs]
    if odd := [name for name in names if not name or "." in name or names.count(name) > 1]:
        raise UserError(f"model: {odd[0]!r} cannot name one block; give each a name without a dot")
    network = nn.Sequential(OrderedDict(pairs))
    network.training = any(part.training for _, part in pairs)  # as one that was set with its parts
    return network, False


def _candidates(network: nn.Module) -> Iterator[nn.Module]:
    """The network itself, then its children in order."""
    yield network
    if type(network) is not nn.Sequential and next(network.children(), None) is not None:
        yield nn.Sequential(OrderedDict(network.named_children()))


def _try(network: nn.Module, example: Tensor) -> None:
    """The model must take the example, which gives lazy layers their shapes."""
    lazy = any(map(is_lazy, (*network.parameters(), *network.buffers())))
    try:
        with modes_kept(network), torch.no_grad(), nullcontext() if lazy else kept(network):
            network.eval()
            output = network(example.clone())
    except Exception as error:  # the user's own code
        raise UserError(
            f"model: {type(network).__name__} cannot take inputs of {list(example.shape)}"
            f" ({first_line(error)}); change one of them"
        ) from error
    if isinstance(output, Tensor) and output.dim() < 2:
        raise UserError(
            f"model: must give outputs [B, ...] with at least one axis per sample, got"
            f" {list(output.shape)} for a batch of {len(example)}; leave out a squeeze"
        )


def _check_layers(network: nn.Module) -> None:
    for path, layer in network.named_modules():
        where = f"model: {path or 'the model'} ({type(layer).__name__})"
        if plain := plain_tensors(layer):
            hooked = layer._forward_pre_hooks  # the former weight_norm and spectral_norm
            remedy = "torch.nn.utils.parametrizations" if hooked else "register_buffer"
            raise UserError(
                f"{where} keeps {', '.join(plain)} as a plain attribute, which stays on its device;"
                f" use {remedy}"
            )
        if not isinstance(layer.train(layer.training), nn.Module):
            raise UserError(f"{where} has a train() that gives nothing; let it return self")


def _assembled(
    network: nn.Module, found: Chain, example: Tensor, layout: Layout | None
) -> Backbone:
    starts = spans(found.links)
    if starts is None:
        raise UntraceableError("fewer than two pieces with parameters run one after the other")
    bounds = list(zip(starts, [*starts[1:], len(found.links)], strict=True))
    frozen = _frozen(network)
    modules = [found.module(*bound, found.links[bound[0]].name) for bound in bounds]
    modifies = _compare(network, modules, example)
    blocks = [_block(found, bound, frozen, k in modifies) for k, bound in enumerate(bounds)]
    *body, classifier = _named(blocks)
    _check_owners([*body, classifier], modules, network)
    try:
        with kept(network):
            layout = layouts.find([module.eval() for module in modules], example.clone(), layout)
    except layouts.LayoutError as reason:
        raise UserError(
            f"model: {type(network).__name__}: {reason}; reshape in the classifier, or say layout="
        ) from None
    return Backbone(tuple(body), classifier, reset_parameters, layout)


def _frozen(network: nn.Module) -> list[str]:
    """Paths of the layers in evaluation mode inside of a model in training mode."""
    if not network.training:
        return []
    return [path for path, module in network.named_modules() if not module.training]


def _block(
    found: Chain, bound: tuple[int, int], frozen: Sequence[str], copies_input: bool
) -> Block:
    """A link that is one call is its module; anything else is a piece of the graph."""
    name = next((link.name for link in found.links[slice(*bound)] if link.weighs), "")
    nodes = [node for link in found.links[slice(*bound)] for node in link.nodes]
    paths = [str(node.target) for node in nodes if node.op == "call_module"]
    inside = [path for path in frozen if any(f"{path}.".startswith(f"{p}.") for p in paths)]
    is_call = len(nodes) == len(paths) == 1 and len(nodes[0].args) == 1 and not copies_input
    if is_call and not (inside and hasattr(found.held[paths[0]], "__deepcopy__")):
        block = _carrying(name, found.held[paths[0]], f"{paths[0]}.")
        if inside:
            freeze(block.module, [path[len(paths[0]) + 1 :] for path in inside])
        return block
    piece = found.module(*bound, name, copies_input)
    piece.meta["frozen"] = tuple(inside)
    return _carrying(name, piece.train(), "")


def _carrying(name: str, module: nn.Module, prefix: str) -> Block:
    """The block on the meta device, beside the values that stay where they are."""
    values = dict(module.named_parameters()) | dict(module.named_buffers())
    memo = {id(value): _on_paper(value) for value in values.values()}
    return Block(name, copy.deepcopy(module, memo).train(), prefix, values)


def _on_paper(value: Tensor) -> Tensor:
    # a meta tensor of floating point stands for any precision
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    meta = torch.empty_like(value, device="meta", dtype=dtype)
    return nn.Parameter(meta, value.requires_grad) if isinstance(value, nn.Parameter) else meta


def _named(blocks: list[Block]) -> Iterator[Block]:
    """The last one is called classifier, unless the user calls another one so."""
    *body, last = blocks
    yield from body
    name = last.name if any(block.name == "classifier" for block in body) else "classifier"
    yield Block(name, last.module, last.prefix, last.values)


def _check_owners(blocks: list[Block], modules: Sequence[nn.Module], network: nn.Module) -> None:
    """Blocks train apart from each other: every parameter belongs to one, and to one only."""
    owners: dict[int, tuple[int, str]] = {}
    for k, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            owner, first = owners.setdefault(id(parameter), (k, name))
            if owner != k:
                raise UserError(
                    f"model: {blocks[owner].name} and a later block share a parameter ({first},"
                    f" {name}), but train apart from each other; give each its own, or make them"
                    f" one block"
                )
    names = {b.prefix + name for b in blocks for name in b.module.state_dict()}
    if unused := [name for name in network.state_dict() if name not in names]:
        raise UserError(
            f"model: {', '.join(unused[:5])} of {type(network).__name__} would not be trained, as"
            f" no block uses it; remove it from the model"
        )


@torch.no_grad()
def _compare(network: nn.Module, modules: Sequence[nn.Module], example: Tensor) -> set[int]:
    """Run the model and its blocks in both modes; training needs a batch that norms can take.

    Returns:
        The blocks that modify their input.

    Raises:
        UntraceableError: their outputs differ.
    """
    modifies: set[int] = set()
    for training in (False, True):
        try:
            wanted = _output(network, network, training, example)
        except Exception:
            if not training:
                raise
            return modifies  # a batch of one, for instance
        got = _output(network, _Watched(modules, modifies), training, example)
        if not isinstance(wanted, Tensor) or not torch.equal(wanted, got):
            raise UntraceableError(
                f"{_difference(wanted, got)} in {'training' if training else 'eval'}"
            )
    return modifies


def _output(network: nn.Module, runs: nn.Module, training: bool, example: Tensor) -> Tensor:
    with kept(network), seeds.generators_kept():
        torch.manual_seed(0)
        seeds.seed_host(0)
        network.train(training)
        output: Tensor = runs.train(training)(example.clone())
        return output


class _Watched(nn.Module):
    """Blocks in order; notes which of them modify their input."""

    def __init__(self, blocks: Sequence[nn.Module], modifies: set[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.modifies = modifies

    def forward(self, x: Tensor) -> Tensor:
        """Through every block."""
        for k, block in enumerate(self.blocks):
            before = x
            with Writes() as writes:
                x = block(x)
            if writes.to(before):
                self.modifies.add(k)
        return x


def _difference(wanted: object, got: Tensor) -> str:
    if not isinstance(wanted, Tensor):
        return f"the model gives {type(wanted).__name__} instead of a tensor"
    if wanted.shape != got.shape:
        return f"the blocks give {list(got.shape)}, the model {list(wanted.shape)}"
    most = (wanted - got).abs().max().item()
    return f"the blocks' outputs differ from the model's by up to {most:.3g}"
