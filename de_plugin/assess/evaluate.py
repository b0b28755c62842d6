"""Measuring a population: the serial reference, and the choice of what measures."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from de_plugin.assess.candidates import Candidates, Flipped, Made
from de_plugin.assess.repair import Repair, SideBySide
from de_plugin.assess.serial import Serial
from de_plugin.assess.teacher import Autocast
from de_plugin.assess.vectorised import BatchingError, reason
from de_plugin.errors import ArgumentError, DEWarning
from de_plugin.types import Mask, Values

if TYPE_CHECKING:
    from de_plugin.assess.population import Population
    from de_plugin.assess.problem import Problem

_TRIED = 16
"""Layers that the trial of a model looks at."""

_TF32 = 2.0**-10
"""Spacing of the numbers that a GPU's matrix units multiply, unless torch is told otherwise."""

_REPAIRED = 16
"""Samples that a trial with a repair takes: statistics of a few make every difference a large one."""

_NUMBERS = 1 << 20
"""Numbers of input that are enough for statistics: two large images are, and more would take minutes."""


class Evaluator(Protocol):
    """Measures every candidate on the same samples."""

    @property
    def samples(self) -> int:
        """Samples of one candidate that a pass holds with ease."""

    def __call__(self, population: Candidates, index: Tensor, repair: Repair | None = None) -> Values:
        """Return one divergence a candidate, each corrected by `repair` first."""


class Guarded:
    """The fast evaluator while it works, the serial one from its first failure on.

    Which of them it is lasts: the problem's state, and with it a checkpoint, holds it.

    Args:
        problem: whose student is asked.
        fast: what is tried first.
    """

    def __init__(self, problem: Problem, fast: Population) -> None:
        self.problem = problem
        self._fast = fast
        self._serial = Serial(problem)

    @property
    def samples(self) -> int:
        """What the evaluator in use says."""
        return self._serial.samples if self._given_up("plain") else self._fast.samples

    def __call__(self, population: Candidates, index: Tensor, repair: Repair | None = None) -> Values:
        """Return one divergence a candidate, each corrected by `repair` first."""
        way = "plain" if repair is None else "repaired"
        if repair is not None and not isinstance(repair, SideBySide):
            return self._serial(population, index, repair)
        if self._given_up("plain") or self._given_up(way):
            return self._serial(population, index, repair)
        if repair is not None and len(population) == 1:  # there is nothing to put side by side
            return self._serial(population, index, repair)
        if repair is not None and not self.problem.remember(("tried", repair), partial(self._try, repair)):
            return self._serial(population, index, repair)
        try:
            return self._fast(population, index, repair)
        except BatchingError as error:
            values = self._serial(population, index, repair)  # what is wrong anyway is raised here
            self._raise_if_gone(error, population, index, repair)
            alone = self.problem.ranks.world == 1  # the ranks remember the same, whatever each has met
            self._give_up(way, reason(self.problem.model, error.cause) if alone else "it failed on a rank")
            return values

    def _try(self, repair: Repair) -> bool:
        """Tell whether repaired candidates can be measured side by side."""
        try:
            obstacle = _trial(self.problem, self._fast, repair)
        except BatchingError as error:
            obstacle = reason(self.problem.model, error.cause)
        if obstacle:
            self._give_up("repaired", obstacle)
        return not obstacle

    def _given_up(self, way: str) -> bool:
        return way in self.problem.state.get("evaluator", {})

    def _give_up(self, way: str, obstacle: str) -> None:
        self.problem.state_of("evaluator")[way] = obstacle
        _warn(self.problem, obstacle)

    def _raise_if_gone(
        self, error: BatchingError, population: Candidates, index: Tensor, repair: Repair | None
    ) -> None:
        """Raise what does not come up a second time: it was the user's own, not the batching's."""
        try:
            self._fast(population, index, repair)
        except BatchingError:
            return
        raise error.cause


