"""Pruners with a quick search, and what users do around them."""

from __future__ import annotations

from typing import Any

from torch import nn

from de_plugin import DirectedEvolution, Swaps
from de_plugin.adapters.torch_pruning import (
    DEBNScalePruner,
    DEGroupNormPruner,
    DEGrowingRegPruner,
    DEImportance,
    DEPruner,
)
from tests.adapters.torch_pruning.architectures import Case

QUICK = DirectedEvolution(("magnitude",), population=4, generations=1, samples=32, swaps=Swaps(rounds=1))
MODES: dict[str, dict[str, Any]] = {
    "local": {},
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
    "iterative": {"iterative_steps": 2},
    "rounded": {"round_to": 4},
}


def pruner_of(case: Case, model: nn.Module, cls: Any = DEPruner, **options: Any) -> Any:
    x = case.inputs()
    options = {"ignored_layers": case.ignored(model), "pruning_ratio": 0.5, **case.options(model), **options}
    if issubclass(cls, DEPruner | DEBNScalePruner | DEGroupNormPruner | DEGrowingRegPruner):
        return cls(model, x[:1], x, criterion=QUICK, **options)
    return cls(model, x[:1], DEImportance(model, x, QUICK), **options)


def fix_heads(model: nn.Module, pruner: Any) -> None:
    """Tell attention what the pruner has left of it, as users of the host do."""
    for module in model.modules():
        if type(module).__name__ == "Attention":
            qkv: Any = module.qkv
            module.heads = pruner.num_heads[qkv]
            module.head_dim = qkv.out_features // (3 * pruner.num_heads[qkv])


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}
