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
from dataclasses import asdict
from typing import Any

import torch
from dropin_networks import Case, size
from torch import Tensor, nn

from de_plugin.assess.teacher import plain_forward
from de_plugin.compare.sizes import size as left

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
        found: dict[str, Any] = asdict(left(changed, case.inputs[:1], plain_forward))
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
            criterion=case.search,
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
