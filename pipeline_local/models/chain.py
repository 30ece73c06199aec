"""Any module as a chain: where exactly one tensor is alive, a network can be cut.

Found by torch.fx. A module whose inside is a chain is opened, one with branches (a residual block)
stays whole, and so do all others of its class.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import batchnorm

from pipeline_local.models.tracing import Seen, UntraceableError, kept, traced, watched

NORMS: tuple[type[nn.Module], ...] = (batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_LIGHT: tuple[Any, ...] = (operator.add, operator.iadd, operator.mul, operator.imul)
_LIGHT += (torch.add, torch.mul, torch.cat)


@dataclass(frozen=True)
class ChainLink:
    """A piece of a chain: one tensor in, one tensor out.

    Attributes:
        nodes: of the graph, in order.
        value: the node of them that gives the tensor.
        shape: of that tensor.
        name: path of its first module with parameters, else of what it calls.
        weighs: it holds a parameter.
        light: its parameters only norm, scale or shift, or are put beside the activations.
    """

    nodes: tuple[fx.Node, ...]
    value: fx.Node
    shape: tuple[int, ...]
    name: str
    weighs: bool
    light: bool


@dataclass(frozen=True)
class Chain:
    """A network's graph, cut as finely as it can be.

    Attributes:
        source: the placeholder of its input.
        links: in order.
        held: the modules and tensors that the graph names.
        transient: buffers that no state dict holds.
    """

    source: fx.Node
    links: tuple[ChainLink, ...]
    held: dict[str, Any]
    transient: frozenset[str]

    def module(self, start: int, stop: int, name: str, copies_input: bool = False) -> "Piece":
        """A module of the links from `start` to before `stop`, holding the network's own tensors
        under their paths.

        Args:
            name: of its class, as it is printed.
            copies_input: it works on a copy of its input, which it would modify.
        """
        graph = fx.Graph()
        before = self.source if start == 0 else self.links[start - 1].value
        x = graph.placeholder("x")
        new = {before: graph.call_function(torch.clone, (x,)) if copies_input else x}
        for link in self.links[start:stop]:
            for node in link.nodes:
                for origin in node.all_input_nodes:
                    if origin.op == "get_attr" and origin not in new:
                        new[origin] = graph.node_copy(origin)
                new[node] = graph.node_copy(node, new.__getitem__)
        graph.output(new[self.links[stop - 1].value])
        targets = {n.target for n in graph.nodes if n.op in ("call_module", "get_attr")}
        piece = Piece({t: self.held[str(t)] for t in targets}, graph, _identifier(name))
        for target in targets & self.transient:
            owner, _, buffer = str(target).rpartition(".")
            piece.get_submodule(owner)._non_persistent_buffers_set.add(buffer)
        return piece


class Piece(fx.GraphModule):
    """A part of a network; layers that the user has set to evaluation mode stay in it.

    Their paths are in `meta["frozen"]`, which copies keep.
    """

    def train(self, mode: bool = True) -> "Piece":
        """As any module, but for the frozen layers."""
        super().train(mode)
        for path in self.meta.get("frozen", ()):
            self.get_submodule(path).train(False)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Piece":
        """A copy keeps what is no part of a state dict out of it; torch 2.11's would not."""
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, Piece)
        for path, module in self.named_modules():
            kept_out = copied.get_submodule(path)._non_persistent_buffers_set
            kept_out.update(module._non_persistent_buffers_set)
        return copied


def chain(network: nn.Module, example: Tensor, opened: bool = True) -> Chain:
    """Trace a network and cut it wherever one tensor of activations is all that is alive.

    Args:
        network: in training mode or not, it is left as it is.
        example: a batch of inputs.
        opened: look into modules; otherwise the network's children stay whole.

    Raises:
        UntraceableError: torch.fx cannot follow it.
    """
    kinds = _opened(network) if opened else set()
    graph, held = traced(network, lambda module: type(module) not in kinds)
    with kept(network), torch.no_grad():
        seen = watched(graph, held, example)

    def cuts(node: fx.Node) -> bool:
        tensor = seen.get(node.name, Seen((), False))
        return tensor.numbers and len(tensor.shape) > 1 and tensor.shape[0] == len(example)

    pieces = _pieces(graph, cuts)
    links = [_link(nodes, value, held, seen[value.name].shape) for nodes, value in pieces]
    transient = {name for name, _ in network.named_buffers()} - network.state_dict().keys()
    return Chain(next(iter(graph.nodes)), tuple(links), held, frozenset(transient))


