"""What `de-plugin compare` measures of NNI: its pruners, and Directed Evolution inside it.

Channels: each layer loses the same share, by one config list for all methods; batch norms are aligned to the
layers before them, and the host's speed-up then makes the network small. Weights: each layer loses the same
share, or all of them together where the name says global. No method changes weights or statistics: what
trains (Taylor) goes through the labelled samples once, in eval mode at a learning rate of zero.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from de_plugin.adapters.nni import DEPruner, speedup
from de_plugin.adapters.nni.still import BATCH, given, masked, still_evaluator
from de_plugin.adapters.nni.student import followers
from de_plugin.compare import Case, Host, Method, Pruned
from de_plugin.compare.bounded import bounded
from de_plugin.prune import DirectedEvolution

with warnings.catch_warnings():  # NNI is older than the torch it runs on
    warnings.simplefilter("ignore")
    import nni
    from nni.compression.pruning import FPGMPruner, L1NormPruner, L2NormPruner, LevelPruner, TaylorPruner

NAME = "nni"
_NOTES = (
    "nni: SlimPruner and MovementPruner train, and are left out; LinearPruner and AGPPruner schedule others",
    "nni: channels of layers whose outputs are added up are not tied to one another",
)


def host() -> Host:
    """Return all methods of the host, Directed Evolution first."""
    channels: dict[str, Callable[[Case], Pruned]] = {
        "de": _evolved,
        "l1 norm": partial(_plain, L1NormPruner),
        "l2 norm": partial(_plain, L2NormPruner),
        "fpgm": partial(_plain, FPGMPruner),
        "taylor": _taylor,
    }
    weights: dict[str, Callable[[Case], Pruned]] = {
        "de": _evolved,
        "de (global)": partial(_evolved, together=True),
        "level": partial(_plain, LevelPruner),
        "level (global)": partial(_plain, LevelPruner, together=True),
    }
    return Host(
        NAME,
        {NAME: nni.__version__},
        (
            *(Method("weights", NAME, name, run) for name, run in weights.items()),
            *(Method("channels", NAME, name, run) for name, run in channels.items()),
        ),
        _NOTES,
    )


def _evolved(case: Case, together: bool = False) -> Pruned:
    """Mask by Directed Evolution."""
    model, search = case.copy(), bounded(DirectedEvolution.brief(), case.budget)
    pruner = DEPruner(
        model,
        _config(case, together),
        batches=case.inputs,
        criterion=search,
        fine=case.task == "weights",
        **case.asked(),
    )
    found = _masked(case, pruner)
    return Pruned(found.model, found.small, search.evaluations, curve=tuple(search.curve))


def _plain(kind: type, case: Case, together: bool = False) -> Pruned:
    """Mask by a pruner that reads weights alone."""
    return _masked(case, kind(case.copy(), _config(case, together)))


def _taylor(case: Case) -> Pruned:
    """Mask by the pruner that reads gradients, of all samples once."""
    model = case.copy()

    def loss(student: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return case.loss(case.forward(student, inputs), labels).mean()

    trainer = still_evaluator(model, case.inputs, case.labels, loss)
    steps = -(-len(case.inputs) // BATCH)
    return _masked(case, TaylorPruner(model, _config(case, False), trainer, training_steps=steps))


def _config(case: Case, together: bool) -> list[dict[str, Any]]:
    """Return the config list of all methods."""
    if case.task == "weights":
        case.check_single_weights()
        entry = {"target_names": ["weight"], "sparse_ratio": case.sparsity}
        if together:
            entry["global_group_id"] = "all"
        return [{"op_names": list(_owners(case)), **entry}]
    entries: list[dict[str, Any]] = [{"op_names": [n], "sparse_ratio": case.sparsity} for n in case.modules]
    for layer, norms in sorted(followers(case.copy(), case.batches[0][0], case.forward).items()):
        if layer in case.modules:
            follow = {"align": {"module_name": layer, "target_name": "weight", "dims": [0]}}
            both = {"target_names": ["weight", "bias"], "target_settings": {"weight": follow, "bias": follow}}
            entries += [{"op_names": [norm], **copy.deepcopy(both)} for norm in norms]
    return entries


def _owners(case: Case) -> list[str]:
    return [name.rpartition(".")[0] for name in case.weights]


def _masked(case: Case, pruner: Any) -> Pruned:
    """Return the model as the host's wrappers make it compute, and for channels what its speed-up leaves."""
    with _quiet():
        _, found = pruner.compress()
    masks = given(found)
    model = masked(case.model, masks)
    if case.task == "weights":
        return Pruned(model, evaluations=0)
    with _quiet():
        small = speedup(case.copy(), masks, case.inputs[:2])
    return Pruned(model, small, evaluations=0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the host's log lines out of a progress display."""
    logger = logging.getLogger("nni")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
