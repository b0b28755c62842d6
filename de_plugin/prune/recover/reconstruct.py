"""Reconstruction: layer after layer, survivors repeat the teacher's products where these matter.

In a detector nearly all places are background and an object is a handful of them, so that plain least
squares fit the background. Here every position weighs as much as an error there changes what the network
says, and the inputs are those of the student, so that a layer makes good what the ones before it have
lost (layer-wise reconstruction as in arXiv:1707.06168 and arXiv:2301.00774, weighted).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.assess.capture import Call, observe, one_pass
from de_plugin.assess.divergence import wide
from de_plugin.assess.guard import check_counts, untouched_on_error
from de_plugin.assess.problem import Problem
from de_plugin.assess.repair import Repair
from de_plugin.assess.saliency import saliency
from de_plugin.errors import ArgumentError
from de_plugin.prune.recover.base import prepared
from de_plugin.prune.recover.batchnorm import BatchNormMatching
from de_plugin.prune.recover.leastsquares import bias_of
from de_plugin.prune.recover.ridge import descend_rows

_KEY = 25
_REST = 0.05
"""Importance of a position whose errors change nothing, where the mean is 1."""


@dataclass(frozen=True)
class Reconstruction:
    """Solve ``min sum_p m_p |W x_p - y_p|^2 + ridge |W - W_old|^2`` over each layer's survivors.

    ``x`` are the layer's inputs at the student, ``y`` its products at the teacher, ``m`` the importance of
    a position. Batch norms are matched first, and again on the way: all layers are solved in one forward
    pass. What is solved stays only if the divergence on the held-back data falls.

    Args:
        samples: how many search samples the layers are seen on; fewer where one forward pass over them
            would take more than `memory`.
        positions: of each layer, those that matter with a greater chance.
        ridge: pull towards the present values, relative to the inputs' mean square; > 0.
        focus: exponent of the importance, the Fisher information of the product at the teacher; 0: all
            positions are alike.
        iterations: of conjugate gradients a layer.
        memory: bytes of the layers' inputs in that pass, about. Beside it each layer's inputs at its
            positions are held twice while it is solved, and the products of all layers at theirs.

    Raises:
        ArgumentError: a number is out of range.
    """

    samples: int = 256
    positions: int = 32768
    ridge: float = 0.003
    focus: float = 0.5
    iterations: int = 30
    memory: int = 4 << 30

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_counts("Reconstruction", samples=self.samples, positions=self.positions)
        check_counts("Reconstruction", iterations=self.iterations, memory=self.memory)
        if not 0 < self.ridge < math.inf:
            raise ArgumentError(f"Reconstruction(ridge={self.ridge!r}): expected a finite number > 0")
        if not 0 <= self.focus < math.inf:
            raise ArgumentError(f"Reconstruction(focus={self.focus!r}): expected a finite number >= 0")

    @property
    def name(self) -> str:
        """Return "reconstruct"."""
        return "reconstruct"

    def prepare(self, problem: Problem) -> None:
        """See at the teacher which positions matter, and what its products are there."""
        self._norms.prepare(problem)
        self._aims(problem)

    def __call__(self, problem: Problem) -> None:
        """Solve layer by layer, in the order of execution.

        Raises:
            ArgumentError: the samples of the batches differ in shape.
        """
        aims = self._aims(problem)
        with untouched_on_error(problem.model), torch.no_grad():
            if self._norms.watched(problem):
                self._norms(problem)
            with untouched_on_error(problem.model) as snapshot:
                before = float(problem.gate(problem.kept[None], repair=False)[0])
                solved = self._pass(problem, aims)
                after = float(problem.gate(problem.kept[None], repair=False)[0])
                accepted = after < before
                if not accepted:
                    snapshot.restore()
        names = [problem.units.layers[n].name for n in dict.fromkeys(solved)]
        event = {"kind": self.name, "before": before, "after": after, "accepted": accepted, "layers": names}
        problem.events.append(event)

    def _pass(self, problem: Problem, aims: Aims) -> list[int]:
        """Solve all layers for good and return which."""
        solved: dict[int, tuple[Tensor, Tensor | None]] = {}
        with problem.units.zeroed(problem.kept), self._norms.matching(problem):

            def visit(call: Call) -> None:
                if _key(problem, call) in aims.places:
                    solved[call.layer] = self._solved(problem, call, aims)

            observe(problem, problem.pool.take(aims.index, len(aims.index)), visit)
        for number, (weight, bias) in solved.items():
            layer = problem.units.layers[number]
            units = problem.kept[layer.start : layer.stop]
            kept = problem.units.expand_layer(layer, units).to(weight.device)
            layer.parameter.copy_(torch.where(kept, weight, layer.parameter))
            live = bias_of(layer)
            if bias is not None and live is not None:  # those of channels that went can be revived
                alive = (
                    torch.ones_like(live, dtype=torch.bool) if layer.bias is None else units.to(live.device)
                )
                live.copy_(torch.where(alive, bias, live))
        return list(solved)

    def in_assessment(self) -> Repair | None:
        """Return the matching of batch norms; solving is not cheap."""
        return self._norms.in_assessment()

    @property
    def _norms(self) -> BatchNormMatching:
        return BatchNormMatching(self.samples)

    # -- the teacher -----------------------------------------------------------------------------

    def _aims(self, problem: Problem) -> Aims:
        return prepared(problem, self, lambda: self._seen(problem))

    def _seen(self, problem: Problem) -> Aims:
        generator = problem.generator(_KEY, 1)
        index = one_pass(problem, self.samples, self.memory, problem.generator(_KEY))
        aims = Aims(index)
        wanted = problem.has_gradient and self.focus > 0
        matter = saliency(problem, problem.pool.take(index), generator) if wanted else {}
        shared: set[tuple[int, int]] = set()

        def visit(call: Call) -> None:
            key, layer = _key(problem, call), problem.units.layers[call.layer]
            count = call.positions(layer)
            if count == 0 or layer.aliases:
                return
            if key in aims.places:
                shared.add(key)
                return
            aims.places[key] = self._drawn(count, matter.get(call.layer), generator)
            bias = bias_of(layer)
            aims.biases[call.layer] = None if bias is None else bias.detach().clone()
            weight = layer.canonical(layer.parameter.detach()).flatten(1)
            for rows, design in call.uses(layer, aims.places[key][0]):
                aims.products[call.layer, rows.start] = (design @ weight[rows].T).cpu()

        with _read_by_norms(problem, self._norms.watched(problem)) as aims.normed:
            observe(problem, problem.pool.take(index, len(index)), visit)
        for key in shared:  # what is made good in one of its places harms another
            del aims.places[key]
        return aims

    def _drawn(self, count: int, known: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return positions, int64, and what each of them weighs.

        Drawn without replacement by importance (Efraimidis and Spirakis, 2006); those that are so important
        that they are in every draw weigh more.
        """
        share = torch.ones(count)
        if known is not None and len(known) == count and float(known.max()) > 0:
            share = known.pow(self.focus)
            share = share / share.mean() + _REST
        share = share * (min(count, self.positions) / share.sum())
        if count <= self.positions:
            return torch.arange(count), share
        keys = torch.rand(count, generator=generator).clamp_min_(1e-30).log_().div_(share)
        chosen = keys.topk(self.positions).indices.sort().values
        return chosen, share[chosen].clamp_min(1)

    # -- one layer -------------------------------------------------------------------------------

    def _solved(self, problem: Problem, call: Call, aims: Aims) -> tuple[Tensor, Tensor | None]:
        """Return weights and bias with new values in the rows that a call uses; the model has them too."""
        layer = problem.units.layers[call.layer]
        places, weights = aims.places[_key(problem, call)]
        units = problem.kept[layer.start : layer.stop]
        support = layer.canonical(problem.units.expand_layer(layer, units)).flatten(1)
        live = layer.canonical(layer.parameter.detach()).flatten(1).clone()
        bias, origin = bias_of(layer), aims.biases[call.layer]
        for rows, design in call.uses(layer, places):
            x, y = wide(design), wide(aims.products[call.layer, rows.start].to(design.device))
            m = (weights / weights.sum()).to(x)[:, None]
            mean_x, mean_y = (x * m).sum(0), (y * m).sum(0)
            if bias is not None or call.layer in aims.normed:  # these take what is constant
                x, y = x - mean_x, y - mean_y
            kept = support[rows].to(x.device)
            new = descend_rows(
                (x * m).T @ x, (y * m).T @ x, kept, wide(live[rows]), self.ridge, self.iterations
            )
            live[rows] = new.to(live.dtype)
            if bias is not None and origin is not None:
                shifted = (origin[rows] + mean_y - new @ mean_x).to(bias.dtype)
                alive = kept.any(1) if layer.bias is not None else torch.ones_like(kept[:, 0])
                bias[rows] = torch.where(alive, shifted, bias[rows])
        native = layer.native(live.reshape(layer.shape))
        layer.parameter.copy_(native)
        return native.clone(), None if bias is None else bias.detach().clone()


