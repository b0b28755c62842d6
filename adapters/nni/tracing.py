"""Following a model's forward, and saying where that ends."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node, Tracer

from de_plugin.errors import StructureError

_FOLLOWED = (
    "NNI's speed-up needs a forward that it can follow: no branch or loop on values of tensors, no sizes "
    "written out (flatten(1) in place of view(-1, 256)); or put the operator into a function marked with "
    "torch.fx.wrap"
)


class _Tracer(Tracer):
    """Follows forward with as many arguments as the example has; the others keep their defaults."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        names = [*list(inspect.signature(root_fn).parameters)[1:], *("more",) * self.count]
        given = [self.create_proxy("placeholder", n, (), {}) for n in names[: self.count]]
        return root_fn, [self.root, *given]


def traced(twin: nn.Module, count: int) -> GraphModule:
    """Return the graph of a model called with as many positional arguments.

    Raises:
        StructureError: it cannot be followed; the message names the module and the line.
    """
    with located(twin, "torch.fx cannot follow it", _FOLLOWED):
        return GraphModule(twin, _Tracer(count).trace(twin))


@contextmanager
def located(model: nn.Module, doing: str, remedy: str) -> Iterator[None]:
    """Turn an error into one that names the innermost module of the model and the line of its forward."""
    try:
        yield
    except Exception as error:
        where = {id(m): n or "the model" for n, m in model.named_modules()}
        place, line = "the model", ""
        trace = error.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            first = frame.f_code.co_varnames[:1]
            owner = frame.f_locals.get(first[0]) if first else None
            if id(owner) in where and frame.f_code.co_name == "forward":
                place = f"{where[id(owner)]} ({type(owner).__name__})"
                line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno).strip()
            trace = trace.tb_next
        raise StructureError(
            f"{place}{f', line `{line}`' * bool(line)}: {doing}: {error}. {remedy}"
        ) from error


def stuck(error: BaseException, graph: GraphModule) -> tuple[str, nn.Module | None]:
    """Return the name of what the host stopped at, and the module; None where it is no module."""
    found: Node | None = None
    trace = error.__traceback__
    while trace is not None:
        node = trace.tb_frame.f_locals.get("node")
        if isinstance(node, Node):
            found = node
        trace = trace.tb_next
    if found is None:
        return "the model", None
    if found.op != "call_module":
        return f"{found.name} ({found.target})", None
    module = graph.get_submodule(str(found.target))
    return f"{found.target} ({type(module).__name__})", module
