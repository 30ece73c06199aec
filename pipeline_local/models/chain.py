"""Any module as a chain: where exactly one tensor is alive, a network can be cut.

Found by torch.fx. A module whose inside is a chain is opened, one with branches (a residual block)
stays whole, and so do all others of its class.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import batchnorm

NORMS: tuple[type[nn.Module], ...] = (batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_LIGHT: tuple[Any, ...] = (operator.add, operator.iadd, operator.mul, operator.imul)
_LIGHT += (torch.add, torch.mul, torch.cat)
Parts = Callable[[nn.Module], bool]


class UntraceableError(Exception):
    """A module is no chain of calls that torch.fx can follow; the message says why."""


@dataclass(frozen=True)
class Link:
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
    links: tuple[Link, ...]
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


class ByMode(nn.Module):
    """A function with a flag that says whether its module trains, e.g. functional.dropout."""

    def __init__(self, function: Callable[..., Any], flag: int | str) -> None:
        super().__init__()
        self.function = function
        self.flag = flag

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (the function's own)
        """The function, told this module's own mode."""
        if isinstance(self.flag, str):
            return self.function(*args, **kwargs | {self.flag: self.training})
        args = (*args[: self.flag], self.training, *args[self.flag + 1 :])
        return self.function(*args, **kwargs)


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
    graph, held = _traced(network, lambda module: type(module) not in kinds)
    shapes = _Shapes(fx.GraphModule(held, graph))
    with kept(network), torch.no_grad():
        shapes.module.eval()
        network.eval()
        try:
            shapes.run(example.clone())
        except Exception as error:
            raise UntraceableError(_line(error)) from error

    _ask_near(graph, shapes.found, len(example))

    def cuts(node: fx.Node) -> bool:
        shape = shapes.found.get(node.name)
        return shape is not None and len(shape) > 1 and shape[0] == len(example)

    pieces = _pieces(graph, cuts)
    links = [_link(nodes, value, held, shapes.found[value.name] or ()) for nodes, value in pieces]
    transient = {name for name, _ in network.named_buffers()} - network.state_dict().keys()
    return Chain(next(iter(graph.nodes)), tuple(links), held, frozenset(transient))


@contextmanager
def kept(network: nn.Module) -> Iterator[None]:
    """Modes and buffers are afterwards as they were: running statistics, too."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


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
        graph, held = _traced(module, lambda child: True)
        links = [_link(*piece, held, ()) for piece in _pieces(graph, lambda node: True)]
    except UntraceableError:
        return []
    heavy = [link for link in links if link.weighs and not link.light]
    if any(len(link.nodes) > 1 or link.name not in held for link in heavy):
        return []  # a residual, for instance
    return [type(held[link.name]) for link in heavy]


class _Tracer(fx.Tracer):
    """Calls the root with one tensor; its other arguments have their defaults."""

    def __init__(self, whole: Parts) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.whole(m)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: object = None,
    ) -> tuple[Callable[..., Any], list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]


def _traced(network: nn.Module, whole: Parts) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph that serves training and evaluation, and what it names.

    Raises:
        UntraceableError: control flow, several outputs, or modes that differ in more than a flag.
    """
    graph, other = (_traced_in(mode, network, whole) for mode in (True, False))
    if [(n.op, n.target) for n in graph.nodes] != [(n.op, n.target) for n in other.nodes]:
        raise UntraceableError("it does different things in training and in evaluation mode")
    held: dict[str, Any] = {}
    for node, twin in zip(list(graph.nodes), other.nodes, strict=True):
        if (flag := _difference(node, twin)) is not None:
            name = f"functional_{node.name}"
            held[name] = ByMode(node.target, flag)
            node.op, node.target = "call_module", name
        elif node.op in ("call_module", "get_attr"):
            held[str(node.target)] = _attribute(network, str(node.target))
    if not isinstance(next(reversed(graph.nodes)).args[0], fx.Node):
        raise UntraceableError("it gives more than one tensor")
    return graph, held


def _traced_in(training: bool, network: nn.Module, whole: Parts) -> fx.Graph:
    tracer, before = _Tracer(whole), set(vars(network))
    with kept(network):
        network.train(training)
        try:
            return tracer.trace(network)
        except Exception as error:  # torch.fx raises whatever the traced code does
            raise UntraceableError(_line(error)) from error
        finally:
            constants = set(vars(network)) - before  # left there by torch.fx
            for name in constants:
                delattr(network, name)


def _difference(node: fx.Node, twin: fx.Node) -> int | str | None:
    """The one flag that training sets and evaluation does not."""
    one, two = ({**dict(enumerate(n.args)), **n.kwargs} for n in (node, twin))
    differ: list[int | str] = [
        key for key in one.keys() | two.keys() if str(one.get(key)) != str(two.get(key))
    ]
    if not differ:
        return None
    if node.op != "call_function" or len(differ) > 1 or one[differ[0]] is not True:
        raise UntraceableError("it does different things in training and in evaluation mode")
    return differ[0]


def _attribute(network: nn.Module, path: str) -> Any:  # noqa: ANN401 (a module or a tensor)
    owner, _, name = path.rpartition(".")
    found = getattr(network.get_submodule(owner), name, None)
    if found is None:
        raise UntraceableError("it makes a constant tensor as it runs; register it as a buffer")
    return found


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shapes of all tensors of numbers."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, tuple[int, ...] | None] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 (whatever the node gives)
        value = super().run_node(n)
        numbers = isinstance(value, Tensor) and value.is_floating_point()
        self.found[n.name] = tuple(value.shape) if numbers else None
        return value


def _ask_near(graph: fx.Graph, shapes: dict[str, tuple[int, ...] | None], batch: int) -> None:
    """Ask the tensor at hand for the size of the batch, as in `y.view(x.size(0), -1)`: an earlier
    one would stay alive for it."""
    for node in filter(_is_batch_size, list(graph.nodes)):
        for user in list(node.users):
            near = [n for n in user.all_input_nodes if (shapes.get(n.name) or (0,))[0] == batch]
            if near:
                with graph.inserting_before(user):
                    user.replace_input_with(node, graph.call_method("size", (near[0], 0)))


def _is_batch_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size" and node.args[1:] == (0,)
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    of = node.args[0]
    return isinstance(of, fx.Node) and (of.target == "size" or of.args[1:] == ("shape",))


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
) -> Link:
    modules = _with_parameters(nodes, held)
    own = [n for node in nodes for n in node.all_input_nodes if n.op == "get_attr"]
    own = [n for n in own if isinstance(held[str(n.target)], nn.Parameter)]
    heavy = not all(_is_norm(held[path]) for path in modules)
    heavy |= any(
        user.op != "call_method" and user.target not in _LIGHT for n in own for user in n.users
    )
    named = str(nodes[0].target) if nodes[0].op == "call_module" else nodes[0].name
    return Link(
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


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def spans(links: Sequence[Link]) -> list[int] | None:
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
