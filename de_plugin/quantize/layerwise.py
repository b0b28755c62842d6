"""From a genome to levels that make good each other's errors, layer by layer on what the layers before give.

Each layer sees the inputs that the layers before it, with their levels, pass on, and aims at the products it
had without levels: errors are made good instead of adding up (sequential, as in GPTQ, arXiv:2210.17323).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from de_plugin.assess.batches import Batch
from de_plugin.assess.capture import Call, observe
from de_plugin.assess.divergence import wide
from de_plugin.encode.quantized import Quantized
from de_plugin.evolve.search import Genome
from de_plugin.prune.recover.leastsquares import bias_of
from de_plugin.quantize.compensate import Quadratic, best_step, compensated
from de_plugin.quantize.entropy import HIGH_RATE, EntropyConstrained
from de_plugin.quantize.ladder import Ladder, Spread, ladder
from de_plugin.quantize.rates import Rates
from de_plugin.quantize.rounding import Compensated, samples_of
from de_plugin.quantize.student import Quantization
from de_plugin.quantize.uniform import Uniform

_DEAREST = 1e30
_HARMLESS = 1e-30

_STEP = 1.25
"""First step of a layer, of the root mean square of its weights, pruned ones included."""

_PRICE = 1 / 32
"""First price of a bit, of the one at high rates; a size or a loss says soon what it really is."""

_DRIFT = 0.25
"""Octaves by which steps grow where the price of a bit grows by two: far fewer weights are left then."""

_CLOSE = 0.006

_ENOUGH = 2
"""Positions for each input of a layer that show for sure what is lost, and what errors cost."""

_FOLDS = 4
"""Parts of fewer positions, each foretold by the others."""

_Rows = tuple[int, int]


def _size(values: Tensor) -> float:
    """Return the root mean square, or 1 where all is zero."""
    return float(values.double().square().mean().sqrt()) or 1.0


@dataclass(frozen=True)
class CompensatedRates(Rates):
    """Levels for all weights of a student by genome, errors made good.

    Attributes:
        how: the numbers.
        batch: the calibration samples.
        aims: by (layer, first row): the products of a use of a layer before it has levels.
        costs: by (layer, first row): what a squared error of each output costs.
        origins: the biases before they move, by layer.
    """

    how: Compensated = field(default_factory=Compensated)
    batch: Batch | None = None
    aims: dict[_Rows, Tensor] = field(default_factory=dict)
    costs: dict[_Rows, Tensor] = field(default_factory=dict)
    origins: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def around(cls, rates: Rates, how: Compensated) -> CompensatedRates:
        """Measure what the layers of a student have to give."""
        student = rates.student
        problem = student.problem
        steps = tuple(_STEP * _size(part.weight * part.kept) for part in student.parts)
        batch = samples_of(problem, how)
        found = cls(
            student,
            rates.survivors,
            steps,
            rates.zeroing,
            close=_CLOSE,
            alone=False,
            how=how,
            batch=batch,
        )
        with problem.units.zeroed(problem.kept):
            observe(problem, [batch], found._aim)
        return found

    def rule(self, number: int, genome: Genome, scale: float) -> EntropyConstrained:
        """Return the step of a part, and what a bit costs of it.

        A bit has one price in the whole network, but for the genes; the scale says how high it is.
        """
        step = float(self.steps[number] * 2.0 ** (_DRIFT * scale + genome[number]))
        gene = float(genome[len(self.survivors) + number])
        price = self.unit * 2.0 ** (2 * scale + gene) / (step**2 * self._sensitivity(number))
        return EntropyConstrained(step=step, price=min(price, _DEAREST), zeroing=self.zeroing[number])

    @cached_property
    def unit(self) -> float:
        """The price of a bit, in divergence where importance is, at scale zero."""
        costs = [step**2 * self._sensitivity(n) for n, step in enumerate(self.steps)]
        return _PRICE * HIGH_RATE * sum(costs) / len(costs)

    def quantization(self, genome: Genome, scale: float, biases: Quantization) -> dict[str, Quantized]:
        """Return the levels of all weights, and the biases moved to where the mean errors vanish.

        Args:
            genome: (genes,).
            scale: octaves by which all steps are larger.
            biases: those that nothing is measured of keep these.
        """
        return self.ruled({n: self.rule(n, genome, scale) for n in range(len(self.survivors))}, biases)

    def ruled(
        self,
        rules: Mapping[int, EntropyConstrained],
        biases: Quantization,
        ladders: Mapping[int, Ladder] | None = None,
    ) -> dict[str, Quantized]:
        """Return the levels of some weights, and the biases moved to where the mean errors vanish.

        Args:
            rules: step, price and largest number of levels by weight; other weights stay as they are.
            biases: those that nothing is measured of keep these.
            ladders: step and levels by weight, instead of those of the rule.
        """
        ladders = ladders or {}
        student = self.student
        seen = self._seen() & set(rules)
        found: dict[str, Quantized] = dict(biases)
        for n in sorted(set(rules) - seen):
            part = student.parts[n]
            found[part.name] = student.exact(part, rules[n].of(self.survivors[n]))
        symbols = {n: torch.zeros(self._shape(n), dtype=torch.int32) for n in seen}
        done: set[_Rows] = set()

        def visit(call: Call) -> None:
            uses = call.uses(problem.units.layers[call.layer], self.how.positions)
            for rows, design in uses if call.layer in seen else ():
                key = (call.layer, rows.start)
                if key not in done and len(self.aims[key]) == len(design):
                    done.add(key)
                    rule, known = rules[call.layer], ladders.get(call.layer)
                    symbols[call.layer][rows] = self._fitted(call.layer, rows, design, rule, known)

        problem = student.problem
        with self._restored(), problem.units.zeroed(problem.kept):
            student.write(found)
            observe(problem, [self.batch] if self.batch is not None else [], visit)
            lost = {number for number, start in self.aims if (number, start) not in done} & seen
            for n in sorted(lost):  # levels have led the samples elsewhere
                found[student.parts[n].name] = student.exact(student.parts[n], rules[n].of(self.survivors[n]))
                bias = self._bias(n)
                if bias is not None:
                    bias.data.copy_(self.origins[n])
            found |= student.quantized_biases()
        for n in sorted(seen - lost):
            known = ladders.get(n) or Ladder(float(rules[n].step or 0.0), int(symbols[n].abs().max()))
            found[student.parts[n].name] = self._levels(n, symbols[n], known)
        return found

    def limited(self, wanted: Mapping[int, Collection[int]]) -> dict[tuple[int, int], Ladder]:
        """Return the levels of least error of layers that may have so many, all others without levels.

        Args:
            wanted: numbers of levels by weight.

        Returns:
            By weight and number; weights that nothing is measured of are left out.
        """
        found: dict[tuple[int, int], Ladder] = {}
        forms: dict[int, list[tuple[Quadratic, Tensor]]] = {}
        seen = self._seen() & set(wanted)
        left = {key for key in self.aims if key[0] in seen}

        def visit(call: Call) -> None:
            number = call.layer
            uses = call.uses(problem.units.layers[number], self.how.positions)
            for rows, design in uses if number in seen else ():
                if (number, rows.start) in left:
                    left.remove((number, rows.start))
                    forms.setdefault(number, []).append(self._form(number, rows, design)[:2])
            if number in forms and not any(n == number for n, _ in left):
                mine = forms.pop(number)
                spread = Spread.of(self.survivors[number].values)
                for count in wanted[number]:
                    found[number, count] = self._ladder(number, mine, spread, count)

        problem = self.student.problem
        with problem.units.zeroed(problem.kept):
            observe(problem, [self.batch] if self.batch is not None else [], visit)
        return found

    # -- one layer -------------------------------------------------------------------------------

    def _ladder(
        self, number: int, forms: list[tuple[Quadratic, Tensor]], spread: Spread, count: int
    ) -> Ladder:
        """Return the levels of least error, of so many, of a layer whose parts cost what the forms say."""
        start = float(Uniform(levels=2 * max(1, (count - 1) // 2) + 1).steps(self.survivors[number])[0])
        first = ladder(spread, start, count)
        layer = self.student.problem.units.layers[number]
        live = layer.canonical(layer.parameter.detach()).flatten(1)
        bounds = np.cumsum([0, *(len(kept) for _, kept in forms)]).tolist()

        def given(step: float) -> list[Tensor]:
            values = first.moved(spread, step).beyond(live)
            return [values[a:b] * kept for a, b, (_, kept) in zip(bounds, bounds[1:], forms, strict=False)]

        step = best_step(forms, first.step, first.limit, given if first.apart else None)
        return first.moved(spread, step)

    def _seen(self) -> set[int]:
        """Return the layers all of whose rows have something to aim at."""
        rows: dict[int, int] = {}
        for (number, _), aims in self.aims.items():
            rows[number] = rows.get(number, 0) + aims.shape[1]
        return {number for number, count in rows.items() if count == self._shape(number)[0]}

    def _shape(self, number: int) -> tuple[int, int]:
        """Return outputs, and inputs times kernel, of a layer."""
        shape = self.student.problem.units.layers[number].shape
        return shape[0], shape[1:].numel()

    def _aim(self, call: Call) -> None:
        """Remember the products of a layer's first use, and what errors of its outputs cost."""
        layer = self.student.problem.units.layers[call.layer]
        weight = layer.canonical(layer.parameter.detach()).flatten(1)
        importance = self.student.parts[call.layer].importance
        for rows, inputs in call.uses(layer, self.how.positions):
            key = (call.layer, rows.start)
            if key in self.aims or layer.aliases:  # what is made good in one of its places harms another
                continue
            if len(inputs) == 0 or inputs.shape[1] > self.how.widest:
                continue
            bias = self._bias(call.layer)
            if bias is not None:
                self.origins.setdefault(call.layer, bias.detach().clone())
            inputs, own = wide(inputs), wide(weight[rows])
            self.aims[key] = (inputs @ own.T).cpu()
            energy = float(inputs.double().square().mean())
            if importance is None:
                cost = torch.ones(rows.stop - rows.start)
            else:
                cost = layer.canonical(importance).flatten(1)[rows].mean(1)
            self.costs[key] = cost / energy if energy > 0 else torch.zeros_like(cost)

    def _form(self, number: int, rows: slice, inputs: Tensor) -> tuple[Quadratic, Tensor, Tensor, Tensor]:
        """Return what errors of some rows cost, which weights are left, and means of inputs and aims."""
        layer = self.student.problem.units.layers[number]
        aims = self.aims[number, rows.start].to(inputs.device)
        inputs = inputs.to(aims.dtype)
        mean_x, mean_y = inputs.mean(0), aims.mean(0)
        if self._bias(number) is not None:  # it takes what is constant
            inputs, aims = inputs - mean_x, aims - mean_y
        live = layer.canonical(layer.parameter.detach()).flatten(1)[rows]
        aims = self._surely(inputs, aims, live)
        gram, cross = inputs.T @ inputs / len(inputs), aims.T @ inputs / len(inputs)
        kept = layer.canonical(self.student.parts[number].kept).flatten(1)[rows].to(live.device)
        cost = self.costs[number, rows.start].to(live.device)
        return Quadratic.of(gram, cross, cost, live, self._ridge(inputs)), kept, mean_x, mean_y

    def _ridge(self, inputs: Tensor) -> float:
        """Return the pull to the present weights: few positions say little of what errors cost elsewhere."""
        count, width = inputs.shape
        return self.how.ridge * max(1.0, _ENOUGH * width / max(1, count)) ** 2

    def _surely(self, inputs: Tensor, aims: Tensor, live: Tensor) -> Tensor:
        """Return aims that a layer comes near on inputs it was not fitted to.

        What the layers before have lost is made good by as much as three quarters of few positions foretell
        of the fourth: more would fit what is peculiar to them.
        """
        count, width = inputs.shape
        if not _FOLDS <= count < _ENOUGH * width:
            return aims
        own = inputs @ live.to(inputs.dtype).T
        lost = aims - own
        fold = torch.arange(count, device=inputs.device) * _FOLDS // count
        product = square = 0.0
        for part in range(_FOLDS):
            x, y = inputs[fold != part], lost[fold != part]
            gram = (x.T @ x / len(x)).double()
            scale = float(gram.diagonal().mean())
            gram.diagonal().add_(self._ridge(inputs) * scale if scale > 0 else 1.0)
            move = torch.cholesky_solve((x.T @ y / len(x)).double(), torch.linalg.cholesky(gram))
            foretold = inputs[fold == part].double() @ move
            product += float((foretold * lost[fold == part]).sum())
            square += float(foretold.square().sum())
        share = min(1.0, max(0.0, product / square)) if square > 0 else 0.0
        return own + share * lost

    def _fitted(
        self, number: int, rows: slice, inputs: Tensor, rule: EntropyConstrained, known: Ladder | None
    ) -> Tensor:
        """Give levels to some rows of a layer, in the model as well, and return their symbols, int32."""
        layer = self.student.problem.units.layers[number]
        form, kept, mean_x, mean_y = self._form(number, rows, inputs)
        live = layer.canonical(layer.parameter.detach()).flatten(1).clone()
        rounds, sweeps = self.how.rounds, self.how.sweeps
        if known is None:
            step, limit = float(rule.step or 0.0), None
            given = torch.zeros_like(live[rows])
        else:
            step, limit = known.step, known.limit
            given = known.beyond(live[rows]) * kept
        price = self._price(number, replace(rule, step=step))
        symbols = compensated(form, kept, step, price, rounds=rounds, sweeps=sweeps, limit=limit, given=given)
        live[rows] = symbols.to(live) * step + given
        layer.parameter.data.copy_(layer.native(live.reshape(layer.shape)))
        bias = self._bias(number)
        if bias is not None:
            shift = mean_y - live[rows].to(mean_x.dtype) @ mean_x
            bias.data[rows] = self.origins[number][rows] + shift.to(bias.dtype)
        return symbols if known is None else known.symbols(symbols, given.cpu())

    def _bias(self, number: int) -> nn.Parameter | None:
        """Return the bias that goes with a layer, where biases get levels and may move."""
        bias = bias_of(self.student.problem.units.layers[number])
        return bias if any(bias is p for p in self.student.vectors.values()) else None

    def _price(self, number: int, rule: EntropyConstrained) -> float:
        """Return what a bit costs, in divergence where importance is."""
        return rule.price * float(rule.step or 0.0) ** 2 * self._sensitivity(number)

    def _sensitivity(self, number: int) -> float:
        return max(self.student.parts[number].sensitivity, _HARMLESS)

    def _levels(self, number: int, symbols: Tensor, ladder: Ladder) -> Quantized:
        layer, part = self.student.problem.units.layers[number], self.student.parts[number]
        levels, lowest = ladder.table()
        low, high = min(int(symbols.min()), 0), max(int(symbols.max()), 0)
        native = layer.native(symbols.reshape(layer.shape)).contiguous()
        return self.student.exact(
            part, Quantized(native, levels[None, low - lowest : high - lowest + 1], low)
        )

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Give weights and biases back bit-exactly what they were before the block."""
        tensors = [*(part.parameter for part in self.student.parts), *self.student.vectors.values()]
        saved = [(x, x.detach().clone()) for x in tensors]
        try:
            yield
        finally:
            for tensor, value in saved:
                tensor.data.copy_(value)
