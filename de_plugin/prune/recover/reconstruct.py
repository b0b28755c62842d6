"""Reconstruction: layer after layer, survivors repeat the teacher's products where these matter.

In a detector nearly all places are background and an object is a handful of them, so that plain least
squares fit the background. Here every position weighs as much as an error there changes what the network
says, and the inputs are those of the student, so that a layer makes good what the ones before it have
lost (layer-wise reconstruction as in arXiv:1707.06168 and arXiv:2301.00774, weighted).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

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
    a position. All layers are solved in one forward pass, batch norms matched on the way. The whole stays
    only if the divergence on the held-back data falls.

    Args:
        samples: how many search samples the layers are seen on; fewer where one forward pass over them
            would take more than `memory`.
        positions: of each layer, those that matter with a greater chance.
        ridge: pull towards the present values, relative to the inputs' mean square; > 0.
        focus: exponent of the importance, the Fisher information of the product at the teacher; 0: all
            positions are alike.
        iterations: of conjugate gradients a layer.
        memory: bytes of the layers' inputs in that pass, about.

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
        if not 0 < self.ridge < float("inf") or not 0 <= self.focus < float("inf"):
            raise ArgumentError(f"{self}: expected a finite ridge > 0 and a finite focus >= 0")

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
        before = float(problem.gate(problem.kept[None])[0])
        with untouched_on_error(problem.model) as snapshot, torch.no_grad():
            solved: dict[int, Tensor] = {}
            with problem.units.zeroed(problem.kept), self._norms.matching(problem):

                def visit(call: Call) -> None:
                    if call.layer in aims.places:
                        solved[call.layer] = self._solved(problem, call, aims)

                observe(problem, problem.pool.take(aims.index, len(aims.index)), visit)
            for number, new in solved.items():
                layer = problem.units.layers[number]
                units = problem.kept[layer.start : layer.stop]
                kept = problem.units.expand_layer(layer, units).to(new.device)
                layer.parameter.copy_(torch.where(kept, new, layer.parameter))
            after = float(problem.gate(problem.kept[None], repair=False)[0])
            accepted = after < before
            if not accepted:
                snapshot.restore()
        names = [problem.units.layers[n].name for n in solved]
        event = {"kind": self.name, "before": before, "after": after, "accepted": accepted, "layers": names}
        problem.events.append(event)

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
        aims = Aims(index, bool(self._norms.watched(problem)))
        wanted = problem.has_gradient and self.focus > 0
        matter = saliency(problem, problem.pool.take(index), generator) if wanted else {}
        shared: set[int] = set()

        def visit(call: Call) -> None:
            number, layer = call.layer, problem.units.layers[call.layer]
            count = call.positions(layer)
            if count == 0 or layer.aliases:
                return
            if number not in aims.places:
                aims.places[number] = self._drawn(count, matter.get(number), generator)
                bias = bias_of(layer)
                aims.biases[number] = None if bias is None else bias.detach().clone()
            weight = layer.canonical(layer.parameter.detach()).flatten(1)
            for rows, design in call.uses(layer, aims.places[number][0]):
                if (number, rows.start) in aims.products:
                    shared.add(number)
                aims.products[number, rows.start] = (design @ weight[rows].T).cpu()

        observe(problem, problem.pool.take(index, len(index)), visit)
        for number in shared:  # what is made good in one of its places harms another
            del aims.places[number]
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

    def _solved(self, problem: Problem, call: Call, aims: Aims) -> Tensor:
        """Return new weights of the rows that a call uses, in the model as well, and move the bias."""
        layer = problem.units.layers[call.layer]
        places, weights = aims.places[call.layer]
        units = problem.kept[layer.start : layer.stop]
        support = layer.canonical(problem.units.expand_layer(layer, units)).flatten(1)
        live = layer.canonical(layer.parameter.detach()).flatten(1).clone()
        bias, origin = bias_of(layer), aims.biases[call.layer]
        for rows, design in call.uses(layer, places):
            x, y = wide(design), wide(aims.products[call.layer, rows.start].to(design.device))
            m = (weights / weights.sum()).to(x)[:, None]
            mean_x, mean_y = (x * m).sum(0), (y * m).sum(0)
            if bias is not None or aims.normed:  # these take what is constant
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
        return native.clone()


@dataclass
class Aims:
    """What is known of the teacher.

    Attributes:
        index: the samples that one pass sees, int64.
        normed: whether batch norms are matched, which take what is constant in a product.
        places: positions and what they weigh, by layer.
        products: ``(positions, outputs)`` by layer and first canonical output.
        biases: by layer.
    """

    index: Tensor
    normed: bool
    places: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    products: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    biases: dict[int, Tensor | None] = field(default_factory=dict)
