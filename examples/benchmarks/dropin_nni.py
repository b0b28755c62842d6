"""Directed Evolution and the built-in pruners of NNI on one network, for `dropin.py`.

Each layer loses the same share of its output channels ("level" and "de (weights)": of its single weights),
at once or by the host's AGP schedule. Batch norms are aligned to the layers before them and layers that meet
in a sum lose the same channels, by the same config list for all methods, so that the masked model is what
the host's speed-up makes small. Divergence and accuracy are the masked model's; multiplications and
parameters those after the speed-up, or, for single weights, of those that are left. No method changes weights
or statistics: training steps, which AGP and Taylor need, run in eval mode at a learning rate of zero. Taylor
sees all samples once for each set of masks, with their labels, in steps of 32; Directed Evolution sees no
labels.
"""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import torch
from dropin_networks import Case, size
from torch import Tensor, nn

with warnings.catch_warnings():  # NNI is older than the torch it runs on
    warnings.simplefilter("ignore")
    import nni
    from nni.compression.pruning import (
        AGPPruner,
        FPGMPruner,
        L1NormPruner,
        L2NormPruner,
        LevelPruner,
        TaylorPruner,
    )

    from de_plugin.adapters.nni import DEPruner, speedup
    from de_plugin.adapters.nni.still import BATCH, Masks, given, masked, still_evaluator

_PLAIN: dict[str, type] = {
    "l1 norm": L1NormPruner,
    "l2 norm": L2NormPruner,
    "fpgm": FPGMPruner,
    "level": LevelPruner,
}
_WEIGHTS = ("level", "de (weights)")

METHODS = ("de", "l1 norm", "l2 norm", "fpgm", "taylor", "de (weights)", "level")
VERSIONS = {"nni": nni.__version__}


def row(case: Case, method: str, ratio: float, steps: int, seed: int) -> dict[str, Any]:
    """Mask a copy once and measure what the masks leave."""
    model = copy.deepcopy(case.model)
    torch.manual_seed(seed)
    started = time.monotonic()
    masks = _masks(case, method, model, ratio, steps, seed)
    seconds = time.monotonic() - started
    changed = masked(case.model, masks)
    if method in _WEIGHTS:
        found: dict[str, Any] = _left(changed, masks, case.inputs)
    else:
        try:
            found = size(speedup(case.model, masks, case.inputs[:2]), case.inputs)
        except Exception as error:  # what the masks cost in accuracy is known all the same
            found = {"macs": None, "params": None, "speedup": f"{type(error).__name__}: {error}"}
    return {**found, **case.measured(changed), "seconds": seconds}


def config(case: Case, ratio: float, weights: bool) -> list[dict[str, Any]]:
    """Return the config list that all methods get."""
    together = {name: f"sum {n}" for n, names in enumerate(case.sums) for name in names}
    if weights:
        return [{"op_names": list(case.masked), "target_names": ["weight"], "sparse_ratio": ratio}]
    entries: list[dict[str, Any]] = []
    for name in case.masked:
        entry: dict[str, Any] = {"op_names": [name], "sparse_ratio": ratio}
        if name in together:
            entry["dependency_group_id"] = together[name]
        entries.append(entry)
    for norm, layer in case.norms.items():
        follow = {"align": {"module_name": layer, "target_name": "weight", "dims": [0]}}
        entries.append(
            {
                "op_names": [norm],
                "target_names": ["weight", "bias"],
                "target_settings": {"weight": follow, "bias": follow},
            }
        )
    return entries


def _masks(case: Case, method: str, model: nn.Module, ratio: float, steps: int, seed: int) -> Masks:
    wanted = config(case, ratio, method in _WEIGHTS)

    def loss(student: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = case.losses(student(inputs), labels).mean()
        return found

    trainer = still_evaluator(model, case.inputs, case.labels, loss)
    interval = 1
    if method in ("de", "de (weights)"):
        pruner: Any = DEPruner(
            model,
            wanted,
            trainer,
            batches=case.inputs,
            divergence=case.divergence,
            samples=len(case.inputs),
            fine=method in _WEIGHTS,
            seed=seed,
        )
    elif method == "taylor":
        interval = -(-len(case.inputs) // BATCH)
        pruner = TaylorPruner(model, wanted, trainer, training_steps=interval)
    else:
        pruner = _PLAIN[method](model, wanted, trainer)
    if steps == 1:
        _, masks = pruner.compress()
    else:
        schedule = AGPPruner(pruner, interval_steps=interval, total_times=steps)
        _, masks = schedule.compress(interval * steps, None)
    return given(masks)


def _left(model: nn.Module, masks: Masks, example: Tensor) -> dict[str, float]:
    """Return multiplications with weights that are left, and how many parameters are."""
    positions: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        if name in masks:

            def hook(layer: Any, _given: Any, output: Tensor, name: str = name) -> None:
                positions[name] = output[0].numel() / layer.weight.shape[0]

            handles.append(module.register_forward_hook(hook))
    whole = size(model, example)
    for handle in handles:
        handle.remove()
    gone = {n: float((1 - targets["weight"]).sum()) for n, targets in masks.items()}
    return {
        "macs": whole["macs"] - sum(positions[n] * count for n, count in gone.items()),
        "params": whole["params"] - sum(gone.values()),
    }
