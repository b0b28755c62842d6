"""How far a network agrees with the original one: a metric without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.assess.batches import Spill
from de_plugin.assess.divergence import leaves
from de_plugin.assess.guard import check_counts, require_eval
from de_plugin.assess.teacher import Forward, ask, plain_forward
from de_plugin.errors import ArgumentError, OutputError

Kind = Literal["cosine", "top1"]


def agreement(
    model: nn.Module,
    batches: Any,
    kind: Kind = "cosine",
    *,
    forward: Forward | None = None,
    samples: int | None = None,
    batch_size: int = 256,
) -> Callable[[nn.Module], float]:
    """Return an `eval_fn` for `tune` and `autotune` that needs no labels: 1 for the model itself.

    Args:
        model: in eval mode; its answers are kept, so that it may be changed afterwards.
        batches: as for `de_plugin.prune`.
        kind: "cosine": mean cosine of the answers; "top1": share of answers with the same largest entry.
        forward: ``fn(model, inputs) -> outputs`` for networks that need more than a call.
        samples: read at most so many.
        batch_size: samples in a forward pass.

    Raises:
        ArgumentError: `kind` is none of the two.
        ModeError: the model is in train mode.
        DataError: there are no samples, or the model cannot take them.

    >>> network = nn.Linear(4, 3).eval()
    >>> round(agreement(network, torch.randn(8, 4))(network), 6)
    1.0
    """
    if kind not in get_args(Kind):
        raise ArgumentError(f"kind={kind!r}: expected 'cosine' or 'top1'")
    check_counts("agreement", batch_size=batch_size, **({} if samples is None else {"samples": samples}))
    require_eval(model)
    call = forward or plain_forward
    memory = 4 << 30
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    asked = ask(call, model, model, batches, samples, batch_size, memory, Spill(memory), device)

    def evaluate(student: nn.Module) -> float:
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in asked:
                outputs = leaves(call(student, batch.inputs))
                for mine, wanted in zip(outputs, leaves(batch.teacher), strict=True):
                    if mine.shape != wanted.shape:
                        raise OutputError(
                            f"outputs {tuple(mine.shape)}, the original's {tuple(wanted.shape)}"
                        )
                    values = _agreements(mine, wanted, kind)
                    total += float(values.double().sum())
                    count += values.numel()
        return total / count

    return evaluate


def _agreements(mine: Tensor, wanted: Tensor, kind: Kind) -> Tensor:
    """Return one number a sample, or a row of it for top1."""
    if kind == "top1":
        return mine.argmax(-1) == wanted.argmax(-1)
    rows = len(mine) if mine.dim() > 1 else 1
    first, second = mine.reshape(rows, -1).double(), wanted.reshape(rows, -1).double()
    silent = ~first.any(1) & ~second.any(1)  # no direction, but the same answer
    return torch.where(silent, 1.0, F.cosine_similarity(first, second))
