"""Levels for the layers of a model: fitted once, chosen by what is measured, recovered, written."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from de_plugin.adapters.neural_compressor.compensating import Compensating
from de_plugin.adapters.neural_compressor.layers import units_of
from de_plugin.adapters.neural_compressor.parts import layer_of, squared_error, weighed
from de_plugin.adapters.neural_compressor.settings import BEST, ENTROPY, TRIED, Choice, Settings
from de_plugin.assess.fingerprint import fingerprint
from de_plugin.assess.layers import output_dim
from de_plugin.assess.problem import Problem
from de_plugin.encode.quantized import Quantized
from de_plugin.errors import ArgumentError
from de_plugin.quantize.between import Around
from de_plugin.quantize.codebook import codebook
from de_plugin.quantize.entropy import HIGH_RATE
from de_plugin.quantize.rates import Rates
from de_plugin.quantize.student import Part, Student, at_precision
from de_plugin.quantize.trial import Trial
from de_plugin.quantize.uniform import Uniform
from de_plugin.quantize.weighting import Weighting, importance

Levels = dict[str, Quantized]
"""Quantized tensors by parameter name."""


class Fits(dict[tuple[str, Hashable], Quantized]):
    """Levels by parameter name and what was asked for, under the same settings.

    Attributes:
        origin: tells the weights that they belong to.
    """

    def __init__(self, origin: int) -> None:
        super().__init__()
        self.origin = origin


_KEPT = 1 << 25  # compensated weights whose levels are remembered

_ZERO_APART = ("uniform", "affine", "power", "kmeans")
"""Codebooks that keep a level for zeros: where a weight has none, it is free for others."""


@dataclass(frozen=True)
class Finished:
    """What a model gets.

    Attributes:
        levels: of weights, and of biases where they get any.
        rest: other values by name, where a recovery has changed them.
    """

    levels: Mapping[str, Quantized]
    rest: Mapping[str, Tensor]


class Bench:
    """The layers of a model that get levels, and the data on which these are measured.

    Args:
        model: whose weights are written in the end.
        names: its layers.
        settings: of the whole network.
        fits: levels that were fitted before; new ones are added.

    Raises:
        SelectionError: a weight cannot be written to.
        ArgumentError: a weight is not finite, or the fits are of other weights.
        DEError: batches, teacher and divergence do not go together with the model.
    """

    def __init__(
        self, model: nn.Module, names: Iterable[str], settings: Settings, fits: Fits | None = None
    ) -> None:
        settings.check_data()
        self.model = model
        self.settings = settings
        self.units = units_of(model, names)
        self.parts = tuple(
            Part(x.name, x.parameter, x.aliases, w != 0, w, None, 1.0)
            for x in self.units.layers
            for w in [x.parameter.detach().cpu().clone()]
        )
        for part in self.parts:
            if not bool(torch.isfinite(part.weight).all()):
                raise ArgumentError(
                    f"{part.name}: holds NaN or infinite values; only finite ones have levels"
                )
        origin = fingerprint(part.weight for part in self.parts)
        self.fits = Fits(origin) if fits is None else fits
        if self.fits.origin != origin:
            raise ArgumentError(
                "model: its weights are not those that the DETuner was given, whose levels these are; build "
                "the DETuner from this model"
            )
        wanted = set(names)
        self.layers: dict[str, tuple[str, ...]] = {
            part.name: tuple(n for n in map(layer_of, (part.name, *part.aliases)) if n in wanted)
            for part in self.parts
        }
        """The layers that own each weight, by parameter name; several where it is shared."""

    # -- data ------------------------------------------------------------------------------------

    @cached_property
    def problem(self) -> Problem | None:
        """What is asked of the model with levels; None without batches."""
        given = self.settings
        if given.batches is None:
            return None
        return Problem(
            self.model,
            given.batches,
            divergence=given.divergence,
            forward=given.forward,
            samples=given.samples,
            seed=given.seed,
            units=self.units,
            teacher=given.teacher,
            evaluate="serial",  # levels of a layer are no sparse change
        )

    @cached_property
    def student(self) -> Student | None:
        """The model as the engine's student; None without batches."""
        if self.problem is None:
            return None
        student = Student(self.problem, "none", self.settings.biases)
        if self.settings.compensated is not None and self._importance is not None:
            both = zip(student.parts, self._importance, strict=True)
            student.parts = tuple(weighed(part, costs) for part, costs in both)
        student.vectors = {n: p for n, p in student.vectors.items() if n in self._biases}
        return student

    @cached_property
    def _biases(self) -> dict[str, nn.Parameter]:
        """The bias vectors of the layers, by name."""
        owners = {name for names in self.layers.values() for name in names}
        return {
            name: p
            for name, p in self.model.named_parameters()
            if p.dim() == 1 and p.is_floating_point() and name.endswith("bias") and layer_of(name) in owners
        }

    @cached_property
    def _importance(self) -> list[Tensor] | None:
        problem, asked = self.problem, self.settings.weighting
        if problem is None or asked == "none" or (asked == "auto" and not problem.has_gradient):
            return None
        kind: Weighting = "activations" if asked == "activations" else "fisher"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return importance(problem, kind)

    # -- levels ----------------------------------------------------------------------------------

    def fit(self, part: Part, choice: Choice) -> Quantized:
        """Return the levels of one weight; "best" is not among the codebooks here."""
        key = (part.name, choice)
        if key not in self.fits:
            number = self.parts.index(part)
            costs = self._importance
            axis = output_dim(self.units.layers[number].module) if choice.granularity == "channel" else None
            count = 2**choice.bits
            if choice.codebook in _ZERO_APART and bool(part.kept.all()):
                count = min(256, count + 1)
            priced = {"price": choice.price * HIGH_RATE} if choice.codebook == ENTROPY else {}
            book = codebook(choice.codebook, levels=count, axis=axis, **priced)
            found = book.fit(part.weight, part.kept, None if costs is None else costs[number])
            self.fits[key] = at_precision(found, part.parameter.dtype)
        return self.fits[key]

    @cached_property
    def _compensating(self) -> Compensating | None:
        how = self.settings.compensated
        if how is None or self.student is None:
            return None
        return Compensating(self.student, how)

    def expect(self, asked: Mapping[str, Sequence[Choice]]) -> None:
        """Prepare for all that may be asked of each weight, by parameter name."""
        if self._compensating is not None:
            self._compensating.prepare(asked)

    def alone(self, parts: Iterable[Part], choice: Choice) -> Levels:
        """Return the levels of some weights where all others have none."""
        if self._compensating is None:
            return {part.name: self.fit(part, choice) for part in parts}
        return self._compensated({part.name: choice for part in parts})

    def _compensated(self, asked: Mapping[str, Choice]) -> Levels:
        """Return levels that make good each other's errors; those of what was asked for lately are kept."""
        key = tuple(sorted(asked.items(), key=lambda item: item[0]))
        found = {name: levels for (name, known), levels in self.fits.items() if known == key}
        if not found and self._compensating is not None:
            found = self._compensating.levels(asked)
            while self.fits and sum(q.symbols.numel() for q in self.fits.values()) > _KEPT:
                _, oldest = next(iter(self.fits))
                for name, known in list(self.fits):
                    if known == oldest:  # they are only right together
                        del self.fits[name, known]
            self.fits.update({(name, key): levels for name, levels in found.items()})
        return found

    def chosen(self, choices: Mapping[str, Choice]) -> Levels:
        """Return the levels of all weights as their layers ask for them.

        Raises:
            ArgumentError: layers share a weight and ask for different levels.
        """
        asked = {part.name: self._asked(part, choices) for part in self.parts}
        if self._compensating is not None:
            return self._compensated(asked)
        plain = {p.name: self.fit(p, asked[p.name]) for p in self.parts if asked[p.name].codebook != BEST}
        open_ = [p for p in self.parts if asked[p.name].codebook == BEST]
        if not open_:
            return self._ordered(plain)
        if self.student is None:
            best = {p.name: self._nearest(p, asked[p.name]) for p in open_}
            return self._ordered({**plain, **best})
        return self._ordered({**plain, **self._measured(open_, asked, plain)})

    def _asked(self, part: Part, choices: Mapping[str, Choice]) -> Choice:
        found = {name: choices[name] for name in self.layers[part.name]}
        first = next(iter(found.values()))
        if any(choice != first for choice in found.values()):
            told = ", ".join(f"{name}: {choice}" for name, choice in found.items())
            raise ArgumentError(f"{' and '.join(found)} share one weight, expected the same levels ({told})")
        return first

    def _nearest(self, part: Part, choice: Choice) -> Quantized:
        """Return the levels of least squared error."""
        tried = [self.fit(part, replace(choice, codebook=name)) for name in TRIED]
        return min(tried, key=lambda q: squared_error(part, q))

    def _measured(self, parts: list[Part], asked: Mapping[str, Choice], others: Levels) -> Levels:
        """Return for each weight the levels of least divergence when it alone has some.

        Together they may be worse than one codebook for all; then it is that one.
        """
        tried = {
            p.name: {name: self.fit(p, replace(asked[p.name], codebook=name)) for name in TRIED}
            for p in parts
        }
        alone = {p: self._least({name: {p: q} for name, q in books.items()})[p] for p, books in tried.items()}
        candidates = [alone, *({p: books[name] for p, books in tried.items()} for name in TRIED)]
        return min(candidates, key=lambda levels: self.divergence({**others, **levels}))

    def _least(self, tried: Mapping[str, Levels]) -> Levels:
        return min(tried.values(), key=self.divergence)

    def _ordered(self, levels: Levels) -> Levels:
        return {part.name: levels[part.name] for part in self.parts}

    # -- measuring and finishing -----------------------------------------------------------------

    def divergence(self, levels: Mapping[str, Quantized]) -> float:
        """Return the divergence of the model with these levels on the search samples; NaN without data."""
        student, problem = self.student, self.problem
        if student is None or problem is None:
            return math.nan
        return student.divergence(levels, problem.search)

    def prepare(self) -> None:
        """Store what recoveries need of the network before it has levels."""
        if self.student is not None:
            for step in self.settings.recoveries():
                step.prepare(self.student)

    def finished(self, levels: Levels) -> Finished:
        """Return the levels with those of the biases, after recovery; the model is left as it is."""
        whole = {**self._of_biases(), **levels}
        student, problem = self.student, self.problem
        if student is None or problem is None or not self.settings.recoveries():
            return Finished(whole, {})
        problem.state.pop(
            "distill", None
        )  # each network is trained on the same batches, whatever came before
        best = Trial("levels", whole, 0).measured(student, problem.held_back, repair=False)
        now, rates = best, Rates.of(student)
        for step in self.settings.recoveries():
            rates, now = step(rates, now)
            now = now.measured(student, problem.held_back, repair=False)
            best = now if now.divergence < best.divergence else best
            now = now if isinstance(step, Around) else best
        return Finished(dict(best.quantization), dict(best.rest))

    def _of_biases(self) -> Levels:
        if self.settings.biases == "exact":
            return {}
        rule = Uniform(bits=self.settings.biases)
        result = {}
        for name, p in self._biases.items():
            values = p.detach().cpu()
            if p.numel():
                result[name] = at_precision(
                    rule.fit(values, torch.ones_like(values, dtype=torch.bool)), p.dtype
                )
        return result

    def write(self, finished: Finished, model: nn.Module | None = None) -> None:
        """Put values into the model, or into a copy of it."""
        target = self.model if model is None else model
        live: dict[str, Tensor] = {
            **dict(target.named_parameters(remove_duplicate=False)),
            **dict(target.named_buffers(remove_duplicate=False)),
        }
        with torch.no_grad():
            for name, quantized in finished.levels.items():
                live[name].data.copy_(quantized.dequantize())
            for name, value in finished.rest.items():
                live[name].data.copy_(value)


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Switch a model to eval mode; every module's mode comes back."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
