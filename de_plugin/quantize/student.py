"""The student with quantized weights: written tentatively, measured, written for good."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from de_plugin.assess.problem import Problem
from de_plugin.encode import dumps
from de_plugin.encode.quantized import Quantized
from de_plugin.errors import ArgumentError
from de_plugin.quantize.cost import Scale, counted, stream
from de_plugin.quantize.journal import Journal, answered
from de_plugin.quantize.survivors import Survivors
from de_plugin.quantize.uniform import Uniform
from de_plugin.quantize.weighting import Weighting, importance

Quantization = Mapping[str, Quantized]
"""Quantized tensors by parameter name."""

Biases = int | Literal["exact"]

_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Part:
    """One weight that is quantized.

    Attributes:
        name: of the parameter.
        parameter: the live one.
        aliases: its other names.
        kept: bool, of its shape; False is zero for good.
        weight: its values at the time, on the CPU.
        importance: of its shape, or None.
        sensitivity: mean importance of the survivors; 1 where nothing is known.
    """

    name: str
    parameter: nn.Parameter
    aliases: tuple[str, ...]
    kept: Tensor
    weight: Tensor
    importance: Tensor | None
    sensitivity: float

    @property
    def survivors(self) -> Survivors:
        """The weight's survivors, in one group."""
        return Survivors.of(self.weight, self.kept, self.importance, None)


