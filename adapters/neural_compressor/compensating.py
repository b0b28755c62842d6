"""Levels of limited bits that make good each other's errors, layer after layer."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from de_plugin.adapters.neural_compressor.settings import ENTROPY, Choice
from de_plugin.encode.quantized import Quantized
from de_plugin.quantize.compensate import Quadratic
from de_plugin.quantize.entropy import HIGH_RATE, EntropyConstrained
from de_plugin.quantize.ladder import Ladder
from de_plugin.quantize.layerwise import CompensatedRates
from de_plugin.quantize.rates import Rates
from de_plugin.quantize.rounding import Compensated
from de_plugin.quantize.student import Student

_KEPT = 1 << 26  # numbers in forms that are kept

_Form = tuple[Quadratic, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Remembering(CompensatedRates):
    """Knows the last inputs of each layer: a search asks for many levels at the same ones.

    Attributes:
        met: by layer and first row: the inputs, and what errors cost at them.
    """

    met: dict[tuple[int, int], tuple[Tensor, _Form]] = field(default_factory=dict)

    def _form(self, number: int, rows: slice, inputs: Tensor) -> _Form:
        known = self.met.get((number, rows.start))
        if known is not None and torch.equal(known[0], inputs):
            return known[1]
        found = super()._form(number, rows, inputs)
        self.met[number, rows.start] = (inputs.clone(), found)
        while sum(x.numel() + 2 * form[0].gram.numel() for x, form in self.met.values()) > _KEPT:
            self.met.pop(next(iter(self.met)))
        return found


class Compensating:
    """Gives the layers of a network the levels that are asked for, and moves biases that get levels as well.

    The levels of a layer are those of least error at its number of bits, on the inputs that it has where no
    other layer has levels: equal steps, and a few for weights far beyond them. A price on bits ("entropy")
    zeroes weights at that step.

    Args:
        student: the network.
        how: errors are made good.
    """

    def __init__(self, student: Student, how: Compensated) -> None:
        self._student = student
        self._rates = _Remembering.around(Rates.of(student), how)
        self._ladders: dict[tuple[int, int], Ladder] = {}

    def prepare(self, asked: Mapping[str, Sequence[Choice]]) -> None:
        """Find the levels of all that may be asked for, in one pass.

        Args:
            asked: by parameter name.
        """
        numbers = self._numbers(asked)
        counts = {n: dict.fromkeys(2**choice.bits for choice in asked[name]) for name, n in numbers.items()}
        new = {n: [x for x in mine if (n, x) not in self._ladders] for n, mine in counts.items()}
        new = {n: mine for n, mine in new.items() if mine}
        if new:
            self._ladders |= self._rates.limited(new)

    def levels(self, asked: Mapping[str, Choice]) -> dict[str, Quantized]:
        """Return the levels of some weights by parameter name, all others without levels, and of the biases.

        Args:
            asked: by parameter name.
        """
        self.prepare({name: [choice] for name, choice in asked.items()})
        numbers = self._numbers(asked)
        rules = {n: _rule(asked[name]) for name, n in numbers.items()}
        keys = {n: (n, 2 ** asked[name].bits) for name, n in numbers.items()}
        # without a ladder its inputs are no matrix, and it is rounded alone
        ladders = {n: self._ladders[key] for n, key in keys.items() if key in self._ladders}
        return self._rates.ruled(rules, self._student.quantized_biases(), ladders)

    def _numbers(self, names: Container[str]) -> dict[str, int]:
        return {part.name: n for n, part in enumerate(self._student.parts) if part.name in names}


def _rule(choice: Choice) -> EntropyConstrained:
    price = choice.price * HIGH_RATE if choice.codebook == ENTROPY else 0.0
    return EntropyConstrained(bits=choice.bits, price=price)
