"""Directed Evolution against every built-in criterion of Torch-Pruning, at equal MACs, without fine-tuning.

Each layer loses the same share of its channels, so that all methods leave the same MACs; in one step, or
four. No method changes weights or statistics. Taylor and Hessian run as the host's examples feed them;
in version 1.6.1 the one leaves batch norms out and the other keeps the last sample only, so they also run
corrected: "taylor (corrected)" is the engine's, over all parameters of a group, "hessian (corrected)" the
host's with the mean over all samples. Both use labels; Directed Evolution does not. Images for the
choice are training images; accuracy is on the test images, looked at once a row, at its end.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

import de_plugin
from de_plugin import DirectedEvolution, Taylor
from de_plugin.adapters.torch_pruning import DEImportance, DEPruner, as_criterion
from de_plugin.zoo import accuracy, mnist, teacher


def importances() -> dict[str, Any]:
    """Return the host's criteria that need no more than the network."""
    found = tp.importance
    return {
        "magnitude l1": found.GroupMagnitudeImportance(p=1),
        "magnitude l2": found.GroupMagnitudeImportance(p=2),
        "bn scale": found.BNScaleImportance(),
        "lamp": found.LAMPImportance(),
        "fpgm": found.FPGMImportance(),
        "random": found.RandomImportance(),
    }


def backward(model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """Leave the gradient of the mean loss in `.grad`, as the host's examples do for Taylor."""
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()


def hessian(importance: Any, model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """Accumulate squared gradients sample by sample, as the host's examples do."""
    importance.zero_grad()
    losses = nn.functional.cross_entropy(model(inputs), labels, reduction="none")
    for loss in losses:
        model.zero_grad()
        loss.backward(retain_graph=True)
        importance.accumulate_grad(model)


def pruner_of(
    method: str, model: nn.Module, data: tuple[Tensor, Tensor], ratio: float, steps: int, seed: int
) -> tuple[Any, Callable[[], None]]:
    """Return a method's pruner, and what feeds it before each step."""
    inputs, labels = data
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    options: dict[str, Any] = {"pruning_ratio": ratio, "iterative_steps": steps, "ignored_layers": [last]}
    example = inputs[:1]
    if method == "de importance":
        importance = DEImportance(model, inputs, seed=seed)
        return tp.pruner.BasePruner(model, example, importance, num_heads={}, **options), lambda: None
    options |= {"seed": seed, "match_batchnorm": False} if method in OURS else {}
    if method == "de":
        return DEPruner(model, example, inputs, **options), lambda: None
    if method in OURS:
        host = as_criterion(tp.importance.GroupHessianImportance())
        criterion = Taylor(labels=True) if method.startswith("taylor") else host
        return DEPruner(model, example, (inputs, labels), criterion=criterion, **options), lambda: None
    if method == "taylor":
        importance = tp.importance.GroupTaylorImportance()
        pruner = tp.pruner.BasePruner(model, example, importance, **options)
        return pruner, lambda: backward(model, inputs[:512], labels[:512])
    if method == "hessian":
        importance = tp.importance.GroupHessianImportance()
        pruner = tp.pruner.BasePruner(model, example, importance, **options)
        return pruner, lambda: hessian(importance, model, inputs[:128], labels[:128])
    torch.manual_seed(seed)
    return tp.pruner.BasePruner(model, example, importances()[method], **options), lambda: None


def row(network: str, method: str, ratio: float, steps: int, seed: int, samples: int) -> dict[str, Any]:
    """Prune once and measure."""
    data = mnist()
    original = teacher(network, "mnist").eval()
    model = copy.deepcopy(original)
    order = torch.randperm(len(data.train_inputs), generator=torch.Generator().manual_seed(seed))[:samples]
    started = time.monotonic()
    pruner, feed = pruner_of(
        method, model, (data.train_inputs[order], data.train_labels[order]), ratio, steps, seed
    )
    for _ in range(steps):
        feed()
        pruner.step()
    seconds = time.monotonic() - started
    model.eval().zero_grad()
    macs, parameters = tp.utils.count_ops_and_params(model, data.test_inputs[:1])
    with torch.no_grad():
        divergence = float(de_plugin.KL()(model(data.test_inputs), original(data.test_inputs), None))
    return {
        "network": network,
        "ratio": ratio,
        "steps": steps,
        "method": method,
        "macs": macs,
        "params": parameters,
        "divergence": divergence,
        "accuracy": accuracy(model, data.test_inputs, data.test_labels),
        "seconds": seconds,
        "seed": seed,
    }


OURS = ("de", "taylor (corrected)", "hessian (corrected)")
"""What a pruner of ours runs."""
METHODS = (
    "de",
    "de importance",
    *importances(),
    "taylor",
    "taylor (corrected)",
    "hessian",
    "hessian (corrected)",
)


def main() -> None:
    """Measure every cell and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", choices=["torch-pruning"], default="torch-pruning")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["lenet5", "resnet"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    document: dict[str, Any] = {
        "host": options.host,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch-pruning": tp.__version__,
            "de_plugin": de_plugin.__version__,
        },
        "samples": options.samples,
        "criterion": repr(DirectedEvolution.brief()),
        "rows": [],
    }
    for network in options.networks:
        for ratio in options.ratios:
            for steps in options.steps:
                for seed in options.seeds:
                    for method in options.methods:
                        found = row(network, method, ratio, steps, seed, options.samples)
                        document["rows"].append(found)
                        print(found, flush=True)
                        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