class Student:
    """A problem's student, whose weights and biases get levels.

    Args:
        problem: what is asked; ``problem.kept`` and the zeros of the weights say what survives.
        weighting: of the errors.
        biases: bits of each bias vector's uniform levels, 2 to 8, or "exact".
        journal: remembers what was measured and counted; None: nothing does.

    Raises:
        ArgumentError: `biases` is neither.
    """

    def __init__(
        self,
        problem: Problem,
        weighting: Weighting = "fisher",
        biases: Biases = 8,
        journal: Journal | None = None,
    ) -> None:
        if biases != "exact":
            try:
                Uniform(bits=biases)
            except ArgumentError:
                raise ArgumentError(f"biases={biases!r}: expected 'exact' or bits from 2 to 8") from None
        self.problem = problem
        self.biases = biases
        self.weighting: Weighting = weighting
        self.journal = journal
        self.parts: tuple[Part, ...] = ()
        self._beside: int | None = None
        self.vectors = {} if biases == "exact" else _biases(problem)
        self.refresh()

    def refresh(self) -> None:
        """Take the student's weights and their importance as they are now."""
        problem = self.problem
        costs = importance(problem, self.weighting)
        kept = problem.units.expand(problem.kept)
        self.parts = tuple(
            _part(layer.name, layer.parameter, layer.aliases, kept[n], None if costs is None else costs[n])
            for n, layer in enumerate(problem.units.layers)
        )

    def quantized_biases(self) -> dict[str, Quantized]:
        """Return each bias vector's nearest uniform levels; empty where they stay exact."""
        if self.biases == "exact":
            return {}
        rule = Uniform(bits=self.biases)
        values = {name: p.detach().cpu() for name, p in self.vectors.items()}
        return {
            name: at_precision(rule.fit(v, torch.ones_like(v, dtype=torch.bool)), self.vectors[name].dtype)
            for name, v in values.items()
        }

    # -- writing ---------------------------------------------------------------------------------

    def write(self, quantization: Quantization, rest: Mapping[str, Tensor] = _NOTHING) -> None:
        """Put levels, and other values by name, into the model for good; what was pruned becomes zero."""
        live = self.tensors()
        with torch.no_grad():
            for name, quantized in quantization.items():
                live[name].data.copy_(quantized.dequantize())
            for name, value in rest.items():
                live[name].data.copy_(value)

    @contextmanager
    def holding(self, quantization: Quantization, rest: Mapping[str, Tensor] = _NOTHING) -> Iterator[None]:
        """Put them into the model; the old values come back bit-exactly, also on an exception."""
        live = self.tensors()
        problem = self.problem
        with problem.units.zeroed(problem.kept):
            saved = [(live[name], live[name].data.clone()) for name in (*quantization, *rest)]
            try:
                self.write(quantization, rest)
                yield
            finally:
                for tensor, value in reversed(saved):
                    tensor.data.copy_(value)

    def rest(self, quantization: Quantization) -> dict[str, Tensor]:
        """Return copies of all floating-point tensors of the model that are not quantized, by name."""
        live = self.tensors()
        known = {id(live[name]) for name in quantization}
        return {
            name: x.detach().clone()
            for name, x in live.items()
            if id(x) not in known and x.is_floating_point()
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the model's parameters and buffers by name, each once, the parts by their own names."""
        model = self.problem.model
        named: dict[str, Tensor] = dict(model.named_parameters())
        return {**named, **dict(model.named_buffers()), **{part.name: part.parameter for part in self.parts}}

    def tensor(self, name: str) -> Tensor:
        """Return the model's own values under a name, detached, not copied."""
        return self.tensors()[name].detach()

    # -- measuring -------------------------------------------------------------------------------

    def divergence(
        self,
        quantization: Quantization,
        index: Tensor,
        rest: Mapping[str, Tensor] = _NOTHING,
        *,
        repair: bool = True,
    ) -> float:
        """Return the divergence on the samples `index`, mean over them; non-finite outputs: infinity.

        Args:
            quantization: levels by parameter name.
            index: the samples.
            rest: other values by name.
            repair: whether the problem's cheap repair, which really follows, is made first.
        """
        problem = self.problem
        problem.evaluations += 1
        problem.sample_evaluations += len(index)

        def measure() -> float:
            batches = problem.batches(index)
            mending = problem.repaired(batches) if repair else nullcontext()
            with torch.no_grad(), self.holding(quantization, rest), mending:
                value = float(problem.measure(batches))
            return value if math.isfinite(value) else math.inf

        return answered(self.journal, [quantization, rest, index, repair], measure)

    # -- counting --------------------------------------------------------------------------------

    def state(
        self, quantization: Quantization, rest: Mapping[str, Tensor] = _NOTHING
    ) -> dict[str, Tensor | Quantized]:
        """Return the state dict with all these in their places, as `de_plugin.encode.save` takes it."""
        known: dict[str, Tensor | Quantized] = {**rest, **quantization}
        for part in self.parts:
            if part.name in known:
                known |= dict.fromkeys(part.aliases, known[part.name])
        return {name: known.get(name, value) for name, value in self.problem.model.state_dict().items()}

    def dtypes(self, quantization: Quantization) -> dict[str, torch.dtype]:
        """Return the types of the quantized tensors that are not float32, by name."""
        state = self.problem.model.state_dict()
        named = self.state(quantization)
        return {
            name: state[name].dtype
            for name, value in named.items()
            if isinstance(value, Quantized) and state[name].dtype != torch.float32
        }

    def bytes(self, quantization: Quantization, rest: Mapping[str, Tensor] = _NOTHING) -> int:
        """Return the size of the whole file; no symbols are coded again that were coded before."""

        def count() -> int:
            state, dtypes = self.state(quantization, rest), self.dtypes(quantization)
            return len(dumps(state, dtypes=dtypes, stream=stream))

        return count() if self.journal is None else self.journal.pure(["file", quantization, rest], count)

    def size(self, quantization: Quantization, rest: Mapping[str, Tensor] = _NOTHING) -> int:
        """Return the size of the whole file up to a few bytes, without coding again what was coded before."""
        known = sum(map(self._counted, quantization.values()))
        if self._beside is None:
            self._beside = self.bytes(quantization, rest) - known
        return self._beside + known

    def scale(self, quantization: Quantization) -> Scale:
        """Return what tells the file's bytes of other levels, after those of these were counted."""
        beside = self.size(quantization) - sum(map(self._counted, quantization.values()))
        return Scale.of(beside, quantization, self._counted)

    def _counted(self, quantized: Quantized) -> int:
        """Return the bytes that a tensor's symbols and their table take in a file."""
        if self.journal is None:
            return counted(quantized)
        return self.journal.pure(["tensor", quantized], lambda: counted(quantized))

    def exact(self, part: Part, quantized: Quantized) -> Quantized:
        """Round the levels to the parameter's type, in which they are kept."""
        return at_precision(quantized, part.parameter.dtype)


def at_precision(quantized: Quantized, dtype: torch.dtype) -> Quantized:
    """Round levels to the type in which they are kept."""
    if dtype in (torch.float32, torch.float64):
        return quantized
    return replace(quantized, levels=quantized.levels.to(dtype).float())


def _part(
    name: str, parameter: nn.Parameter, aliases: tuple[str, ...], kept: Tensor, cost: Tensor | None
) -> Part:
    weight = parameter.detach().cpu().clone()
    alive = kept.cpu() & (weight != 0)
    sensitivity = float(cost[alive].mean()) if cost is not None and bool(alive.any()) else 1.0
    return Part(name, parameter, aliases, alive, weight, cost, sensitivity)


def _biases(problem: Problem) -> dict[str, nn.Parameter]:
    """Return the bias vectors, each once, by name."""
    return {
        name: p
        for name, p in problem.model.named_parameters()
        if p.dim() == 1 and p.is_floating_point() and p.numel() and name.rpartition(".")[2].endswith("bias")
    }
