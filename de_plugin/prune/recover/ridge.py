"""Ridge regression of many outputs on the same inputs, each on a support of its own."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 8 << 20
_FLOOR = 1e-12
"""Least ridge, relative to the mean square of the inputs: keeps the equations solvable."""


def solve_rows(gram: Tensor, cross: Tensor, support: Tensor, old: Tensor, ridge: float) -> Tensor:
    """Solve each row's ridge regression on its own support.

    Args:
        gram: mean outer product of the inputs ``(inputs, inputs)``, float64.
        cross: mean product of aims and inputs ``(rows, inputs)``.
        support: True where a row may differ from zero ``(rows, inputs)``.
        old: present values ``(rows, inputs)``, the ridge's centre.
        ridge: weight of the distance from `old`, relative to the Gram matrix's mean diagonal.

    Returns:
        ``(rows, inputs)``, zero outside the support; `old` where the equations cannot be solved.
    """
    scale = float(gram.diagonal().mean())
    pull = max(ridge, _FLOOR) * scale if scale > 0 else 1.0
    aim = cross + pull * old
    system = gram + pull * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    result = torch.zeros_like(old)
    if bool((support == support[:1]).all()):
        at = support[0].nonzero().flatten()
        if len(at):
            factor, info = torch.linalg.cholesky_ex(system[at][:, at])
            solved = torch.cholesky_solve(aim[:, at].T, factor).T if not int(info) else old[:, at]
            result[:, at] = solved
        return result
    sizes = support.sum(1)
    order = sizes.argsort(stable=True)
    step = 1
    begin = int((sizes == 0).sum())
    while begin < len(order):
        largest = int(sizes[order[min(len(order), begin + step) - 1]])
        part = order[begin : begin + max(1, min(step, _CHUNK_ELEMENTS // largest**2))]
        result[part] = _solve_some(system, aim[part], support[part], old[part])
        begin += len(part)
        step = min(4 * step, 1024)
    return result


def descend_rows(
    gram: Tensor, cross: Tensor, support: Tensor, old: Tensor, ridge: float, iterations: int
) -> Tensor:
    """Come near to what `solve_rows` solves, by conjugate gradients on all rows at once, from `old`.

    The way for wide layers: a step is one product with the Gram matrix, in its own precision, where solving
    takes a factorization a row. The error falls with every step (Hestenes and Stiefel, 1952; scaled by
    the diagonal).

    Args:
        gram: mean outer product of the inputs ``(inputs, inputs)``.
        cross: mean product of aims and inputs ``(rows, inputs)``.
        support: True where a row may differ from zero ``(rows, inputs)``.
        old: present values ``(rows, inputs)``, the ridge's centre.
        ridge: weight of the distance from `old`, relative to the Gram matrix's mean diagonal; > 0.
        iterations: at most so many.

    Returns:
        ``(rows, inputs)``, zero outside the support.
    """
    scale = float(gram.diagonal().mean())
    if not scale > 0:
        return old * support
    pull = max(ridge, _FLOOR) * scale
    diagonal = gram.diagonal() + pull
    found = old * support
    left = (cross - found @ gram).mul_(support)  # the ridge pulls towards where this begins
    towards = left / diagonal
    way = towards.clone()
    size = (left * towards).sum(1, keepdim=True)
    first = size.clone()
    for _ in range(iterations):
        product = (way @ gram).add_(way, alpha=pull).mul_(support)
        curve = (way * product).sum(1, keepdim=True)
        step = torch.where(curve > 0, size / curve, torch.zeros_like(size))
        found.addcmul_(step, way)
        left.addcmul_(step, product, value=-1)
        towards = left / diagonal
        now = (left * towards).sum(1, keepdim=True)
        way.mul_(torch.where(size > 0, now / size, torch.zeros_like(size))).add_(towards)
        size = now
        if bool((size <= 1e-10 * first).all()):
            break
    return found


def _solve_some(system: Tensor, aim: Tensor, support: Tensor, old: Tensor) -> Tensor:
    """Solve rows of about equal support at once; shorter ones are filled up with the identity."""
    width = int(support.sum(1).max())
    at = (~support).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    real = support.gather(1, at)
    matrix = system[at[:, :, None], at[:, None, :]] * (real[:, :, None] & real[:, None, :])
    matrix.diagonal(dim1=1, dim2=2).add_((~real).to(matrix.dtype))
    right = aim.gather(1, at) * real
    factor, info = torch.linalg.cholesky_ex(matrix)
    factor[info > 0] = torch.eye(width, dtype=factor.dtype, device=factor.device)
    solved = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
    solved = torch.where((info > 0)[:, None], old.gather(1, at), solved) * real
    return torch.zeros_like(old).scatter_(1, at, solved)
