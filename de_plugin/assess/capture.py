"""What goes into each prunable weight: inputs as design matrices, their energy and their Gram matrices.

Every layer that is pruned computes a product that is linear in its weight. A function mode sees these
calls wherever they are made (in modules, in `torch.nn.functional`, inside attention), so nothing depends on
how the model is written.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from de_plugin.assess.attention import plain_attention
from de_plugin.assess.batches import Batch
from de_plugin.assess.design import CONVOLUTIONS, TRANSPOSED, Call, paddings, several
from de_plugin.errors import ArgumentError

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem

__all__ = ["Call", "Capture", "grams", "input_energy", "observe", "one_pass"]


class Capture(TorchFunctionMode):
    """Calls `visit` for every use of a prunable weight in the calls made inside the block."""

    def __init__(self, problem: Problem, visit: Callable[[Call], None]) -> None:
        super().__init__()
        self._visit = visit
        self._layers = {id(x.parameter): n for n, x in enumerate(problem.units.layers)}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "linear":
            self._linear(*args, **kwargs)
        elif name == "addmm":
            self._addmm(*args, **kwargs)
        elif name in CONVOLUTIONS or name in TRANSPOSED:
            self._conv(func, name, *args, **kwargs)
        elif name == "embedding":
            self._embedding(*args, **kwargs)
        elif name == "multi_head_attention_forward":
            self._attention(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _known(self, weight: Any) -> int | None:
        return self._layers.get(id(weight)) if isinstance(weight, Tensor) else None

    def _emit(self, weight: Tensor, kind: str, inputs: Tensor, rows: slice | None = None) -> None:
        layer = self._known(weight)
        if layer is not None:
            self._visit(Call(layer, rows or slice(None), F.linear, inputs.detach(), kind, {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:  # noqa: A002
        self._emit(weight, "linear", input)

    def _addmm(self, *args: Any, **kwargs: Any) -> None:
        """Report a linear layer whose weight is ``(in, out)``."""
        given = {**dict(zip(("input", "mat1", "mat2"), args, strict=False)), **kwargs}
        layer = self._known(given["mat2"])
        if layer is not None:
            self._visit(Call(layer, slice(None), torch.matmul, given["mat1"].detach(), "linear", {}))

    def _embedding(self, *args: Any, **kwargs: Any) -> None:
        first = [kwargs.get("input"), kwargs.get("weight")]
        tensors = [
            *(a for a in args[:2] if isinstance(a, Tensor)),
            *(x for x in first if x is not None),
        ]
        index, weight = sorted(tensors[:2], key=lambda t: t.is_floating_point())
        layer = self._known(weight)
        if layer is not None:
            self._visit(
                Call(
                    layer,
                    slice(None),
                    lambda i, w: F.embedding(i, w),
                    index.detach(),
                    "embedding",
                    {},
                )
            )

    def _conv(self, func: Any, name: str, *args: Any, **kwargs: Any) -> None:
        dims = CONVOLUTIONS.get(name) or TRANSPOSED[name]
        order = ["input", "weight", "bias", "stride", "padding"]
        order += ["output_padding", "groups", "dilation"] if name in TRANSPOSED else ["dilation", "groups"]
        given = {**dict(zip(order, args, strict=False)), **kwargs}
        layer = self._known(given["weight"])
        if layer is None:
            return
        options: dict[str, Any] = {"stride": several(given.get("stride", 1), dims)}
        options["dilation"] = several(given.get("dilation", 1), dims)
        padding = given.get("padding", 0)
        if name in TRANSPOSED:
            options["padding"] = several(padding, dims)
            options["output_padding"] = several(given.get("output_padding", 0), dims)
        else:
            options["padding"] = paddings(padding, given["weight"].shape[2:], options["dilation"])
        rest = {k: v for k, v in given.items() if k not in ("input", "weight", "bias")}
        self._visit(
            Call(
                layer,
                slice(None),
                lambda x, w: func(x, w, None, **rest),
                given["input"].detach(),
                name,
                options,
            )
        )

    def _attention(self, func: Any, *args: Any, **kwargs: Any) -> None:
        """Report what attention projects, and, by leaving the last projection out, its input."""
        bound = inspect.signature(func).bind(*args, **kwargs)
        given = bound.arguments
        width = int(given["embed_dim_to_check"])
        streams = [given["query"], given["key"], given["value"]]
        if given.get("use_separate_proj_weight"):
            for name, stream in zip("qkv", streams, strict=True):
                self._emit(given[f"{name}_proj_weight"], "linear", stream)
        elif given["in_proj_weight"] is not None:
            for part, stream in enumerate(streams):
                rows = slice(part * width, (part + 1) * width)
                self._emit(given["in_proj_weight"], "linear", stream, rows)
        if self._known(given["out_proj_weight"]) is not None:
            like = given["out_proj_weight"]
            given["out_proj_weight"] = torch.eye(width, dtype=like.dtype, device=like.device)
            weight, given["out_proj_bias"] = like, None
            self._emit(weight, "linear", func(*bound.args, **bound.kwargs)[0])


def observe(problem: Problem, batches: list[Batch], visit: Callable[[Call], None]) -> None:
    """Run the student as it stands over `batches` and report every use of a prunable weight."""
    with torch.no_grad(), plain_attention(), Capture(problem, visit):
        for batch in batches:
            problem.forward(problem.model, batch.inputs)


def one_pass(problem: Problem, samples: int, memory: int, generator: torch.Generator) -> Tensor:
    """Return search samples for one forward pass, int64, in which layer after layer can be changed.

    Args:
        problem: whose samples they are.
        samples: at most so many.
        memory: bytes of the layers' inputs in that pass, about; fewer samples where they would take more.
        generator: chooses them.

    Raises:
        ArgumentError: samples differ in shape.
    """
    if problem.pool.stacked is None:
        raise ArgumentError(
            "batches: the samples differ in shape and cannot be seen in one forward pass, as "
            "rounding='compensated' and recovery='reconstruct' need it; pad them alike, or use "
            "rounding='nearest' and recovery='leastsquares'"
        )
    sizes: list[int] = []
    observe(problem, problem.pool.take(problem.search[:1]), lambda call: sizes.append(call.inputs.nbytes))
    count = min(samples, len(problem.search), max(1, memory // max(1, 2 * sum(sizes))))
    order = torch.randperm(len(problem.search), generator=generator)
    return problem.search[order[:count]]


def _wide(x: Tensor) -> torch.dtype:
    """Return a type in which sums of squares don't overflow."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def input_energy(problem: Problem, index: Tensor) -> list[Tensor]:
    """Return, for every weight, the mean over samples of the summed squares of the inputs it meets.

    The product is linear in the weight, so the sum of squares is a derivative: that of the summed
    product of squared inputs. One tensor of the parameter's shape a layer; ranks share the batches.
    """
    batches = problem.batches(index)
    layers = problem.units.layers

    def part(numbers: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(x.parameter, dtype=_wide(x.parameter)) for x in layers]

        def visit(call: Call) -> None:
            parameter = layers[call.layer].parameter
            with torch.enable_grad():
                wide = _wide(parameter)
                weight = parameter.detach()[call.rows].to(wide, copy=True).requires_grad_(True)
                squared = call.inputs if call.kind == "embedding" else call.inputs.to(wide).square()
                (g,) = torch.autograd.grad(call.linear(squared, weight).sum(), weight)
            total[call.layer][call.rows] += g

        observe(problem, [batches[n] for n in numbers], visit)
        return total

    with problem.units.zeroed(problem.kept), problem.repaired(batches):
        total = problem.ranks.sum_in_order(len(batches), part)
    samples = sum(b.size for b in batches)
    return [t / samples for t in total]


