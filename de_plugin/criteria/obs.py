"""OBS: the second-order cost of a weight when its neighbours make up for it, and how they do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from de_plugin.assess.gradients import mean_over_samples
from de_plugin.assess.guard import check_counts
from de_plugin.assess.problem import Problem
from de_plugin.assess.units import Layer
from de_plugin.criteria.base import register
from de_plugin.criteria.gradient import GradientCriterion
from de_plugin.criteria.scoring import finish, live, weights, widened
from de_plugin.errors import ArgumentError
from de_plugin.types import Mask, Scores

_KEY = 4
_STORED_BYTES = 1 << 30
_PIECE_BYTES = 64 << 20
_SMALLEST_DAMPING = 1e-30


@register("obs")
@dataclass(frozen=True)
class OBS(GradientCriterion):
    """w² / (2 [H⁻¹]ᵢᵢ) with a blocked Fisher H (OBS, Hassibi & Stork 1992; arXiv:2203.07259).

    H is the mean outer product of per-sample gradients within runs of `block` weights of a layer in
    canonical order (out, in, kernel), plus damping. Units of several weights get the sum. Weights
    that are zeroed already take no part.

    Args:
        samples: calibration samples drawn at each call.
        block: weights that can make up for each other; made smaller where the blocks of all layers
            would take more than 1 GiB, which is noted in ``problem.events``.
        damping: added to the diagonal, relative to the mean diagonal of the layer; > 0.
        labels: use the batches' labels and their cross-entropy.

    Raises:
        ArgumentError: an option is out of range.
    """

    block: int = 64
    damping: float = 1e-3
    labels: bool = False

    def __post_init__(self) -> None:
        """Refuse options that cannot work."""
        super().__post_init__()
        check_counts("OBS", block=self.block)
        if not (self.damping > 0 and math.isfinite(self.damping)):
            raise ArgumentError(f"OBS(damping={self.damping}): expected a finite number > 0")

    @property
    def name(self) -> str:
        """Return "obs"."""
        return "obs"

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Return ``sum w² / (2 [H⁻¹]ᵢᵢ)`` a unit, ``(units,)``.

        Raises:
            GradientError: the divergence has no gradient.
            DataError: labels are asked for and there are none.
        """
        costs = []
        outer = self._outer(problem)
        kept = live(problem, problem.kept)
        rows = zip(problem.units.layers, outer, weights(problem), kept, strict=True)
        for layer, h, w, mask in rows:
            flags = _blocked(layer, mask, h.shape[-1])
            inverse = torch.cat([_inverse_diagonal(x) for _, x in self._damped(h, flags)])
            cost = _blocked(layer, w, h.shape[-1]).square() / (2 * inverse)
            costs.append(_unblocked(layer, cost))
        return finish(problem, eligible, problem.units.reduce(costs), self.name)

    def update(self, problem: Problem, removed: Mask) -> list[Tensor]:
        """Return how the surviving weights best change when the units `removed` go all at once.

        Within each block the change minimises ½ dᵀHd under d = -w on what is removed: the solution
        is ``-H⁻¹[:,Q](H⁻¹[Q,Q])⁻¹w_Q`` (Kurtic et al., arXiv:2203.07259, sec. 3), for the survivors S
        the same as ``H[S,S]⁻¹H[S,Q]w_Q``, which is what is solved here.

        Args:
            problem: the student before the removal, with ``problem.kept`` in force.
            removed: ``(units,)`` bool, True = goes; units that are gone already don't count.

        Returns:
            One tensor of the parameter's shape and dtype a layer; zero on removed and on zeroed
            weights.

        Raises:
            ArgumentError: `removed` is not a bool vector with one entry a unit.
            GradientError: the divergence has no gradient.
            DataError: labels are asked for and there are none.
        """
        if removed.dtype != torch.bool or removed.shape != (problem.units.count,):
            raise ArgumentError(
                f"removed: got {removed.dtype} {tuple(removed.shape)}, expected torch.bool "
                f"({problem.units.count},)"
            )
        changes = []
        outer = self._outer(problem)
        kept = live(problem, problem.kept)
        stays = live(problem, problem.kept & ~removed.to(problem.kept.device))
        rows = zip(problem.units.layers, outer, weights(problem), kept, stays, strict=True)
        for layer, h, w, mask, stay in rows:
            size = h.shape[-1]
            survives = _blocked(layer, stay, size)
            going = _blocked(layer, w.masked_fill(stay, 0), size)
            parts = []
            for at, x in self._damped(h, _blocked(layer, mask, size)):
                flags = survives[at]
                pull = (x @ going[at].to(x)[..., None]) * flags[..., None]
                factor = torch.linalg.cholesky(_cut(x, flags, 0.0))
                parts.append(torch.cholesky_solve(pull, factor)[..., 0])
            change = _unblocked(layer, torch.cat(parts))
            changes.append(change.to(layer.parameter.dtype).masked_fill(~stay, 0))
        return changes

    def _outer(self, problem: Problem) -> list[Tensor]:
        """Return the mean gradient products ``(blocks, block, block)`` a layer, not damped."""
        index, targets = self._drawn(problem, _KEY)
        layers = problem.units.layers
        sizes = self._block_sizes(problem)

        def products(found: list[Tensor]) -> list[Tensor]:
            blocks = [
                _blocked(layer, widened(g), size).movedim(0, 1)
                for layer, g, size in zip(layers, found, sizes, strict=True)
            ]
            return [vectors.mT @ vectors for vectors in blocks]

        return mean_over_samples(problem, index, targets, products, labels=self.labels)

    def _block_sizes(self, problem: Problem) -> list[int]:
        counts = [layer.parameter.numel() for layer in problem.units.layers]
        block = self.block

        def stored(size: int) -> int:
            return sum(-(-n // min(size, n)) * min(size, n) ** 2 * 4 for n in counts)

        while block > 1 and stored(block) > _STORED_BYTES:
            block //= 2
        if block < self.block:
            problem.events.append(
                {
                    "criterion": self.name,
                    "message": f"block={self.block} reduced to {block}: {sum(counts)} weights "
                    f"would need more than {_STORED_BYTES >> 20} MiB",
                }
            )
        return [min(block, n) for n in counts]

    def _damped(self, outer: Tensor, flags: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield damped blocks, piece by piece; what is not flagged is decoupled from the rest."""
        among = outer.diagonal(dim1=-2, dim2=-1)[flags]
        mean = float(among.double().mean()) if among.numel() else 0.0
        damp = max(self.damping * mean, _SMALLEST_DAMPING)
        step = max(1, _PIECE_BYTES // (8 * outer.shape[-1] ** 2))
        for start in range(0, len(outer), step):
            at = slice(start, start + step)
            yield at, _cut(_precise(outer[at]), flags[at], damp)


def _precise(value: Tensor) -> Tensor:
    return value.float() if value.device.type == "mps" else value.double()


def _cut(h: Tensor, flags: Tensor, damp: float) -> Tensor:
    """Keep and damp `h` ``(blocks, size, size)`` among the flagged; the identity elsewhere."""
    both = flags[..., :, None] & flags[..., None, :]
    extra = torch.where(flags, damp, 1.0).to(h)
    return h.masked_fill(~both, 0) + torch.diag_embed(extra)


def _inverse_diagonal(h: Tensor) -> Tensor:
    """Return the diagonal of the inverse of each block, ``(blocks, size)``."""
    return torch.cholesky_inverse(torch.linalg.cholesky(h)).diagonal(dim1=-2, dim2=-1)


def _blocked(layer: Layer, values: Tensor, size: int) -> Tensor:
    """Cut ``(..., *parameter.shape)`` into ``(..., blocks, size)``, zeros at the end."""
    lead = values.shape[: values.dim() - layer.parameter.dim()]
    flat = layer.canonical(values).reshape(*lead, -1)
    padded = torch.nn.functional.pad(flat, (0, -flat.shape[-1] % size))
    return padded.reshape(*lead, -1, size)


def _unblocked(layer: Layer, blocks: Tensor) -> Tensor:
    """Undo `_blocked` for ``(blocks, size)``."""
    flat = blocks.reshape(-1)[: layer.parameter.numel()]
    return layer.native(flat.reshape(layer.shape))
