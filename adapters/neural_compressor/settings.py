"""What is asked of one layer, and what holds for the whole network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from de_plugin.assess.divergence import Divergence
from de_plugin.assess.divergence import divergence as resolved
from de_plugin.assess.guard import check_counts
from de_plugin.assess.teacher import Forward
from de_plugin.errors import ArgumentError
from de_plugin.quantize.between import LevelRecovery, level_recoveries
from de_plugin.quantize.codebook import codebooks
from de_plugin.quantize.retrain import StraightThrough
from de_plugin.quantize.rounding import Compensated, Rounding, compensation
from de_plugin.quantize.student import Biases
from de_plugin.quantize.weighting import check_weighting

BITS = (2, 3, 4, 5, 6, 7, 8)
"""All numbers of bits that a layer can have."""
BEST = "best"
ENTROPY = "entropy"
TRIED = ("uniform", "affine", "kmeans", "power")
"""The codebooks among which `BEST` looks for the one of least divergence."""
GRANULARITIES = ("tensor", "channel")
COMPENSATED = ("uniform", ENTROPY)
"""The codebooks whose levels can make good each other's errors."""


@dataclass(frozen=True)
class Choice:
    """The levels of one layer.

    Attributes:
        bits: at most ``2**bits`` levels, 2 to 8.
        codebook: a name of the engine's, or "best".
        granularity: "tensor": all weights share their levels; "channel": each output channel has its own.
        price: of a bit for "entropy", 1 being the optimum at high rates; more zeroes more weights.

    Raises:
        ArgumentError: a value cannot work.
    """

    bits: int
    codebook: str = BEST
    granularity: str = "tensor"
    price: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_bits("bits", self.bits)
        if self.codebook != BEST and self.codebook not in codebooks():
            raise ArgumentError(
                f"codebook={self.codebook!r}: expected {BEST!r} or one of {', '.join(codebooks())}"
            )
        if self.granularity not in GRANULARITIES:
            raise ArgumentError(f"granularity={self.granularity!r}: expected 'tensor' or 'channel'")
        number = isinstance(self.price, Real) and not isinstance(self.price, bool)
        if not number or not 0 <= float(self.price) < math.inf:
            raise ArgumentError(f"price={self.price!r}: expected a finite number >= 0")
        if self.price != 1 and self.codebook != ENTROPY:
            raise ArgumentError(
                f"price={self.price!r}: codebook={self.codebook!r} has none; give codebook={ENTROPY!r}"
            )


def check_bits(argument: str, value: object) -> None:
    """Refuse what is no number of bits.

    Raises:
        ArgumentError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) not in BITS:
        raise ArgumentError(f"{argument}={value!r}: expected a whole number from {BITS[0]} to {BITS[-1]}")


@dataclass(frozen=True, eq=False)
class Settings:
    """What holds for the whole network; data and networks are shared, never copied.

    Attributes:
        batches: calibration data; None: levels are those of least squared error.
        teacher: gives the answers in place of the network itself.
        divergence: between the answers.
        forward: ``fn(model, inputs) -> outputs``; None: just a call.
        samples: read at most so many.
        weighting: of errors: "auto" ("fisher" where there are batches and a gradient, else "none"), or one
            of the engine's.
        biases: bits of bias vectors, 2 to 8, or "exact".
        recovery: after levels are chosen, as in `de_plugin.quantize`.
        rounding: "nearest": each weight gets its level alone; "compensated": levels make good each other's
            errors, or ``Compensated(samples=2000)``.
        seed: of every draw.

    Raises:
        ArgumentError: a value cannot work.
    """

    batches: Any = None
    teacher: Any = None
    divergence: str | Divergence | Callable[[Any, Any], Any] = "kl"
    forward: Forward | None = None
    samples: int = 1024
    weighting: str = "auto"
    biases: Biases = "exact"
    recovery: Any = None
    rounding: Rounding = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse here what would fail only when the network is at hand."""
        resolved(self.divergence)
        check_counts("DEQuantConfig", samples=self.samples)
        if self.weighting != "auto":
            check_weighting(self.weighting)
        if self.biases != "exact":
            try:
                check_bits("biases", self.biases)
            except ArgumentError as error:
                raise ArgumentError(f"{error}, or 'exact'") from None
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral) or self.seed < 0:
            raise ArgumentError(f"seed={self.seed!r}: expected a whole number >= 0")
        compensation(self.rounding)
        self.recoveries()

    @property
    def compensated(self) -> Compensated | None:
        """How levels make good each other's errors; None where they don't."""
        return compensation(self.rounding)

    def check_choice(self, choice: Choice) -> None:
        """Refuse levels that cannot make good each other's errors where they have to.

        Raises:
            ArgumentError: they cannot.
        """
        if self.compensated is None:
            return
        if choice.codebook not in (BEST, *COMPENSATED):
            raise ArgumentError(
                f"codebook={choice.codebook!r}: rounding='compensated' needs equal steps; give 'best' or "
                f"{' or '.join(map(repr, COMPENSATED))}"
            )
        if choice.granularity != "tensor":
            raise ArgumentError(
                f"granularity={choice.granularity!r}: rounding='compensated' has one step a layer; give "
                "'tensor'"
            )

    def check_data(self) -> None:
        """Refuse what needs batches where there are none.

        Raises:
            ArgumentError: something does.
        """
        if self.batches is not None:
            return
        needs = {"teacher": self.teacher, "forward": self.forward, "recovery": self.recovery}
        given = [name for name, value in needs.items() if value is not None]
        given += ["rounding"] if self.compensated is not None else []
        given += ["weighting"] if self.weighting not in ("auto", "none") else []
        if given:
            raise ArgumentError(
                f"{given[0]}={getattr(self, given[0])!r}: needs calibration data; give batches=..., or a "
                "run_fn, or forward passes between prepare and convert"
            )

    def recoveries(self) -> tuple[LevelRecovery, ...]:
        """Return what follows the choice of levels.

        Raises:
            ArgumentError: `recovery` is none that keeps the layers' codebooks.
        """
        steps = level_recoveries(self.recovery)
        kept = tuple(step for step in steps if not isinstance(step, StraightThrough))
        if steps and not kept:
            raise ArgumentError(
                f"recovery={self.recovery!r}: trains the weights behind the levels, which have a codebook of "
                "their own here; use 'levels', 'distill', 'bias' or 'batchnorm', or de_plugin.quantize"
            )
        return kept


SHARED = tuple(f.name for f in fields(Settings))
"""Names of what holds for the whole network."""
DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in fields(Settings)}


def merged(given: Sequence[Mapping[str, Any]]) -> Settings:
    """Return the settings that several configs together ask for.

    Raises:
        ArgumentError: two of them ask for different things.
    """
    values: dict[str, Any] = {}
    for one in given:
        for name in SHARED:
            value = one.get(name, DEFAULTS[name])
            if same(value, DEFAULTS[name]):
                continue
            if name in values and not same(values[name], value):
                what = (
                    "two different ones"
                    if name in ("batches", "teacher")
                    else f"{values[name]!r} and {value!r}"
                )
                raise ArgumentError(f"{name}: {what} are given, expected the same for the whole network")
            values[name] = value
    return Settings(**values)


def same(a: Any, b: Any) -> bool:
    """Tell whether two arguments are the same, tensors and networks by identity."""
    if a is b:
        return True
    plain = (str, int, float, bool, type(None), list, tuple, dict)
    return isinstance(a, plain) and isinstance(b, plain) and _plain(a) and _plain(b) and bool(a == b)


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    return isinstance(value, str | int | float | bool | type | type(None))