def grams(
    problem: Problem, index: Tensor, layers: Iterable[int], *, positions: int = 4096
) -> dict[int, list[tuple[slice, Tensor]]]:
    """Return the mean outer product of each layer's inputs at the student.

    Args:
        problem: whose student runs, with `problem.kept` in force.
        index: the samples.
        layers: which layers; embeddings are left out, their Gram matrix is diagonal.
        positions: use at most so many positions of each batch, evenly spaced.

    Returns:
        For each layer a list of ``(canonical outputs that share it, Gram (in x kernel)²)``, one entry a
        convolution group or a part of an attention projection. A mean over positions.
    """
    wanted = set(layers)
    total: dict[tuple[int, int, int], Tensor] = {}
    count: dict[tuple[int, int, int], int] = {}

    def visit(call: Call) -> None:
        layer = problem.units.layers[call.layer]
        if call.layer not in wanted:
            return
        for rows, x in call.uses(layer, positions):
            key = (call.layer, rows.start, rows.stop)
            x = x.to(_wide(layer.parameter))
            product = x.T @ x
            total[key] = total[key] + product if key in total else product
            count[key] = count.get(key, 0) + len(x)

    batches = problem.batches(index)
    with problem.units.zeroed(problem.kept), problem.repaired(batches):
        observe(problem, batches, visit)
    result: dict[int, list[tuple[slice, Tensor]]] = {}
    for key in sorted(total):
        result.setdefault(key[0], []).append((slice(*key[1:]), total[key] / count[key]))
    return result