def evaluator(problem: Problem, spec: str | Callable[[Problem], Evaluator]) -> Evaluator:
    """Return the evaluator asked for: by name, or what a function makes for the problem.

    "auto" measures candidates side by side (`de_plugin.assess.population.Population`) wherever that
    gives what the serial loop gives: each layer is tried once, on a few samples. Ways of computing a layer
    are chosen by counted work, never by a clock, so that the same seed gives the same mask.

    Raises:
        ArgumentError: `spec` is not "auto", "serial" or a function.
    """
    if not isinstance(spec, str):
        if not callable(spec):
            raise ArgumentError(f"evaluate={spec!r}: expected 'auto', 'serial' or a function of the problem")
        return spec(problem)
    from de_plugin.assess.population import Population

    if spec not in ("auto", "serial"):
        raise ArgumentError(f"evaluate={spec!r}: expected 'auto' or 'serial'")
    if spec == "serial" or not problem.units.side_by_side:
        return Serial(problem)
    try:
        fast = Population(problem)
        obstacle = _trial(problem, fast)
        if not obstacle:
            return Guarded(problem, fast)
    except BatchingError as error:
        obstacle = reason(problem.model, error.cause)
    _warn(problem, obstacle)
    return Serial(problem)


def _trial(problem: Problem, fast: Population, repair: Repair | None = None) -> str:
    """Compare with the serial loop; return what differs, or nothing.

    Tried are a twentieth of each layer, and of all layers together.
    """
    layers = problem.units.layers
    if len(layers) > _TRIED:
        spaced = [int(n) for n in torch.linspace(0, len(layers) - 1, _TRIED)]
        layers = [layers[n] for n in sorted({*spaced, *fast.unseen})]
    changes = []
    for layer in layers:
        count = max(1, layer.count // 20)
        drawn = torch.randint(layer.count, (count,), generator=problem.generator(8, layer.start))
        changes.append(layer.start + drawn.unique())

    def tried(number: int) -> Mask:
        if number < len(changes):
            return Flipped(problem.kept, (changes[number],)).mask(0)
        draw = problem.generator(9)
        return problem.kept ^ (torch.randint(20, problem.kept.shape, dtype=torch.int8, generator=draw) == 0)

    population = Made(tried, tuple(range(len(changes) + 1)), problem.units.count)
    index = problem.search[:1]
    if problem.pool.stacked is not None:
        index = problem.search[: 2 if repair is None else _enough(problem)]
    expected = Serial(problem)(population, index, repair)
    found = fast.side_by_side(population, index, repair)
    precision = max(torch.finfo(layer.parameter.dtype).eps for layer in problem.units.layers)
    single = any(layer.parameter.dtype == torch.float32 for layer in problem.units.layers)
    if problem.device.type == "cuda" and single and _rounds(problem.model):
        precision = max(precision, _TF32)
    if isinstance(problem.forward, Autocast):
        precision = torch.finfo(problem.forward.dtype).eps
    finite = expected[torch.isfinite(expected)].abs()
    scale = float(finite.max()) if len(finite) else 1.0
    rtol, atol = max(1e-3, 64 * precision), max(min(1e-5, 1e-2 * scale), precision * min(1.0, scale))
    close = torch.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    names = [*(layer.name for layer in layers), type(problem.model).__name__]
    wrong = [name for name, same in zip(names, close.tolist(), strict=True) if not same]
    return f"{wrong[0]} gives other results side by side" if wrong else ""


def _rounds(model: nn.Module) -> bool:
    """Tell whether a GPU may round what single-precision layers multiply (TF32)."""
    backends = torch.backends

    def on(read: Callable[[], bool]) -> bool:
        try:
            return read()
        except RuntimeError:  # torch was told in its newer words, and does not read the older ones then
            return True

    convolutions = any(isinstance(m, _ConvNd | nn.RNNBase) for m in model.modules())
    return (convolutions and on(lambda: backends.cudnn.allow_tf32)) or on(
        lambda: backends.cuda.matmul.allow_tf32
    )


def _enough(problem: Problem) -> int:
    """Return how many samples statistics are tried on."""
    [one] = problem.pool.take(problem.search[:1])
    numbers = sum(x.numel() for x in tree_leaves(one.inputs) if isinstance(x, Tensor))
    return min(_REPAIRED, max(2, _NUMBERS // max(1, numbers)))


def _warn(problem: Problem, obstacle: str) -> None:
    warnings.warn(
        f"model {type(problem.model).__name__}: candidates are measured one by one, which is slow, because "
        f"they cannot be measured side by side ({obstacle})",
        DEWarning,
        stacklevel=5,
    )