def _opened(network: nn.Module) -> set[type[nn.Module]]:
    """Classes whose modules are opened: all of them are chains, and one has two heavy links, or
    one that is opened in turn."""
    alike: dict[type[nn.Module], list[nn.Module]] = {}
    for module in network.modules():
        if not type(module).__module__.startswith(("torch.nn.", "torchvision.ops.")):
            alike.setdefault(type(module), []).append(module)
    heavy = {kind: [_heavy(module) for module in modules] for kind, modules in alike.items()}
    opened: set[type[nn.Module]] = {nn.Sequential}
    for _ in heavy:  # inner classes first, however deep they are
        for kind, chains in heavy.items():
            if [] not in chains and any(len(c) > 1 or opened & {*c} for c in chains):
                opened.add(kind)
    return opened


def _heavy(module: nn.Module) -> list[type[nn.Module]]:
    """Classes of the heavy links of a module whose children run one after the other; else none."""
    if next(module.children(), None) is None:
        return []
    try:
        graph, held = traced(module, lambda child: True)
        links = [_link(*piece, held, ()) for piece in _pieces(graph, lambda node: True)]
    except UntraceableError:
        return []
    heavy = [link for link in links if link.weighs and not link.light]
    if any(len(link.nodes) > 1 or link.name not in held for link in heavy):
        return []  # a residual, for instance
    return [type(held[link.name]) for link in heavy]


def _pieces(
    graph: fx.Graph, cuts: Callable[[fx.Node], bool]
) -> Iterator[tuple[tuple[fx.Node, ...], fx.Node]]:
    """Nodes between cuts, and the one node of theirs that is alive at the end."""
    nodes = [n for n in graph.nodes if n.op not in ("get_attr", "output", "placeholder")]
    order = {node: i for i, node in enumerate(graph.nodes)}
    last = {node: max((order[user] for user in node.users), default=-1) for node in order}
    alive = {node for node in order if node.op == "placeholder"}
    open_nodes: list[fx.Node] = []
    for node in nodes:
        open_nodes.append(node)
        alive = {n for n in (*alive, node) if last[n] > order[node]}
        if len(alive) == 1 and (value := next(iter(alive))) in open_nodes and cuts(value):
            yield tuple(open_nodes), value
            open_nodes = []
    if open_nodes:
        raise UntraceableError("its output does not come last")


def _link(
    nodes: tuple[fx.Node, ...], value: fx.Node, held: dict[str, Any], shape: tuple[int, ...]
) -> ChainLink:
    modules = _with_parameters(nodes, held)
    own = [n for node in nodes for n in node.all_input_nodes if n.op == "get_attr"]
    own = [n for n in own if isinstance(held[str(n.target)], nn.Parameter)]
    heavy = not all(_is_norm(held[path]) for path in modules)
    heavy |= any(
        user.op != "call_method" and user.target not in _LIGHT for n in own for user in n.users
    )
    named = str(nodes[0].target) if nodes[0].op == "call_module" else nodes[0].name
    return ChainLink(
        nodes=nodes,
        value=value,
        shape=shape,
        name=modules[0] if modules else named,
        weighs=bool(modules or own),
        light=not heavy,
    )


def _with_parameters(nodes: Sequence[fx.Node], held: dict[str, Any]) -> list[str]:
    """Paths of the modules with parameters that are called."""
    paths = [str(node.target) for node in nodes if node.op == "call_module"]
    return [path for path in paths if next(held[path].parameters(), None) is not None]


def _is_norm(module: nn.Module) -> bool:
    layers = [m for m in module.modules() if next(m.parameters(False), None) is not None]
    return all(isinstance(layer, NORMS) for layer in layers)


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def spans(links: Sequence[ChainLink]) -> list[int] | None:
    """Where the blocks of a chain start; the last number is where the classifier starts.

    A block starts at every link with weights; norms and layers without weights belong to the block
    before them. All blocks give activations with the same number of axes: the longest such run is
    the body. What comes before it belongs to its first block, what comes behind to the classifier,
    and so do the layers without weights that change the shape in front of the classifier.

    Returns:
        None where fewer than two links have weights.
    """
    weighty = [i for i, link in enumerate(links) if link.weighs and not link.light]
    if len(weighty) < 2:
        return None
    body = _longest_run(weighty[:-1], [len(links[i].shape) for i in weighty[:-1]])
    end = next(i for i in weighty if i > body[-1])
    for i in range(body[-1] + 1, end):
        if not links[i].weighs and links[i].shape != links[i - 1].shape:
            end = i
            break
    return [0, *body[1:], end]


def _longest_run(items: list[int], keys: list[int]) -> list[int]:
    """The first of the longest stretches of items with equal keys."""
    runs: list[list[int]] = []
    for k, item in enumerate(items):
        if not k or keys[k] != keys[k - 1]:
            runs.append([])
        runs[-1].append(item)
    return max(runs, key=len)
