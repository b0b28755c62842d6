"""The contract of divergences: zero for the teacher itself, a mean over samples, repeatable draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from de_plugin.assess.divergence import Curved, Divergence, leaves
from de_plugin.types import PyTree


def check_divergence(
    divergence: Divergence, outputs: PyTree | None = None, labels: Tensor | None = None
) -> None:
    """Check what `de_plugin.Divergence` promises.

    The teacher's divergence from itself is zero; the result is a 0-dim tensor, finite, and a mean over
    samples; what is drawn for the Fisher information depends on the generator alone.

    Args:
        divergence: what is tested.
        outputs: the teacher's, tensors ``(samples, ...)`` with an even number of samples; default
            ``(8, 5)`` logits.
        labels: one a sample; default class numbers.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    assert isinstance(divergence, Divergence), (
        f"{divergence!r}: expected name, differentiable and __call__(student, teacher, labels)"
    )
    who = f"divergence {divergence.name!r}"
    rng = torch.Generator().manual_seed(0)
    teacher = torch.randn(8, 5, generator=rng) if outputs is None else outputs
    labels = torch.randint(5, (8,), generator=rng) if labels is None else labels
    zero = divergence(teacher, teacher, labels)
    assert isinstance(zero, Tensor), f"{who}: returned {type(zero).__name__}, expected a tensor"
    assert zero.dim() == 0, f"{who}: returned {tuple(zero.shape)}, expected a 0-dim tensor"
    assert abs(float(zero)) <= 1e-6, f"{who}: the teacher's from itself is {float(zero)}, expected 0"

    def moved(x: Any) -> Any:
        noise = torch.randn(x.shape, generator=rng).to(x) if isinstance(x, Tensor) else x
        return x + noise if isinstance(x, Tensor) and x.is_floating_point() else x

    student = torch.utils._pytree.tree_map(moved, teacher)
    whole = float(divergence(student, teacher, labels))
    assert math.isfinite(whole), f"{who}: is {whole} for finite outputs"
    samples = len(leaves(teacher)[0])

    def part(tree: PyTree, at: slice) -> PyTree:
        return torch.utils._pytree.tree_map(lambda x: x[at] if isinstance(x, Tensor) else x, tree)

    halves = [
        float(divergence(part(student, at), part(teacher, at), part(labels, at)))
        for at in (slice(0, samples // 2), slice(samples // 2, None))
    ]
    assert math.isclose(whole, sum(halves) / 2, rel_tol=1e-4, abs_tol=1e-6), (
        f"{who}: is {whole} for all samples and {halves} for the halves; expected a mean over samples"
    )
    if isinstance(divergence, Curved):
        _check_curved(divergence, student, who)


def _check_curved(divergence: Curved, outputs: PyTree, who: str) -> None:
    first, second = (divergence.draw(outputs, torch.Generator().manual_seed(5)) for _ in range(2))
    assert len(first) == len(leaves(outputs)), f"{who}: draw gave {len(first)} targets"
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert same, f"{who}: draw gave different targets for generators of the same seed"
    loss = divergence.sampled_loss(outputs, first)
    assert loss.dim() == 0, f"{who}: sampled_loss returned {tuple(loss.shape)}, expected 0-dim"
    assert bool(torch.isfinite(loss)), f"{who}: sampled_loss is {float(loss)}"
