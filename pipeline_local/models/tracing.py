"""The graph of a module's calls, for training and evaluation at once, by torch.fx."""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from pipeline_local.errors import first_line
from pipeline_local.side_effects.untouched import modes_kept

Parts = Callable[[nn.Module], bool]
"""Which modules a graph calls instead of looking into them."""


class UntraceableError(Exception):
    """A module is no chain of calls that torch.fx can follow; the message says why."""


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


@contextmanager
def kept(network: nn.Module) -> Iterator[None]:
    """Modes, buffers and frozen parameters are afterwards as they were: running statistics, too. A
    layer may have written to its buffers, or have put others in their places."""
    places = [(module._buffers, dict(module._buffers)) for module in network.modules()]
    frozen = (tensor for tensor in network.parameters() if not tensor.requires_grad)
    values = [(tensor, tensor.clone()) for tensor in (*network.buffers(), *frozen)]
    try:
        with modes_kept(network):
            yield
    finally:
        for held, before in places:
            held.update(before)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)


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


def traced(network: nn.Module, whole: Parts) -> tuple[fx.Graph, dict[str, Any]]:
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
    if not isinstance(next(iter(reversed(graph.nodes))).args[0], fx.Node):
        raise UntraceableError("it gives more than one tensor")
    return graph, held


def _traced_in(training: bool, network: nn.Module, whole: Parts) -> fx.Graph:
    tracer, before = _Tracer(whole), set(vars(network))
    with kept(network):
        network.train(training)
        try:
            return tracer.trace(network)
        except Exception as error:  # torch.fx raises whatever the traced code does
            raise UntraceableError(first_line(error)) from error
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


class Seen(NamedTuple):
    """The tensor that a node gave for an example."""

    shape: tuple[int, ...]
    numbers: bool


class _Watching(fx.Interpreter):
    """Runs a graph and notes what tensors its nodes give."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Seen] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 (whatever the node gives)
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n.name] = Seen(tuple(value.shape), value.is_floating_point())
        return value


def watched(graph: fx.Graph, held: dict[str, Any], example: Tensor) -> dict[str, Seen]:
    """What a graph's nodes give for an example in evaluation mode, by their names.

    The graph's questions for the size of the batch go to the tensor at hand from now on: for
    `y.view(x.size(0), -1)`, x would have to stay alive.

    Args:
        held: what the graph names; these modules are left in evaluation mode.

    Raises:
        UntraceableError: it cannot be run.
    """
    run = _Watching(fx.GraphModule(held, graph).eval())
    try:
        run.run(example.clone())
    except Exception as error:
        raise UntraceableError(first_line(error)) from error
    batched = {name for name, tensor in run.seen.items() if tensor.shape[:1] == (len(example),)}
    for node in filter(_is_first_size, list(graph.nodes)):
        if not batched & {n.name for n in _asked(node)}:
            continue
        for user in list(node.users):
            near = [n for n in user.all_input_nodes if n.name in batched]
            if near:
                with graph.inserting_before(user):
                    user.replace_input_with(node, graph.call_method("size", (near[0], 0)))
    return run.seen


def _is_first_size(node: fx.Node) -> bool:
    """x.size(0), x.size()[0] or x.shape[0]."""
    if node.op == "call_method":
        return node.target == "size" and node.args[1:] == (0,)
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    of = node.args[0]
    return isinstance(of, fx.Node) and (of.target == "size" or of.args[1:] == ("shape",))


def _asked(node: fx.Node) -> list[fx.Node]:
    """The tensor whose size it is."""
    direct = node.all_input_nodes
    return direct if node.op == "call_method" else direct[0].all_input_nodes