@dataclass
class Aims:
    """What is known of the teacher.

    Attributes:
        index: the samples that one pass sees, int64.
        normed: layers whose products go to a batch norm that is matched, which takes what is constant.
        places: positions and what they weigh, by layer and first canonical output of a call.
        products: ``(positions, outputs)`` by layer and first canonical output.
        biases: by layer.
    """

    index: Tensor
    normed: set[int] = field(default_factory=set)
    places: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    products: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    biases: dict[int, Tensor | None] = field(default_factory=dict)


def _key(problem: Problem, call: Call) -> tuple[int, int]:
    return call.layer, call.rows.indices(problem.units.layers[call.layer].shape[0])[0]


@contextmanager
def _read_by_norms(problem: Problem, names: Sequence[str]) -> Iterator[set[int]]:
    """Yield the layers whose outputs batch norms have read as they are, in what is run inside the block."""
    found: set[int] = set()
    made: dict[int, weakref.ref[Tensor]] = {}

    def making(number: int) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                made[number] = weakref.ref(output)

        return hook

    def reading(_module: nn.Module, args: tuple[Any, ...]) -> None:
        found.update(number for number, output in made.items() if output() is args[0])

    with ExitStack() as stack:
        for number, layer in enumerate(problem.units.layers if names else ()):
            stack.callback(layer.module.register_forward_hook(making(number)).remove)
        for name in names:
            module = problem.model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(reading).remove)
        yield found
